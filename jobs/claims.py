"""Claims: who works on a job's step, for how long, and how that is taken away again.

A claim is one compare-and-set on the job's row. It raises ``fence``; every later write of
the worker names that fence, so a worker that was slow, paused or cut off changes nothing
when it comes back. All times are the database's.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import structlog
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection

from billing import prepared
from inference.contracts import Progress
from jobs.models import Job
from jobs.states import Step

log = structlog.get_logger()

_CLAIM = """
WITH picked AS (
    SELECT id FROM jobs_job
     WHERE queue = %(queue)s AND status IN ('queued', 'running')
       AND lease_until IS NULL AND ready_at IS NOT NULL
       AND (run_after IS NULL OR run_after <= statement_timestamp())
       AND (%(step)s::text IS NULL OR step = %(step)s)
     ORDER BY ready_at
     LIMIT 1
     FOR NO KEY UPDATE SKIP LOCKED
), claimed AS (
    UPDATE jobs_job j
       SET fence = j.fence + 1,
           lease_until = statement_timestamp() + make_interval(secs => %(lease)s),
           worker = %(worker)s,
           run_after = NULL,
           stage = '',
           status = CASE WHEN j.step IN ('generate', 'submit', 'finish') THEN 'running'
                         ELSE j.status END,
           started_at = CASE WHEN j.step IN ('generate', 'submit', 'finish')
                             THEN coalesce(j.started_at, statement_timestamp()) ELSE j.started_at END,
           end_by = CASE WHEN j.step IN ('generate', 'submit', 'finish')
                         THEN coalesce(j.end_by, statement_timestamp() + greatest(
                              make_interval(secs => %(deadline)s),
                              make_interval(secs => %(factor)s
                                            * coalesce(j.eta_seconds, 0))))
                         ELSE j.end_by END
      FROM picked
     WHERE j.id = picked.id
    RETURNING j.id, j.fence, j.step, j.route, j.step_tries, j.model,
              j.account_id, j.status, j.started_at = statement_timestamp(),
              coalesce(extract(epoch FROM statement_timestamp() - j.started_at), 0)
), tried AS (
    INSERT INTO jobs_attempt (job_id, fence, step, route, worker, started_at, outcome,
                              error_code, error_detail, cost_microdollars, provider,
                              second_microdollars)
    SELECT id, fence, step, coalesce(route ->> 'name', ''), %(worker)s, statement_timestamp(), '',
           '', '', 0, coalesce(route ->> 'runner', ''),
           coalesce((SELECT gpu_second_microdollars FROM jobs_route rate
                      WHERE rate.id = (route ->> 'id')::bigint
                        AND route ->> 'queue' = %(queue)s), 0)
      FROM claimed
)
SELECT * FROM claimed
"""

# Only making a video counts seconds, not waiting, fetching or asking. A lost worker's
# end with its lease, however late somebody noticed; the others have none any more.
_CLOSE = """
WITH closed AS (
    UPDATE jobs_attempt a
       SET ended_at = statement_timestamp(),
           outcome = %(outcome)s,
           error_code = %(code)s,
           error_detail = %(detail)s,
           work_seconds = CASE WHEN a.step IN ('generate', 'finish') THEN extract(
               epoch FROM least(statement_timestamp(), j.lease_until) - a.started_at)
               ELSE 0 END
      FROM jobs_job j
     WHERE a.job_id = %(job)s AND a.fence = %(fence)s AND a.ended_at IS NULL
       AND j.id = a.job_id
    RETURNING a.job_id, a.work_seconds
)
UPDATE jobs_job j SET work_seconds = j.work_seconds + closed.work_seconds
  FROM closed WHERE j.id = closed.job_id AND closed.work_seconds > 0
"""

_BEAT = """
UPDATE jobs_job j
   SET lease_until = CASE WHEN held.renew
                          THEN statement_timestamp() + make_interval(secs => %(lease)s)
                          ELSE j.lease_until END,
       progress = greatest(j.progress, held.progress),
       stage = held.stage,
       eta_seconds = coalesce(held.eta, j.eta_seconds)
  FROM unnest(%(ids)s::uuid[], %(fences)s::int[], %(progress)s::float8[],
              %(stages)s::text[], %(etas)s::float8[], %(seconds)s::float8[],
              %(renew)s::bool[])
       AS held(id, fence, progress, stage, eta, seconds, renew)
 WHERE j.id = held.id AND j.fence = held.fence AND j.lease_until IS NOT NULL
RETURNING j.id, j.cancel_requested_at IS NOT NULL,
          coalesce(j.end_by < statement_timestamp(), held.seconds > %(limit)s)
"""


@dataclass(frozen=True)
class Claim:
    """The right to work on one step of one job until the lease runs out."""

    job_id: UUID
    fence: int
    step: Step
    worker: str
    queue: str
    model: str
    account_id: UUID
    route: dict[str, object]
    #: failed tries of this step on this route before this one
    tries: int
    #: this claim is what made the job "running"
    is_start: bool
    #: how long before this claim that was
    running_seconds: float


@dataclass
class Held:
    """A claim while its worker works: progress out, stop signals in."""

    claim: Claim
    progress: Progress = field(default_factory=lambda: Progress(0.0, ""))
    #: canceled, expired or lost; empty while the work should go on
    stop_reason: str = ""
    is_draining: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=time.monotonic)
    #: For how long the work went on although it was told to stop. Counted by the heart:
    #: a process that was frozen meanwhile could not heed it.
    seconds_deaf: float = 0.0
    #: A person was told that it hangs.
    is_reported: bool = False

    def on_progress(self, progress: Progress) -> None:
        self.progress = progress

    def should_stop(self) -> bool:
        return bool(self.stop_reason) or self.is_draining.is_set()

    def stop(self, reason: str) -> None:
        """Have the work stop; the first reason stands."""
        self.stop_reason = self.stop_reason or reason

    @property
    def is_hung(self) -> bool:
        """Whether even the lease that was no longer renewed has run out."""
        return self.seconds_deaf > 2 * settings.LEASE_SECONDS


def claim_next(queue: str, *, worker: str, step: Step | None = None) -> Claim | None:
    """Claim the first ready job of ``queue``, or return None. Runs in one statement.

    With a ``step``, only a job at that step.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            _CLAIM,
            {
                "queue": queue,
                "worker": worker,
                "step": step and step.value,
                "lease": settings.LEASE_SECONDS,
                "deadline": settings.RUN_DEADLINE_SECONDS,
                "factor": settings.RUN_DEADLINE_FACTOR,
            },
        )
        row = cursor.fetchone()
    if row is None:
        return None
    job_id, fence, step, route, tries, model, account_id, _, is_start, running = row
    return Claim(
        job_id=job_id,
        fence=fence,
        step=Step(step),
        worker=worker,
        queue=queue,
        model=model,
        account_id=account_id,
        route=json.loads(route),
        tries=tries,
        is_start=bool(is_start),
        running_seconds=float(running),
    )


def owned(claim: Claim) -> dict[str, object]:
    """Return the filter that finds the job only while ``claim`` still holds it."""
    return {
        "pk": claim.job_id,
        "fence": claim.fence,
        "lease_until__isnull": False,
        "status__in": ["queued", "running"],
    }


def close_attempt(
    claim: Claim, outcome: str, *, error_code: str = "", error_detail: str = ""
) -> None:
    """Note how the attempt ended, and the seconds of work that went into it."""
    _close(claim.job_id, claim.fence, outcome, code=error_code, detail=error_detail)


def close_lost(job: Job) -> None:
    """Close the attempt of a job whose lease ran out; the caller has locked its row."""
    _close(job.pk, job.fence, "lost")


def _close(
    job_id: UUID,
    fence: int,
    outcome: str,
    *,
    code: str = "",
    detail: str = "",
) -> None:
    prepared.rows(
        _CLOSE,
        {
            "job": job_id,
            "fence": fence,
            "outcome": outcome,
            "code": code,
            "detail": detail[:10_000],
        },
    )


class Heart:
    """Keeps this process's claims alive from a thread and connection of its own.

    Each second it writes progress and reads cancellations and deadlines; every
    ``HEARTBEAT_SECONDS`` it renews the leases. A claim that is no longer ours, or that
    could not be renewed until its lease ran out, is told to stop.

    Work that does not heed this for as long as a lease is not kept alive any longer: the
    job goes back to the housekeeper. Once its lease has run out ``on_hung`` is called,
    each second, with all such claims and whether they are all that is held here; a thread
    cannot be stopped from outside, so what follows is the process's to decide.
    """

    def __init__(
        self,
        *,
        tick_seconds: float = 1.0,
        on_hung: Callable[[Sequence[Held], bool], None] = lambda hung, is_all: None,
    ) -> None:
        self._tick_seconds = tick_seconds
        self._on_hung = on_hung
        self._held: dict[UUID, Held] = {}
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None
        self.is_draining = threading.Event()

    @contextmanager
    def hold(self, claim: Claim) -> Iterator[Held]:
        held = Held(claim, is_draining=self.is_draining)
        with self._lock:
            self._held[claim.job_id] = held
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="heart", daemon=True
                )
                self._thread.start()
        try:
            yield held
        finally:
            with self._lock:
                self._held.pop(claim.job_id, None)

    def holding(self) -> list[Held]:
        with self._lock:
            return list(self._held.values())

    def stop(self) -> None:
        """End the thread and its connection, once nothing is held any more."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join(5)

    def _run(self) -> None:
        since_renewal = 0.0
        silent_seconds = 0.0
        while not self._is_over.wait(self._tick_seconds):
            since_renewal += self._tick_seconds
            held = self.holding()
            if not held:
                silent_seconds = 0.0
                continue
            for each in held:
                each.seconds_deaf += self._tick_seconds if each.stop_reason else 0.0
            renew = since_renewal >= settings.HEARTBEAT_SECONDS
            try:
                self._beat(held, renew=renew)
            except DatabaseError as error:
                silent_seconds += self._tick_seconds
                log.warning("heartbeat_failed", error=str(error))
                connection.close()
                if silent_seconds >= settings.LEASE_SECONDS:
                    for each in held:
                        each.stop("lost")
            else:
                silent_seconds = 0.0
                if renew:
                    since_renewal = 0.0
            still_held = self.holding()
            if hung := [each for each in still_held if each.is_hung]:
                self._on_hung(hung, len(hung) == len(still_held))
        connection.close()

    def _beat(self, held: list[Held], *, renew: bool) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                _BEAT,
                {
                    "lease": settings.LEASE_SECONDS,
                    "limit": settings.PREPARE_SECONDS,
                    "ids": [h.claim.job_id for h in held],
                    "fences": [h.claim.fence for h in held],
                    "progress": [h.progress.fraction for h in held],
                    "stages": [h.progress.stage[:48] for h in held],
                    "etas": [h.progress.eta_seconds for h in held],
                    "seconds": [time.monotonic() - h.began for h in held],
                    "renew": [
                        renew and h.seconds_deaf < settings.LEASE_SECONDS for h in held
                    ],
                },
            )
            answers = {row[0]: row[1:] for row in cursor.fetchall()}
        still_held = {h.claim.job_id for h in self.holding()}
        for each in held:
            answer = answers.get(each.claim.job_id)
            if answer is None:
                # Not an alarm when the step ended while we were asking.
                if each.claim.job_id in still_held:
                    each.stop("lost")
            elif answer[0]:
                each.stop("canceled")
            elif answer[1]:
                each.stop("expired")


def load(claim: Claim) -> Job:
    return Job.objects.get(pk=claim.job_id)
