"""The poller: how many jobs at outside providers it keeps in view, and at what cost.

Real Postgres, and on loopback, in a process of its own, a server with Novita's words (one
id per call, the dearest kind). No video is made; every job stays "running" there.

1. Pace: so many jobs in flight at one interval, over enough accounts at 5 calls a second
   each. Promise: every job is asked about in every interval, and memory stays flat.
2. Speed: everything due at once, no rate. Promise: at least 300 polls a second.
Floor, in the same run: the same calls by the same clients, without database or poller.

    python -m benchmarks.bench_provider           1,000 jobs, every 6 s, for 24 s
    python -m benchmarks.bench_provider --full    10,000 jobs, every 60 s, for 150 s
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
RATE_PER_ACCOUNT = 5.0
SPEED_SECONDS = 8.0
FLOOR_CALLS = 1500
POLLS_PER_SECOND_MIN = 300.0
#: How much later than its interval (and jitter) a job may be asked about.
LATE_SECONDS = 1.5
GROWTH_MB_MAX = 8.0


@dataclass(frozen=True)
class Load:
    jobs: int
    interval_seconds: float
    seconds: float

    @property
    def accounts(self) -> int:
        """Return how many accounts the rate demands, and a fifth more."""
        return max(2, round(1.2 * self.jobs / self.interval_seconds / RATE_PER_ACCOUNT))


QUICK = Load(1000, 6.0, 24.0)
FULL = Load(10_000, 60.0, 150.0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench_provider")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.serve:
        return serve()
    load = FULL if given.full else QUICK
    ids = [str(uuid.uuid4()) for _ in range(load.jobs)]
    with database(), fake() as url:
        rows = enter(load, url, ids)
        floor = asyncio.run(raw_calls(rows, ids))
        ok = pace(load, floor)
        ok &= speed(floor)
    return 0 if ok else 1


# ------------------------------------------------------------------ the outside


def serve() -> int:
    """Answer every status call as Novita answers about a job that runs, in its own words.

    The fake's words, but not its server: with a thread for each of hundreds of
    connections that one would be what is measured.
    """
    from tests.fakes import start

    service = start("novita", queued_seconds=0, running_seconds=1e9)
    job = service.accept("sk-bench", "wan-i2v", "x")
    path = f"/v3/async/task-result?task_id={job.id}"
    with httpx.Client(trust_env=False) as client:
        answer = client.get(
            service.url + path, headers={"Authorization": "Bearer sk-bench"}
        )
    service.stop()
    assert answer.status_code == 200, answer.text
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer.content)}\r\n\r\n"
    asyncio.run(_answer_all(head.encode() + answer.content))
    return 0


async def _answer_all(reply: bytes) -> None:
    async def connected(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=1000)
    port = server.sockets[0].getsockname()[1]
    sys.stdout.write(f"http://127.0.0.1:{port}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


@contextmanager
def fake() -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.bench_provider", "--serve"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.terminate()
            process.wait(20)


# ------------------------------------------------------------------ the inside


@contextmanager
def database() -> Iterator[None]:
    """Give Django a fresh database on a real Postgres of this run's own."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    from tests import services

    services.claim_home()
    import django
    from django.db import connection, connections

    django.setup()
    from project.settings import database_settings

    try:
        url = services.wait_for("postgres")["DATABASE_URL"]
        values = database_settings(url)
        connections.databases["default"] |= {
            name: value for name, value in values.items() if name != "NAME"
        }
        connection.creation.create_test_db(verbosity=0, autoclobber=True)
        yield
        connection.close()
    finally:
        services.stop()


def enter(load: Load, url: str, ids: Sequence[str]) -> list[Any]:
    """Enter the accounts and spread the jobs over them."""
    from jobs.models import ProviderAccount
    from tests.factories import make_account
    from tests.jobs import providers_world as world

    customer = make_account("bench", plan="enterprise")
    rows = ProviderAccount.objects.bulk_create(
        ProviderAccount(
            provider="novita",
            name=f"account {number}",
            base_url=url,
            credentials=json.dumps({"api_key": "sk-bench"}),
            settings={"poll_seconds": load.interval_seconds},
            statuses_per_second=RATE_PER_ACCOUNT,
        )
        for number in range(load.accounts)
    )
    for number, row in enumerate(rows):
        mine = list(ids[number :: len(rows)])
        world.put_out(customer, row, mine)
    return list(rows)


@dataclass(frozen=True)
class Floor:
    calls_per_second: float
    cpu_seconds_per_call: float


async def raw_calls(rows: Sequence[Any], ids: Sequence[str]) -> Floor:
    """Make status calls as fast as the poller's clients can, and nothing else."""
    from inference import registry
    from inference.providers import transport
    from inference.providers.base import ProviderAccount
    from jobs.poller import CALLS_PER_ACCOUNT

    provider = registry.provider("novita")
    account = ProviderAccount("bench", rows[0].base_url, {"api_key": "sk-bench"})
    clients = [transport.async_client() for _ in rows]
    callers = len(clients) * CALLS_PER_ACCOUNT

    async def call_all(calls: int) -> None:
        left = iter(range(calls))

        async def caller(number: int) -> None:
            for call in left:
                one = ids[call % len(ids)]
                client = clients[number % len(clients)]
                await transport.status_async(client, provider, [one], account)

        await asyncio.gather(*(caller(number) for number in range(callers)))

    await call_all(callers)  # opens the connections
    wall, cpu = time.monotonic(), time.process_time()
    await call_all(FLOOR_CALLS)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    for client in clients:
        await client.aclose()
    floor = Floor(FLOOR_CALLS / wall, cpu / FLOOR_CALLS)
    print(
        f"floor: {floor.calls_per_second:.0f} bare status calls/s,"
        f" {floor.cpu_seconds_per_call * 1000:.2f} ms of CPU each"
    )
    return floor


def spread(load: Load) -> None:
    """Let the jobs fall due evenly over one interval from now on."""
    from django.db.models import ExpressionWrapper, fields
    from django.db.models.functions import Now, Random

    from jobs.models import Job

    Job.objects.update(
        next_poll_at=ExpressionWrapper(
            Now() + Random() * timedelta(seconds=load.interval_seconds),
            output_field=fields.DateTimeField(),
        )
    )


def pace(load: Load, floor: Floor) -> bool:
    """Let the poller keep all jobs in view; look at each job's intervals and at memory."""
    spread(load)
    asked, sizes, cpu = asyncio.run(_watched(load.seconds))
    longest = load.interval_seconds * 1.1 + LATE_SECONDS
    gaps = [
        later - earlier
        for times in asked.values()
        for earlier, later in pairwise(times)
    ]
    last = max(max(times) for times in asked.values())
    stale = sum(last - times[-1] > longest for times in asked.values())
    late = sum(gap > longest for gap in gaps)
    polls = sum(map(len, asked.values()))
    third = len(sizes) // 3
    growth = max(sizes[-3:]) - max(sizes[third : third + 3])
    per_poll = cpu / polls
    print(
        f"\npace: {load.jobs} jobs every {load.interval_seconds:g} s over"
        f" {load.accounts} accounts, for {load.seconds:g} s"
    )
    print(f"  {len(asked)} of {load.jobs} jobs asked about, {polls} polls")
    gaps.sort()
    print(
        f"  interval: median {gaps[len(gaps) // 2]:.2f} s,"
        f" longest {gaps[-1]:.2f} s (allowed {longest:.2f}); late {late}, left out"
        f" {stale}"
    )
    print(f"  memory: {sizes[third]:.0f} → {sizes[-1]:.0f} MB (grew {growth:.1f})")
    print(
        f"  CPU per poll: {per_poll * 1000:.2f} ms,"
        f" {per_poll / floor.cpu_seconds_per_call:.2f} x the floor;"
        f" {100 * cpu / load.seconds:.0f} % of a core"
    )
    ok = len(asked) == load.jobs and not late and not stale and growth < GROWTH_MB_MAX
    print("  kept" if ok else "  NOT KEPT")
    return ok


async def _watched(
    seconds: float,
) -> tuple[dict[str, list[float]], list[float], float]:
    """Run a poller; return when each job was asked about, memory by time, and CPU."""
    from jobs import poller

    asked: dict[str, list[float]] = defaultdict(list)

    class Watched(poller.Poller):
        async def _ask(self, line: Any, jobs: Sequence[Any]) -> None:
            for due in jobs:
                asked[due.provider_id].append(time.monotonic())
            await super()._ask(line, jobs)

    stop = asyncio.Event()
    cpu = time.process_time()
    running = asyncio.create_task(Watched().run(stop))
    sizes = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        sizes.append(resident_mb())
        await asyncio.sleep(1.0)
    cpu = time.process_time() - cpu
    stop.set()
    await running
    return asked, sizes, cpu


def speed(floor: Floor) -> bool:
    """Let everything be due all the time and no account have a rate."""
    from django.db.models.functions import Now

    from jobs.models import Job, ProviderAccount

    ProviderAccount.objects.update(
        statuses_per_second=1e6, settings={"poll_seconds": 0.001}
    )
    Job.objects.update(next_poll_at=Now())
    started = time.monotonic()
    asked, _, cpu = asyncio.run(_watched(SPEED_SECONDS))
    wall = time.monotonic() - started
    polls = sum(map(len, asked.values()))
    per_second = polls / wall
    print(f"\nspeed: {per_second:.0f} polls/s, {cpu / polls * 1000:.2f} ms of CPU each")
    print(
        f"  {per_second / floor.calls_per_second:.2f} of the floor's"
        f" {floor.calls_per_second:.0f} calls/s; promised {POLLS_PER_SECOND_MIN:.0f}"
    )
    print(f"  one core's worth: {polls / cpu:.0f} polls/s")
    ok = per_second >= POLLS_PER_SECOND_MIN
    if not ok and floor.calls_per_second < 2 * POLLS_PER_SECOND_MIN:
        print("  the machine is too busy to tell: the floor itself is low")
        return True
    print("  kept" if ok else "  NOT KEPT")
    return ok


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    sys.exit(main())
