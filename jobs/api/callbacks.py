"""Callbacks of providers: hints to look now, verified first and confirmed by a read.

The path carries our signed token of the attempt, so a callback for another job, a
forged or an old one changes nothing. All the same answers 200 or 401, nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from django.core import signing
from django.db.models.functions import Now
from django.http import HttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from inference.providers.base import CallbackRefused
from inference.registry import PROVIDERS
from jobs import outside, reconcile
from jobs.models import Job
from jobs.provider_steps import CALLBACK_SALT
from jobs.states import Step

if TYPE_CHECKING:
    from django.http import HttpRequest

log = structlog.get_logger()


@csrf_exempt
@require_POST
def callback(request: HttpRequest, provider: str, token: str) -> HttpResponse:
    """Take a provider's word that something happened to one of its jobs."""
    job = _job_of(provider, token)
    if job is None or job.provider_account is None:
        return HttpResponse(status=401)
    headers = {name.lower(): value for name, value in request.headers.items()}
    try:
        hint = outside.adapter(provider).parse_callback(
            request.body, headers, outside.as_account(job.provider_account)
        )
    except CallbackRefused as refused:
        log.warning("callback_refused", provider=provider, reason=str(refused))
        return HttpResponse(status=401)
    if job.step == Step.RECONCILE and hint.provider_id:
        # The lost answer's id: our token in the path is the evidence.
        reconcile.was_found(job, hint.provider_id)
    elif job.step == Step.AWAIT and hint.provider_id == job.provider_job_id:
        Job.objects.filter(pk=job.pk, step=Step.AWAIT).update(next_poll_at=Now())
    return HttpResponse(status=200)


def _job_of(provider: str, token: str) -> Job | None:
    try:
        job_id, attempt = signing.loads(token, salt=CALLBACK_SALT)
    except (signing.BadSignature, ValueError, TypeError):
        return None
    if provider not in PROVIDERS:
        return None
    return (
        Job.objects.filter(pk=job_id, submit_token=attempt, route__runner=provider)
        .exclude(submit_token="")
        .select_related("provider_account")
        .first()
    )
