"""Sending webhooks: one due delivery at a time, so that no customer waits for another.

Each address has its own lane: few calls at once, fewer while it fails, none while its
circuit is open: what waits for it is due when it may close. Every try is logged with at
most 1 kB of the answer.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from django.db import Error as DatabaseError
from django.db import connection, transaction
from django.db.models import Q
from django.db.models.functions import Now

from inference.errors import InputRejected, RenderError
from jobs import bells, context, event_bodies, webhooks
from jobs.models import WebhookDelivery, WebhookLane

log = structlog.get_logger()

TIMEOUT_SECONDS = 15.0
ANSWER_BYTES = 1024
JITTER = 0.1
#: An endpoint that has only failed for so long is switched off.
DISABLE_AFTER = timedelta(days=5)
#: Calls at once to one lane, and while it fails.
LANE_CALLS = 5
LANE_CALLS_FAILING = 1
LANE_FAILURES_TO_OPEN = 3
LANE_OPEN_SECONDS = 10.0
LANE_OPEN_SECONDS_MAX = 600.0
#: Sent upon one bell; then the worker looks at what else rings.
BATCH = 50


@dataclass(frozen=True)
class Schedule:
    """Pauses before each try (the first is at once) and how long a receiver may take.

    Any status that is not among ``success`` is tried again.
    """

    pauses_seconds: Sequence[float]
    timeout_seconds: float = TIMEOUT_SECONDS
    success: Container[int] = range(200, 300)


#: Svix's schedule; and for other services' own forms what their pages state or, where
#: they state no spacing, doubling pauses.
SCHEDULES: Mapping[str, Schedule] = {
    "standard": Schedule((0, 5, 300, 1800, 7200, 18_000, 36_000, 36_000)),
    "novita": Schedule((0, 1, 2, 4, 8, 16), timeout_seconds=5.0),
    "akool": Schedule((0, 5, 30, 300, 1800, 7200), success=(200,)),
}

_CLAIM = """
WITH busy AS (
    SELECT lane, count(*) AS calls FROM jobs_webhookdelivery
     WHERE claimed_until > statement_timestamp() GROUP BY lane
), picked AS (
    SELECT d.id FROM jobs_webhookdelivery d
      LEFT JOIN jobs_webhooklane l ON l.key = d.lane
      LEFT JOIN busy b ON b.lane = d.lane
     WHERE d.state = 'pending' AND d.next_at <= statement_timestamp()
       AND (d.claimed_until IS NULL OR d.claimed_until < statement_timestamp())
       AND (l.open_until IS NULL OR l.open_until < statement_timestamp())
       AND coalesce(b.calls, 0)
           < CASE WHEN coalesce(l.failures_in_row, 0) > 0 THEN %(few)s ELSE %(many)s END
     ORDER BY d.next_at LIMIT 1 FOR UPDATE OF d SKIP LOCKED
)
UPDATE jobs_webhookdelivery d
   SET claimed_until = statement_timestamp() + make_interval(secs => %(lease)s), tries = tries + 1
  FROM picked WHERE d.id = picked.id RETURNING d.id
"""


def deliver_some(should_stop: Callable[[], bool]) -> None:
    """Send what is due until nothing is, ``BATCH`` are done or ``should_stop`` says so.

    A bell that found its lane full is not missed: whoever fills the lane goes on.
    """
    for _ in range(BATCH):
        if should_stop() or not deliver_next():
            return
    bells.ring(webhooks.QUEUE)


def deliver_next() -> bool:
    """Send one due delivery; return False when there was none to send."""
    with connection.cursor() as cursor:
        cursor.execute(
            _CLAIM,
            {"few": LANE_CALLS_FAILING, "many": LANE_CALLS, "lease": 60.0},
        )
        row = cursor.fetchone()
    if row is None:
        return False
    # Without the endpoint's secret: one that nobody can read must not stop us here.
    rows = WebhookDelivery.objects.select_related("event__job", "endpoint")
    delivery = rows.defer("endpoint__secret").get(pk=row[0])
    if delivery.endpoint is not None and not delivery.endpoint.is_enabled:
        # Left in the moment it was switched off. Whoever enables it can send it again.
        WebhookDelivery.objects.filter(pk=delivery.pk).update(
            state="failed", claimed_until=None
        )
        return True
    _record(delivery, _send(delivery))
    return True


@dataclass(frozen=True)
class Outcome:
    """How one try went; ``status`` 0 means that no answer came."""

    status: int
    answer: str
    seconds: float
    retry_after_seconds: float | None = None
    is_ok: bool = False
    #: Nothing was sent, by a fault of ours that says nothing about the receiver.
    is_our_fault: bool = False


def _send(delivery: WebhookDelivery) -> Outcome:
    started = time.monotonic()
    schedule = SCHEDULES.get(delivery.format, SCHEDULES["standard"])
    try:
        body, headers = _call_of(delivery)
        reply = context.get().egress.post(
            delivery.url, body, headers, timeout_seconds=schedule.timeout_seconds
        )
    except InputRejected as refused:
        return Outcome(0, f"refused: {refused}", time.monotonic() - started)
    except RenderError as error:
        return Outcome(0, str(error), time.monotonic() - started)
    except DatabaseError:
        raise  # the claim runs out, and it is tried again
    except Exception:
        # A secret nobody can read, an event we cannot word: it would come back for ever
        # and its owner would see nothing.
        log.exception("webhook_not_made", delivery=delivery.pk)
        seconds = time.monotonic() - started
        return Outcome(0, "not sent: a fault of ours", seconds, is_our_fault=True)
    answer = reply.body[:ANSWER_BYTES].decode("utf-8", "replace").replace("\x00", "")
    return Outcome(
        reply.status,
        answer,
        time.monotonic() - started,
        _retry_after(reply.headers),
        is_ok=reply.status in schedule.success,
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    value = headers.get("retry-after", "")
    return min(float(value), 86_400.0) if value.isascii() and value.isdigit() else None


def _record(delivery: WebhookDelivery, outcome: Outcome) -> None:
    schedule = SCHEDULES.get(delivery.format, SCHEDULES["standard"])
    entry = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(outcome.seconds, 3),
        "status": outcome.status,
        "answer": outcome.answer,
    }
    changes: dict[str, Any] = {
        "claimed_until": None,
        "log": [*delivery.log, entry][-20:],
    }
    if outcome.is_ok:
        changes |= {"state": "delivered", "delivered_at": Now()}
    elif _is_gone(delivery, outcome) or delivery.tries >= len(schedule.pauses_seconds):
        changes["state"] = "failed"
    else:
        pause = schedule.pauses_seconds[delivery.tries]
        pause *= 1 + random.uniform(0, JITTER)  # noqa: S311 - only spreads load
        pause = max(pause, outcome.retry_after_seconds or 0)
        changes["next_at"] = Now() + timedelta(seconds=pause)
    with transaction.atomic():
        # The lane first: who holds it may touch all its deliveries.
        open_until = None if outcome.is_our_fault else _note_lane(delivery, outcome)
        WebhookDelivery.objects.filter(pk=delivery.pk).update(**changes)
        if open_until is not None:
            # Else every look for work would read past all that waits for this address.
            WebhookDelivery.objects.filter(
                lane=delivery.lane, state="pending", next_at__lt=open_until
            ).update(next_at=open_until)


def _is_gone(delivery: WebhookDelivery, outcome: Outcome) -> bool:
    # Standard Webhooks' way to unsubscribe; the other services retry it like any other.
    return outcome.status == 410 and delivery.format == "standard"


def _note_lane(delivery: WebhookDelivery, outcome: Outcome) -> datetime | None:
    """Write down how the lane is doing; return until when it is open, if it is."""
    if outcome.is_ok:
        WebhookLane.objects.filter(key=delivery.lane).delete()
        return None
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO jobs_webhooklane (key, failures_in_row, failing_since)"
            " VALUES (%(key)s, 1, statement_timestamp()) ON CONFLICT (key) DO UPDATE"
            " SET failures_in_row = jobs_webhooklane.failures_in_row + 1,"
            " open_until = CASE WHEN jobs_webhooklane.failures_in_row + 1 >= %(limit)s"
            "  THEN statement_timestamp() + make_interval(secs => least(%(most)s, %(open)s"
            "       * 2 ^ least(jobs_webhooklane.failures_in_row + 1 - %(limit)s, 10)))"
            "  ELSE NULL END"
            " RETURNING failing_since < statement_timestamp() - make_interval(secs => %(dead)s),"
            " open_until",
            {
                "key": delivery.lane,
                "limit": LANE_FAILURES_TO_OPEN,
                "open": LANE_OPEN_SECONDS,
                "most": LANE_OPEN_SECONDS_MAX,
                "dead": DISABLE_AFTER.total_seconds(),
            },
        )
        is_dead, open_until = cursor.fetchone()
    if delivery.endpoint is not None:
        if outcome.status == 410:
            webhooks.disable(delivery.endpoint, "it answered 410 Gone")
        elif is_dead:
            webhooks.disable(delivery.endpoint, "every delivery failed for five days")
    until: datetime | None = open_until
    return until


def due() -> int:
    """Return how many deliveries are due: retries, and those whose bells were lost."""
    return WebhookDelivery.objects.filter(
        Q(claimed_until__isnull=True) | Q(claimed_until__lt=Now()),
        state="pending",
        next_at__lte=Now(),
    ).count()


def _call_of(delivery: WebhookDelivery) -> tuple[bytes, Mapping[str, str]]:
    """Return body and headers of this try, freshly signed."""
    if delivery.format != "standard":
        return event_bodies.in_dialect(delivery.event, delivery.format)
    body = event_bodies.standard(delivery.event)
    keys = (
        webhooks.secrets_of(delivery.endpoint)
        if delivery.endpoint is not None
        else [webhooks.account_secret(delivery.event.account_id, delivery.event.mode)]
    )
    moment = int(time.time())
    return body, webhooks.sign(str(delivery.event.pk), moment, body, keys)
