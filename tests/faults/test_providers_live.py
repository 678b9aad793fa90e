"""Processes killed while an outside provider has the job; the real stack, real kills."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.factories import png
from tests.fakes import FakeService, start
from tests.stack import ROOT, LiveStack, wait_until

pytestmark = pytest.mark.faults
PICTURE = base64.b64encode(png(160, 120)).decode()
ASKED = {"model": "wan2.2-i2v-flash", "resolution": "480p", "seconds": 2}


@pytest.fixture
def fake(live_stack: LiveStack) -> Iterator[FakeService]:
    """A DashScope with an account on the stack, and nobody else for its models."""
    with start(
        "dashscope", video_side=64, queued_seconds=0.5, running_seconds=0.5
    ) as service:
        live_stack.manage(
            "addprovider",
            "dashscope",
            f"--base-url={service.url}",
            "--setting=poll_seconds=0.5",
            stdin=json.dumps({"api_key": "sk-test"}),
        )
        live_stack.forget_routes()
        yield service
        live_stack.sql("UPDATE jobs_provideraccount SET is_enabled = false")


@pytest.fixture(autouse=True)
def everything_adds_up(live_stack: LiveStack) -> Iterator[None]:
    yield
    live_stack.check_ledger()
    assert live_stack.sql("SELECT 1 FROM billing_hold WHERE state = 'open'") == []


def create(client: httpx.Client, **options: Any) -> str:
    body = {"image": PICTURE, "prompt": "push in", **ASKED, **options}
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_a_worker_killed_between_submit_and_id_pays_once(
    live_stack: LiveStack, fake: FakeService
) -> None:
    fake.script("submit", "slow:3")
    with live_stack.client(live_stack.key()) as client:
        job_id = create(client)
        wait_until(
            lambda: fake.faults_met["submit"],
            seconds=20,
            what="the submit to be there",
            every=0.05,
        )
        killed = live_stack.kill("worker-provider")
        live_stack.wait_restarted("worker-provider", killed)
        job = live_stack.wait_for_job(client, job_id, seconds=120)
    assert job["status"] == "succeeded", job["error"]
    # Found in the provider's list: it was sent once and made once.
    assert len(fake.calls_to("submit")) <= 1  # hung up before it was answered
    assert len(fake.jobs) == 1
    notes = live_stack.sql(
        "SELECT text FROM jobs_jobnote WHERE job_id = %s AND kind = 'reconcile'"
        " ORDER BY id",
        job_id,
    )
    assert [text for (text,) in notes] == [
        "the worker went away before it knew the answer",
        f"found at the provider: {next(iter(fake.jobs))}",
    ]


def test_the_poller_killed_and_two_at_once_lose_and_double_nothing(
    live_stack: LiveStack, fake: FakeService
) -> None:
    fake.running_seconds = 5.0
    second = subprocess.Popen(
        [sys.executable, str(ROOT / "manage.py"), "poller"], env=live_stack.env
    )
    try:
        with live_stack.client(live_stack.key()) as client:
            jobs = [create(client, seed=number) for number in range(4)]
            wait_until(
                lambda: len(fake.jobs) == len(jobs), seconds=40, what="the submits"
            )
            killed = live_stack.kill("poller")
            live_stack.wait_restarted("poller", killed)
            for job_id in jobs:
                job = live_stack.wait_for_job(client, job_id, seconds=120)
                assert job["status"] == "succeeded", job["error"]
    finally:
        second.terminate()
        second.wait(20)
    collected = live_stack.sql(
        "SELECT job_id, count(*) FROM jobs_attempt WHERE step = 'collect'"
        " AND job_id = ANY(%s::uuid[]) GROUP BY 1",
        jobs,
    )
    assert sorted(count for _, count in collected) == [1, 1, 1, 1]
    assert len(fake.calls_to("submit")) == len(jobs)
