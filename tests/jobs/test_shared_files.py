"""A file that several jobs use stays as long as one of them needs it, and no longer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, connections
from django.test import Client

from billing import keys, ledger, prices
from billing.models import Account
from jobs import claims, context, intake, retention, routing, tasks
from jobs.claims import Held
from jobs.errors import NotAcceptableNow
from jobs.models import DeletionRecord, Job
from jobs.requests import JobRequest, Sound
from jobs.states import Status
from tests.factories import credential, make_account, make_job, make_key
from tests.jobs.finishing import site, stored, work, world

__all__ = ["site", "world"]
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

CLIP: dict[str, Any] = {"seconds": 1, "tier": "480p", "fps": 8}


@pytest.fixture
def alice(db: None) -> Iterator[Account]:
    keys.forget()
    prices.forget()
    routing.forget()
    alice = make_account("alice", credits=100)
    yield alice
    assert ledger.check(account_id=alice.pk) == []


class Api:
    def __init__(self, account: Account) -> None:
        self.headers = {"Authorization": f"Bearer {make_key(account)}"}
        self.client = Client(raise_request_exception=False)

    def delete(self, job: Job) -> int:
        return self.client.delete(
            f"/v1/jobs/{job.pk}", headers=self.headers
        ).status_code


def finished(account: Account) -> Job:
    return done(make_job(account, **CLIP))


def remix(source: Job, account: Account) -> Job:
    return intake.submit(
        JobRequest.load(source.request).replace(prompt="rain", seed=None),
        credential=credential(account),
        dialect="native",
        source=source,
    )


def revoiced(source: Job, account: Account) -> Job:
    return intake.submit_audio(
        source, Sound("generate"), credential=credential(account), dialect="native"
    )


def done(job: Job) -> Job:
    job = work(job)
    assert job.status == Status.SUCCEEDED, job.error_detail
    return job


def prepared(job: Job) -> Job:
    claim = claims.claim_next("media", worker="test")
    assert claim is not None
    tasks._do(Held(claim))
    job.refresh_from_db()
    assert job.inputs
    return job


def picture_of(job: Job) -> str:
    key: str = job.inputs["image"]["key"]
    return key


def test_deleting_a_remix_leaves_the_sources_files_alone(alice: Account) -> None:
    source = finished(alice)
    before = stored(source)
    second = done(remix(source, alice))
    assert picture_of(second) == picture_of(source)
    assert Api(alice).delete(second) == 200
    assert stored(source) == before
    assert stored(second) == []
    assert done(remix(source, alice)).output["key"]


def test_the_picture_goes_with_the_last_that_uses_it(alice: Account) -> None:
    source = finished(alice)
    picture = picture_of(source)
    second = done(remix(source, alice))
    third = done(remix(second, alice))
    api = Api(alice)
    # From the middle outwards: the two that are left are not each other's source.
    assert api.delete(second) == 200
    assert api.delete(source) == 200
    assert stored(source) == [picture]
    assert api.delete(third) == 200
    assert stored(source) == []
    told = [key for record in DeletionRecord.objects.all() for key in record.keys]
    assert told.count(picture) == 1


@pytest.mark.parametrize("how_far", ["accepted", "prepared"])
def test_a_remix_outlives_a_source_deleted_before_it_is_made(
    alice: Account, how_far: str
) -> None:
    source = finished(alice)
    picture = picture_of(source)
    second = remix(source, alice)
    if how_far == "prepared":
        prepared(second)
    assert Api(alice).delete(source) == 200
    assert stored(source) == [picture]
    second = done(second)
    assert Api(alice).delete(second) == 200
    assert stored(source) == []


def test_a_sound_is_put_under_a_video_deleted_meanwhile(
    alice: Account, settings: Any
) -> None:
    settings.ORPHAN_SECONDS = 0
    source = finished(alice)
    video = source.output["key"]
    sound = revoiced(source, alice)
    assert Api(alice).delete(source) == 200
    assert stored(source) == [video]
    retention.sweep_all()
    assert stored(source) == [video]
    done(sound)
    retention.sweep_all()
    assert stored(source) == []


def test_a_remix_that_was_never_made_does_not_keep_a_deleted_picture(
    alice: Account, settings: Any
) -> None:
    settings.ORPHAN_SECONDS = 0
    source = finished(alice)
    second = remix(source, alice)
    api = Api(alice)
    assert api.delete(source) == 200
    assert api.delete(second) == 200
    retention.sweep_all()
    assert stored(source) == []


def test_what_expires_leaves_a_remix_its_picture(alice: Account) -> None:
    source = finished(alice)
    second = remix(source, alice)
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL session_replication_role = replica")
        cursor.execute(
            "UPDATE jobs_job SET files_expire_at = now() - interval '1 s'"
            " WHERE id = %s",
            [source.pk],
        )
        cursor.execute("SET LOCAL session_replication_role = origin")
    retention.delete_due()
    source.refresh_from_db()
    assert source.files_deleted_at is not None
    assert stored(source) == [picture_of(source)]
    done(second)


def test_a_deleted_video_is_not_remixed_though_a_remix_still_has_its_picture(
    alice: Account,
) -> None:
    source = finished(alice)
    Job.objects.filter(pk=source.pk).update(dialect="openai", public_id="video_1")
    remix(source, alice)
    api = Api(alice)
    assert api.delete(source) == 200
    answer = api.client.post(
        "/v1/videos/video_1/remix",
        {"prompt": "snow"},
        content_type="application/json",
        headers=api.headers,
    )
    assert answer.status_code == 404, answer.content
    source.refresh_from_db()
    with pytest.raises(NotAcceptableNow):
        remix(source, alice)


@pytest.mark.django_db(transaction=True)
def test_a_remix_accepted_while_its_source_is_deleted_is_refused(
    alice: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = finished(alice)
    held = ledger.balance(account_id=alice.pk, mode="live")
    storage = context.get().storage
    at_storage, go_on = threading.Event(), threading.Event()
    really = type(storage).delete

    def slow(self: Any, deleted: Any) -> None:
        at_storage.set()
        assert go_on.wait(20)
        really(self, deleted)

    monkeypatch.setattr(type(storage), "delete", slow)
    outcomes: list[object] = []

    def in_thread(act: Any) -> threading.Thread:
        def run() -> None:
            try:
                outcomes.append(act())
            except NotAcceptableNow as refused:
                outcomes.append(str(refused))
            finally:
                connections.close_all()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    deleting = in_thread(lambda: retention.delete_files(source) and None)
    assert at_storage.wait(20)
    accepting = in_thread(lambda: remix(source, alice))
    accepting.join(0.5)
    assert accepting.is_alive()
    go_on.set()
    deleting.join(20)
    accepting.join(20)
    assert "The video's files are no longer kept." in outcomes
    assert Job.objects.count() == 1
    assert ledger.balance(account_id=alice.pk, mode="live") == held
