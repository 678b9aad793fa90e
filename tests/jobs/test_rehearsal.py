"""A rehearsed delay: the job is running all the while, and nobody else waits for it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db.models import F
from django.db.models.functions import Now

from billing import ledger
from billing.models import Account
from jobs import claims, housekeeper, lifecycle, tasks
from jobs.claims import Held
from jobs.models import Job
from jobs.states import Status
from tests.factories import make_account, make_job
from tests.jobs.finishing import site, world

__all__ = ["site", "world"]
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

CLIP: dict[str, Any] = {"mode": "test", "seconds": 1, "tier": "480p", "fps": 8}


@pytest.fixture
def alice() -> Account:
    return make_account("alice")


def delayed(account: Account, seconds: int = 40) -> Job:
    return make_job(account, prompt=f"zoom in [[test:delay={seconds}]]", **CLIP)


def one_worker(queue: str) -> int:
    """Work off what is ready in the queue, one job after another; return how many."""
    count = 0
    while (claim := claims.claim_next(queue, worker="only")) is not None:
        tasks._do(Held(claim))
        count += 1
    return count


def began_earlier(job: Job, seconds: float) -> None:
    """Set the job's clock back, as if it had begun so much earlier."""
    Job.objects.filter(pk=job.pk).update(
        started_at=F("started_at") - timedelta(seconds=seconds),
        run_after=F("run_after") - timedelta(seconds=seconds),
    )
    job.refresh_from_db()


def test_a_delayed_job_keeps_no_other_customers_job_waiting(alice: Account) -> None:
    slow, quick = delayed(alice), make_job(make_account("bob"), **CLIP)
    one_worker("media")
    assert one_worker("cpu.test") == 2
    slow.refresh_from_db()
    quick.refresh_from_db()
    assert (slow.status, quick.status) == (Status.RUNNING, Status.SUCCEEDED)


def test_a_delayed_job_runs_for_so_long_and_is_then_made_in_one_try(
    alice: Account,
) -> None:
    job = delayed(alice)
    one_worker("media")
    assert one_worker("cpu.test") == 1
    began_earlier(job, 20)
    assert one_worker("cpu.test") == 0
    assert (job.status, job.lease_until) == (Status.RUNNING, None)
    began_earlier(job, 20)
    assert one_worker("cpu.test") == 1
    job.refresh_from_db()
    assert (job.status, job.step_tries, job.error_code) == (Status.SUCCEEDED, 0, "")
    assert job.started_at is not None
    assert job.finished_at is not None
    assert (job.finished_at - job.started_at).total_seconds() >= 40
    outcomes = list(job.attempts.values_list("step", "outcome"))
    assert outcomes == [("prepare", "ok"), ("generate", "released"), ("generate", "ok")]


def test_a_delayed_job_that_is_claimed_too_early_waits_for_the_rest(
    alice: Account,
) -> None:
    job = delayed(alice)
    one_worker("media")
    one_worker("cpu.test")
    began_earlier(job, 30)
    Job.objects.update(run_after=None)
    assert one_worker("cpu.test") == 1
    job.refresh_from_db()
    assert job.status == Status.RUNNING
    assert job.started_at is not None
    assert job.run_after is not None
    whole = (job.run_after - job.started_at).total_seconds()
    assert 40 <= whole < 45


def test_a_delayed_job_is_canceled_at_once_and_costs_nothing(alice: Account) -> None:
    job = delayed(alice)
    one_worker("media")
    one_worker("cpu.test")
    assert lifecycle.cancel(job).status == Status.CANCELED
    assert ledger.balance(account_id=alice.pk, mode="test").held_millicredits == 0


def test_a_delay_beyond_the_time_limit_ends_as_such(alice: Account) -> None:
    job = delayed(alice, 3600)
    one_worker("media")
    one_worker("cpu.test")
    Job.objects.update(end_by=Now())
    housekeeper.end_overdue()
    job.refresh_from_db()
    assert (job.status, job.error_code) == (Status.FAILED, "deadline_exceeded")
