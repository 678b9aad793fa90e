"""Lasting addresses of finished files: unguessable, always the same, gone with the file."""

from __future__ import annotations

import dataclasses
from typing import Any

import httpx
import pytest
import time_machine
from django.db import OperationalError, connection
from django.test import Client

from billing.models import Account
from inference.storage import Storage
from jobs import context, display, retention
from jobs.models import Job
from tests.factories import make_account, make_job, make_key
from tests.jobs import lives

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url", "s3")]


def test_a_lasting_address_never_changes_and_leads_to_the_file(client: Client) -> None:
    job = lives.succeeded(make_job(make_account("alice", credits=100)))
    path = display.permanent_path(job, "video")
    with time_machine.travel("2040-01-01"):
        assert display.permanent_path(job, "video") == path
    answer = client.get(path)
    assert answer.status_code == 302
    assert job.output["key"] in answer["Location"]
    retention.delete_files(job)
    assert client.get(path).status_code == 404


def test_a_lasting_address_outlives_a_new_secret_key_while_the_old_one_is_named(
    client: Client, settings: Any
) -> None:
    job = lives.succeeded(make_job(make_account("alice", credits=100)))
    path = display.permanent_path(job, "video")
    old = settings.SECRET_KEY
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another" * 8, [old]
    assert client.get(path).status_code == 302
    assert client.get(display.permanent_path(job, "video")).status_code == 302
    settings.SECRET_KEY_FALLBACKS = []
    assert client.get(path).status_code == 404


def test_a_lasting_address_answers_head_as_well_as_get(client: Client) -> None:
    job = lives.succeeded(make_job(make_account("alice", credits=100)))
    path = display.permanent_path(job, "video")
    read = httpx.get(client.get(path)["Location"], trust_env=False)
    head = httpx.head(client.head(path)["Location"], trust_env=False)
    assert (read.status_code, head.status_code) == (200, 200)
    assert head.headers["content-length"] == read.headers["content-length"] == "1"
    assert client.post(path).status_code == 405


def test_a_guessed_or_changed_address_is_unknown(client: Client) -> None:
    job = lives.succeeded(make_job(make_account("alice", credits=100)))
    token = display.permanent_path(job, "video").split("/")[2]
    for wrong in (str(job.pk), f"{token}x", token.replace(":", ""), "a:b"):
        assert client.get(f"/files/{wrong}/video.mp4").status_code == 404


def test_a_lasting_address_asks_for_patience_while_postgres_is_away(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = lives.succeeded(make_job(make_account("alice", credits=100)))
    path = display.permanent_path(job, "video")

    def away() -> None:
        raise OperationalError("the database system is shutting down")

    with monkeypatch.context() as patch:
        patch.setattr(connection, "ensure_connection", away)
        answer = client.get(path)
    assert (answer.status_code, answer["Retry-After"]) == (503, "5")


# ------------------------------------------------------------------- when S3 is not well


def of_openai(account: Account) -> Job:
    """Return a finished video that the OpenAI format knows."""
    job = lives.succeeded(make_job(account))
    Job.objects.filter(pk=job.pk).update(dialect="openai", public_id="video_1")
    return Job.objects.get(pk=job.pk)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/v1/jobs/{}"),
        ("DELETE", "/v1/videos/video_1"),
        ("GET", "/v1/videos/video_1/content"),
    ],
)
def test_a_call_that_needs_the_storage_asks_for_patience_while_it_is_away(
    monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    alice = make_account("alice", credits=100)
    job = of_openai(alice)
    headers = {"Authorization": f"Bearer {make_key(alice)}"}
    client = Client(raise_request_exception=False)
    away = Storage(
        endpoint_url="http://127.0.0.1:9", bucket="b", access_key="a", secret_key="s"
    )
    world = dataclasses.replace(context.get(), storage=away)
    with monkeypatch.context() as patch:
        patch.setattr(context, "get", lambda: world)
        answer = client.generic(method, path.format(job.pk), headers=headers)
    assert (answer.status_code, answer["Retry-After"]) == (503, "5")
    job.refresh_from_db()
    assert job.files_deleted_at is None
    again: Any = client.generic(method, path.format(job.pk), headers=headers)
    assert again.status_code < 300
    assert b"".join(again)


def test_a_file_that_is_lost_is_not_found(s3: str) -> None:
    alice = make_account("alice", credits=100)
    job = of_openai(alice)
    context.get().storage.delete([job.output["key"]])
    answer = Client(raise_request_exception=False).get(
        "/v1/videos/video_1/content",
        headers={"Authorization": f"Bearer {make_key(alice)}"},
    )
    assert answer.status_code == 404
