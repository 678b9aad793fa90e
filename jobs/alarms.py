"""Telling the operator: each incident's beginning and end goes to one webhook.

Signed as customers' webhooks are (Standard Webhooks). It is sent by the poller's
process, which talks to the outside anyway and needs neither Redis nor a worker: those may
be what the incident is about. What was not taken is sent again, with growing pauses.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import structlog
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Q
from django.db.models.functions import Now

from inference.egress import Egress
from inference.errors import RenderError
from jobs import webhooks
from jobs.models import Incident

log = structlog.get_logger()

#: The advisory lock of the one process that tells.
LOCK = 7_263_003
EVERY_SECONDS = 2.0
PAUSE_SECONDS_MAX = 300.0
TIMEOUT_SECONDS = 10.0


def run(stop: threading.Event) -> None:
    """Tell what is untold until ``stop`` is set; nothing to do without an address."""
    if not settings.OPERATOR_WEBHOOK_URL:
        return
    failures = 0
    while not stop.wait(min(EVERY_SECONDS * 2**failures, PAUSE_SECONDS_MAX)):
        try:
            while tell_next() and not stop.is_set():
                pass
            failures = 0
        except Exception:
            # Nobody else would tell that this thread had ended.
            failures = min(failures + 1, 10)
            log.exception("operator_not_told")
            connection.close()
    connection.close()


class NotTaken(RenderError):
    """The operator's webhook answered something else than 2xx."""


def tell_next() -> bool:
    """Try to send one untold beginning or end; return False when none is due.

    What was not taken is due again after a pause of its own, so that nothing the receiver
    refuses keeps the rest from it. One process tells at a time, and it locks no row
    meanwhile: a slow receiver must not hold up who reports the next incident.
    """
    untold = Q(told_at__isnull=True) | Q(
        end_told_at__isnull=True, resolved_at__isnull=False
    )
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK])
            (is_mine,) = cursor.fetchone()
        due = Incident.objects.filter(untold, tell_at__lte=Now())
        incident = due.order_by("tell_at", "pk").first() if is_mine else None
        if incident is None:
            return False
        Incident.objects.filter(pk=incident.pk).update(**_told(incident))
    return True


def _told(incident: Incident) -> dict[str, Any]:
    """Send what is untold of the incident; return what its row says then."""
    is_end = incident.told_at is not None
    try:
        _send(incident, "incident.resolved" if is_end else "incident.opened")
    except RenderError as error:
        tries = incident.tell_tries + 1
        pause = min(EVERY_SECONDS * 2 ** min(tries, 10), PAUSE_SECONDS_MAX)
        log.warning("operator_not_told", incident=incident.pk, error=str(error))
        return {"tell_tries": tries, "tell_at": Now() + timedelta(seconds=pause)}
    column = "end_told_at" if is_end else "told_at"
    return {column: Now(), "tell_tries": 0}


def _send(incident: Incident, event: str) -> None:
    body = json.dumps({"type": event, **_body(incident)}).encode()
    headers = webhooks.sign(
        f"{event}:{incident.pk}",
        int(time.time()),
        body,
        [settings.OPERATOR_WEBHOOK_SECRET],
    )
    # The operator's own address may be a private one; nobody else can set it.
    place = urlsplit(settings.OPERATOR_WEBHOOK_URL)
    port = place.port or (443 if place.scheme == "https" else 80)
    egress = Egress(allow_hosts=[f"{place.hostname}:{port}"])
    reply = egress.post(
        settings.OPERATOR_WEBHOOK_URL, body, headers, timeout_seconds=TIMEOUT_SECONDS
    )
    if not 200 <= reply.status < 300:
        raise NotTaken(f"the operator's webhook answered {reply.status}")


def _body(incident: Incident) -> Mapping[str, Any]:
    ended = incident.resolved_at
    return {
        "timestamp": (ended or incident.opened_at).isoformat(),
        "data": {
            "id": incident.pk,
            "kind": incident.kind,
            "subject": incident.subject,
            "text": incident.text,
            "detail": incident.detail,
            "opened_at": incident.opened_at.isoformat(),
            "resolved_at": ended and ended.isoformat(),
            "url": f"{settings.PUBLIC_URL}/admin/jobs/incident/{incident.pk}/change/",
        },
    }
