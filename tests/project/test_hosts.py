"""Probes answer by any name; other calls by a foreign one are refused in their API's shape."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

FOREIGN = {"Host": "web.internal:8000"}


def call(path: str, **headers: str) -> Any:
    return Client(raise_request_exception=False).get(
        path, headers={**FOREIGN, **headers}
    )


def test_a_health_check_may_ask_by_any_name() -> None:
    assert call("/healthz").status_code == 200


@pytest.mark.django_db
@pytest.mark.usefixtures("redis_url", "s3_address")
def test_readiness_and_figures_may_be_asked_for_by_any_name(settings: Any) -> None:
    assert call("/readyz").status_code == 200
    assert call("/metrics").status_code == 401
    key = {"Authorization": f"Bearer {settings.METRICS_TOKEN}"}
    assert call("/metrics", **key).status_code == 200


@pytest.mark.parametrize(
    ("path", "member"),
    [
        ("/v1/jobs", "detail"),
        ("/v1/videos", "error"),
        ("/v1/tasks/x", "error_code"),
        ("/api/v1/magicoal/status/x", "error"),
        ("/v2/video/generations", "message"),
        ("/v3/async/task-result", "reason"),
        ("/api/v1/tasks/x", "code"),
        ("/operator/v1/accounts", "detail"),
        ("/admin/", "detail"),
    ],
)
def test_a_call_by_a_foreign_name_is_a_400_of_its_api(path: str, member: str) -> None:
    answer = call(path)
    assert answer.status_code == 400
    assert member in answer.json()
    assert "ALLOWED_HOSTS" in answer.content.decode()


def test_akool_says_it_as_akool_says_everything() -> None:
    answer = call("/api/open/v3/content/video/list")
    assert answer.status_code == 200
    assert answer.json()["code"] != 1000
    assert "ALLOWED_HOSTS" in answer.json()["msg"]


def test_a_name_the_operator_allows_is_served(settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["web.internal"]
    assert call("/v1/jobs").status_code == 401
