"""poll: GET /v1/jobs/{id} at 8 connections over 200 jobs, and its floor.

    python -m benchmarks poll [--seconds 8] [--rounds 3]

Floor: the same statements, sent by a bare Django view on the same server, with the same
answer. Promise: at least 300 reads/s.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import httpx

from benchmarks import house, load
from benchmarks.bench_accept import floor_server, photo, record

RATE_MIN = 300.0
JOBS = 200


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench_poll", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=8)
    given = parser.parse_args(arguments)
    with house.services() as home:
        keys = house.customers(given.connections)
        body = {"image": photo(), "prompt": "slow push in", "seconds": 5}
        record(home, keys, body)
        with (
            house.server(home, application="project.asgi:application",
                         probe="/healthz") as api,
            floor_server(home) as ground,
        ):  # fmt: skip
            ours = [itertools.cycle([
                load.request("GET", f"/v1/jobs/{job}", key=key)
                for job in jobs_of(api, key, JOBS // len(keys))
            ]) for key in keys]  # fmt: skip
            bare = [
                itertools.repeat(load.request("GET", f"/read/{n}", key=key))
                for n, key in enumerate(keys)
            ]
            load.run(api, ours, seconds=2)
            load.run(ground, bare, seconds=2)
            got, least = [], []
            for _ in range(given.rounds):
                least.append(load.run(ground, bare, seconds=given.seconds))
                got.append(load.run(api, ours, seconds=given.seconds))
    for outcome in [*got, *least]:
        assert set(outcome.statuses) == {200}, outcome.statuses
    best = sorted(got, key=lambda outcome: outcome.rate)[len(got) // 2]
    under = sorted(least, key=lambda outcome: outcome.rate)[len(least) // 2]
    kept = best.rate >= RATE_MIN
    print(f"floor  {under.line}")
    print(f"poll   {best.line}   ratio {best.rate / under.rate:.2f}")
    print(f"promise: >= {RATE_MIN:g}/s: {'kept' if kept else 'NOT kept'}")
    return 0 if kept else 1


def jobs_of(port: int, key: str, count: int) -> list[str]:
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}",
        headers={"Authorization": f"Bearer {key}"},
        trust_env=False,
        timeout=60,
    ) as client:
        body = {"image": photo(), "prompt": "slow push in", "seconds": 5}
        return [client.post("/v1/jobs", json=body).json()["id"] for _ in range(count)]


if __name__ == "__main__":
    raise SystemExit(main())
