"""What the platform notices about itself and a person must look at.

Each check opens an incident for what is wrong and closes those whose cause is gone, so
the open incidents are what is wrong now. All of it comes from Postgres alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

import structlog
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection
from django.db.models.functions import Now

from billing import ledger
from jobs import incidents, leading, outside
from jobs.models import Job, Worker
from jobs.states import TERMINAL

log = structlog.get_logger()

_BATCH = 1000
#: How long before its end a certificate is reported.
CERTIFICATE_DAYS = 30

# Queues with work nobody holds; and whether anything of theirs is being worked on, or
# was begun within the given seconds. Workers' rows tell which queues an attempt was of.
_WAITING = """
SELECT queue, EXISTS (
           SELECT FROM jobs_job held
            WHERE held.queue = w.queue AND held.lease_until > now()
       ) OR EXISTS (
           SELECT FROM jobs_attempt a JOIN jobs_worker k ON k.name = a.worker
            WHERE a.id > (SELECT coalesce(max(id), 0) - 5000 FROM jobs_attempt)
              AND a.started_at > now() - make_interval(secs => %(seconds)s)
              AND k.queues ? w.queue
       )
  FROM (SELECT DISTINCT queue FROM jobs_job
         WHERE status IN ('queued', 'running') AND lease_until IS NULL
           AND ready_at IS NOT NULL AND queue <> ''
           AND NOT (step = 'submit' AND queue = ANY(%(full)s))
           AND (run_after IS NULL OR run_after <= now())) w
UNION ALL
SELECT 'webhook', EXISTS (
           SELECT FROM jobs_webhookdelivery WHERE claimed_until > now()
       )
 WHERE EXISTS (
           SELECT FROM jobs_webhookdelivery d
            WHERE d.state = 'pending' AND d.next_at < now() - interval '5 seconds'
              AND d.claimed_until IS NULL
              AND NOT EXISTS (SELECT FROM jobs_webhooklane l WHERE l.key = d.lane)
       )
UNION ALL
SELECT 'the poller', false
 WHERE EXISTS (
           SELECT FROM jobs_job
            WHERE step = 'await' AND status = 'running'
              AND next_poll_at < now() - interval '30 seconds'
       )
"""


class Canary:
    """Notices a queue that has work of which nothing is claimed.

    Not the age of the work counts (a busy queue is no fault, nor what waits for a full
    provider) but how long, without a break, something was ready and nobody took or held
    any of it: its bells are not heard, or its workers are gone.
    """

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._looked_at = time.monotonic()

    def look(self) -> None:
        now = time.monotonic()
        window, self._looked_at = now - self._looked_at, now
        with connection.cursor() as cursor:
            # a second more than since the last look, so that no claim falls between
            cursor.execute(
                _WAITING, {"seconds": window + 1, "full": outside.full_queues()}
            )
            waiting = dict(cursor.fetchall())
        self._since = {
            queue: now if is_served else self._since.get(queue, now)
            for queue, is_served in waiting.items()
        }
        limit = settings.CANARY_LIMIT_SECONDS
        stuck = {q for q, since in self._since.items() if now - since >= limit}
        for queue in stuck:
            incidents.report(
                "queue_stuck",
                queue,
                f"Work for {queue} is ready and nothing was claimed for "
                f"{limit:g} seconds: its workers are gone or hear no bells.",
            )
        incidents.resolve_others("queue_stuck", stuck)


class Loops:
    """Notices a housekeeper or a poller that has stopped.

    The dead do not report: the housekeeper looks at the poller, and the poller's process
    at the housekeeper. With both gone the dashboard and /readyz still say so.
    """

    def __init__(self) -> None:
        self._gone_since: dict[str, float] = {}

    def look(self) -> None:
        now = time.monotonic()
        for name, silent in leading.silences().items():
            if silent is None:
                silent = now - self._gone_since.setdefault(name, now)
                what = "is not running anywhere"
            else:
                self._gone_since.pop(name, None)
                what = "hangs: it leads and does nothing"
                if leading.is_alive(silent):
                    incidents.resolve("loop_dead", name, by="over")
            if not leading.is_alive(silent):
                incidents.report(
                    "loop_dead",
                    name,
                    f"The {name} {what}, for {silent:.0f} seconds at least.",
                )


def watch_loops(stop: threading.Event) -> None:
    """Look at the loops until ``stop`` is set; for a thread of its own."""
    loops = Loops()
    while not stop.wait(settings.CANARY_EVERY_SECONDS):
        try:
            loops.look()
        except DatabaseError as error:
            log.warning("loops_not_seen", error=str(error))
            connection.close()
    connection.close()


def look_at_workers() -> None:
    """Report workers that fell silent; forget those silent for very long."""
    silent = Now() - timedelta(seconds=settings.DEAD_WORKER_SECONDS)
    dead = list(Worker.objects.filter(seen_at__lt=silent))
    for worker in dead:
        incidents.report(
            "worker_dead",
            worker.name,
            f"{worker.name} ({', '.join(worker.queues)}) has given no sign of life "
            f"since {worker.seen_at:%Y-%m-%d %H:%M:%S} UTC.",
            detail={"queues": worker.queues, "doing": worker.doing},
        )
    incidents.resolve_others("worker_dead", {worker.name for worker in dead})
    long_ago = Now() - timedelta(seconds=settings.FORGET_WORKER_SECONDS)
    Worker.objects.filter(seen_at__lt=long_ago).delete()


def look_at_certificates() -> None:
    """Report certificates that live workers sign with and that soon run out."""
    alive = Now() - timedelta(seconds=settings.DEAD_WORKER_SECONDS)
    soon = Now() + timedelta(days=CERTIFICATE_DAYS)
    ending: dict[str, list[str]] = {}
    for worker in Worker.objects.filter(seen_at__gte=alive, certificate_until__lt=soon):
        until = f"{worker.certificate_until:%Y-%m-%d %H:%M} UTC"
        ending.setdefault(until, []).append(worker.name)
    for until, names in ending.items():
        incidents.report(
            "certificate",
            until,
            f"The certificate that {', '.join(names)} sign with runs out at {until}; "
            "then they finish no video.",
            detail={"workers": names},
        )
    incidents.resolve_others("certificate", ending)


def look_at_holds() -> None:
    """Report credits held for jobs that have ended, or that do not exist."""
    wrong: dict[str, str] = {}
    for account_id, mode, references in _held():
        ids = {reference: _as_id(reference) for reference in references}
        known = [job_id for job_id in ids.values() if job_id is not None]
        statuses: dict[UUID | None, str] = dict(
            Job.objects.filter(pk__in=known).values_list("pk", "status")
        )
        for reference in references:
            status = statuses.get(ids[reference])
            if status is not None and status not in TERMINAL:
                continue
            # A job closes together with its hold, so one that is still open after the
            # job was seen to have ended is open for good.
            if ledger.is_open(account_id=account_id, mode=mode, reference=reference):
                wrong[reference] = status or "unknown"
    for reference, status in wrong.items():
        incidents.report(
            "open_hold",
            reference,
            f"Credits are still held for job {reference}, which is {status}.",
            detail={"status": status},
        )
    incidents.resolve_others("open_hold", wrong)


def _as_id(reference: str) -> UUID | None:
    try:
        return UUID(reference)
    except ValueError:
        return None


def _held() -> Iterator[tuple[UUID, str, list[str]]]:
    """Yield references of open holds in batches of one wallet."""
    batches: dict[tuple[UUID, str], list[str]] = {}
    for account_id, mode, reference in ledger.open_holds():
        batch = batches.setdefault((account_id, mode), [])
        batch.append(reference)
        if len(batch) >= _BATCH:
            yield account_id, mode, batches.pop((account_id, mode))
    for (account_id, mode), batch in batches.items():
        yield account_id, mode, batch


def look_at_ledger() -> None:
    """Recompute the books; freeze and report each wallet that does not add up."""
    mismatches = ledger.check()
    wrong = {}
    for wallet in ledger.freeze_mismatched(mismatches):
        subject = f"{wallet.account_id} {wallet.mode}"
        told = [str(m) for m in mismatches if m.wallet_id == wallet.pk]
        wrong[subject] = told
        incidents.report(
            "ledger_mismatch",
            subject,
            f"The {wallet.mode} wallet of {wallet.account} does not add up and is "
            f"frozen: {told[0]}.",
            detail={"mismatches": told[:20]},
        )
    incidents.resolve_others("ledger_mismatch", wrong)
