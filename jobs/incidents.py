"""Incidents: what needs a person. Opening one twice is the same as opening it once."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import structlog
from django.db import Error as DatabaseError
from django.db import connection
from django.db.models.functions import Now

from jobs.models import Incident

log = structlog.get_logger()


def report(
    kind: str, subject: str, text: str, *, detail: Mapping[str, Any] | None = None
) -> None:
    """Open an incident, or note that the open one is still so."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO jobs_incident"
            " (kind, subject, text, detail, opened_at, seen_at, resolved_by)"
            " VALUES (%s, %s, %s, %s, now(), now(), '')"
            " ON CONFLICT (kind, subject) WHERE resolved_at IS NULL"
            " DO UPDATE SET seen_at = now(), text = EXCLUDED.text,"
            " detail = EXCLUDED.detail",
            [kind, subject[:128], text, json.dumps(dict(detail or {}))],
        )


@contextmanager
def alone(job_id: UUID, text: str) -> Iterator[None]:
    """Let whatever is wrong with one job be a person's to look at, and the rest go on."""
    try:
        yield
    except DatabaseError:
        raise
    except Exception as error:
        log.exception("job_stuck", job=str(job_id))
        detail = {"error": f"{type(error).__name__}: {error}"[:500]}
        report("job_stuck", str(job_id), text, detail=detail)


def resolve(kind: str, subject: str, *, by: str = "") -> bool:
    """Close the open incident, if there is one: what it was about is over."""
    return bool(
        Incident.objects.filter(
            kind=kind, subject=subject[:128], resolved_at__isnull=True
        ).update(resolved_at=Now(), resolved_by=by[:150])
    )


def resolve_others(kind: str, still: Collection[str]) -> None:
    """Close every open incident of this kind but those about ``still``."""
    Incident.objects.filter(kind=kind, resolved_at__isnull=True).exclude(
        subject__in=[subject[:128] for subject in still]
    ).update(resolved_at=Now(), resolved_by="over")
