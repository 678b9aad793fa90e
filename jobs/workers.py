"""Signs of life: each worker process keeps one row that says what it serves and does."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import structlog
from django.db import Error as DatabaseError
from django.db import connection
from django.db.models.functions import Now

from jobs import context, fitness
from jobs.models import Worker

if TYPE_CHECKING:
    from jobs.claims import Heart

log = structlog.get_logger()

EVERY_SECONDS = 10.0
_left = threading.Event()


def start(*, name: str, queues: list[str], heart: Heart) -> None:
    """Report now, then every few seconds from a thread of its own."""
    worker, _ = Worker.objects.update_or_create(
        name=name,
        defaults={
            "queues": queues,
            "started_at": Now(),
            "seen_at": Now(),
            "doing": [],
            "safety": fitness.safety_mode(queues, context.get()),
            "certificate_until": fitness.certificate_until(queues, context.get()),
        },
    )
    worker.refresh_from_db()
    threading.Thread(
        target=_run, args=(worker, heart), name="sign-of-life", daemon=True
    ).start()


def _run(worker: Worker, heart: Heart) -> None:
    while not _left.wait(EVERY_SECONDS):
        try:
            _report(worker, heart)
        except DatabaseError as error:
            log.warning("sign_of_life_failed", error=str(error))
            connection.close()


def _report(worker: Worker, heart: Heart) -> None:
    """Say that it lives, also when an operator has taken it for dead."""
    doing = [
        {
            "job": str(held.claim.job_id),
            "step": held.claim.step.value,
            "progress": round(held.progress.fraction, 3),
        }
        for held in heart.holding()
    ]
    is_known = Worker.objects.filter(name=worker.name).update(
        seen_at=Now(), doing=doing
    )
    if not is_known and not _left.is_set():
        Worker.objects.create(
            name=worker.name,
            queues=worker.queues,
            started_at=worker.started_at,
            doing=doing,
            safety=worker.safety,
            certificate_until=worker.certificate_until,
        )
        log.info("came_back_to_the_list")


def leave(name: str) -> None:
    """Say that the process ends as it should: silence is then no alarm."""
    _left.set()
    try:
        Worker.objects.filter(name=name).delete()
    except DatabaseError as error:
        log.warning("leave_not_said", error=str(error))
        connection.close()
