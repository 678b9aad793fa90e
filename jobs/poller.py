"""The poller: one asyncio loop that asks providers about the jobs they are making.

It only asks, and moves jobs on by what it is told. Due jobs are taken by moving their
``next_poll_at``, so two pollers never ask twice; each account is asked no faster than
its rate, and where it has more jobs than that allows, all of them wait evenly longer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import httpx
import structlog
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection

from inference.errors import Fault, ProviderError
from inference.providers import base, transport
from inference.providers.base import RemoteStatus
from jobs import lifecycle, outside, reconcile
from jobs.models import Job, ProviderAccount
from jobs.states import Step

log = structlog.get_logger()
T = TypeVar("T")

BATCH = 2000
#: Calls under way at once to one account, and altogether.
CALLS_PER_ACCOUNT = 20
CALLS = 200
#: After so many looks in a row at which a provider did not know its own id.
UNKNOWN_LOOKS = 5
JITTER = 0.1
COUNT_EVERY_SECONDS = 5.0

_TAKE = """
UPDATE jobs_job j SET next_poll_at = now() + make_interval(secs => %(hold)s)
  FROM (SELECT id FROM jobs_job
         WHERE next_poll_at <= now() AND status = 'running' AND step = 'await'
         ORDER BY next_poll_at LIMIT %(limit)s
         FOR NO KEY UPDATE SKIP LOCKED) due
 WHERE j.id = due.id
RETURNING j.id, j.provider_account_id, j.provider_job_id
"""
_AFTERWARDS = """
UPDATE jobs_job j
   SET next_poll_at = now() + make_interval(secs => seen.wait),
       poll_failures = CASE WHEN seen.known THEN 0 ELSE j.poll_failures + 1 END,
       progress = greatest(j.progress, coalesce(seen.progress, 0))
  FROM unnest(%(ids)s::uuid[], %(waits)s::float8[], %(known)s::bool[],
              %(progress)s::float8[]) AS seen(id, wait, known, progress)
 WHERE j.id = seen.id AND j.step = 'await'
"""


@dataclass(frozen=True)
class Due:
    job_id: UUID
    provider_id: str


@dataclass
class Line:
    """One account as the poller knows it: pace, interval, and the calls under way."""

    row: ProviderAccount
    provider: base.Provider
    account: base.ProviderAccount
    interval_seconds: float
    slots: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(CALLS_PER_ACCOUNT)
    )
    next_call_at: float = 0.0

    @property
    def rate(self) -> float:
        capabilities = self.provider.capabilities
        return self.row.statuses_per_second or capabilities.statuses_per_second

    def wait_seconds(self) -> float:
        spread = 1 + random.uniform(-JITTER, JITTER)  # noqa: S311 - only spreads load
        return self.interval_seconds * spread

    async def turn(self) -> None:
        """Wait until this account may be asked again."""
        now = time.monotonic()
        self.next_call_at = max(now, self.next_call_at) + 1 / self.rate
        await asyncio.sleep(self.next_call_at - 1 / self.rate - now)


class Poller:
    def __init__(self) -> None:
        # One thread, one connection: Django's is bound to its thread.
        self._database = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._lines: dict[int, Line] = {}
        self._counted_at = float("-inf")
        self._all = asyncio.Semaphore(CALLS)
        self._answers: list[tuple[UUID, float, bool, float | None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.polls = 0

    async def run(self, stop: asyncio.Event) -> None:
        async with transport.async_client(
            limits=httpx.Limits(max_connections=CALLS, max_keepalive_connections=CALLS)
        ) as http:
            while not stop.is_set():
                try:
                    busy = await self.round(http)
                except DatabaseError as error:
                    log.warning("poller_without_database", error=str(error))
                    await self._db(connection.close)
                    busy = False
                pause = 0.05 if busy else settings.POLL_EVERY_SECONDS
                try:
                    await asyncio.wait_for(stop.wait(), pause)
                except TimeoutError:
                    continue
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._db(self._write_answers)
        await self._db(connection.close)
        self._database.shutdown()

    async def round(self, http: httpx.AsyncClient) -> bool:
        """Start asking about what is due; return whether there was much of it."""
        if time.monotonic() - self._counted_at > COUNT_EVERY_SECONDS:
            await self._db(self._count)
            self._counted_at = time.monotonic()
            self._start(self._db(reconcile.look))
            self._start(self._db(reconcile.run_errands))
        await self._db(self._write_answers)
        due = await self._db(self._take)
        for account_id, jobs in due.items():
            line = self._lines.get(account_id)
            if line is None:
                self._counted_at = float("-inf")  # a new account: read it next round
                continue
            size = line.provider.capabilities.status_batch
            for start in range(0, len(jobs), size):
                self._start(self._ask(http, line, jobs[start : start + size]))
        return sum(map(len, due.values())) >= BATCH

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _db(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._database, work)

    # ------------------------------------------------------------------- asking

    async def _ask(
        self, http: httpx.AsyncClient, line: Line, jobs: Sequence[Due]
    ) -> None:
        await line.turn()
        ids = [due.provider_id for due in jobs]
        async with self._all, line.slots:
            try:
                found = await transport.status_async(
                    http, line.provider, ids, line.account
                )
            except ProviderError as error:
                await self._db(partial(outside.went_wrong, line.row.pk, error))
                wait = max(error.retry_after_seconds or 0, line.wait_seconds())
                self._answers += [(due.job_id, wait, True, None) for due in jobs]
                return
        self.polls += len(jobs)
        for due in jobs:
            await self._told(line, due, found[due.provider_id])

    async def _told(self, line: Line, due: Due, status: RemoteStatus) -> None:
        match status.state:
            case "succeeded":
                queue = f"provider.{line.provider.name}"
                await self._db(partial(_arrived, due.job_id, queue))
            case "failed":
                error = status.error or ProviderError("no reason", fault=Fault.HEALTH)
                await self._db(partial(reconcile.remote_failure, due.job_id, error))
            case "queued" | "running" | "unknown":
                known = status.state != "unknown"
                wait = line.wait_seconds()
                self._answers.append((due.job_id, wait, known, status.progress))

    # ----------------------------------------------------------------- database

    def _take(self) -> Mapping[int, list[Due]]:
        # Long enough for the answer; a poller that dies meanwhile delays, never loses.
        with connection.cursor() as cursor:
            cursor.execute(_TAKE, {"hold": 120.0, "limit": BATCH})
            rows = cursor.fetchall()
        due: dict[int, list[Due]] = defaultdict(list)
        for job_id, account_id, provider_id in rows:
            due[account_id].append(Due(job_id, provider_id))
        return due

    def _write_answers(self) -> None:
        answers, self._answers = self._answers, []
        if not answers:
            return
        ids, waits, known, progress = zip(*answers, strict=True)
        with connection.cursor() as cursor:
            cursor.execute(
                _AFTERWARDS,
                {
                    "ids": list(ids),
                    "waits": list(waits),
                    "known": list(known),
                    "progress": list(progress),
                },
            )
        for job in Job.objects.filter(
            pk__in=[i for i, _, k, _ in answers if not k],
            step=Step.AWAIT,
            poll_failures__gte=UNKNOWN_LOOKS,
        ):
            reconcile.vanished(job)

    def _count(self) -> None:
        """Read the accounts, and how far each one's rate stretches its interval."""
        at_work = outside.jobs_at_providers()
        rows = ProviderAccount.objects.all()
        lines: dict[int, Line] = {}
        for row in rows:
            provider = outside.adapter(row.provider)
            line = Line(row, provider, outside.as_account(row), 0.0)
            calls = -(-at_work.get(row.pk, 0) // provider.capabilities.status_batch)
            line.interval_seconds = max(
                row.settings.get("poll_seconds") or provider.capabilities.poll_seconds,
                calls / line.rate,
            )
            if (known := self._lines.get(row.pk)) is not None:
                line.slots, line.next_call_at = known.slots, known.next_call_at
            if row.poll_interval_seconds != line.interval_seconds:
                ProviderAccount.objects.filter(pk=row.pk).update(
                    poll_interval_seconds=line.interval_seconds
                )
            lines[row.pk] = line
        self._lines = lines


def _arrived(job_id: UUID, queue: str) -> None:
    """The provider says it is finished: have it collected."""
    lifecycle.return_to(
        job_id, Step.COLLECT, came_from=Step.AWAIT, queue=queue, next_poll_at=None
    )


async def run(stop: asyncio.Event) -> None:
    """Poll what is due until ``stop`` is set."""
    await Poller().run(stop)
