"""/readyz names every dependency and refuses only when nothing can be accepted."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client

from jobs import leading
from jobs.models import Worker

pytestmark = pytest.mark.django_db


def ask() -> tuple[int, dict[str, Any]]:
    answer = Client().get("/readyz")
    return answer.status_code, answer.json()


def test_it_names_each_dependency(s3_address: object, redis_url: str) -> None:
    Worker.objects.create(name="media@one", queues=["media"], doing=[])
    assert ask() == (
        200,
        {
            "status": "ready",
            "postgres": "ok",
            "broker": "ok",
            "s3": "ok",
            "migrations": "ok",
            "workers": {"media": 1},
            "loops": {"housekeeper": "not running", "poller": "not running"},
            "safety": "prompt_only",
        },
    )


def test_without_broker_and_s3_jobs_are_still_accepted(settings: Any) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:9/0"
    settings.S3_ENDPOINT_URL = "http://127.0.0.1:9"
    status, body = ask()
    assert status == 200
    assert (body["broker"], body["s3"]) == ("unreachable", "unreachable")


def test_a_loop_that_leads_is_named_and_a_dead_one_refuses_nothing(
    s3_address: object,
) -> None:
    assert leading.leads("housekeeper")
    status, body = ask()
    assert status == 200
    assert body["loops"] == {"housekeeper": "ok", "poller": "not running"}
    connection.cursor().execute("SELECT pg_advisory_unlock_all()")


def test_a_database_behind_this_release_is_not_served() -> None:
    MigrationRecorder.Migration.objects.filter(app="jobs", name="0001_initial").delete()
    status, body = ask()
    assert status == 503
    assert (body["status"], body["migrations"]) == ("unavailable", "pending")


def test_a_newer_database_is(s3_address: object) -> None:
    MigrationRecorder.Migration.objects.create(app="jobs", name="9999_from_the_future")
    assert ask()[0] == 200
