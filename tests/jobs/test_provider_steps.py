"""Jobs that an outside provider makes: there, back, and what is kept on the way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.db.models.functions import Now

from billing.models import Account
from inference.errors import StorageUnavailable
from inference.providers.base import RemoteStatus
from inference.storage import Storage
from jobs import (
    claims,
    housekeeper,
    outside,
    poller,
    provider_steps,
    routing,
    tasks,
    watch,
)
from jobs.errors import ModelUnavailable
from jobs.models import Incident, Job, ProviderAccount, Route
from jobs.requests import Sound
from tests.factories import make_account, make_job
from tests.fakes import FakeService
from tests.jobs import providers_world as world
from tests.jobs.providers_world import PROVIDERS

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url", "s3")]
every_provider = pytest.mark.parametrize("name", PROVIDERS)


@pytest.fixture
def alice() -> Account:
    return make_account("alice", plan="enterprise", credits=1000)


@pytest.fixture
def fake(name: str) -> Iterator[FakeService]:
    with world.start(name) as service:
        yield service


@every_provider
def test_a_job_goes_out_and_comes_back_as_ordered(name, fake, alice):
    world.enter(fake)
    job = world.submitted(alice, name)
    assert (job.step, job.status) == ("await", "running")
    assert job.provider_job_id in fake.jobs
    world.finish(fake)
    job.refresh_from_db()
    assert job.status == "succeeded", (job.error_detail, job.step)
    assert job.charged_millicredits == job.quoted_millicredits > 0
    assert world.held(alice) == 0
    assert job.output["frames"] == job.request["frames"]
    assert job.output["fps"] == job.request["fps"]
    assert job.output["has_audio"] is (job.request["audio"]["mode"] != "none")


@pytest.mark.parametrize("name", ["dashscope"])
def test_a_customers_sound_goes_along_where_the_provider_can_fetch_it(
    name, fake, alice, settings
):
    row = world.enter(fake)
    sound = Sound(mode="url", url="https://customer.example/song.mp3")
    job = world.order(alice, name, audio=sound)
    job.inputs = {"audio": {"key": "k"}}
    account = outside.as_account(row)
    # Never the customer's own address: what we have checked and stored.
    assert provider_steps._asked(job, account).audio_mode == "url"
    away = dataclasses.replace(account, base_url="https://vendor.example")
    assert provider_steps._asked(job, away).audio_mode == "none"
    settings.S3_PUBLIC_ENDPOINT_URL = "https://files.example"
    assert provider_steps._asked(job, away).audio_mode == "url"


@pytest.mark.parametrize("name", ["novita"])
def test_a_seed_the_provider_drew_is_the_one_we_show(name, fake, alice):
    world.enter(fake)
    job = world.submitted(alice, name)
    status = RemoteStatus("succeeded", notes={"seed": 4711})
    assert provider_steps._reported(job, status) == {"seed": 4711}
    job.request["seed_is_drawn"] = False
    assert provider_steps._reported(job, status) == {}


@pytest.mark.parametrize("name", ["dashscope"])
def test_the_words_a_provider_made_of_a_prompt_are_shown_beside_it(name, fake, alice):
    world.enter(fake)
    job = world.submitted(alice, name, prompt="a cat", prompt_expansion=True)
    world.finish(fake)
    job.refresh_from_db()
    assert job.request["prompt"] == "a cat"
    assert job.resolved["expanded_prompt"] == "a cat, in fine detail"
    plain = world.submitted(alice, name, prompt="a cat", prompt_expansion=False)
    world.finish(fake)
    plain.refresh_from_db()
    assert "expanded_prompt" not in plain.resolved


@pytest.mark.parametrize("name", ["novita"])
def test_a_full_provider_leaves_jobs_queued_and_starts_no_deadline(name, fake, alice):
    world.enter(fake, concurrent_jobs=1)
    world.submitted(alice, name)
    second = world.submitted(alice, name)
    assert (second.status, second.step) == ("queued", "submit")
    assert (second.started_at, second.end_by, second.step_tries) == (None, None, 0)
    assert len(fake.calls_to("submit")) == 1


def an_outage_of_ours(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*args: object) -> None:
        raise StorageUnavailable("the storage hiccups")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "get_file", away)
        world.work(job.route["queue"])


def a_worker_that_dies(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*args: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "get_file", die)
        with pytest.raises(Killed):
            world.work(job.route["queue"])
    Job.objects.update(lease_until=Now() - timedelta(seconds=1))
    housekeeper.reap()


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("stops", [an_outage_of_ours, a_worker_that_dies])
@pytest.mark.parametrize("name", ["sinancode"])
def test_a_job_whose_submit_never_left_does_not_fill_its_own_place(
    name, stops, fake, alice, monkeypatch
):
    world.enter(fake, concurrent_jobs=1)
    job = world.order(alice, name)
    world.work("media")
    stops(job, monkeypatch)
    assert not fake.jobs
    world.work(f"provider.{name}")
    job.refresh_from_db()
    assert (job.step, len(fake.jobs)) == ("await", 1), job.error_detail


@pytest.fixture
def full(name: str, fake: FakeService, alice: Account) -> tuple[Job, Job]:
    """Return a job that is out at a provider with room for one, and one that waits."""
    row = world.enter(fake, concurrent_jobs=2)
    out, _ = world.submitted(alice, name), world.submitted(alice, name)
    ProviderAccount.objects.filter(pk=row.pk).update(concurrent_jobs=1)
    waiting = world.order(alice, name)
    world.work("media")
    waiting.refresh_from_db()
    # Its result will lie behind the one that waits.
    Job.objects.filter(pk=out.pk).update(ready_at=Now() + timedelta(hours=1))
    return out, waiting


@pytest.mark.parametrize("name", ["novita"])
def test_bells_of_a_full_provider_claim_no_submit_but_collect_what_is_ready(name, full):
    out, waiting = full
    queue = f"provider.{name}"
    only = tasks._only_step(queue)
    assert only == "collect"
    for _ in range(3):
        assert claims.claim_next(queue, worker="w", step=only) is None
    poller._arrived(out.pk, name)
    claimed = claims.claim_next(queue, worker="w", step=tasks._only_step(queue))
    assert claimed is not None
    assert (claimed.job_id, claimed.step) == (out.pk, "collect")
    fence = waiting.fence
    waiting.refresh_from_db()
    assert (waiting.status, waiting.fence) == ("queued", fence)
    assert not waiting.attempts.filter(step="submit").exists()


@pytest.mark.parametrize("name", ["novita"])
def test_what_waits_for_a_full_provider_is_neither_rung_for_nor_an_incident(name, full):
    out, _ = full
    queue = f"provider.{name}"
    before, canary = housekeeper.waiting_bells(queue), watch.Canary()
    assert stuck_after_an_hour(canary) == set()
    housekeeper.ring_queues()
    assert housekeeper.waiting_bells(queue) == before
    # A result that nobody collects is another matter.
    poller._arrived(out.pk, name)
    assert stuck_after_an_hour(canary) == {queue}
    housekeeper.ring_queues()
    assert housekeeper.waiting_bells(queue) == before + 1


def stuck_after_an_hour(canary: watch.Canary) -> set[str]:
    canary.look()
    canary._since = {queue: since - 3600 for queue, since in canary._since.items()}
    canary.look()
    open_now = Incident.objects.filter(kind="queue_stuck", resolved_at=None)
    return set(open_now.values_list("subject", flat=True))


@pytest.mark.parametrize("name", ["novita"])
@pytest.mark.parametrize(
    ("policy", "is_trusted", "is_asked", "is_told"),
    [
        ("block", False, False, True),
        ("flag", False, False, True),
        ("off", False, False, True),
        ("block", True, False, False),
        ("off", True, False, False),
        ("block", True, True, True),
    ],
)
def test_only_a_trusted_account_may_switch_off_a_providers_own_checks(
    name, policy, is_trusted, is_asked, is_told, fake, alice
):
    alice.plan.safety_policy = policy
    alice.plan.save(update_fields=["safety_policy"])
    alice.is_trusted = is_trusted
    alice.save(update_fields=["is_trusted"])
    world.enter(fake)
    make_job(
        alice,
        model="wan2.1-i2v",
        tier="480p",
        prompt="a quiet street",
        safety_checker=is_asked,
    )
    world.work("media")
    world.work(f"provider.{name}")
    (sent,) = fake.calls_to("submit")
    assert json.loads(sent.body)["enable_safety_checker"] is is_told


@pytest.mark.parametrize("name", ["novita"])
def test_trust_given_after_a_job_was_prepared_does_not_loosen_it(name, fake, alice):
    world.enter(fake)
    make_job(
        alice,
        model="wan2.1-i2v",
        tier="480p",
        prompt="a quiet street",
        safety_checker=False,
    )
    world.work("media")
    alice.is_trusted = True
    alice.save(update_fields=["is_trusted"])
    world.work(f"provider.{name}")
    (sent,) = fake.calls_to("submit")
    assert json.loads(sent.body)["enable_safety_checker"] is True


@pytest.mark.parametrize(
    ("second", "author"),
    [("openai_videos", "builtin"), ("novita", "provider:novita")],
)
def test_words_the_first_provider_was_to_write_are_there_at_the_second_too(
    second, author, alice
):
    with world.start("dashscope") as away, world.start(second) as next_one:
        world.enter(away)
        world.enter(next_one)
        Route.objects.filter(name=second).update(rank=1000)
        routing.forget()
        job = world.order(alice, "dashscope", prompt="A cat", prompt_expansion=True)
        world.work("media")
        job.refresh_from_db()
        assert job.resolved["expansion"] == "provider:dashscope"
        away.script("submit", "503", times=2)
        world.work("provider.dashscope")
        world.work("provider.dashscope")
        world.work(f"provider.{second}")
        (sent,) = next_one.jobs.values()
    job.refresh_from_db()
    assert (job.route["runner"], job.step) == (second, "await")
    assert job.resolved["expansion"] == author
    if author == "builtin":
        assert sent.prompt == job.resolved["expanded_prompt"]
        assert sent.prompt.startswith("A cat. ")
        assert "Lighting:" in sent.prompt
    else:
        assert sent.prompt == "A cat"
        assert sent.body["parameters"]["prompt_extend"] is True


@pytest.mark.parametrize("name", ["novita"])
def test_an_account_that_cannot_be_read_gets_no_jobs_and_stops_no_other(
    name, fake, alice
):
    bad = world.enter(fake, "bad")
    world.spoil(bad)
    assert "cannot be read" in outside.standing(name).reason
    good = world.enter(fake, "good")
    for _ in range(3):
        job = world.submitted(alice, name)
        assert (job.step, job.provider_account) == ("await", good)
    # Nor is it put out of order: it may be this process that has the wrong key.
    assert ProviderAccount.objects.get(pk=bad.pk).out_of_order_at is None


@pytest.mark.parametrize("given", [{"seconds": 5}, {"sizes": ["1280x720"]}, [], "x"])
def test_an_account_with_unusable_settings_gets_no_jobs_and_stops_no_other(
    given, alice
):
    with world.start("openai_videos") as fake:
        world.enter(fake, "bad", settings=given)
        assert "cannot be used" in outside.standing("openai_videos").reason
        Route.objects.exclude(name="openai_videos").update(is_enabled=False)
        routing.forget()
        with pytest.raises(ModelUnavailable):
            world.order(alice, "openai_videos")
        good = world.enter(fake, "good")
        for _ in range(3):
            job = world.submitted(alice, "openai_videos")
            assert (job.step, job.provider_account) == ("await", good)
