"""Errands at providers after a job's end: their copy deleted, their work stopped."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from billing.acting import Deed
from billing.models import Account
from inference.providers import transport
from jobs import lifecycle, reconcile
from jobs.admin.job_acts import ACTS
from jobs.models import Incident, Job, ProviderAccount, ProviderErrand
from tests.factories import make_account
from tests.fakes import FakeService
from tests.jobs import providers_world as world

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url", "s3")]


@pytest.fixture
def fake(name: str) -> Iterator[FakeService]:
    with world.start(name) as service:
        yield service


@pytest.fixture
def alice() -> Account:
    return make_account("alice", plan="enterprise", credits=100)


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


@pytest.mark.parametrize("name", ["akool"])
@pytest.mark.parametrize("fault", ["unreadable", "unforeseen"])
def test_one_errand_that_cannot_be_done_keeps_no_other_from_it(
    name, fault, fake, alice, monkeypatch
):
    other = world.enter(fake, "other")
    first = errand(fake, other, alice, "delete")
    second = errand(fake, world.enter(fake), alice, "delete")
    world.finish_there(fake)
    if fault == "unreadable":
        world.spoil(other)
    else:
        delete = transport.delete

        def breaks(http, provider, one, account):
            if one == first.provider_job_id:
                raise KeyError("unforeseen")
            return delete(http, provider, one, account)

        monkeypatch.setattr(transport, "delete", breaks)
    ProviderErrand.objects.update(due_at=Now())
    for _ in range(2):
        reconcile.run_errands()
    left = ProviderErrand.objects.get()
    assert (left.pk, left.tries) == (first.pk, 1)
    assert left.due_at > timezone.now()
    assert second.provider_job_id not in fake.jobs
    stuck = Incident.objects.filter(kind="job_stuck", subject=str(first.job_id))
    assert stuck.exists() == (fault == "unforeseen")


@pytest.mark.parametrize("name", ["novita"])
def test_one_job_that_cannot_be_looked_up_keeps_no_other_from_it(name, fake, alice):
    row = world.enter(fake)
    there = fake.accept("sk-test", "any", "words")
    doubt = {"step": "reconcile"}
    (broken,) = world.put_out(alice, row, ["no submit was noted"], **doubt)
    (sound,) = world.put_out(alice, row, [there.id], **doubt, submit_sent_at=Now())
    for _ in range(2):
        Job.objects.update(next_poll_at=Now())
        reconcile.look()
    sound.refresh_from_db()
    broken.refresh_from_db()
    assert (sound.step, broken.step) == ("await", "reconcile")
    assert Incident.objects.get(kind="job_stuck").subject == str(broken.pk)


@pytest.mark.parametrize("name", ["akool", "openai_videos"])
def test_a_copy_that_is_gone_although_the_answer_was_lost_is_nobodys_to_delete(
    name, fake, alice
):
    row = world.enter(fake)
    left = errand(fake, row, alice, "delete")
    world.finish_there(fake)
    fake.script("delete", "lost")
    for _ in range(2):
        ProviderErrand.objects.update(due_at=Now())
        reconcile.run_errands()
    assert not fake.jobs
    assert not ProviderErrand.objects.exists()
    said = [note.text for note in Job.objects.get(pk=left.job_id).notes.all()]
    assert said == ["the provider's copy is deleted"]


class Olga:
    def get_username(self) -> str:
        return "olga"


def gives_up(job: Job) -> None:
    (act,) = [act for act in ACTS if act.name == "give_up"]
    act.run(job, Deed(Olga(), "it takes too long", {}))


def cancels(job: Job) -> None:
    lifecycle.cancel(job)


def is_overdue(job: Job) -> None:
    world.reconcile_now(age_seconds=25 * 3600)


@pytest.mark.parametrize("ends", [gives_up, cancels, is_overdue])
@pytest.mark.parametrize("name", ["sinancode"])
def test_when_a_job_in_doubt_has_ended_nobody_need_look_for_it(name, ends, fake, alice):
    world.enter(fake)
    fake.script("submit", "lost")
    job = world.submitted(alice, name)
    world.reconcile_now(age_seconds=180)
    in_doubt = Incident.objects.filter(kind="unknown_fate", resolved_at=None)
    assert in_doubt.get().subject == str(job.pk)
    job.refresh_from_db()
    ends(job)
    job.refresh_from_db()
    assert job.finished_at is not None
    assert not in_doubt.exists()


@pytest.mark.parametrize("name", ["novita"])
@pytest.mark.parametrize("fault", ["away", "unreadable", "unforeseen"])
def test_what_cannot_be_looked_up_for_a_day_is_given_back(
    name, fault, fake, alice, monkeypatch
):
    row = world.enter(fake)
    fake.script("submit", "lost")
    job = world.submitted(alice, name)
    Job.objects.update(provider_job_id=next(iter(fake.jobs)))
    if fault == "away":
        fake.script("status", "503", times=9)
    elif fault == "unreadable":
        world.spoil(row)
    else:
        monkeypatch.setattr(transport, "status", lambda *_: 1 / 0)
    world.reconcile_now(age_seconds=180)
    assert Incident.objects.filter(kind="unknown_fate", subject=str(job.pk)).exists()
    world.reconcile_now(age_seconds=25 * 3600)
    job.refresh_from_db()
    assert job.status == "failed"
    assert world.held(alice) == 0
    assert Incident.objects.filter(kind="unproved_loss").exists()
