"""A long run at true values: customers at work while processes die, then the books.

`make chaos` runs it. The seed is printed; CHAOS_SEED repeats it, CHAOS_SECONDS makes it
longer. Nothing leaves loopback, and everything stops by itself.
"""

from __future__ import annotations

import base64
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests import stack
from tests.factories import png
from tests.stack import FAST, LiveStack, wait_until

SECONDS = float(os.environ.get("CHAOS_SECONDS", "300"))
SEED = int(os.environ.get("CHAOS_SEED", random.randrange(10**6)))
#: lease (90 s), reaper, three tries and their pauses, and the work itself
SETTLE_SECONDS = 600.0
VICTIMS = (
    "web",
    "worker-media",
    "worker-cpu",
    "worker-cpu-test",
    "poller",
    "housekeeper",
    "postgres",
    "redis",
)
BODY = {
    "image": base64.b64encode(png(160, 120)).decode(),
    "resolution": "480p",
    "seconds": 1,
    "fps": 8,
}


class Customer(threading.Thread):
    """Posts, polls, repeats and cancels at random; keeps what it was promised."""

    def __init__(self, live: LiveStack, key: str, seed: int, until: float) -> None:
        super().__init__(daemon=True)
        self.live, self.key, self.until = live, key, until
        self.random = random.Random(seed)
        self.accepted: dict[str, str] = {}
        self.answers: Counter[int] = Counter()

    def run(self) -> None:
        with self.live.client(self.key) as client:
            while time.monotonic() < self.until:
                try:
                    self.act(client)
                except httpx.TransportError:
                    self.answers[0] += 1
                time.sleep(self.random.uniform(0.1, 0.6))

    def act(self, client: httpx.Client) -> None:
        if self.accepted and self.random.random() < 0.3:
            job = self.random.choice(list(self.accepted.values()))
            path = f"/v1/jobs/{job}"
            if self.random.random() < 0.3:
                self.answers[client.post(f"{path}/cancel").status_code] += 1
            else:
                self.answers[client.get(path).status_code] += 1
            return
        again = bool(self.accepted) and self.random.random() < 0.2
        name = (
            self.random.choice(list(self.accepted)) if again else f"k{time.time_ns()}"
        )
        answer = client.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": name})
        self.answers[answer.status_code] += 1
        if answer.status_code == 202:
            job = answer.json()["id"]
            assert self.accepted.setdefault(name, job) == job


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS + SETTLE_SECONDS + 300)
def test_nothing_is_lost_or_charged_twice_while_everything_dies(
    tmp_path: Path,
) -> None:
    print(f"CHAOS_SEED={SEED}")  # noqa: T201 - to run it again
    dice = random.Random(SEED)
    live = stack.start(tmp_path, **dict.fromkeys(FAST, "") | {"LOG_LEVEL": "INFO"})
    try:
        until = time.monotonic() + SECONDS
        customers = [
            Customer(live, live.key(), SEED + number, until) for number in range(4)
        ]
        for customer in customers:
            customer.start()
        while time.monotonic() < until - 10:
            victim = dice.choice(VICTIMS)
            number = dice.choice((signal.SIGKILL, signal.SIGTERM))
            old = live.kill(victim, number)
            live.wait_restarted(victim, old, seconds=60)
            time.sleep(dice.uniform(3, 15))
        for customer in customers:
            customer.join(60)
        check(live, customers)
    finally:
        live.stop()


def check(live: LiveStack, customers: list[Customer]) -> None:
    """Every accepted job has ended, and money moved only for videos that are there."""
    wait_until(
        lambda: (
            not live.sql("SELECT 1 FROM jobs_job WHERE status IN ('queued', 'running')")
        ),
        seconds=SETTLE_SECONDS,
        what="every job to end",
        every=2.0,
    )
    live.check_ledger()
    promised = [job for one in customers for job in one.accepted.values()]
    assert len(promised) > 20
    (kept,) = live.sql(
        "SELECT count(*) FROM jobs_job WHERE id = ANY(%s::uuid[])", promised
    )
    assert kept == (len(set(promised)),)
    assert not live.sql("SELECT 1 FROM billing_hold WHERE state = 'open'")
    for customer in customers:
        unexpected = [c for c in customer.answers if c >= 500 and c != 503]
        assert unexpected == []
        with live.client(customer.key) as client:
            for job in set(customer.accepted.values()):
                shown = client.get(f"/v1/jobs/{job}").json()
                is_paid = shown["credits"]["charged"] > 0
                assert is_paid == (shown["status"] == "succeeded"), shown
                if is_paid:
                    url = shown["video"]["url"]
                    assert httpx.get(url, trust_env=False).status_code == 200
