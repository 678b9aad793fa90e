"""Lasting addresses of finished files: unguessable, always the same, gone with the file."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import time_machine
from django.test import Client

from jobs import display, retention
from tests.factories import make_account, make_job
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
