"""Callbacks of providers: hints to look now, verified first and confirmed by a read.

The path carries our signed token, of one attempt or, for services that call one address
for a whole account, of that account; so a callback for another job, a forged or an old
one changes nothing. All the same answers 200 or 401, nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from django.core import signing
from django.db.models.functions import Now
from django.http import HttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from inference.errors import ProviderError
from inference.providers.base import CallbackHint, CallbackRefused
from inference.registry import PROVIDERS
from jobs import outside, provider_steps
from jobs.models import Job, ProviderAccount
from jobs.provider_steps import ACCOUNT_CALLBACK_SALT, CALLBACK_SALT
from jobs.states import Step

if TYPE_CHECKING:
    from django.http import HttpRequest

log = structlog.get_logger()


@csrf_exempt
@require_POST
def callback(request: HttpRequest, provider: str, token: str) -> HttpResponse:
    """Take a provider's word that something happened to one of its jobs."""
    job = _job_of(provider, token)
    account = job.provider_account if job else _account_of(provider, token)
    if account is None:
        return HttpResponse(status=401)
    headers = {name.lower(): value for name, value in request.headers.items()}
    try:
        hint = outside.adapter(provider).parse_callback(
            request.body, headers, outside.as_account(account)
        )
    except (CallbackRefused, ProviderError) as refused:
        log.warning("callback_refused", provider=provider, reason=str(refused))
        return HttpResponse(status=401)
    if job is not None:
        _take(job, hint)
    else:
        _look_at(hint, provider_account=account)
    return HttpResponse(status=200)


def _take(job: Job, hint: CallbackHint) -> None:
    """Use a callback about an attempt, wherever the job stands by now."""
    if not hint.provider_id:
        return
    if job.provider_job_id == hint.provider_id:
        _look_at(hint, pk=job.pk)
    elif job.provider_job_id == "":
        # Not answered yet, in doubt, or ended in doubt: our token in the path is the
        # evidence.
        provider_steps.was_found(job.pk, hint.provider_id, token=job.submit_token)


def _look_at(hint: CallbackHint, **which: object) -> None:
    Job.objects.filter(
        step__in=[Step.AWAIT, Step.RECONCILE],
        provider_job_id=hint.provider_id,
        **which,
    ).update(next_poll_at=Now())


def _job_of(provider: str, token: str) -> Job | None:
    try:
        job_id, attempt = signing.loads(token, salt=CALLBACK_SALT)
    except (signing.BadSignature, ValueError, TypeError):
        return None
    return (
        Job.objects.filter(pk=job_id, submit_token=attempt, route__runner=provider)
        .exclude(submit_token="")
        .select_related("provider_account")
        .first()
    )


def _account_of(provider: str, token: str) -> ProviderAccount | None:
    try:
        account_id = signing.loads(token, salt=ACCOUNT_CALLBACK_SALT)
    except signing.BadSignature:
        return None
    if provider not in PROVIDERS:
        return None
    return ProviderAccount.objects.filter(pk=account_id, provider=provider).first()
