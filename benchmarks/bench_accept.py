"""accept: POST /v1/jobs at 8 connections, and its floor.

    python -m benchmarks accept [--seconds 10] [--rounds 3] [--connections 8]

Floor: the same statements of the same call, sent by a bare Django view on the same
server. No workers run. Promises: at least 60 % of the floor, 120 jobs/s, p99 < 150 ms.
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import floor, house, load

SHARE_MIN = 0.60
RATE_MIN = 120.0
P99_MAX = 0.150


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench_accept", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=8)
    given = parser.parse_args(arguments)
    with house.services() as home:
        keys = house.customers(given.connections)
        body = {"image": photo(), "prompt": "slow push in", "seconds": 5}
        record(home, keys, body)
        ours = [
            itertools.repeat(load.request("POST", "/v1/jobs", key=key, body=body))
            for key in keys
        ]
        bare = [
            itertools.repeat(load.request("POST", f"/create/{n}", key=key, body=body))
            for n, key in enumerate(keys)
        ]
        with (
            house.server(home, application="project.asgi:application",
                         probe="/healthz") as api,
            floor_server(home) as ground,
        ):  # fmt: skip
            load.run(api, ours, seconds=2)
            load.run(ground, bare, seconds=2)
            got, least = [], []
            for _ in range(given.rounds):  # in turn, so that both see the same machine
                least.append(load.run(ground, bare, seconds=given.seconds))
                got.append(load.run(api, ours, seconds=given.seconds))
    return report(got, least)


def report(got: list[load.Outcome], least: list[load.Outcome]) -> int:
    for outcome in [*got, *least]:
        assert set(outcome.statuses) == {202}, outcome.statuses
    best = sorted(got, key=lambda outcome: outcome.rate)[len(got) // 2]
    ground = sorted(least, key=lambda outcome: outcome.rate)[len(least) // 2]
    share = best.rate / ground.rate
    print(f"floor   {ground.line}")
    print(f"accept  {best.line}   ratio {share:.2f}")
    kept = (
        share >= SHARE_MIN and best.rate >= RATE_MIN and best.quantile(0.99) < P99_MAX
    )
    print(f"promise: ratio >= {SHARE_MIN}, >= {RATE_MIN:g}/s, p99 < {P99_MAX * 1000:g} ms:"
          f" {'kept' if kept else 'NOT kept'}")  # fmt: skip
    return 0 if kept else 1


def photo() -> str:
    """Return a photo of about 20 kB as base64, as a customer's browser would send."""
    from PIL import Image

    out = io.BytesIO()
    with Image.open(house.ROOT / "tests" / "photos" / "chelsea.jpg") as picture:
        picture.convert("RGB").resize((480, 320)).save(out, "JPEG", quality=80)
    return base64.b64encode(out.getvalue()).decode()


def record(home: Path, keys: Sequence[str], body: Any) -> None:
    """Keep the statements of each customer's create and read, for the floor."""
    from uuid import UUID

    from django.test import Client

    kept: dict[str, floor.Record] = {}
    for number, key in enumerate(keys):
        client = Client(headers={"Authorization": f"Bearer {key}", "Host": "127.0.0.1"})
        post = partial(client.post, "/v1/jobs", body, content_type="application/json")
        assert post().status_code == 202  # caches are warm from here on
        with floor.recording() as created:
            made = post()
        job = made.json()["id"]
        with floor.recording() as read:
            shown = client.get(f"/v1/jobs/{job}")
        kept[f"create/{number}"] = floor.Record(UUID(job), created, made.json(), 202)
        kept[f"read/{number}"] = floor.Record(UUID(job), read, shown.json(), 200)
    floor.keep(home / "record", kept)


def floor_server(home: Path) -> Any:
    os.environ["BENCH_FLOOR"] = "1"
    return house.server(home, application="benchmarks.floor:application", probe="/x")


if __name__ == "__main__":
    raise SystemExit(main())
