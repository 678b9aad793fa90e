"""The services under the platform go away and come back: late, once, and paid right.

Postgres restarts, S3 hangs, Redis freezes. After each every job has ended and the books
add up (`everything_adds_up`).
"""

from __future__ import annotations

import base64
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.faults.test_first_video import LONG, PICTURE, QUICK, create
from tests.faults.test_first_video import everything_adds_up as everything_adds_up
from tests.stack import LiveStack, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
S3_AWAY_SECONDS = 10.0
REDIS_AWAY_SECONDS = 7.0
#: Long enough to be at work when Postgres goes.
WORK = {**LONG, "seconds": 6}


@contextmanager
def frozen(stack: LiveStack, name: str) -> Iterator[None]:
    """Stop a service without ending it: its connections stay open and say nothing."""
    stack.kill(name, signal.SIGSTOP)
    try:
        yield
    finally:
        stack.kill(name, signal.SIGCONT)


def test_postgres_restarts_and_the_service_with_it(live_stack: LiveStack) -> None:
    with live_stack.client(live_stack.key()) as client:
        before = create(client, **WORK)
        wait_until(
            lambda: client.get(f"/v1/jobs/{before}").json()["progress"] > 0,
            seconds=60,
            what="the job to show progress",
        )
        stopped = live_stack.kill("postgres", signal.SIGINT)
        answers: list[httpx.Response] = []

        def accepted() -> bool:
            answers.append(client.post("/v1/jobs", json=QUICK))
            return len(answers) > 5 and answers[-1].status_code == 202

        wait_until(accepted, seconds=60, what="a job to be accepted again")
        live_stack.wait_restarted("postgres", stopped)
        refused = [answer for answer in answers if answer.status_code != 202]
        assert {answer.status_code for answer in refused} == {503}
        for answer in refused:
            assert int(answer.headers["Retry-After"]) > 0
            assert answer.json()["code"] == "service_unavailable"
        made = [a.json()["id"] for a in answers if a.status_code == 202]
        for job in [before, *made]:
            ended = live_stack.wait_for_job(client, job, seconds=150)
            assert ended["status"] == "succeeded", ended["error"]
        listed = client.get("/v1/jobs?limit=100").json()["data"]
        # What was refused made no job.
        assert {job["id"] for job in listed} == {before, *made}


def test_while_s3_hangs_jobs_are_late_and_lose_no_try(live_stack: LiveStack) -> None:
    with live_stack.client(live_stack.key()) as client:
        with frozen(live_stack, "s3"):
            jobs = [create(client, seed=number) for number in range(3)]
            time.sleep(S3_AWAY_SECONDS)
            states = [client.get(f"/v1/jobs/{job}").json()["status"] for job in jobs]
            assert "failed" not in states
        for job in jobs:
            ended = live_stack.wait_for_job(client, job, seconds=120)
            assert ended["status"] == "succeeded", ended["error"]
            assert httpx.get(ended["video"]["url"], trust_env=False).is_success
    spent = live_stack.sql(
        "SELECT error_code FROM jobs_attempt WHERE job_id = ANY(%s::uuid[])"
        " AND outcome = 'failed'",
        jobs,
    )
    assert spent == []


def test_while_redis_is_frozen_jobs_are_accepted_fast(live_stack: LiveStack) -> None:
    with live_stack.client(live_stack.key()) as client:
        create(client)  # connections are open
        took: list[float] = []
        jobs: list[str] = []
        with frozen(live_stack, "redis"):
            until = time.monotonic() + REDIS_AWAY_SECONDS
            while time.monotonic() < until and len(jobs) < 100:
                began = time.monotonic()
                jobs.append(create(client, seed=len(jobs)))
                took.append(time.monotonic() - began)
            # Most have shown what they could; the rest of the test is about the others.
            for job in jobs[2:-2]:
                client.post(f"/v1/jobs/{job}/cancel").raise_for_status()
            assert client.get(f"/v1/jobs/{jobs[0]}").status_code == 200
        slowest = sorted(took)[-1 - len(took) // 100]
        assert slowest < 1.0  # frozen for many seconds
        for job in [*jobs[:2], *jobs[-2:]]:
            ended = live_stack.wait_for_job(client, job, seconds=120)
            assert ended["status"] == "succeeded", ended["error"]


def test_a_picture_in_the_request_waits_for_s3_in_postgres(
    live_stack: LiveStack,
) -> None:
    with live_stack.client(live_stack.key()) as client:
        with frozen(live_stack, "s3"):
            job = create(client)
            held = live_stack.sql(
                "SELECT data FROM jobs_jobupload WHERE job_id = %s", job
            )
            assert bytes(held[0][0]) == base64.b64decode(PICTURE)
        live_stack.wait_for_job(client, job, seconds=120)
    left = live_stack.sql("SELECT 1 FROM jobs_jobupload WHERE job_id = %s", job)
    assert left == []
