"""The poller: one asyncio loop that asks providers about the jobs they are making.

It only asks, and moves jobs on by what it is told. In each round every account gets the
jobs that are longest due, as many as its rate allows now: so none is asked too fast, and
where an account has more jobs than its rate serves in one interval, all of them wait
evenly longer. Taking a job moves its ``next_poll_at``, so a poller that dies delays its
jobs and loses none. Of several pollers one works, by an advisory lock.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final, TypeVar
from uuid import UUID

import httpx
import structlog
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import close_old_connections, connection

from inference.errors import Fault, ProviderError, RenderError
from inference.providers import base, transport
from inference.providers.base import RemoteStatus
from jobs import incidents, leading, lifecycle, outside, provider_steps, reconcile
from jobs.models import Job, ProviderAccount
from jobs.states import Step

log = structlog.get_logger()
T = TypeVar("T")

#: Calls under way at once to one account; more than its connections only wait.
CALLS_PER_ACCOUNT: Final = 8
#: An account's unused rate is kept for so long, for what becomes due at once.
BURST_SECONDS: Final = 1.0
#: Longer than any call takes; then a job taken by a poller that died is due again.
HOLD_SECONDS: Final = 45.0
BUSY_ROUND_SECONDS: Final = 0.1
#: After so many looks in a row at which a provider did not know its own id.
UNKNOWN_LOOKS: Final = 5
JITTER: Final = 0.1
COUNT_EVERY_SECONDS: Final = 5.0
REST_SECONDS_MAX: Final = 60.0

_TAKE = """
UPDATE jobs_job j SET next_poll_at = now() + make_interval(secs => %(hold)s)
  FROM unnest(%(accounts)s::bigint[], %(limits)s::int[]) AS line(account, most)
 CROSS JOIN LATERAL (
       SELECT id, next_poll_at FROM jobs_job
        WHERE provider_account_id = line.account AND status = 'running'
          AND next_poll_at <= now() AND step = 'await'
        ORDER BY next_poll_at LIMIT line.most
        FOR NO KEY UPDATE SKIP LOCKED) due
 WHERE j.id = due.id
RETURNING j.provider_account_id, j.id, j.provider_job_id, due.next_poll_at
"""
# Counted from when the job was due, so that our own delays do not add up; but not from
# long ago, else all would be asked twice after an outage.
_AFTERWARDS = """
UPDATE jobs_job j
   SET next_poll_at = greatest(seen.due, now() - make_interval(secs => seen.wait / 2))
                      + make_interval(secs => seen.wait),
       poll_failures = CASE WHEN seen.known THEN 0 ELSE j.poll_failures + 1 END,
       progress = greatest(j.progress, coalesce(seen.progress, 0))
  FROM unnest(%(ids)s::uuid[], %(dues)s::timestamptz[], %(waits)s::float8[],
              %(known)s::bool[], %(progress)s::float8[])
       AS seen(id, due, wait, known, progress)
 WHERE j.id = seen.id AND j.step = 'await' AND j.status = 'running'
"""


@dataclass(frozen=True)
class Due:
    job_id: UUID
    provider_id: str
    at: datetime


@dataclass(frozen=True)
class Answer:
    """What was learned of a job that goes on: when to ask again, and how far it is."""

    due: Due
    wait_seconds: float
    is_known: bool = True
    progress: float | None = None


@dataclass
class Line:
    """One account as the poller knows it: its pace, its connections, its failures."""

    row: ProviderAccount
    provider: base.Provider
    account: base.ProviderAccount
    interval_seconds: float
    http: httpx.AsyncClient = field(default_factory=transport.async_client)
    allowance: float = float("inf")
    filled_at: float = field(default_factory=time.monotonic)
    rests_until: float = 0.0
    under_way: int = 0
    failures: int = 0

    @property
    def rate(self) -> float:
        capabilities = self.provider.capabilities
        return self.row.statuses_per_second or capabilities.statuses_per_second

    @property
    def batch(self) -> int:
        return self.provider.capabilities.status_batch

    def wait_seconds(self) -> float:
        # Only ever sooner: the interval is how long a job waits at most.
        spread = 1 - random.uniform(0, JITTER)  # noqa: S311 - only spreads load
        return self.interval_seconds * spread

    def calls_now(self) -> int:
        """Return how many calls may start now."""
        now = time.monotonic()
        gained = (now - self.filled_at) * self.rate
        self.allowance = min(
            self.allowance + gained, max(1.0, self.rate * BURST_SECONDS)
        )
        self.filled_at = now
        if now < self.rests_until:
            return 0
        return max(0, min(int(self.allowance), CALLS_PER_ACCOUNT - self.under_way))

    def answered(self) -> bool:
        """Note a good answer; return whether health should hear of it."""
        was_sick, self.failures = self.failures >= outside.FAILURES_TO_OPEN, 0
        return was_sick

    def failed(self, error: ProviderError) -> bool:
        """Rest after a failed call; return whether health should hear of it."""
        now = time.monotonic()
        if error.fault is Fault.BUSY:
            self.rests_until = now + (error.retry_after_seconds or 5.0)
            return True
        if now < self.rests_until:
            return False  # one of several calls that failed together
        self.failures += 1
        self.rests_until = now + min(2.0 ** (self.failures - 1), REST_SECONDS_MAX)
        return error.fault is Fault.ACCOUNT or self.failures == outside.FAILURES_TO_OPEN


class Poller:
    """The loop and what it keeps between rounds: lines, calls under way, answers."""

    def __init__(self) -> None:
        # One thread with one connection for the loop, one for what takes longer:
        # Django binds a connection to its thread.
        self._database = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._slow = ThreadPoolExecutor(1, thread_name_prefix="reconcile")
        self._looking: asyncio.Future[None] | None = None
        self._lines: dict[int, Line] = {}
        self._counted_at = float("-inf")
        self._answers: list[Answer] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.polls = 0

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                is_busy = await self._db(_leads) and await self.round()
            except DatabaseError as error:
                log.warning("poller_without_database", error=str(error))
                await self._db(_hang_up)
                is_busy = False
            pause = BUSY_ROUND_SECONDS if is_busy else settings.POLL_EVERY_SECONDS
            try:
                await asyncio.wait_for(stop.wait(), pause)
            except TimeoutError:
                continue
        await self.close()

    async def close(self) -> None:
        """Finish the calls under way, write what they said, let everything go."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for line in self._lines.values():
            await line.http.aclose()
        try:
            await self._db(self._write_answers)
        except DatabaseError as error:
            log.warning("poller_without_database", error=str(error))
        await self._db(_hang_up)
        self._database.shutdown()
        self._slow.shutdown()

    async def round(self) -> bool:
        """Start asking about what is due; return whether there is work under way."""
        if time.monotonic() - self._counted_at > COUNT_EVERY_SECONDS:
            self._counted_at = time.monotonic()
            await self._count()
            if self._looking is None or self._looking.done():
                loop = asyncio.get_running_loop()
                self._looking = loop.run_in_executor(self._slow, _look)
                self._looking.add_done_callback(_looked)
        await self._db(self._write_answers)
        budget = {
            key: calls * line.batch
            for key, line in self._lines.items()
            if (calls := line.calls_now())
        }
        due = await self._db(partial(_take, budget)) if budget else {}
        for account_id, jobs in due.items():
            line = self._lines[account_id]
            for start in range(0, len(jobs), line.batch):
                line.allowance -= 1
                line.under_way += 1
                self._start(self._ask(line, jobs[start : start + line.batch]))
        return bool(due or self._tasks)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("poll_broke", error=f"{type(error).__name__}: {error}")

    async def _db(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._database, work)

    # ------------------------------------------------------------------- asking

    async def _ask(self, line: Line, jobs: Sequence[Due]) -> None:
        ids = [due.provider_id for due in jobs]
        try:
            found = await transport.status_async(
                line.http, line.provider, ids, line.account
            )
        except ProviderError as error:
            if error.fault is Fault.MODEL:
                await self._ask_apart(line, jobs)
                return
            # Nothing was learned of the jobs; they are asked about again in their turn.
            self._answers += [Answer(due, line.wait_seconds()) for due in jobs]
            if line.failed(error):
                await self._db(partial(outside.went_wrong, line.row.pk, error))
            return
        finally:
            line.under_way -= 1
        self.polls += len(jobs)
        if line.answered():
            await self._db(partial(outside.accepted, line.row.pk))
        for due in jobs:
            await self._told(line, due, found[due.provider_id])

    async def _ask_apart(self, line: Line, jobs: Sequence[Due]) -> None:
        """Ask for each alone after a refusal that is about one of them."""
        if len(jobs) == 1:
            # Refused to us, it is as good as unknown.
            self._answers.append(Answer(jobs[0], line.wait_seconds(), is_known=False))
            return
        for due in jobs:
            line.allowance -= 1
            line.under_way += 1
            await self._ask(line, [due])

    async def _told(self, line: Line, due: Due, status: RemoteStatus) -> None:
        match status.state:
            case "succeeded":
                await self._db(partial(_arrived, due.job_id, line.provider.name))
            case "failed":
                await self._db(partial(reconcile.remote_failure, due.job_id, status))
            case "queued" | "running" | "unknown":
                known = status.state != "unknown"
                wait = line.wait_seconds()
                self._answers.append(Answer(due, wait, known, status.progress))

    # ----------------------------------------------------------------- database

    def _write_answers(self) -> None:
        answers, self._answers = self._answers, []
        if not answers:
            return
        with connection.cursor() as cursor:
            cursor.execute(
                _AFTERWARDS,
                {
                    "ids": [answer.due.job_id for answer in answers],
                    "dues": [answer.due.at for answer in answers],
                    "waits": [answer.wait_seconds for answer in answers],
                    "known": [answer.is_known for answer in answers],
                    "progress": [answer.progress for answer in answers],
                },
            )
        unknown = [a.due.job_id for a in answers if not a.is_known]
        if not unknown:
            return
        for job in Job.objects.filter(
            pk__in=unknown, step=Step.AWAIT, poll_failures__gte=UNKNOWN_LOOKS
        ):
            reconcile.vanished(job)

    async def _count(self) -> None:
        """Read the accounts, and how far each one's rate stretches its interval."""
        rows = await self._db(lambda: list(ProviderAccount.objects.all()))
        at_work = await self._db(lambda: outside.jobs_at_work([row.pk for row in rows]))
        lines: dict[int, Line] = {}
        unusable: dict[str, str] = {}
        for row in rows:
            try:
                line = self._line_of(row)
            except RenderError as error:
                # The others are asked all the same.
                unusable[str(row)] = f"{type(error).__name__}: {error}"
                continue
            calls = -(-at_work.get(row.pk, 0) // line.batch)
            interval = provider_steps.interval_of(row)
            line.interval_seconds = max(interval, calls / line.rate)
            if row.poll_interval_seconds != line.interval_seconds:
                await self._db(partial(_show_interval, row.pk, line.interval_seconds))
            lines[row.pk] = line
        gone = [line for key, line in self._lines.items() if key not in lines]
        self._lines = lines
        for line in gone:
            await line.http.aclose()
        await self._db(partial(_tell_unusable, unusable))

    def _line_of(self, row: ProviderAccount) -> Line:
        """Return the account's line, kept as it is but for what its row says now."""
        account = outside.as_account(row)
        if (line := self._lines.get(row.pk)) is not None:
            line.row, line.account = row, account
            return line
        return Line(row, outside.adapter(row.provider), account, 0.0)


def _leads() -> bool:
    return leading.leads("poller")


def _hang_up() -> None:
    connection.close()  # the calling thread's own


def _take(budget: Mapping[int, int]) -> Mapping[int, list[Due]]:
    """Take what is due, at most so many jobs of each account."""
    with connection.cursor() as cursor:
        cursor.execute(
            _TAKE,
            {
                "hold": HOLD_SECONDS,
                "accounts": list(budget),
                "limits": list(budget.values()),
            },
        )
        rows = cursor.fetchall()
    due: dict[int, list[Due]] = defaultdict(list)
    for account_id, *facts in rows:
        due[account_id].append(Due(*facts))
    return due


def _arrived(job_id: UUID, provider: str) -> None:
    """The provider says it is finished: have it collected."""
    lifecycle.return_to(
        job_id,
        Step.COLLECT,
        came_from=Step.AWAIT,
        queue=f"provider.{provider}",
        next_poll_at=None,
    )


def _show_interval(account_id: int, seconds: float) -> None:
    ProviderAccount.objects.filter(pk=account_id).update(poll_interval_seconds=seconds)


def _tell_unusable(accounts: Mapping[str, str]) -> None:
    """Have a person look at accounts that cannot be asked, until they can be."""
    for subject, words in accounts.items():
        incidents.report(
            "account_unusable",
            subject,
            f"{subject} cannot be asked about its jobs: its credentials or settings "
            "cannot be read.",
            detail={"error": words[:500]},
        )
    incidents.resolve_others("account_unusable", list(accounts))


def _looked(looking: asyncio.Future[None]) -> None:
    if not looking.cancelled() and (error := looking.exception()) is not None:
        log.error("look_broke", error=f"{type(error).__name__}: {error}")


def _look() -> None:
    """Look for jobs in doubt and run errands; may take its time."""
    close_old_connections()
    try:
        reconcile.look()
        reconcile.run_errands()
    except DatabaseError as error:
        log.warning("reconcile_without_database", error=str(error))
        connection.close()
    finally:
        close_old_connections()


async def run(stop: asyncio.Event) -> None:
    """Poll what is due until ``stop`` is set."""
    await Poller().run(stop)
