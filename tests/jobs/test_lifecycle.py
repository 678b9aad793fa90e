"""A job's life and its money, on real Postgres."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from django.db import DatabaseError, connection, transaction
from django.db.models.functions import Now

from billing import ledger
from billing.models import Account
from inference.contracts import Artifact
from inference.errors import (
    ContentBlocked,
    EngineFailed,
    Fault,
    FetchFailed,
    InputRejected,
    OutageError,
    OutOfMemory,
    ProviderError,
    RenderError,
    WeightsMissing,
)
from jobs import claims, intake, lifecycle, routing, slots, steps, tasks
from jobs.claims import Claim, Held
from jobs.errors import InsufficientCredits, NotAcceptableNow
from jobs.models import Attempt, Job, JobUpload, Route
from jobs.states import Status, Step
from tests.billing.factories import Customer
from tests.factories import credential, make_account, make_job, make_request

pytestmark = pytest.mark.django_db

ARTIFACT = Artifact(
    key="out/1.mp4",
    size_bytes=10,
    sha256="00",
    width=96,
    height=64,
    fps=16.0,
    frames=16,
    seconds=1.0,
    has_audio=False,
)


@pytest.fixture
def alice() -> Account:
    return make_account("alice", credits=10)


def available(account: Account) -> int:
    return ledger.balance(account_id=account.pk, mode="live").available_millicredits


def held(account: Account) -> int:
    return ledger.balance(account_id=account.pk, mode="live").held_millicredits


def claim(queue: str, worker: str = "w1") -> Claim:
    found = claims.claim_next(queue, worker=worker)
    assert found is not None
    return found


def prepared(job: Job) -> Claim:
    """Take the job through prepare and claim its generate step."""
    lifecycle.advance(
        claim("media"), Step.GENERATE, queue="cpu", inputs={"image": {"key": "k"}}
    )
    return claim("cpu")


def test_accepting_a_job_holds_its_price(alice: Account) -> None:
    job = make_job(alice, seconds=5)
    assert job.quoted_millicredits == 1000
    assert (available(alice), held(alice)) == (9000, 1000)


def test_a_finished_job_is_charged_once(alice: Account) -> None:
    job = make_job(alice)
    work = prepared(job)
    lifecycle.succeed(work, ARTIFACT)
    with pytest.raises(lifecycle.Superseded):
        lifecycle.succeed(work, ARTIFACT)
    job.refresh_from_db()
    assert (job.status, job.step) == (Status.SUCCEEDED, Step.DONE)
    assert job.charged_millicredits == 1000
    assert (available(alice), held(alice)) == (9000, 0)
    assert job.files_expire_at is not None


def test_a_failed_job_gives_back_every_credit(alice: Account) -> None:
    job = make_job(alice)
    lifecycle.fail(claim("media"), InputRejected("no picture", field="image"))
    job.refresh_from_db()
    assert job.status == Status.FAILED
    assert job.error_message == "no picture"
    assert (job.charged_millicredits, job.refunded_millicredits) == (0, 1000)
    assert (available(alice), held(alice)) == (10_000, 0)


def test_a_job_without_money_is_not_accepted_and_leaves_nothing(alice: Account) -> None:
    with pytest.raises(InsufficientCredits) as refused, transaction.atomic():
        intake.submit(
            make_request(seconds=15),
            credential=credential(make_account("bob")),
            dialect="native",
            public_id="b1",
        )
    assert refused.value.required_millicredits == 3000
    assert refused.value.available_millicredits == 0
    assert not Job.objects.exists()


def test_a_step_is_tried_three_times_and_then_the_job_fails(alice: Account) -> None:
    job = make_job(alice)
    for _ in range(2):
        lifecycle.try_again(claim("media"), EngineFailed("broke"))
        Job.objects.update(run_after=None)
    lifecycle.try_again(claim("media"), EngineFailed("broke"))
    job.refresh_from_db()
    assert job.status == Status.FAILED
    assert available(alice) == 10_000
    assert [a.outcome for a in job.attempts.all()] == ["failed"] * 3


@pytest.fixture
def larger() -> Iterator[None]:
    """A second route for motion, after the first."""
    Route.objects.create(
        model="motion",
        name="larger",
        kind="engine",
        queue="media",
        runner="motion",
        rank=9,
    )
    routing.forget()
    yield
    routing.forget()


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (OutOfMemory("48 GB", permanent=True), 1),
        (WeightsMissing("no such folder"), 1),
        (OutOfMemory("host"), 3),
        (EngineFailed("broke"), 3),
        (ValueError("a bug"), 3),
    ],
)
def test_what_one_route_cannot_make_is_made_on_the_next_or_refunded(
    alice: Account,
    larger: None,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    tries: int,
) -> None:
    def breaks(held: Held) -> None:
        raise error

    monkeypatch.setitem(vars(steps)["STEPS"], Step.GENERATE, breaks)
    job = make_job(alice, seconds=5)
    work: Claim | None = prepared(job)
    for name, queue in (("cpu", "cpu"), ("larger", "media")):
        for _ in range(tries):
            job.refresh_from_db()
            assert (job.status, job.route["name"]) == ("running", name)
            assert held(alice) == 1000
            tasks._do(Held(work or claim(queue)))
            Job.objects.update(run_after=None)
            work = None
    job.refresh_from_db()
    assert job.status == "failed"
    assert (available(alice), held(alice)) == (10_000, 0)


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_is_slow_in_the_midst_of_a_move_is_not_taken_for_lost(
    alice: Account,
) -> None:
    """Frozen there, it holds the job's row; it may wake and succeed."""
    job = make_job(alice, seconds=5)
    prepared(job)
    Job.objects.update(lease_until=Now() - timedelta(seconds=1))
    worker = connection.copy()
    try:
        worker.set_autocommit(False)
        with worker.cursor() as cursor:
            cursor.execute(
                "UPDATE jobs_job SET stage = 'moves' WHERE id = %s", [job.pk]
            )
        lifecycle.lose(Job.objects.get())  # does not wait for it either
        assert [a.outcome for a in job.attempts.order_by("fence")] == ["ok", ""]
        assert Job.objects.filter(lease_until__isnull=False, step_tries=0).exists()
        worker.rollback()  # it did not wake: Postgres has ended its session
    finally:
        worker.close()
    lifecycle.lose(Job.objects.get())
    assert [a.outcome for a in job.attempts.order_by("fence")] == ["ok", "lost"]
    assert Job.objects.filter(lease_until__isnull=True, step_tries=1).exists()


def test_a_route_whose_workers_die_is_left_for_the_next(
    alice: Account, larger: None
) -> None:
    job = make_job(alice, seconds=5)
    prepared(job)
    for queue in ("cpu", "cpu", "media", "media", "media"):
        Job.objects.update(lease_until=Now() - timedelta(seconds=1))
        lifecycle.lose(Job.objects.get())
        assert held(alice) == 1000
        claim(queue)
    Job.objects.update(lease_until=Now() - timedelta(seconds=1))
    lifecycle.lose(Job.objects.get())
    job.refresh_from_db()
    assert (job.status, job.error_code) == ("failed", "worker_lost")
    assert (available(alice), held(alice)) == (10_000, 0)


def test_our_own_outage_uses_up_no_try(alice: Account) -> None:
    job = make_job(alice)
    for _ in range(5):
        lifecycle.try_again(claim("media"), OutageError("storage is away"))
        Job.objects.update(run_after=None)
    job.refresh_from_db()
    assert (job.status, job.step_tries) == (Status.QUEUED, 0)


def test_a_failed_step_waits_before_it_is_tried_again(alice: Account) -> None:
    make_job(alice)
    lifecycle.try_again(claim("media"), EngineFailed("broke"))
    assert claims.claim_next("media", worker="w1") is None


def test_a_late_worker_changes_nothing(alice: Account) -> None:
    job = make_job(alice)
    zombie = prepared(job)
    Job.objects.update(lease_until="2020-01-01T00:00Z")
    lifecycle.lose(Job.objects.get())
    other = claim("cpu", "w2")
    lifecycle.succeed(other, ARTIFACT)
    with pytest.raises(lifecycle.Superseded):
        lifecycle.succeed(zombie, ARTIFACT)
    with pytest.raises(lifecycle.Superseded):
        lifecycle.fail(zombie, EngineFailed("late"))
    with pytest.raises(lifecycle.Superseded):
        lifecycle.record(zombie, resolved={})
    assert (available(alice), held(alice)) == (9000, 0)
    assert [a.outcome for a in Attempt.objects.filter(job=job)] == ["ok", "lost", "ok"]


def test_a_draining_worker_gives_its_job_back_untried(alice: Account) -> None:
    job = make_job(alice)
    lifecycle.let_go(claim("media"))
    again = claim("media", "w2")
    assert (again.tries, again.job_id) == (0, job.pk)


def test_a_queued_job_is_canceled_at_once(alice: Account) -> None:
    job = lifecycle.cancel(make_job(alice))
    assert job.status == Status.CANCELED
    assert available(alice) == 10_000
    assert not JobUpload.objects.exists()


def test_a_running_job_is_canceled_when_its_worker_sees_it(alice: Account) -> None:
    job = make_job(alice)
    work = prepared(job)
    assert lifecycle.cancel(job).status == Status.RUNNING
    lifecycle.succeed(work, ARTIFACT)  # it had just finished: the cancel came first
    job.refresh_from_db()
    assert job.status == Status.CANCELED
    assert available(alice) == 10_000


def test_running_jobs_may_be_canceled_only_so_often(alice: Account) -> None:
    plan = alice.plan
    plan.running_cancels_per_day = 1
    plan.save()
    for _ in range(2):
        make_job(alice)
    for work in (prepared(Job.objects.all()[1]), prepared(Job.objects.all()[0])):
        job = Job.objects.get(pk=work.job_id)
        if Job.objects.filter(cancel_requested_at__isnull=False).exists():
            with pytest.raises(NotAcceptableNow):
                lifecycle.cancel(job)
        else:
            lifecycle.cancel(job)


def test_an_operators_cancels_leave_the_customer_theirs(alice: Account) -> None:
    plan = alice.plan
    plan.running_cancels_per_day = 1
    plan.save()
    jobs = [make_job(alice) for _ in range(3)]
    for job in jobs:
        prepared(job)
    lifecycle.cancel(jobs[0], reason="the host goes down", actor="olga")
    lifecycle.cancel(jobs[1])
    with pytest.raises(NotAcceptableNow):
        lifecycle.cancel(jobs[2])


def cancel_running(job: Job, **who: str) -> None:
    work = prepared(job)
    lifecycle.cancel(job, **who)
    lifecycle.confirm_canceled(work)


def fail_preparing(error: RenderError) -> Callable[[Job], object]:
    return lambda job: lifecycle.fail(claim("media"), error)


def fail_making(error: RenderError) -> Callable[[Job], object]:
    return lambda job: lifecycle.fail(prepared(job), error)


def wait_too_long(job: Job, *, with_slot: bool = True) -> None:
    if not with_slot:
        Job.objects.filter(pk=job.pk).update(ready_at=None)
    lifecycle.end(job.pk, RenderError("waited", code="queue_expired"))


OWN_DOING: dict[str, Callable[[Job], object]] = {
    "canceled while it waited": lifecycle.cancel,
    "canceled while it ran": cancel_running,
    "a picture nobody can use": fail_preparing(InputRejected("a GIF", field="image")),
    "an address that does not answer": fail_preparing(FetchFailed("404")),
    "refused by the safety rules": fail_making(ContentBlocked("no")),
    "refused by the provider": fail_making(ProviderError("no", fault=Fault.CUSTOMER)),
    "waited behind the account's own jobs": lambda job: wait_too_long(
        job, with_slot=False
    ),
}
OUR_FAILURE: dict[str, Callable[[Job], object]] = {
    "the engine broke": fail_making(EngineFailed("no")),
    "the provider broke": fail_making(ProviderError("no", fault=Fault.HEALTH)),
    "its file did not come": fail_making(FetchFailed("503")),
    "nobody took it": wait_too_long,
    "an operator canceled it": lambda job: lifecycle.cancel(job, actor="olga"),
    "an operator canceled it as it ran": lambda job: cancel_running(job, actor="olga"),
}


def end_after_its_credits_died(end: Callable[[Job], object]) -> Customer:
    bob = Customer(make_account("bob"))
    bob.grant(1, "promotion", expires_at=datetime.now(UTC) + timedelta(days=1))
    job = make_job(bob.account)
    bob.let_die("promotion")
    end(job)
    job.refresh_from_db()
    assert job.status in (Status.FAILED, Status.CANCELED)
    assert bob.held == 0
    assert ledger.check(account_id=bob.id) == []
    return bob


@pytest.mark.parametrize("how", OWN_DOING)
def test_nobody_keeps_credits_alive_by_jobs_that_end_by_their_own_doing(
    how: str,
) -> None:
    assert end_after_its_credits_died(OWN_DOING[how]).available == 0


@pytest.mark.parametrize("how", OUR_FAILURE)
def test_credits_that_died_in_our_hands_live_a_week_more(how: str) -> None:
    bob = end_after_its_credits_died(OUR_FAILURE[how])
    assert bob.available == 1
    assert bob.next_expiry is not None


def test_an_ended_job_cannot_be_canceled_or_changed(alice: Account) -> None:
    job = make_job(alice)
    lifecycle.succeed(prepared(job), ARTIFACT)
    with pytest.raises(NotAcceptableNow):
        lifecycle.cancel(Job.objects.get())
    with pytest.raises(DatabaseError), transaction.atomic():
        Job.objects.update(status=Status.QUEUED)


def test_an_account_has_only_so_many_jobs_in_the_making(alice: Account) -> None:
    plan = alice.plan
    plan.max_running = 2
    plan.save()
    for _ in range(4):
        make_job(alice)
    assert Job.objects.filter(ready_at__isnull=False).count() == 2
    lifecycle.fail(claim("media"), InputRejected("bad", field="image"))
    assert Job.objects.filter(ready_at__isnull=False, status="queued").count() == 2
    assert slots.is_free(account_id=alice.pk, mode="live", limit=3)


def test_a_priority_takes_no_other_customers_turn(alice: Account) -> None:
    first = make_job(make_account("bob", credits=10), priority=-10)
    make_job(alice, priority=10)
    assert claim("media").job_id == first.pk


def test_a_priority_decides_which_own_job_gets_the_next_slots(alice: Account) -> None:
    plan = alice.plan
    plan.max_running = 1
    plan.save()
    make_job(alice)
    later, urgent, soon = (make_job(alice, priority=p) for p in (-1, 9, 5))
    plan.max_running = 3
    plan.save()
    lifecycle.fail(claim("media"), InputRejected("bad", field="image"))
    assert [claim("media").job_id for _ in range(3)] == [urgent.pk, soon.pk, later.pk]


def test_test_jobs_cost_test_credits_and_take_the_simulating_route(
    alice: Account,
) -> None:
    job = make_job(alice, mode="test", model="wan2.6-i2v")
    assert job.route["simulates"]
    assert job.quoted_millicredits > 0
    assert available(alice) == 10_000
