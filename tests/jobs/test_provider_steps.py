"""Jobs that an outside provider makes: there, back, and what is kept on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from billing.models import Account
from inference.providers.base import RemoteStatus
from jobs import outside, provider_steps, tasks
from jobs.requests import Sound
from tests.factories import make_account
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


@pytest.mark.parametrize("name", ["novita"])
def test_a_full_provider_leaves_jobs_queued_and_starts_no_deadline(name, fake, alice):
    world.enter(fake, concurrent_jobs=1)
    world.submitted(alice, name)
    second = world.submitted(alice, name)
    assert (second.status, second.step) == ("queued", "submit")
    assert (second.started_at, second.end_by, second.step_tries) == (None, None, 0)
    # A worker's bell does not even claim it, but would collect what is ready.
    assert tasks._only_step(f"provider.{name}") == "collect"
    assert len(fake.calls_to("submit")) == 1
