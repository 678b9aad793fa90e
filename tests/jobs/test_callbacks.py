"""What providers may tell us by calling: nothing that is not then read again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from django.core import signing
from django.db.models.functions import Now
from django.test import Client

from billing.models import Account
from jobs import provider_steps
from jobs.models import Job, ProviderAccount
from tests.factories import make_account
from tests.fakes import FakeService
from tests.jobs import providers_world as world

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]


@pytest.fixture
def fake() -> Iterator[FakeService]:
    with world.start("openai_videos") as service:
        yield service


@pytest.fixture
def row(fake: FakeService) -> ProviderAccount:
    return world.enter(fake)


@pytest.fixture
def job(fake: FakeService, row: ProviderAccount, alice: Account) -> Job:
    one = fake.accept("sk-test", "sora-2", "words").id
    later = Now() + timedelta(hours=1)
    (made,) = world.put_out(alice, row, [one])
    Job.objects.update(next_poll_at=later)
    return made


@pytest.fixture
def alice() -> Account:
    return make_account("alice", plan="enterprise", credits=10)


def path_of(row: ProviderAccount) -> str:
    return urlsplit(provider_steps.account_callback_url(row)).path


def call(path: str, body: bytes, headers: dict[str, str]) -> int:
    answer = Client().post(path, body, content_type="application/json", headers=headers)
    assert answer.content == b""
    return answer.status_code


def is_due() -> bool:
    return Job.objects.filter(next_poll_at__lte=Now()).exists()


def test_a_call_for_a_whole_account_makes_its_job_due(fake, row, job):
    body, headers = fake.callback(fake.jobs[job.provider_job_id])
    assert call(path_of(row), body, headers) == 200
    assert is_due()
    job.refresh_from_db()
    assert (job.step, job.status) == ("await", "running")


def test_a_signature_of_another_secret_or_body_changes_nothing(fake, row, job):
    body, headers = fake.callback(fake.jobs[job.provider_job_id])
    forged = {n: v.replace("v1,", "v1,AAAA") for n, v in headers.items()}
    assert call(path_of(row), body, forged) == 401
    assert call(path_of(row), body + b" ", headers) == 401
    assert call(path_of(row), body, {}) == 401
    assert not is_due()


def test_one_account_cannot_speak_of_anothers_jobs(fake, row, job):
    other = world.enter(fake, "other")
    body, headers = fake.callback(fake.jobs[job.provider_job_id])
    assert call(path_of(other), body, headers) == 200
    assert not is_due()


def test_a_token_we_never_gave_is_refused_whatever_it_is(fake, row, job):
    body, headers = fake.callback(fake.jobs[job.provider_job_id])
    for token in ("x", "x:y:z", signing.dumps(row.pk), signing.dumps("1", salt="s")):
        assert call(f"/callbacks/openai_videos/{token}", body, headers) == 401
    path = path_of(row).replace("openai_videos", "novita")
    assert call(path, body, headers) == 401
    assert call(path.replace("novita", "nobody"), body, headers) == 401


def test_a_call_for_an_account_that_cannot_be_read_is_refused(fake, row, job):
    body, headers = fake.callback(fake.jobs[job.provider_job_id])
    world.spoil(row)
    assert call(path_of(row), body, headers) == 401
    assert not is_due()


def test_only_posts_are_taken(row):
    assert Client().get(path_of(row)).status_code == 405
