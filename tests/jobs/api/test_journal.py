"""The access log: who asked for what, and nothing they would not want to read there."""

from __future__ import annotations

import json
from typing import Any

import pytest
import structlog
from django.test import Client, RequestFactory
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from project.logging import hide_secrets
from tests.factories import make_account, make_key
from tests.jobs.api.test_native import PICTURE


def lines_of(key: str, *, prompt: str) -> list[Any]:
    with capture_logs(processors=[merge_contextvars]) as lines:
        Client(headers={"Authorization": f"Bearer {key}"}).post(
            "/v1/jobs",
            {"image": PICTURE, "prompt": prompt},
            content_type="application/json",
        )
    return [line for line in lines if line["event"] == "call"]


@pytest.mark.django_db
@pytest.mark.usefixtures("redis_url")
class TestCalls:
    def test_a_line_names_account_key_job_and_time(self) -> None:
        account = make_account("alice", credits=10)
        key = make_key(account)
        (line,) = lines_of(key, prompt="waves")
        assert line["account"] == str(account.pk)
        assert line["key"] == key.split("_")[2]
        assert (line["method"], line["path"], line["status"]) == (
            "POST",
            "/v1/jobs",
            202,
        )
        assert line["job"]
        assert "waves" not in json.dumps(line)

    def test_prompts_are_written_when_switched_on(self, settings: Any) -> None:
        settings.LOG_PROMPTS = True
        key = make_key(make_account("alice", credits=10))
        (line,) = lines_of(key, prompt="waves")
        assert line["prompt"] == "waves"

    def test_one_call_leaves_nothing_to_the_next(self) -> None:
        lines_of(make_key(make_account("alice", credits=10)), prompt="waves")
        assert structlog.contextvars.get_contextvars() == {}


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("zoe_live_abcd1234_SECRET_check1", "zoe_live_abcd1234[hidden]"),
        ("whsec_QUJD+/=", "whsec_[hidden]"),
        ("http://h/k?X-Amz-Signature=abc&x=1", "http://h/k?X-Amz-Signature=[hidden]&x=1"),
        ("DETAIL:  Failing row contains (1, a prompt).", "DETAIL:  Failing row contains [hidden]"),
        ("redis://:word@host/0", "redis://:[hidden]@host/0"),
        ("Error: /files/abc:def/video.mp4", "Error: /files/[hidden]/video.mp4"),
        ("Error: /callbacks/novita/abc:def", "Error: /callbacks/novita/[hidden]"),
        ("https://example.com/a:b", "https://example.com/a:b"),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_cut_out(said: str, written: str) -> None:
    event = {"event": said, "token": "abc", "count": 3}
    assert hide_secrets(None, "", event) == {
        "event": written,
        "token": "[hidden]",
        "count": 3,
    }


def test_the_request_django_logs_shows_no_token() -> None:
    event = {"event": "x", "request": RequestFactory().get("/files/abc:def/video.mp4")}
    written = hide_secrets(None, "", event)["request"]
    assert written == "<WSGIRequest: GET '/files/[hidden]/video.mp4'>"
