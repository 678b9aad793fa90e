"""What happens by itself: deadlines, silent workers, broken jobs."""

from __future__ import annotations

import pytest

from billing import ledger
from billing.models import Account
from inference.errors import RenderError
from jobs import bells, housekeeper, lifecycle, webhooks
from jobs.models import Incident, Job, WebhookDelivery, WebhookEvent
from jobs.states import Status
from tests.factories import make_account, make_job
from tests.jobs.test_lifecycle import available, claim, prepared

pytestmark = pytest.mark.django_db
PAST = "2020-01-01T00:00Z"


@pytest.fixture
def alice() -> Account:
    return make_account("alice", credits=10)


def test_a_job_that_waited_too_long_ends_and_is_refunded(alice: Account) -> None:
    make_job(alice)
    Job.objects.update(start_by=PAST)
    housekeeper.end_overdue()
    job = Job.objects.get()
    assert (job.status, job.error_code) == (Status.FAILED, "queue_expired")
    assert available(alice) == 10_000


def test_a_job_past_its_run_deadline_ends_and_is_refunded(alice: Account) -> None:
    make_job(alice)
    lifecycle.let_go(prepared(Job.objects.get()))
    Job.objects.update(end_by=PAST)
    housekeeper.end_overdue()
    job = Job.objects.get()
    assert (job.status, job.error_code) == (Status.FAILED, "deadline_exceeded")
    assert available(alice) == 10_000


def test_a_job_that_was_claimed_since_it_was_seen_overdue_goes_on(
    alice: Account,
) -> None:
    make_job(alice)
    lifecycle.let_go(prepared(Job.objects.get()))
    seen = Job.objects.get()
    lifecycle.let_go(claim(seen.queue, "quick"))
    lifecycle.expire(seen, RenderError("ran past its deadline"))
    assert Job.objects.get().status == Status.RUNNING


def test_a_silent_worker_loses_its_job_to_another(alice: Account) -> None:
    make_job(alice)
    first = claim("media")
    Job.objects.update(lease_until=PAST)
    housekeeper.reap()
    second = claim("media", "w2")
    assert second.fence == first.fence + 1
    assert second.tries == 1


def test_a_job_that_kills_its_workers_fails_after_three_and_is_refunded(
    alice: Account,
) -> None:
    make_job(alice)
    for _ in range(3):
        claim("media")
        Job.objects.update(lease_until=PAST)
        housekeeper.reap()
    job = Job.objects.get()
    assert (job.status, job.error_code) == (Status.FAILED, "worker_lost")
    assert available(alice) == 10_000


def test_a_cancel_whose_worker_died_is_carried_out(alice: Account) -> None:
    job = make_job(alice)
    prepared(job)
    lifecycle.cancel(job)
    Job.objects.update(lease_until=PAST)
    housekeeper.reap()
    assert Job.objects.get().status == Status.CANCELED
    assert available(alice) == 10_000


def test_one_broken_job_stops_no_other_and_becomes_an_incident(alice: Account) -> None:
    broken, sound = make_job(alice), make_job(alice)
    ledger.capture(account_id=alice.pk, mode="live", reference=str(broken.pk))
    Job.objects.update(start_by=PAST)
    housekeeper.end_overdue()
    sound.refresh_from_db()
    assert sound.status == Status.FAILED
    incident = Incident.objects.get()
    assert (incident.kind, incident.subject) == ("job_stuck", str(broken.pk))


def test_every_delivery_whose_bell_was_lost_gets_one_and_no_second(
    alice: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    rung: list[str] = []
    monkeypatch.setattr(bells, "publish", rung.append)
    monkeypatch.setattr(housekeeper, "waiting_bells", lambda _: len(rung))
    event = WebhookEvent.objects.create(account=alice, mode="live", type="test")
    for number in range(30):
        WebhookDelivery.objects.create(event=event, lane=f"lane {number}")
    housekeeper.ring_webhooks()
    housekeeper.ring_webhooks()  # nobody has heard them yet
    assert rung == [webhooks.QUEUE] * 30
