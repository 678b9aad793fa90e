"""What a webhook says: the event's body in our own form, or in a dialect's.

However late and often it is sent, it shows the job as it was when the event was left.
Only links are made for each try, and none to files that are gone meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Any, cast

from django.conf import settings

from billing import keys
from inference.errors import RenderError
from jobs import context, display
from jobs.dialects import base, load_dialect
from jobs.dialects.native import job_body
from jobs.models import Job, WebhookEvent


class CannotBeSealed(RenderError):
    """There is nothing to encrypt this account's webhook with."""


#: What an event says its job's status is.
_STATUS = {
    "job.running": "running",
    "job.succeeded": "succeeded",
    "job.failed": "failed",
    "job.canceled": "canceled",
}


def standard(event: WebhookEvent) -> bytes:
    """Return the body of a Standard Webhooks call: type, timestamp, data."""
    return json.dumps(
        {
            "id": str(event.pk),
            "type": event.type,
            "timestamp": event.created_at.isoformat(timespec="milliseconds"),
            "livemode": event.mode == "live",
            "data": _data(event),
        }
    ).encode()


def in_dialect(event: WebhookEvent, name: str) -> tuple[bytes, Mapping[str, str]]:
    """Return body and headers of another API's own kind of webhook."""
    dialect = load_dialect(name)
    assert dialect.webhook is not None
    assert event.job is not None
    call = dialect.webhook(
        base.Event(
            id=str(event.pk),
            type=event.type,
            created_at=event.created_at,
            job=_view(event, dialect),
        ),
        _pair_of(event.job) if dialect.seals_webhooks else {},
    )
    return call.body, call.headers


def _pair_of(job: Job) -> dict[str, str]:
    pair = keys.pair_for(job.account_id, job.mode, key_id=job.api_key_id)
    if pair is None:
        raise CannotBeSealed("the account has no client pair any more")
    return {"client_id": pair[0], "client_secret": pair[1]}


def _data(event: WebhookEvent) -> dict[str, Any]:
    if event.job is None:
        return dict(event.data)
    return job_body(_view(event, load_dialect("native")))


def _view(event: WebhookEvent, dialect: base.Dialect) -> base.JobView:
    job = _as_it_was(event)
    shown = display.view(
        job,
        dialect=dialect,
        storage=context.get().storage,
        base_url=settings.PUBLIC_URL,
    )
    # Not from how long jobs of late took, which is another number at each try.
    shown = replace(shown, eta_seconds=job.eta_seconds)
    status = _STATUS.get(event.type, shown.status)
    return replace(shown, status=cast("base.Status", status))


def _as_it_was(event: WebhookEvent) -> Job:
    """Return the event's job with everything the event keeps of it put back."""
    assert event.job is not None
    job = copy(event.job)
    for field in Job._meta.concrete_fields:
        if field.name in event.data:
            setattr(job, field.name, field.to_python(event.data[field.name]))
    return job
