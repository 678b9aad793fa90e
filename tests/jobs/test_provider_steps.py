"""Jobs that an outside provider makes: there, back, and what is kept on the way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from billing.models import Account
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
