"""Errands at providers after a job's end: their copy deleted, their work stopped."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from billing.models import Account
from jobs import reconcile
from jobs.models import Incident, Job, ProviderAccount, ProviderErrand
from tests.factories import make_account
from tests.fakes import FakeService
from tests.jobs import providers_world as world

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]


@pytest.fixture
def fake(name: str) -> Iterator[FakeService]:
    with world.start(name) as service:
        yield service


@pytest.fixture
def alice() -> Account:
    return make_account("alice", plan="enterprise", credits=10)


def errand(
    fake: FakeService, row: ProviderAccount, account: Account, kind: str
) -> ProviderErrand:
    key = fake.client_secret if fake.name == "akool" else "sk-test"
    body = {"video_length": 5, "resolution": "720p"}
    there = fake.accept(key, "any", "words", body=body)
    (job,) = world.put_out(account, row, [there.id])
    return ProviderErrand.objects.create(
        account=row, job=job, provider_job_id=there.id, kind=kind
    )


def run() -> None:
    ProviderErrand.objects.update(due_at=Now())
    reconcile.run_errands()


deletes = pytest.mark.parametrize("name", ["akool", "openai_videos"])


@deletes
def test_the_providers_copy_is_deleted_after_the_end(name, fake, alice):
    left = errand(fake, world.enter(fake), alice, "delete")
    world.finish_there(fake)
    run()
    assert left.provider_job_id not in fake.jobs
    assert not ProviderErrand.objects.exists()
    assert "deleted" in Job.objects.get().notes.get().text


@pytest.mark.parametrize("name", ["akool"])
def test_a_copy_in_use_is_asked_for_again_later(name, fake, alice):
    errand(fake, world.enter(fake), alice, "delete")
    run()  # it is still being made
    left = ProviderErrand.objects.get()
    assert left.tries == 1
    world.finish_there(fake)
    run()
    assert not ProviderErrand.objects.exists()


@deletes
def test_a_provider_that_is_away_is_told_later_and_given_up_at_last(name, fake, alice):
    left = errand(fake, world.enter(fake), alice, "delete")
    world.finish_there(fake)
    fake.script("delete", "503", times=99)
    for _ in range(reconcile.ERRAND_TRIES["delete"] - 1):
        run()
        assert ProviderErrand.objects.exists()
    run()
    assert not ProviderErrand.objects.exists()
    assert "could not delete there" in Job.objects.get().notes.get().text
    incident = Incident.objects.get(kind="provider_copy")
    assert left.provider_job_id in incident.subject
    assert incident.detail["job"] == str(left.job_id)


@deletes
def test_a_copy_that_nobody_could_stop_is_deleted_over_the_next_two_days(
    name, fake, alice
):
    errand(fake, world.enter(fake), alice, "cancel")
    fake.script("delete", "503", times=99)
    waited = timedelta()
    for _ in range(reconcile.ERRAND_TRIES["delete"]):
        run()
        waited += ProviderErrand.objects.get().due_at - timezone.now()
    assert ProviderErrand.objects.get().kind == "delete"
    assert timedelta(hours=46) < waited < timedelta(hours=50)
    run()
    assert not ProviderErrand.objects.exists()
    assert Incident.objects.filter(kind="provider_copy").exists()


@pytest.mark.parametrize("name", ["dashscope"])
def test_a_provider_that_cannot_be_told_to_stop_is_soon_left_alone(name, fake, alice):
    errand(fake, world.enter(fake), alice, "cancel")
    fake.script("cancel", "503", times=99)
    for _ in range(reconcile.ERRAND_TRIES["cancel"]):
        run()
    assert not ProviderErrand.objects.exists()
    assert "could not cancel there" in Job.objects.get().notes.get().text
    assert not Incident.objects.exists()


@pytest.mark.parametrize("name", ["novita"])
def test_where_nothing_can_be_deleted_nothing_is_asked(name, fake, alice):
    errand(fake, world.enter(fake), alice, "delete")
    run()
    assert not fake.calls
    assert not ProviderErrand.objects.exists()


@pytest.mark.parametrize("name", ["dashscope"])
def test_what_has_begun_there_cannot_be_stopped_and_is_not_tried_again(
    name, fake, alice
):
    errand(fake, world.enter(fake), alice, "cancel")
    fake.advance(fake.queued_seconds + 1)
    run()
    assert len(fake.calls_to("cancel")) == 1
    assert not ProviderErrand.objects.exists()
    assert "at our cost" in Job.objects.get().notes.get().text
