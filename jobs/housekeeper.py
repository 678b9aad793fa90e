"""The housekeeper: everything that must happen by itself, from Postgres alone.

A small loop under an advisory lock, so that any number may run and one works. It rings
bells, takes jobs from silent workers, ends what passed its deadline, expires grants and
deletes files by retention. It never talks to the outside.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import structlog
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection
from django.db.models import Count, Q, QuerySet
from django.db.models.functions import Now
from kombu.exceptions import OperationalError as BrokerError
from redis import Redis
from redis.exceptions import RedisError

from billing import ledger
from inference.errors import RenderError, StorageUnavailable
from jobs import (
    bells,
    deliveries,
    incidents,
    leading,
    lifecycle,
    outside,
    retention,
    stops,
    watch,
    webhooks,
)
from jobs.models import IdempotencyRecord, Job
from jobs.states import Status, Step

log = structlog.get_logger()

BATCH = 200
#: How soon storage knows what was stopped for good.
STOPS_EVERY_SECONDS = 5.0


@dataclass
class Chore:
    """Something done every so many seconds; a failure is logged and waits its turn."""

    name: str
    every_seconds: float
    run: Callable[[], object]
    #: True: on a thread of its own, since it may be slow or wait for storage.
    apart: bool = False
    due_at: float = field(default=0.0)
    thread: threading.Thread | None = None


def chores() -> list[Chore]:
    return [
        Chore("ring", settings.RING_EVERY_SECONDS, ring_queues),
        Chore("reap", settings.REAP_EVERY_SECONDS, reap),
        Chore("deadlines", settings.DEADLINES_EVERY_SECONDS, end_overdue),
        Chore("webhooks", settings.WEBHOOKS_EVERY_SECONDS, ring_webhooks),
        Chore("grants", settings.GRANTS_EVERY_SECONDS, ledger.expire_due),
        Chore("idempotency", 3600.0, forget_answers),
        Chore("canary", settings.CANARY_EVERY_SECONDS, watch.Canary().look),
        Chore("workers", settings.CANARY_EVERY_SECONDS, watch.look_at_workers),
        Chore("certificates", 3600.0, watch.look_at_certificates),
        Chore("loops", settings.CANARY_EVERY_SECONDS, watch.Loops().look),
        Chore("stops", STOPS_EVERY_SECONDS, stops.Writer().look, apart=True),
        Chore(
            "retention",
            settings.RETENTION_EVERY_SECONDS,
            retention.delete_due,
            apart=True,
        ),
        Chore(
            "sweep",
            settings.SWEEP_EVERY_SECONDS,
            retention.Sweep().step_in_turn,
            apart=True,
        ),
        Chore(
            "holds", settings.CHECK_HOLDS_EVERY_SECONDS, watch.look_at_holds, apart=True
        ),
        Chore(
            "ledger",
            settings.CHECK_LEDGER_EVERY_SECONDS,
            watch.look_at_ledger,
            apart=True,
        ),
    ]


def run(stop: threading.Event) -> None:
    """Do the chores in turn until ``stop`` is set."""
    todo = chores()
    while not stop.is_set():
        try:
            if leading.leads("housekeeper"):
                _round(todo)
        except DatabaseError as error:
            log.warning("housekeeper_without_database", error=str(error))
            connection.close()
            stop.wait(1.0)
        pause = min(chore.due_at for chore in todo) - time.monotonic()
        stop.wait(min(max(pause, 0.05), 1.0))
    connection.close()


def _round(todo: list[Chore]) -> None:
    for chore in todo:
        if time.monotonic() < chore.due_at:
            continue
        chore.due_at = time.monotonic() + chore.every_seconds
        if not chore.apart:
            _do(chore)
        elif chore.thread is None or not chore.thread.is_alive():
            chore.thread = threading.Thread(
                target=_do_apart, args=(chore,), name=chore.name, daemon=True
            )
            chore.thread.start()


def _do(chore: Chore) -> None:
    try:
        chore.run()
    except (BrokerError, RedisError, StorageUnavailable, OSError) as error:
        log.warning("chore_failed", chore=chore.name, error=str(error))


def _do_apart(chore: Chore) -> None:
    try:
        _do(chore)
    except DatabaseError as error:
        log.warning("chore_failed", chore=chore.name, error=str(error))
    finally:
        connection.close()


# ---------------------------------------------------------------------- chores


def ring_queues() -> None:
    """Ring each queue once for every claimable job that has no bell yet."""
    claimable = dict(
        Job.objects.filter(
            status__in=[Status.QUEUED, Status.RUNNING],
            lease_until__isnull=True,
            ready_at__isnull=False,
        )
        .exclude(queue="")
        .exclude(run_after__gt=Now())
        .exclude(step=Step.SUBMIT, queue__in=outside.full_queues())
        .values_list("queue")
        .annotate(jobs=Count("id"))
    )
    for queue, jobs in claimable.items():
        for _ in range(min(jobs - waiting_bells(queue), settings.RING_BATCH)):
            bells.publish(queue)


def ring_webhooks() -> None:
    """Ring for deliveries that have become due and have no bell yet."""
    due = deliveries.due()
    if due:
        for _ in range(min(due - waiting_bells(webhooks.QUEUE), settings.RING_BATCH)):
            bells.publish(webhooks.QUEUE)


def waiting_bells(queue: str) -> int:
    """Return how many bells of the queue nobody has heard yet."""
    return int(_redis().llen(f"{settings.REDIS_PREFIX}{queue}"))


def reap() -> None:
    """Take jobs from workers that have been silent for longer than their lease."""

    def take(job: Job) -> None:
        log.warning("lease_lost", job=str(job.pk), worker=job.worker, step=job.step)
        lifecycle.lose(job)

    _each(Job.objects.filter(lease_until__lt=Now()), take)


def end_overdue() -> None:
    """End jobs that waited or ran too long, and cancellations nobody confirmed."""
    idle = Job.objects.filter(lease_until__isnull=True)
    starts_anew = Q(
        status=Status.RUNNING,
        end_by__isnull=True,
        step__in=[Step.SUBMIT, Step.GENERATE],
    )
    _each(
        idle.filter(Q(status=Status.QUEUED) | starts_anew, start_by__lt=Now()),
        lambda job: lifecycle.expire(
            job,
            RenderError(
                "waited in the queue past its time to live",
                code="queue_expired",
                public="The job could not be started in time.",
            ),
        ),
    )
    _each(
        idle.filter(status=Status.RUNNING, end_by__lt=Now()).exclude(
            step=Step.RECONCILE
        ),
        lambda job: lifecycle.expire(job, lifecycle.deadline_exceeded()),
    )
    _each(
        idle.filter(
            status__in=[Status.QUEUED, Status.RUNNING],
            cancel_requested_at__isnull=False,
        ),
        lambda job: lifecycle.cancel_now(job.pk),
    )


def _each(jobs: QuerySet[Job], work: Callable[[Job], object]) -> None:
    """Do ``work`` for each job; one that cannot be moved is a person's to look at."""
    for job in jobs[:BATCH]:
        with incidents.alone(job.pk, "The housekeeper could not move this job."):
            work(job)


def forget_answers() -> None:
    """Drop idempotency records that no repetition may use any more."""
    age = timedelta(seconds=settings.IDEMPOTENCY_SECONDS)
    IdempotencyRecord.objects.filter(created_at__lt=Now() - age).delete()


_client: Redis | None = None


def _redis() -> Redis:
    global _client
    if _client is None:
        _client = Redis.from_url(
            settings.REDIS_URL, socket_timeout=5, socket_connect_timeout=5
        )
    return _client
