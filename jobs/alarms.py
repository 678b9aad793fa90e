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
from typing import Any
from urllib.parse import urlsplit

import structlog
from django.conf import settings
from django.db import Error as DatabaseError
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
            while tell_next():
                failures = 0
        except (DatabaseError, RenderError) as error:
            failures = min(failures + 1, 10)
            log.warning("operator_not_told", error=str(error))
            connection.close()
    connection.close()


class NotTaken(RenderError):
    """The operator's webhook answered something else than 2xx."""


def tell_next() -> bool:
    """Send one untold beginning or end; return False when there is none.

    Raises RenderError when it was not taken. One process tells at a time, and it locks
    no row meanwhile: a slow receiver must not hold up who reports the next incident.
    """
    untold = Q(told_at__isnull=True) | Q(
        end_told_at__isnull=True, resolved_at__isnull=False
    )
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK])
            (is_mine,) = cursor.fetchone()
        incident = Incident.objects.filter(untold).order_by("opened_at", "pk").first()
        if incident is None or not is_mine:
            return False
        is_end = incident.told_at is not None
        _send(incident, "incident.resolved" if is_end else "incident.opened")
        column = "end_told_at" if is_end else "told_at"
        Incident.objects.filter(pk=incident.pk).update(**{column: Now()})
    return True


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
