"""Videos whose files are deleted: unknown to the API that made them, known natively."""

from __future__ import annotations

from typing import Any

import pytest

from billing.models import Account
from jobs import retention
from jobs.models import Job
from tests.factories import make_account, make_key
from tests.jobs import lives
from tests.jobs.api import test_formats, test_task_formats
from tests.jobs.api.test_task_formats import AKOOL, Caller

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url", "s3")]

PLAIN = test_formats.FORMATS
TASKS = test_task_formats.FORMATS


@pytest.fixture
def alice() -> Account:
    return make_account("alice")


@pytest.fixture
def caller(alice: Account) -> Caller:
    return Caller(make_key(alice, "test"))


def create(caller: Caller, name: str, **headers: str) -> str:
    form: Any = PLAIN.get(name) or TASKS[name]
    more = dict(getattr(form, "headers", {}))
    answer = caller.post(form.create, form.body, **{**more, **headers})
    return str(form.id_of(answer.json()))


def finished(caller: Caller, name: str) -> Job:
    return lives.succeeded(Job.objects.get(public_id=create(caller, name)))


def failed(caller: Caller, name: str) -> Job:
    return lives.failed(Job.objects.get(public_id=create(caller, name)))


def told(caller: Caller, name: str, public_id: str) -> Any:
    """Return what the format says of a job, or "unknown" as it says it."""
    if name in PLAIN:
        answer = caller.get(PLAIN[name].status.format(public_id))
        return "unknown" if answer.status_code == 404 else answer.json()
    form = TASKS[name]
    body = form.status(caller, public_id).json()
    no_task = {"task_id": public_id, "task_status": "UNKNOWN"}
    wanted = {"novita": "TASK_NOT_FOUND", "akool": 1008, "dashscope": no_task}[name]
    is_unknown = wanted in (body.get("reason"), body.get("code"), body.get("output"))
    return "unknown" if is_unknown else body


every_format = pytest.mark.parametrize("name", [*PLAIN, *TASKS])


@every_format
@pytest.mark.parametrize("reason", ["expired", "requested"])
def test_a_video_without_files_is_unknown_and_shows_natively(
    caller: Caller, name: str, reason: str
) -> None:
    job = finished(caller, name)
    assert told(caller, name, job.public_id) != "unknown"
    retention.delete_files(job, reason=reason)
    assert told(caller, name, job.public_id) == "unknown"
    native = caller.get(f"/v1/jobs/{job.pk}").json()
    assert (native["status"], native["video"]) == ("succeeded", None)


@every_format
def test_a_failed_job_still_says_so_when_its_leftovers_are_cleared(
    caller: Caller, name: str, settings: Any
) -> None:
    settings.LEFTOVER_SECONDS = 0
    job = failed(caller, name)
    retention.delete_due()
    assert Job.objects.get().files_deleted_at is not None
    assert "could not be generated" in str(told(caller, name, job.public_id))


def test_magicoal_neither_lists_nor_counts_what_is_gone(caller: Caller) -> None:
    kept, gone = finished(caller, "magicoal"), finished(caller, "magicoal")
    retention.delete_files(gone, reason="expired")
    body = caller.get("/api/v1/magicoal/videos").json()
    assert [video["uuid"] for video in body["data"]] == [kept.public_id]
    assert body["meta"]["total"] == 1


def delete(caller: Caller, video_id: str) -> Any:
    return caller.client.delete(
        f"/v1/videos/{video_id}",
        content_type="application/json",
        headers=caller.headers,
    )


def test_openai_deleting_all_that_is_listed_comes_to_an_end(caller: Caller) -> None:
    cleared = failed(caller, "openai")
    retention.delete_files(cleared, reason="unfinished")
    failed(caller, "openai")
    finished(caller, "openai")
    create(caller, "openai")
    for _ in range(4):
        [video] = caller.get("/v1/videos?limit=1").json()["data"]
        assert delete(caller, video["id"]).json()["deleted"] is True
        assert delete(caller, video["id"]).status_code == 404
    assert caller.get("/v1/videos").json()["data"] == []
    assert len(caller.get("/v1/jobs").json()["data"]) == 4


def test_openai_pages_on_after_a_video_that_was_deleted_meanwhile(
    caller: Caller,
) -> None:
    older, newer = finished(caller, "openai"), finished(caller, "openai")
    assert delete(caller, newer.public_id).status_code == 200
    page = caller.get(f"/v1/videos?after={newer.public_id}").json()
    assert [video["id"] for video in page["data"]] == [older.public_id]


def test_a_deleted_video_can_be_remixed_no_more(caller: Caller) -> None:
    job = finished(caller, "openai")
    delete(caller, job.public_id)
    answer = caller.post(f"/v1/videos/{job.public_id}/remix", {"prompt": "rain"})
    assert answer.status_code == 404


def test_a_client_retry_is_not_answered_with_a_deleted_video(caller: Caller) -> None:
    first = create(caller, "openai")
    delete(caller, first)
    again = create(caller, "openai", **{"x-stainless-retry-count": "1"})
    assert again != first
    assert told(caller, "openai", again)["status"] == "queued"


def test_akool_deletes_once_and_makes_no_sound_for_what_is_gone(
    caller: Caller,
) -> None:
    job = finished(caller, "akool")
    results = [
        caller.post(f"{AKOOL}/delbyids", {"_ids": job.public_id}).json()["data"]
        for _ in range(2)
    ]
    assert results[0] == {"successIds": [job.public_id], "noPermissionItems": []}
    assert results[1]["successIds"] == []
    assert [item["_id"] for item in results[1]["noPermissionItems"]] == [job.public_id]
    sound = {"pre_video_id": job.public_id, "audio_type": 1}
    answer = caller.post(f"{AKOOL}/updateVideoAudio", sound).json()
    assert answer["code"] == 1008
