"""Stable, unguessable addresses of finished files, for APIs that promise lasting links."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import structlog
from django.core import signing
from django.db import InterfaceError, OperationalError
from django.http import HttpResponse, HttpResponseRedirect, JsonResponse

from jobs import context
from jobs.display import PERMANENT_SALT
from jobs.models import Job
from jobs.states import Status

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponseBase

log = structlog.get_logger()

#: The redirect is followed at once; a short life keeps the target from being shared.
LINK_SECONDS = 300
_KEYS = {"video": "key", "poster": "poster_key"}


def permanent(request: HttpRequest, token: str, name: str) -> HttpResponseBase:
    """Redirect to a fresh signed URL of the file that ``token`` stands for."""
    if request.method not in ("GET", "HEAD"):
        return HttpResponse(status=405, headers={"Allow": "GET, HEAD"})
    # A link is signed for one method: whoever asks by HEAD follows it by HEAD.
    method: Literal["GET", "HEAD"] = "HEAD" if request.method == "HEAD" else "GET"
    try:
        told = signing.Signer(salt=PERMANENT_SALT).unsign_object(token)
        job_id, kind = told.split(":")
    except (signing.BadSignature, ValueError, AttributeError):
        return _gone()
    try:
        job = Job.objects.filter(
            pk=job_id, status=Status.SUCCEEDED, files_deleted_at__isnull=True
        ).first()
    except (OperationalError, InterfaceError) as error:
        log.error("database_unavailable", error=str(error))
        return _problem("Please try again shortly", 503, {"Retry-After": "5"})
    key = job.output.get(_KEYS[kind]) if job else None
    if not key:
        return _gone()
    return HttpResponseRedirect(
        context.get().storage.presign(key, seconds=LINK_SECONDS, method=method)
    )


def _gone() -> JsonResponse:
    return _problem("Not found", 404)


def _problem(
    title: str, status: int, headers: Mapping[str, str] | None = None
) -> JsonResponse:
    body = {"title": title, "status": status}
    return JsonResponse(body, status=status, headers=headers)
