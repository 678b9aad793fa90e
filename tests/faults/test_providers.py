"""What can go wrong at an outside provider, for each of the seven, over its true wire.

A fake misbehaves; the steps run here against the real Postgres and S3. After each test
the books add up, no hold is left open under an ended job, and no customer has read a
word of the provider's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core.management import call_command
from django.db import OperationalError
from django.db.models import F
from django.db.models.functions import Now
from django.test import Client
from django.utils import timezone
from structlog.testing import capture_logs

from billing.models import Account, Hold
from inference.errors import Fault, ProviderError
from inference.providers import transport
from jobs import (
    housekeeper,
    lifecycle,
    margin,
    outside,
    poller,
    provider_steps,
    reconcile,
)
from jobs.claims import Claim, Held
from jobs.models import Attempt, Incident, Job, ProviderAccount, ProviderErrand
from jobs.requests import Sound
from tests.factories import make_account, make_key
from tests.fakes import FakeService
from tests.jobs import providers_world as world
from tests.jobs.providers_world import PROVIDERS

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url", "s3")]
every_provider = pytest.mark.parametrize("name", PROVIDERS)
LISTED = ("magicoal", "dashscope", "openai_videos")
CALLING = ("novita", "akool")
BLIND = ("aimlapi", "sinancode")
DELETING = ("akool", "openai_videos")


@pytest.fixture(scope="module")
def fakes() -> Iterator[dict[str, FakeService]]:
    started = {name: world.start(name) for name in PROVIDERS}
    yield started
    for fake in started.values():
        fake.stop()


@pytest.fixture
def fake(name: str, fakes: dict[str, FakeService]) -> FakeService:
    return world.forget(fakes[name])


@pytest.fixture
def alice() -> Account:
    return make_account("alice", plan="enterprise", credits=1000)


@pytest.fixture(autouse=True)
def everything_adds_up(alice: Account) -> Iterator[None]:
    yield
    call_command("check_ledger")
    ended = Job.objects.filter(finished_at__isnull=False)
    for job in ended:
        hold = Hold.objects.get(reference=str(job.pk))
        assert hold.state != "open"
        assert (job.status == "succeeded") == (job.charged_millicredits > 0)
        assert (job.status == "succeeded") == bool(job.output)
    assert_nothing_leaked(alice)


def assert_nothing_leaked(account: Account) -> None:
    """No provider's address or words in anything the API says of the account's jobs."""
    client, key = Client(), make_key(account)
    headers = {"Authorization": f"Bearer {key}"}
    paths = ["/v1/jobs", *(f"/v1/jobs/{job.pk}" for job in Job.objects.all())]
    said = " ".join(
        client.get(path, headers=headers).content.decode() for path in paths
    )
    rows = ProviderAccount.objects.all()
    for secret in (
        *(urlsplit(row.base_url).netloc for row in rows),
        "internal text of the vendor",
        "sk-test",
        *(a.error_detail for a in Attempt.objects.exclude(error_detail="")),
        *(j.error_detail for j in Job.objects.exclude(error_detail="")),
        *(j.provider_job_id for j in Job.objects.exclude(provider_job_id="")),
    ):
        assert json.dumps(secret)[1:-1] not in said


def submits(fake: FakeService) -> int:
    return len(fake.calls_to("submit"))


def again(job: Job) -> Job:
    job.refresh_from_db()
    return job


def rest_is_over(row: ProviderAccount) -> None:
    ProviderAccount.objects.filter(pk=row.pk).update(
        rest_until=None, open_until=Now() - timedelta(seconds=1), next_submit_at=None
    )


# ------------------------------------------------------------------ 31: 429, Retry-After


@every_provider
def test_a_429_is_honoured_and_costs_no_try(name, fake, alice):
    row = world.enter(fake)
    fake.script("submit", "429", retry_after="17")
    job = world.submitted(alice, name)
    row.refresh_from_db()
    assert (job.step, job.step_tries, job.submit_sent_at) == ("submit", 0, None)
    assert row.failures_in_row == 0
    assert row.rest_until is not None
    # Nobody asks again while it rests.
    world.work(f"provider.{name}")
    assert submits(fake) == 1
    rest_is_over(row)
    world.work(f"provider.{name}")
    assert (again(job).step, submits(fake)) == ("await", 2)


def test_while_one_account_rests_another_takes_the_job(fakes, alice):
    fake = world.forget(fakes["novita"])
    world.enter(fake, "first", weight=30_000)
    world.enter(fake, "second", weight=1)
    fake.script("submit", "429", retry_after="17")
    job = world.submitted(alice, "novita")
    world.work("provider.novita")
    assert again(job).step == "await"
    outcomes = set(ProviderAccount.objects.values_list("rest_until", flat=True))
    assert len(outcomes) == 2  # the one that rests has no job


# ------------------------------------------------------------------ 32: 5xx on submit


@every_provider
def test_a_500_is_answered_by_at_most_one_more_submit_with_the_same_token(
    name, fake, alice
):
    row = world.enter(fake)
    fake.script("submit", "500", times=5)
    job = world.submitted(alice, name)
    token = job.submit_token
    assert (job.step, job.step_tries) == ("submit", 1)
    assert token
    world.work(f"provider.{name}")
    assert submits(fake) == 2
    assert (again(job).status, job.submit_token) == ("failed", token)
    assert (job.error_code, job.error_retryable) == ("provider_failed", True)
    assert world.available(alice) == 1_000_000
    row.refresh_from_db()
    assert row.failures_in_row == 2


def test_five_failures_open_the_breaker_and_one_probe_closes_it(fakes, alice):
    fake = world.forget(fakes["novita"])
    row = world.enter(fake)
    for _ in range(5):
        outside.went_wrong(row.pk, provider_sick())
    row.refresh_from_db()
    assert row.open_until is not None
    job = world.submitted(alice, "novita")
    assert (job.step, job.status, submits(fake)) == ("submit", "queued", 0)
    rest_is_over(row)
    first = outside.take_account("novita", can=lambda _: None)
    assert first.is_probe
    with pytest.raises(outside.NoneFree):  # one probe at a time
        outside.take_account("novita", can=lambda _: None)
    outside.went_wrong(row.pk, provider_sick(), is_probe=True)
    row.refresh_from_db()
    assert row.failures_in_row == 6  # and the pause has doubled
    rest_is_over(row)
    world.work("provider.novita")
    row = ProviderAccount.objects.get(pk=row.pk)
    assert (again(job).step, row.open_until) == ("await", None)


def provider_sick():
    from inference.errors import Fault, ProviderError

    return ProviderError("sick", fault=Fault.HEALTH)


# ------------------------------------------------------------------ 33: answers lost


@pytest.mark.parametrize("name", LISTED)
def test_a_lost_answer_is_found_in_the_list_and_paid_once(name, fake, alice):
    world.enter(fake)
    fake.script("submit", "lost")
    job = world.submitted(alice, name)
    assert (job.step, job.status) == ("reconcile", "running")
    if name != "openai_videos":
        # magicoal lists finished videos only, dashscope tells whose a task is late.
        world.reconcile_now()
        assert again(job).step == "reconcile"
        world.finish_there(fake)
    world.reconcile_now()
    assert (again(job).step, job.provider_job_id) == ("await", next(iter(fake.jobs)))
    world.finish(fake)
    assert again(job).status == "succeeded", job.error_detail
    assert (submits(fake), len(fake.jobs)) == (1, 1)


@every_provider
def test_an_answer_that_no_database_could_keep_is_a_lost_one(name, fake, alice):
    world.enter(fake)
    fake.script("submit", "garbage")  # with a NUL in it
    job = world.submitted(alice, name)
    assert (job.step, job.status) == ("reconcile", "running")
    assert job.notes.filter(kind="reconcile").exists()


@pytest.mark.parametrize("name", CALLING)
def test_a_lost_answer_is_found_by_the_callback_and_paid_once(name, fake, alice):
    world.enter(fake)
    fake.script("submit", "lost")
    fake.script("callback", "none")
    job = world.submitted(alice, name)
    assert job.step == "reconcile"
    world.reconcile_now(age_seconds=180)
    assert Incident.objects.filter(kind="unknown_fate", resolved_at=None).exists()
    world.finish_there(fake)
    assert call_back(fake).status_code == 200
    assert (again(job).step, job.provider_job_id) == ("await", next(iter(fake.jobs)))
    assert not Incident.objects.filter(resolved_at=None).exists()
    world.finish(fake)
    assert again(job).status == "succeeded", job.error_detail
    assert submits(fake) == 1


@pytest.mark.parametrize("name", BLIND)
def test_a_lost_answer_without_evidence_waits_for_a_person_and_is_refunded(
    name, fake, alice
):
    world.enter(fake)
    fake.script("submit", "lost")
    job = world.submitted(alice, name)
    for age in (10, 60):
        world.reconcile_now(age_seconds=age)
    assert not Incident.objects.exists()
    world.reconcile_now(age_seconds=180)
    incident = Incident.objects.get(kind="unknown_fate", subject=str(job.pk))
    assert incident.resolved_at is None
    assert (again(job).step, submits(fake)) == ("reconcile", 1)
    world.reconcile_now(age_seconds=25 * 3600)
    assert (again(job).status, job.refunded_millicredits) == (
        "failed",
        job.quoted_millicredits,
    )
    assert Incident.objects.filter(kind="unproved_loss").exists()
    assert submits(fake) == 1


@pytest.mark.parametrize("name", BLIND)
def test_a_person_may_settle_what_nothing_proves(name, fake, alice):
    world.enter(fake)
    fake.script("submit", "lost")
    job = world.submitted(alice, name)
    there = next(iter(fake.jobs))
    assert provider_steps.was_found(job.pk, there, token=job.submit_token)
    world.finish(fake)
    assert again(job).status == "succeeded", job.error_detail


@pytest.mark.parametrize("name", BLIND)
def test_a_person_who_finds_nothing_there_has_it_sent_again(name, fake, alice):
    world.enter(fake)
    fake.script("submit", "refuse")
    job = world.submitted(alice, name)
    reconcile.settle_as_absent(job, actor="olga", reason="not in their list")
    assert (again(job).step, job.submit_sent_at) == ("submit", None)
    world.work(f"provider.{name}")
    assert (again(job).step, len(fake.jobs)) == ("await", 1)


@pytest.mark.parametrize("name", BLIND)
def test_what_a_person_twice_finds_nowhere_is_refunded(name, fake, alice):
    world.enter(fake)
    fake.script("submit", "refuse", times=2)
    job = world.submitted(alice, name)
    reconcile.settle_as_absent(job, actor="olga", reason="not in their list")
    world.work(f"provider.{name}")
    assert again(job).step == "reconcile"
    reconcile.settle_as_absent(job, actor="olga", reason="again not there")
    assert (again(job).status, world.held(alice)) == ("failed", 0)
    assert submits(fake) == 2


@pytest.mark.parametrize("name", ["dashscope", "openai_videos"])
def test_a_submit_that_never_arrived_is_proved_absent_and_sent_once_more(
    name, fake, alice
):
    world.enter(fake)
    fake.script("submit", "refuse")
    job = world.submitted(alice, name)
    world.reconcile_now()
    assert again(job).step == "reconcile"  # the list may lag behind
    world.reconcile_now(age_seconds=40)
    assert again(job).step == "submit"
    fake.script("submit", "refuse")
    world.work(f"provider.{name}")
    world.reconcile_now(age_seconds=40)
    assert (again(job).status, submits(fake)) == ("failed", 2)


@pytest.mark.parametrize("name", LISTED)
def test_equal_words_of_two_customers_are_never_mixed_up(name, fake, alice):
    world.enter(fake, concurrent_jobs=9)
    bob = make_account("bob", plan="enterprise", credits=1000)
    fake.script("submit", "lost")
    fake.script("submit", "refuse")
    jobs = [world.submitted(someone, name) for someone in (alice, bob)]
    world.finish_there(fake)
    world.reconcile_now(age_seconds=1)
    # One video, two jobs it may belong to: a person decides.
    assert [again(job).step for job in jobs] == ["reconcile", "reconcile"]


@pytest.mark.parametrize("name", ["dashscope"])
def test_a_job_of_another_system_on_the_same_account_is_not_ours(name, fake, alice):
    world.enter(fake)
    fake.script("submit", "refuse")
    job = world.submitted(alice, name)
    fake.accept("sk-test", job.route["profile"], "somebody else's words")
    for _ in range(2):
        world.reconcile_now()
        assert again(job).step == "reconcile"
        world.finish_there(fake)
    # Its words are not ours, but nor would ours be if the provider had changed them.
    world.reconcile_now(age_seconds=180)
    assert again(job).step == "reconcile"
    assert Incident.objects.filter(kind="unknown_fate", subject=str(job.pk)).exists()
    world.reconcile_now(age_seconds=reconcile.FAR.total_seconds())
    assert again(job).step == "submit"  # from long before: it is somebody else's


def sent_before(fake: FakeService, job: Job, *, seconds: float, late: float) -> None:
    """Look for the job ``seconds`` after its submit; there it began ``late`` after it."""
    (there,) = fake.jobs.values()
    assert job.submit_sent_at is not None
    there.created = job.submit_sent_at.timestamp() - seconds + late
    world.finish_there(fake)
    world.reconcile_now(age_seconds=seconds)


@pytest.mark.parametrize("late", [-300, -3, 0, 130, 300])
@pytest.mark.parametrize("name", ["dashscope", "openai_videos"])
def test_another_clock_or_other_words_never_prove_a_paid_job_absent(
    name, late, fake, alice
):
    world.enter(fake)
    fake.script("submit", "lost")
    job = world.submitted(alice, name, prompt="a  quiet street ")
    (there,) = fake.jobs.values()
    there.prompt = "a quiet street"
    sent_before(fake, job, seconds=400, late=late)
    assert (again(job).step, job.status) == ("reconcile", "running")
    assert Incident.objects.filter(kind="unknown_fate", subject=str(job.pk)).exists()
    assert submits(fake) == 1
    assert provider_steps.was_found(job.pk, there.id, token=job.submit_token)


@pytest.mark.parametrize("late", [-3, 130])
@pytest.mark.parametrize("name", ["dashscope", "openai_videos"])
def test_our_own_words_at_another_time_are_for_a_person_to_judge(
    name, late, fake, alice
):
    world.enter(fake)
    fake.script("submit", "lost")
    job = world.submitted(alice, name)
    sent_before(fake, job, seconds=400, late=late)
    assert (again(job).step, submits(fake)) == ("reconcile", 1)


@every_provider
def test_a_worker_killed_after_the_submit_never_sends_it_again(name, fake, alice):
    world.enter(fake, concurrent_jobs=1)
    job = world.order(alice, name)
    world.work("media")
    world.claim(f"provider.{name}")
    # As its row is when the process dies with the answer under way.
    Job.objects.update(
        provider_account=ProviderAccount.objects.get(),
        submit_token="t",
        submit_sent_at=Now(),
        lease_until=Now() - timedelta(seconds=1),
    )
    housekeeper.reap()
    # Without a worker, who may be away or kept from it by a full provider.
    assert (again(job).step, job.status) == ("reconcile", "running")
    assert job.attempts.get(step="submit").outcome == "lost"
    assert submits(fake) == 0


def test_a_server_that_knows_tokens_is_sent_the_same_one_again(fakes, alice):
    fake = world.forget(fakes["openai_videos"])
    row = world.enter(fake, settings={"idempotency_key": True})
    fake.script("submit", "lost")
    job = world.submitted(alice, "openai_videos")
    token = job.submit_token
    assert (job.step, job.provider_account) == ("reconcile", row)
    world.reconcile_now()
    assert again(job).step == "submit"
    world.work("provider.openai_videos")
    assert (again(job).step, job.submit_token) == ("await", token)
    sent = [call.headers["idempotency-key"] for call in fake.calls_to("submit")]
    assert sent == [token, token]


@pytest.mark.parametrize(
    ("kind", "step_meanwhile"),
    [
        ("429", "submit"),
        ("503", "submit"),
        ("error:invalid_request_error", "reconcile"),
        ("error:invalid_api_key", "reconcile"),
    ],
)
def test_a_token_that_is_refused_the_second_time_goes_to_no_other_account(
    kind, step_meanwhile, fakes, alice
):
    fake = world.forget(fakes["openai_videos"])
    first = world.enter(fake, "first", settings={"idempotency_key": True, **PRICED})
    fake.script("submit", "lost")
    job = world.submitted(alice, "openai_videos")
    estimate, token = bill(job), job.submit_token
    world.reconcile_now()
    with world.start("openai_videos") as other, world.start("dashscope") as elsewhere:
        world.enter(other, "second", settings={"idempotency_key": True})
        world.enter(elsewhere)
        fake.script("submit", kind)
        world.work("provider.openai_videos")
        assert again(job).step == step_meanwhile
        assert (job.provider_account, job.submit_token) == (first, token)
        assert job.submit_sent_at is not None
        assert bill(job) == estimate > 0
        assert world.held(alice) == job.quoted_millicredits
        if step_meanwhile == "submit":
            world.work("provider.openai_videos")
            assert again(job).step == "await"
            assert bill(job) == estimate
        assert not other.jobs
        assert not elsewhere.jobs
    sent = {call.headers["idempotency-key"] for call in fake.calls_to("submit")}
    assert sent == {token}


@pytest.mark.parametrize("kind", ["429", "503"])
def test_a_token_that_nobody_takes_any_more_waits_for_a_person(kind, fakes, alice):
    fake = world.forget(fakes["openai_videos"])
    world.enter(fake, settings={"idempotency_key": True})
    fake.script("submit", "lost")
    job = world.submitted(alice, "openai_videos")
    world.reconcile_now()
    fake.script("submit", kind, times=4)
    for _ in range(4):
        world.work("provider.openai_videos")
        assert again(job).step == "submit"
    time_is_over()
    world.reconcile_now(age_seconds=180)
    assert (again(job).step, submits(fake)) == ("reconcile", 5)
    assert Incident.objects.filter(kind="unknown_fate", subject=str(job.pk)).exists()


@every_provider
def test_a_worker_that_froze_over_its_submit_brings_the_id_all_the_same(
    name, fake, alice, monkeypatch
):
    world.enter(fake)
    job = world.order(alice, name)
    world.work("media")
    send = transport.send
    others: list[Claim] = []

    def frozen(http, call):
        reply = send(http, call)
        if call.url.startswith(fake.url) and not others:
            Job.objects.update(lease_until=None)
            others.append(world.claim(f"provider.{name}"))
        return reply

    monkeypatch.setattr(transport, "send", frozen)
    world.work(f"provider.{name}")  # meanwhile somebody else has claimed it
    assert again(job).step == "submit"
    provider_steps.submit(Held(others[0]))
    assert (again(job).step, job.provider_job_id) == ("await", next(iter(fake.jobs)))
    assert not ProviderErrand.objects.exists()
    world.finish(fake)
    assert again(job).status == "succeeded", job.error_detail
    assert submits(fake) == 1


@every_provider
def test_an_id_that_cannot_be_stored_is_in_the_log(name, fake, alice, monkeypatch):
    world.enter(fake)
    job = world.order(alice, name)
    world.work("media")

    def away(account_id: int) -> None:
        raise OperationalError("the database is away")

    monkeypatch.setattr(outside, "accepted", away)
    with capture_logs() as lines, pytest.raises(OperationalError):
        world.work(f"provider.{name}")
    (line,) = [line for line in lines if line["event"] == "submitted"]
    there = next(iter(fake.jobs))
    assert (line["provider_job_id"], line["account"]) == (there, f"{name}: main")
    # With it a person finds the job again.
    Job.objects.update(lease_until=Now() - timedelta(seconds=1))
    housekeeper.reap()
    assert provider_steps.was_found(job.pk, there, token=again(job).submit_token)
    assert again(job).step == "await"


# ------------------------------------------------- ids unknown to who gave them


def forget_for_a_while(fake: FakeService, job: Job) -> Any:
    """Let the provider deny the job until we believe it; return what it really has."""
    there = fake.jobs.pop(job.provider_job_id)
    for _ in range(poller.UNKNOWN_LOOKS):
        world.look()
    assert again(job).step == "reconcile"
    world.reconcile_now()
    assert again(job).step == "reconcile"
    Job.objects.update(end_by=Now() - timedelta(seconds=1))
    fake.jobs[there.id] = there
    return there


@every_provider
def test_a_job_its_provider_denied_for_a_while_is_made_and_paid_once(name, fake, alice):
    world.enter(fake)
    job = world.submitted(alice, name)
    there = forget_for_a_while(fake, job)
    world.reconcile_now(age_seconds=180)
    housekeeper.end_overdue()
    assert (again(job).step, job.provider_job_id) == ("await", there.id)
    assert not Incident.objects.filter(resolved_at=None).exists()
    world.finish(fake)
    assert again(job).status == "succeeded", job.error_detail
    assert submits(fake) == 1


@pytest.mark.parametrize("name", CALLING)
def test_a_call_about_a_job_that_was_denied_has_it_asked_about_at_once(
    name, calling, alice
):
    world.enter(calling)
    job = world.submitted(alice, name)
    forget_for_a_while(calling, job)
    Job.objects.update(next_poll_at=Now() + timedelta(hours=1))
    assert call_back(calling).status_code == 200
    reconcile.look()
    assert again(job).step == "await"


# ------------------------------------------------------------- time spent in doubt


def time_is_over() -> None:
    """Let every deadline pass and the housekeeper see it."""
    Job.objects.filter(end_by__isnull=False).update(end_by=Now() - timedelta(seconds=1))
    housekeeper.end_overdue()


@pytest.mark.parametrize("name", ["sinancode", "openai_videos"])
def test_time_in_doubt_does_not_count_for_what_is_then_sent_again(name, fake, alice):
    world.enter(fake)
    fake.script("submit", "refuse")
    job = world.submitted(alice, name)
    time_is_over()
    assert again(job).step == "reconcile"
    if name in LISTED:
        world.reconcile_now(age_seconds=40)
    else:
        reconcile.settle_as_absent(job, actor="olga", reason="not in their list")
    assert again(job).step == "submit"
    housekeeper.end_overdue()
    world.work(f"provider.{name}")
    housekeeper.end_overdue()
    assert (again(job).step, job.status) == ("await", "running")
    world.finish(fake)
    assert again(job).status == "succeeded", job.error_detail
    assert len(fake.jobs) == 1


def test_time_in_doubt_does_not_count_on_the_next_route(fakes, alice):
    lost, good = world.forget(fakes["dashscope"]), world.forget(fakes["novita"])
    for fake in (lost, good):
        world.enter(fake)
    lost.script("submit", "refuse", times=2)
    job = world.submitted(alice, "dashscope")
    reconcile.settle_as_absent(job, actor="olga", reason="not there")
    world.work("provider.dashscope")
    time_is_over()
    reconcile.settle_as_absent(again(job), actor="olga", reason="again not there")
    assert again(job).route["name"] == "novita"
    housekeeper.end_overdue()
    world.work("provider.novita")
    housekeeper.end_overdue()
    assert (again(job).step, job.status) == ("await", "running")


@pytest.mark.parametrize("name", BLIND)
def test_what_is_to_be_sent_again_and_nobody_takes_is_given_back(name, fake, alice):
    world.enter(fake)
    fake.script("submit", "refuse")
    job = world.submitted(alice, name)
    Job.objects.update(start_by=Now() - timedelta(seconds=1))
    reconcile.settle_as_absent(job, actor="olga", reason="not in their list")
    housekeeper.end_overdue()
    assert again(job).step == "submit"  # it gets as long as a start may take
    Job.objects.update(start_by=Now() - timedelta(seconds=1))
    housekeeper.end_overdue()
    assert (again(job).status, job.error_code) == ("failed", "queue_expired")
    assert world.available(alice) == 1_000_000


@every_provider
def test_a_deadline_never_ends_what_may_be_there_without_looking(name, fake, alice):
    world.enter(fake)
    fake.script("submit", "lost")
    job = world.submitted(alice, name)
    # As a step that broke after its answer leaves it, while no worker comes back.
    Job.objects.update(step="submit", queue=f"provider.{name}", next_poll_at=None)
    time_is_over()
    assert (again(job).step, job.status) == ("reconcile", "running")
    assert world.held(alice) == job.quoted_millicredits


# ------------------------------------------------- what a lost answer costs us

PRICED = {"usd_per_second": {"480p": 0.04, "720p": 0.04}}


def bill(job: Job) -> int:
    """What the job costs here, the same on the job, its attempts and in the report."""
    total = sum(job.attempts.values_list("cost_microdollars", flat=True))
    assert again(job).cost_microdollars == total
    if job.finished_at is not None:
        today = datetime.now(UTC).date()
        (line,) = margin.report(["model"], since=today, until=today)
        assert line.provider_microdollars == total
    return total


@pytest.mark.parametrize("name", LISTED)
def test_a_job_found_after_a_lost_answer_costs_what_it_was_to_cost(name, fake, alice):
    world.enter(fake, settings=PRICED)
    fake.script("submit", "lost")
    job = world.submitted(alice, name)
    estimate = bill(job)
    assert estimate > 0
    assert job.attempts.get(step="submit").outcome == "in_doubt"
    world.finish_there(fake)
    world.reconcile_now()
    world.finish(fake)
    assert again(job).status == "succeeded", job.error_detail
    assert bill(job) > 0
    if name != "magicoal":  # whose status names its own figure
        assert bill(job) == estimate


@pytest.mark.parametrize("name", CALLING)
def test_a_job_found_by_an_early_callback_costs_what_it_was_to_cost(
    name, calling, alice
):
    world.enter(calling, settings=PRICED)
    calling.script("submit", "lost")
    job = world.submitted(alice, name)
    assert call_back(calling).status_code == 200
    assert again(job).step == "await"
    assert bill(job) > 0


class Killed(BaseException):
    """The worker's process ends here."""


@pytest.mark.parametrize("name", ["dashscope"])
def test_what_a_killed_worker_had_sent_costs_once(name, fake, alice, monkeypatch):
    world.enter(fake, settings=PRICED)
    job = world.order(alice, name)
    world.work("media")
    send = transport.send

    def send_and_die(*args: Any) -> None:
        send(*args)
        raise Killed

    monkeypatch.setattr(transport, "send", send_and_die)
    with pytest.raises(Killed):
        world.work(f"provider.{name}")
    monkeypatch.undo()
    Job.objects.update(lease_until=Now() - timedelta(seconds=1))
    lifecycle.lose(Job.objects.get())
    assert again(job).step == "reconcile"
    world.finish_there(fake)
    world.reconcile_now()
    world.finish(fake)
    assert again(job).status == "succeeded", job.error_detail
    assert bill(job) == 200_000  # 5 s
    assert [a.outcome for a in job.attempts.filter(step="submit")] == ["lost"]


@pytest.mark.parametrize("name", BLIND)
def test_what_could_not_be_proved_is_refunded_and_stays_our_cost(name, fake, alice):
    world.enter(fake, settings=PRICED)
    fake.script("submit", "lost")
    job = world.submitted(alice, name)
    world.reconcile_now(age_seconds=25 * 3600)
    assert again(job).status == "failed"
    assert bill(job) > 0


@pytest.mark.parametrize("name", ["dashscope"])
def test_what_was_never_there_costs_nothing_and_is_no_failure_of_theirs(
    name, fake, alice
):
    world.enter(fake, settings=PRICED)
    fake.script("submit", "refuse")
    job = world.submitted(alice, name)
    world.reconcile_now(age_seconds=40)
    assert (again(job).step, bill(job)) == ("submit", 0)
    fake.script("end", "fail")
    world.work(f"provider.{name}")
    assert bill(job) == 200_000
    world.finish_there(fake)
    world.look()
    # Failed there for the first time: it is sent once more.
    assert (again(job).step, bill(job)) == ("submit", 0)
    world.work(f"provider.{name}")
    world.finish(fake)
    assert again(job).status == "succeeded", job.error_detail
    assert bill(job) == 200_000


@every_provider
@pytest.mark.parametrize("kind", ["429", "500"])
def test_a_submit_that_was_refused_costs_nothing(name, kind, fake, alice):
    world.enter(fake, settings=PRICED)
    fake.script("submit", kind)
    assert bill(world.submitted(alice, name)) == 0


def test_the_same_token_sent_twice_costs_once(fakes, alice):
    fake = world.forget(fakes["openai_videos"])
    world.enter(fake, settings={"idempotency_key": True, **PRICED})
    fake.script("submit", "garbage")
    job = world.submitted(alice, "openai_videos")
    estimate = bill(job)
    world.reconcile_now()
    assert (again(job).step, bill(job)) == ("submit", estimate)
    assert estimate > 0
    world.work("provider.openai_videos")
    assert (again(job).step, bill(job)) == ("await", estimate)


# ------------------------------------------------------------------ 34: never ends


@every_provider
def test_a_job_that_never_ends_is_given_up_released_and_canceled_there(
    name, fake, alice
):
    world.enter(fake)
    fake.script("end", "never")
    job = world.submitted(alice, name)
    world.look()
    assert again(job).step == "await"
    Job.objects.update(end_by=Now() - timedelta(seconds=1))
    housekeeper.end_overdue()
    assert (again(job).status, job.error_code) == ("failed", "deadline_exceeded")
    assert world.available(alice) == 1_000_000
    reconcile.run_errands()
    # Where a copy can be deleted, it will be when the job has ended there.
    left = ProviderErrand.objects.values_list("kind", flat=True)
    assert list(left) == (["delete"] if name in DELETING else [])
    said = job.notes.get(kind="provider").text
    if name == "dashscope":
        assert fake.jobs[job.provider_job_id].canceled
        assert said == "stopped there"
    else:
        assert "our cost" in said


@pytest.mark.parametrize("name", DELETING)
@pytest.mark.parametrize("why", ["canceled", "overdue"])
def test_what_goes_on_there_is_deleted_when_it_has_ended_there(name, why, fake, alice):
    world.enter(fake)
    job = world.submitted(alice, name)
    if why == "canceled":
        lifecycle.cancel(job)
    else:
        Job.objects.update(end_by=Now() - timedelta(seconds=1))
        housekeeper.end_overdue()
    reconcile.run_errands()
    assert job.provider_job_id in fake.jobs
    world.finish_there(fake)
    ProviderErrand.objects.update(due_at=Now())
    reconcile.run_errands()
    assert not fake.jobs
    assert not ProviderErrand.objects.exists()
    said = [note.text for note in job.notes.filter(kind="provider")]
    assert said == ["goes on there, at our cost", "the provider's copy is deleted"]


@pytest.mark.parametrize("name", ["akool"])
def test_a_canceled_job_that_a_callback_finds_late_is_deleted_there(
    name, calling, alice
):
    world.enter(calling)
    calling.script("submit", "lost")
    job = world.submitted(alice, name)
    assert job.step == "reconcile"
    lifecycle.cancel(job)
    assert call_back(calling).status_code == 200
    reconcile.run_errands()
    world.finish_there(calling)
    ProviderErrand.objects.update(due_at=Now())
    reconcile.run_errands()
    assert not calling.jobs


def test_a_canceled_job_is_stopped_at_the_provider_and_costs_nothing(fakes, alice):
    fake = world.forget(fakes["dashscope"])
    world.enter(fake, settings=PRICED)
    job = world.submitted(alice, "dashscope")
    assert bill(job) > 0
    assert lifecycle.cancel(job).status == "canceled"
    reconcile.run_errands()
    assert fake.jobs[job.provider_job_id].canceled
    assert bill(job) == 0


def test_what_is_stopped_at_one_provider_leaves_the_bill_of_the_next(fakes, alice):
    slow, next_one = world.forget(fakes["dashscope"]), world.forget(fakes["novita"])
    world.enter(slow, settings=PRICED)
    world.enter(next_one, settings=PRICED)
    job = world.submitted(alice, "dashscope")
    given = job.provider_job_id
    provider_steps.settle_cost(job.pk, Decimal("0.3"))
    error = ProviderError("too slow", fault=Fault.HEALTH)
    assert lifecycle.reroute_waiting(again(job), error)
    world.work("provider.novita")
    estimate = again(job).attempts.get(route="novita", step="submit").cost_microdollars
    assert bill(job) == 300_000 + estimate > 300_000
    reconcile.run_errands()
    assert slow.jobs[given].canceled
    assert bill(job) == estimate


def test_a_cancel_while_the_submit_is_under_way_reaches_the_provider(
    fakes, alice, monkeypatch
):
    fake = world.forget(fakes["dashscope"])
    world.enter(fake)
    job = world.order(alice, "dashscope")
    world.work("media")
    note = outside.accepted

    def accepted(account_id: int) -> None:
        Job.objects.update(cancel_requested_at=Now())
        note(account_id)

    monkeypatch.setattr(outside, "accepted", accepted)
    world.work("provider.dashscope")
    assert again(job).status == "canceled"
    reconcile.run_errands()
    assert all(there.canceled for there in fake.jobs.values())
    assert len(fake.jobs) == 1


# ------------------------------------------------------------------ 35: bad results


@every_provider
@pytest.mark.parametrize(
    "kind", ["html", "empty", "huge", "notvideo", "truncated", "damaged"]
)
def test_a_result_that_is_no_video_fails_the_job_and_costs_nothing(
    name, kind, fake, alice
):
    row = world.enter(fake)
    fake.script("result", kind)
    job = world.submitted(alice, name)
    world.finish_there(fake)
    world.look()
    for _ in range(3):
        world.work(f"provider.{name}")
    assert (again(job).status, job.charged_millicredits) == ("failed", 0)
    assert world.available(alice) == 1_000_000
    row.refresh_from_db()
    assert row.failures_in_row == 1


@every_provider
@pytest.mark.parametrize("trouble", ["result:403", "result:404", "status:503"])
def test_a_paid_video_that_cannot_be_had_just_now_is_not_given_up(
    name, trouble, fake, alice
):
    row = world.enter(fake)
    job = world.submitted(alice, name)
    world.finish_there(fake)
    world.look()
    place, _, kind = trouble.partition(":")
    (there,) = fake.jobs.values()
    if place == "result":
        there.result = kind
    else:
        fake.script("status", kind, times=5)
    with world.start("openai_videos") as elsewhere:
        if name != "openai_videos":
            world.enter(elsewhere)
            world.open_route("openai_videos", job.model, "sora-2")
        pauses = []
        for _ in range(5):
            world.work(f"provider.{name}")
            assert (again(job).step, job.step_tries) == ("collect", 0), job.error_detail
            assert job.run_after is not None
            pauses.append((job.run_after - timezone.now()).total_seconds())
        assert pauses == sorted(pauses)
        assert pauses[-1] > 8 * pauses[0] > 0
        row.refresh_from_db()
        assert row.failures_in_row == 1
        there.result = "ok"
        world.work(f"provider.{name}")
        world.work("media")
        assert again(job).status == "succeeded", job.error_detail
        assert not elsewhere.jobs
    assert submits(fake) == 1


@pytest.mark.parametrize("name", ["sinancode"])
def test_a_video_that_never_comes_is_given_back_at_the_deadline(name, fake, alice):
    world.enter(fake)
    fake.script("result", "404")
    job = world.submitted(alice, name)
    world.finish_there(fake)
    world.look()
    half_the_time_is_over()
    for _ in range(5):
        world.work(f"provider.{name}")
        assert again(job).step == "collect"
    time_is_over()
    assert (again(job).status, job.charged_millicredits) == ("failed", 0)
    assert job.error_code == "deadline_exceeded"
    assert world.available(alice) == 1_000_000


def half_the_time_is_over() -> None:
    half = timedelta(seconds=470)
    Job.objects.update(started_at=F("started_at") - half, end_by=F("end_by") - half)


@pytest.mark.parametrize("kind", ["404", "damaged", "damaged-sound"])
def test_a_bad_result_is_made_by_the_next_route_at_the_same_price(kind, fakes, alice):
    bad, good = world.forget(fakes["dashscope"]), world.forget(fakes["novita"])
    for fake in (bad, good):
        world.enter(fake, settings={"usd_per_second": {"480p": 0.04}})
    bad.script("result", kind)
    job = world.submitted(alice, "dashscope", audio=Sound("generate"))
    quoted, held = job.quoted_millicredits, world.held(alice)
    world.finish_there(bad)
    world.look()
    if kind == "404":
        half_the_time_is_over()
    for _ in range(3):
        world.work("provider.dashscope")
    assert again(job).route["name"] == "novita"
    assert (job.quoted_millicredits, world.held(alice)) == (quoted, held)
    assert job.routes_tried == ["dashscope"]
    world.work("provider.novita")
    world.finish(good)
    assert again(job).status == "succeeded", job.error_detail
    assert job.charged_millicredits == quoted
    told = job.notes.filter(kind="route").last()
    assert told is not None
    assert "novita: chosen" in told.text
    assert told.detail["left"] == "dashscope"
    # What each attempt cost is kept, the failed one's too.
    costs = job.attempts.filter(step="submit").values_list("route", "cost_microdollars")
    assert {route for route, cost in costs if cost} == {"dashscope", "novita"}
    assert job.cost_microdollars == sum(cost for _, cost in costs)
    # And stands under who sent the bill.
    today = datetime.now(UTC).date()
    for by, mark in (("provider", "{}"), ("provider_account", "{}: main")):
        report = margin.report([by], since=today, until=today)
        lines = {line.group[0]: line for line in report}
        for name, earns in (("dashscope", 0), ("novita", 1)):
            line = lines[mark.format(name)]
            assert line.provider_microdollars == dict(costs)[name]
            assert line.jobs == earns
            assert (line.revenue_microdollars > 0) is bool(earns)


def test_sound_that_nobody_ordered_may_be_damaged(fakes, alice):
    fake = world.forget(fakes["dashscope"])
    world.enter(fake)
    fake.script("result", "damaged-sound")
    job = world.submitted(alice, "dashscope", audio=Sound("none"))
    for there in fake.jobs.values():
        there.sound = True
    world.finish(fake)
    assert again(job).status == "succeeded", job.error_detail
    assert not job.output["has_audio"]


@every_provider
def test_a_job_failed_there_is_sent_once_more_then_given_back(name, fake, alice):
    world.enter(fake)
    fake.script("end", "fail", times=5)
    job = world.submitted(alice, name)
    world.finish_there(fake)
    world.look()
    assert again(job).step == "submit"
    world.work(f"provider.{name}")
    world.finish_there(fake)
    world.look()
    assert (again(job).status, submits(fake)) == ("failed", 2)
    assert job.cost_microdollars == 0
    assert world.available(alice) == 1_000_000


# ------------------------------------------------------------------ 36: callbacks


def call_back(fake: FakeService, number: int = -1, **changes: bytes) -> Any:
    """Deliver the fake's callback about its last job where it was told to."""
    job = list(fake.jobs.values())[number]
    body, headers = fake.callback(job)
    path = urlsplit(job.callback_url or "").path
    return Client().post(
        path,
        changes.get("body", body),
        content_type="application/json",
        headers=headers,
    )


@pytest.fixture
def calling(name: str, fakes: dict[str, FakeService]) -> Iterator[FakeService]:
    fake = world.forget(fakes[name])
    fake._undelivered = Nowhere()  # the test delivers, not the fake's courier
    yield fake
    fake._undelivered = []


class Nowhere(list[Any]):
    def append(self, job: object) -> None:
        return None


@pytest.mark.parametrize("name", CALLING)
def test_callbacks_twice_have_one_effect_and_are_confirmed_by_a_read(
    name, calling, alice
):
    world.enter(calling)
    job = world.submitted(alice, name)
    Job.objects.update(next_poll_at=Now() + timedelta(hours=1))
    assert call_back(calling).status_code == 200
    # It only says "look now"; the provider, asked, says "running".
    assert Job.objects.filter(next_poll_at__lte=Now(), step="await").exists()
    world.look()
    assert again(job).step == "await"
    world.finish_there(calling)
    for _ in range(3):
        assert call_back(calling).status_code == 200
    world.finish(calling)
    assert call_back(calling).status_code == 200
    assert again(job).status == "succeeded", job.error_detail
    assert job.attempts.filter(step="collect").count() == 1


@pytest.mark.parametrize("name", CALLING)
def test_a_callback_before_the_answer_saves_a_lost_one(
    name, calling, alice, monkeypatch
):
    world.enter(calling)
    calling.script("submit", "lost")
    job = world.order(alice, name)
    world.work("media")
    send = transport.send

    def called_before_answered(http, call):
        try:
            return send(http, call)
        finally:
            if call.method == "POST":
                assert call_back(calling).status_code == 200

    monkeypatch.setattr(transport, "send", called_before_answered)
    world.work(f"provider.{name}")
    assert (again(job).step, job.provider_job_id) == ("await", next(iter(calling.jobs)))
    assert submits(calling) == 1


@pytest.mark.parametrize("name", CALLING)
def test_a_callback_after_a_cancel_changes_nothing_but_stops_it_there(
    name, calling, alice
):
    world.enter(calling)
    calling.script("submit", "lost")
    job = world.submitted(alice, name)
    assert lifecycle.cancel(job).status == "canceled"
    world.finish_there(calling)
    for _ in range(2):
        assert call_back(calling).status_code == 200
    assert again(job).status == "canceled"
    assert ProviderErrand.objects.filter(kind="cancel").count() == 1
    assert world.available(alice) == 1_000_000


@pytest.mark.parametrize("name", CALLING)
def test_a_callback_with_another_token_or_body_is_refused(name, calling, alice):
    world.enter(calling)
    job = world.submitted(alice, name)
    Job.objects.update(next_poll_at=Now() + timedelta(hours=1))
    there = next(iter(calling.jobs.values()))
    assert call_back(calling, body=b"{}").status_code == 401
    there.callback_url = (there.callback_url or "") + "x"
    assert call_back(calling).status_code == 401
    there.callback_url = f"http://x/callbacks/{name}/no-token"
    assert call_back(calling).status_code == 401
    assert not Job.objects.filter(next_poll_at__lte=Now()).exists()
    assert again(job).step == "await"


# ------------------------------------------------------------------ accounts


@every_provider
def test_an_account_without_credit_is_taken_out_and_the_others_go_on(name, fake, alice):
    row = world.enter(fake, "broke", key="sk-broke")
    job = world.order(alice, name)
    good = ProviderAccount.objects.filter(pk=world.enter(fake, "good").pk)
    world.work("media")
    good.update(rest_until=Now() + timedelta(hours=1))  # so the other is tried first
    world.work(f"provider.{name}")
    good.update(rest_until=None)
    for _ in range(20):
        if again(job).step == "submit":
            world.work(f"provider.{name}")
    row.refresh_from_db()
    assert again(job).step == "await"
    assert job.step_tries == 0
    assert row.out_of_order_at is not None
    incident = Incident.objects.get(kind="provider_account")
    assert incident.subject == str(row)
    outside.back_in_order(row.pk, by="olga")
    incident.refresh_from_db()
    assert incident.resolved_by == "olga"


NOT_OURS = {
    "dashscope": "AccessDenied.Unpurchased",
    "novita": "FEATURE_NOT_ALLOWED",
    "akool": "1009",
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_one_model_that_is_refused_takes_no_other_from_customers(name, fake, alice):
    row = world.enter(fake)
    fake.script("submit", f"error:{NOT_OURS[name]}")
    job = world.submitted(alice, name)
    assert (again(job).status, world.held(alice)) == ("failed", 0)
    incident = Incident.objects.get(resolved_at=None)
    wire_model = job.route["profile"]
    assert (incident.kind, incident.subject) == (
        "route_refused",
        f"{name}: main, {wire_model}",
    )
    row.refresh_from_db()
    assert (row.out_of_order_at, row.failures_in_row) == (None, 0)
    rest_is_over(row)
    assert world.submitted(alice, name).step == "await"


def test_a_model_that_one_account_lacks_is_made_by_another(fakes, alice):
    fake = world.forget(fakes["novita"])
    for account in ("main", "second"):
        world.enter(fake, account)
    fake.script("submit", f"error:{NOT_OURS['novita']}", times=1)
    job = world.submitted(alice, "novita")
    assert (again(job).status, job.step) == ("running", "submit")
    Job.objects.update(run_after=None)
    world.work("provider.novita")
    assert again(job).step == "await"


@every_provider
def test_without_any_account_left_the_job_is_given_back(name, fake, alice):
    world.enter(fake, key="sk-invalid")
    job = world.submitted(alice, name)
    assert (again(job).status, job.error_code) == ("failed", "provider_failed")
    assert world.available(alice) == 1_000_000
    assert Incident.objects.filter(kind="provider_account").exists()


@every_provider
def test_what_the_customer_did_wrong_is_told_and_not_tried_elsewhere(name, fake, alice):
    row = world.enter(fake)
    fake.script("submit", f"error:{CUSTOMERS[name]}")
    job = world.submitted(alice, name)
    assert (again(job).status, job.error_retryable) == ("failed", False)
    row.refresh_from_db()
    assert (row.failures_in_row, row.out_of_order_at) == (0, None)
    assert submits(fake) == 1


#: an error of each vendor that is the customer's fault
CUSTOMERS = {
    "magicoal": "VALIDATION_ERROR",
    "aimlapi": "VALIDATION",
    "sinancode": "invalid_parameter",
    "novita": "ILLEGAL_PROMPT",
    "akool": "1003",
    "dashscope": "DataInspectionFailed",
    "openai_videos": "moderation_blocked",
}
