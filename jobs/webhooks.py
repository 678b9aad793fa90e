"""Events for customers, left in the transaction that causes them, and their signatures.

Standard Webhooks: headers ``webhook-id`` (the same over all tries), ``webhook-timestamp``
and ``webhook-signature`` with a v1 (HMAC-SHA256) and a v1a (ed25519) part, made anew for
each try. An event keeps what its job was like: every try says the same, but for the links.
``deliveries`` sends them: at least once, in no promised order.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from jobs import bells, incidents
from jobs.errors import NotAcceptableNow
from jobs.models import (
    AccountSecret,
    Job,
    SigningKey,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
    WebhookLane,
)
from jobs.requests import WebhookTarget

log = structlog.get_logger()

QUEUE = "webhook"
TYPES = (
    "job.running",
    "job.succeeded",
    "job.failed",
    "job.canceled",
    "balance.low",
    "endpoint.disabled",
)
#: How a job that only tested its webhook says that it ended.
TEST_CODE = "webhook_test"
OLD_SECRET_LIFE = timedelta(hours=24)
#: More would make the header of every call longer than receivers read.
FORMER_SECRETS_MAX = 10
#: What an event keeps of its job: all that changes and that a body shows.
KEPT = (
    *("status", "step", "stage", "progress", "eta_seconds", "started_at"),
    *("finished_at", "files_expire_at", "quoted_millicredits", "charged_millicredits"),
    *("refunded_millicredits", "error_code", "error_message", "error_retryable"),
    *("output", "resolved"),
)

# --------------------------------------------------------------------- announcing


def announce(job_id: UUID, event: str) -> None:
    """Leave ``event`` about the job for whoever asked; runs in the job's transaction."""
    fields = ("id", "account_id", "mode", "request")
    leave(Job.objects.only(*fields).get(pk=job_id), event)


def leave(job: Job, event: str, targets: list[WebhookDelivery] | None = None) -> None:
    """Do as `announce` for a job at hand, whose state may be out of date.

    ``targets`` may have been found before a lock was taken.
    """
    targets = targets_of(job, event) if targets is None else targets
    if targets:
        kept = _kept(Job.objects.only(*KEPT).get(pk=job.pk))
        _leave(job.account_id, job.mode, event, targets, job=job, data=kept)


def targets_of(job: Job, event: str) -> list[WebhookDelivery]:
    """Return deliveries of ``event``, not yet saved: one for each who asked for it."""
    targets = [
        WebhookDelivery(endpoint=endpoint, url=endpoint.url, lane=_lane_of(endpoint))
        for endpoint in _listeners(job.account_id, job.mode, event)
    ]
    hook = job.request.get("webhook")
    if hook and not hook.get("test_status") and _wants(hook, event):
        targets.append(
            WebhookDelivery(
                url=hook["url"],
                format=hook["format"],
                lane=_lane_of_host(job, hook["url"]),
            )
        )
    return targets


def _kept(job: Job) -> dict[str, Any]:
    values = {name: getattr(job, name) for name in KEPT}
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in values.items()
    }


def announce_rehearsal(job_id: UUID, target: WebhookTarget) -> None:
    """Leave the one mock event a job that only tests its webhook asks for."""
    job = Job.objects.only("id", "account_id", "mode").get(pk=job_id)
    delivery = WebhookDelivery(
        url=target.url, format=target.format, lane=_lane_of_host(job, target.url)
    )
    event = f"job.{target.test_status}"
    _leave(job.account_id, job.mode, event, [delivery], job=job)


def _lane_of_host(job: Job, url: str) -> str:
    return f"host:{job.account_id}:{urlsplit(url).netloc}"[:300]


def announce_account(
    account_id: UUID, mode: str, event: str, data: Mapping[str, Any]
) -> None:
    """Leave an event that is about the account itself."""
    targets = [
        WebhookDelivery(endpoint=endpoint, url=endpoint.url, lane=_lane_of(endpoint))
        for endpoint in _listeners(account_id, mode, event)
    ]
    _leave(account_id, mode, event, targets, data=data)


def _listeners(account_id: UUID, mode: str, event: str) -> list[WebhookEndpoint]:
    rows = WebhookEndpoint.objects.filter(
        account_id=account_id, mode=mode, is_enabled=True
    )
    return [row for row in rows if not row.events or event in row.events]


def _wants(hook: Mapping[str, Any], event: str) -> bool:
    ends = ("job.succeeded", "job.failed", "job.canceled")
    return event in (hook.get("events") or ends)


def _lane_of(endpoint: WebhookEndpoint) -> str:
    return f"endpoint:{endpoint.pk}"


def _leave(
    account_id: UUID,
    mode: str,
    event: str,
    targets: list[WebhookDelivery],
    *,
    job: Job | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    if not targets:
        return
    row = WebhookEvent.objects.create(
        account_id=account_id, mode=mode, type=event, job=job, data=dict(data or {})
    )
    lanes = WebhookLane.objects.filter(
        key__in=[target.lane for target in targets], open_until__gt=Now()
    )
    resting = {lane.key: lane.open_until for lane in lanes if lane.open_until}
    for target in targets:
        target.event = row
        if target.lane in resting:
            target.next_at = resting[target.lane]
    WebhookDelivery.objects.bulk_create(targets)
    bells.ring(*[QUEUE for target in targets if target.lane not in resting])


def send_test(endpoint: WebhookEndpoint) -> WebhookDelivery:
    """Leave an event of type ``test`` for one endpoint alone."""
    event = WebhookEvent.objects.create(
        account_id=endpoint.account_id,
        mode=endpoint.mode,
        type="test",
        data={"message": "This is a test."},
    )
    delivery = WebhookDelivery.objects.create(
        event=event, endpoint=endpoint, url=endpoint.url, lane=_lane_of(endpoint)
    )
    delivery.refresh_from_db()
    bells.ring(QUEUE)
    return delivery


def disable(endpoint: WebhookEndpoint, reason: str) -> None:
    """Switch an endpoint off, tell the account's others, and leave an incident."""
    switched = WebhookEndpoint.objects.filter(pk=endpoint.pk, is_enabled=True).update(
        is_enabled=False, disabled_reason=reason
    )
    if not switched:
        return
    WebhookDelivery.objects.filter(endpoint=endpoint, state="pending").update(
        state="failed"
    )
    data = {"endpoint_id": str(endpoint.pk), "url": endpoint.url, "reason": reason}
    announce_account(endpoint.account_id, endpoint.mode, "endpoint.disabled", data)
    incidents.report(
        "webhook_endpoint", str(endpoint.pk), f"{endpoint.url} was disabled: {reason}."
    )


# ----------------------------------------------------------------------- signing


def sign(
    event_id: str, timestamp: int, body: bytes, keys: Sequence[str]
) -> dict[str, str]:
    """Return the Standard Webhooks headers: one v1 part per secret, and one v1a."""
    message = f"{event_id}.{timestamp}.".encode() + body
    parts = []
    for key in keys:
        raw = base64.b64decode(key.removeprefix("whsec_"))
        parts.append("v1," + _b64(hmac.digest(raw, message, hashlib.sha256)))
    parts.append("v1a," + _b64(_signing_key().sign(message)))
    return {
        "content-type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(parts),
    }


def public_key() -> str:
    """Return the ed25519 public key that v1a signatures verify with."""
    raw = _signing_key().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return "whpk_" + _b64(raw)


def _signing_key() -> Ed25519PrivateKey:
    row, _ = SigningKey.objects.get_or_create(
        name="webhooks", defaults={"seed": _b64(secrets.token_bytes(32))}
    )
    return Ed25519PrivateKey.from_private_bytes(base64.b64decode(row.seed))


def new_secret() -> str:
    return "whsec_" + _b64(secrets.token_bytes(32))


def account_secret(account_id: UUID, mode: str) -> str:
    """Return what the account's per-job webhooks are signed with."""
    row, _ = AccountSecret.objects.get_or_create(
        account_id=account_id, mode=mode, defaults={"webhook_secret": new_secret()}
    )
    return str(row.webhook_secret)


def rotate(endpoint: WebhookEndpoint) -> str:
    """Give the endpoint a new secret; each former one signs beside it for a day.

    However often it is rotated meanwhile: the one the customer runs with is among them.
    Raises NotAcceptableNow when that would be too many.
    """
    fresh = new_secret()
    with transaction.atomic():
        row = WebhookEndpoint.objects.select_for_update(no_key=True).get(pk=endpoint.pk)
        row.former_secrets.filter(until__lte=Now()).delete()
        if row.former_secrets.count() >= FORMER_SECRETS_MAX:
            raise NotAcceptableNow(
                f"It was rotated {FORMER_SECRETS_MAX} times within a day; try tomorrow."
            )
        row.former_secrets.create(
            secret=row.secret, until=timezone.now() + OLD_SECRET_LIFE
        )
        row.secret = fresh
        row.save(update_fields=["secret"])
    return fresh


def replay(delivery: WebhookDelivery) -> None:
    """Send a delivery again, now, from its first try on."""
    WebhookDelivery.objects.filter(pk=delivery.pk).update(
        state="pending", tries=0, next_at=Now(), claimed_until=None
    )
    bells.ring(QUEUE)


def secrets_of(endpoint: WebhookEndpoint) -> list[str]:
    """Return what the endpoint's calls are signed with, the newest first."""
    former = endpoint.former_secrets.filter(until__gt=Now())
    return [str(endpoint.secret), *(str(row.secret) for row in former)]


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
