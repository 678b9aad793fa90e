from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine

from inference.errors import Fault, ProviderError, Unsupported
from inference.providers.base import CallbackRefused, FindQuery, HttpReply
from tests.fakes.bodies import load
from tests.inference.providers.samples import (
    PNG,
    make_account,
    make_job,
    provider,
    recorded_reply,
    reply,
)

ACCOUNT = make_account("https://api.openai.com")
OPENAI = provider("openai_videos")


def test_a_submit_is_a_form_with_text_seconds_and_the_picture():
    call = OPENAI.build_submit(make_job("openai_videos", frames=80), ACCOUNT)
    assert call.url == "https://api.openai.com/v1/videos"
    assert call.form == {
        "prompt": "a quiet street",
        "model": "sora-2",
        "seconds": "8",
        "size": "1280x720",
    }
    part = call.files["input_reference"]
    assert (part.filename, part.media_type, part.data) == (
        "input.png",
        "image/png",
        PNG,
    )


def test_portrait_turns_the_size_and_the_canvas():
    job = make_job("openai_videos", width=480, height=832)
    assert OPENAI.build_submit(job, ACCOUNT).form["size"] == "720x1280"
    assert OPENAI.canvas(job, ACCOUNT) == (720, 1280)


def test_other_servers_state_their_models_lengths_and_sizes():
    account = make_account(
        "http://127.0.0.1:9/v1", seconds=[5, 10], sizes={"1080p": "1920x1080"}
    )
    job = make_job("openai_videos", tier="1080p", frames=81).replace(model="wan2.6-i2v")
    call = OPENAI.build_submit(job, account)
    assert call.url == "http://127.0.0.1:9/v1/videos"
    assert (call.form["seconds"], call.form["size"]) == ("5", "1920x1080")


def test_sound_is_refused_where_nobody_says_the_server_makes_it():
    job = make_job("openai_videos", audio_mode="generate").replace(model="wan2.6-i2v")
    with pytest.raises(Unsupported) as refused:
        OPENAI.build_submit(job, ACCOUNT)
    assert refused.value.field == "audio"
    OPENAI.build_submit(job, make_account("https://o.example", sound=True))


@pytest.mark.parametrize(
    ("body", "state", "progress"),
    [
        ("video", "queued", 0.0),
        ("running", "running", 0.4),
        ("succeeded", "succeeded", 1.0),
        ("failed", "failed", None),
    ],
)
def test_captured_states_are_read(body, state, progress):
    answer = recorded_reply("openai_videos", "status", body)
    status = OPENAI.parse_status(answer, ["v1"], ACCOUNT)["v1"]
    assert (status.state, status.progress) == (state, progress)
    if state == "failed":
        assert status.error is not None
        assert status.error.code == "content_blocked"
    if state == "succeeded":
        assert status.video_url == "https://api.openai.com/v1/videos/v1/content"
        assert status.download_headers == {"Authorization": "Bearer sk-canary-key"}


EXPECTED = {
    "invalid_request_error": Fault.CUSTOMER,
    "invalid_api_key": Fault.ACCOUNT,
    "permission_error": Fault.ACCOUNT,
    "not_found": Fault.HEALTH,
    "conflict": Fault.HEALTH,
    "rate_limit_exceeded": Fault.BUSY,
    "insufficient_quota": Fault.ACCOUNT,
    "moderation_blocked": Fault.CUSTOMER,
    "server_error": Fault.HEALTH,
    "unavailable": Fault.HEALTH,
}


@pytest.mark.parametrize(("name", "fault"), EXPECTED.items())
def test_each_error_is_somebodys_fault(name, fault):
    with pytest.raises(ProviderError) as refused:
        OPENAI.parse_submit(recorded_reply("openai_videos", "errors", name), ACCOUNT)
    assert refused.value.fault is fault


def test_milliseconds_of_patience_are_understood():
    with pytest.raises(ProviderError) as refused:
        OPENAI.parse_submit(
            recorded_reply("openai_videos", "errors", "rate_limit_exceeded"), ACCOUNT
        )
    assert refused.value.retry_after_seconds == 1.5


# The vector of openai 3.52.0's own verifier.
VECTOR = b'{"id":"evt_1","object":"event","created_at":1700000000,"type":"video.completed","data":{"id":"video_1"}}'
HEADERS = {
    "webhook-id": "evt_1",
    "webhook-timestamp": "1700000000",
    "webhook-signature": "v1,BYct339UgJrBiLeXHSEY0NUQhMOj/yjJHhFwQ77ab7Y=",
}


@time_machine.travel(1700000010)
def test_the_webhook_vector_verifies():
    assert OPENAI.parse_callback(VECTOR, HEADERS, ACCOUNT).provider_id == "video_1"


@time_machine.travel(1700000010)
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (VECTOR.replace(b"video_1", b"video_2"), {}),
        (VECTOR, {"webhook-id": "evt_2"}),
        (VECTOR, {"webhook-timestamp": "1700000001"}),
        (VECTOR, {"webhook-signature": ""}),
        (VECTOR, {"webhook-signature": "v2,BYct"}),
    ],
)
def test_a_changed_webhook_is_refused(body, headers):
    with pytest.raises(CallbackRefused):
        OPENAI.parse_callback(body, {**HEADERS, **headers}, ACCOUNT)


@time_machine.travel(1700000000 + 301)
def test_a_webhook_of_another_time_is_refused():
    with pytest.raises(CallbackRefused, match="another time"):
        OPENAI.parse_callback(VECTOR, HEADERS, ACCOUNT)


def make_page(*items: dict[str, Any], has_more: bool = False) -> HttpReply:
    video = load("openai_videos", "status")["video"]
    page = load("openai_videos", "list")["page"].filled(
        items=[video.filled(**item) for item in items], has_more=has_more
    )
    return reply(200, json.dumps(page).encode())


def test_the_list_finds_the_job_by_prompt_model_and_time():
    moment = datetime.fromtimestamp(1700000000, UTC)
    query = FindQuery(
        "ref", "sora-2", "mine", moment, moment + timedelta(seconds=9), frozenset({"k"})
    )
    page = make_page(
        {"id": "late", "prompt": "mine", "created_at": 1700000100},
        {"id": "mine", "prompt": "mine", "created_at": 1700000003},
        {"id": "k", "prompt": "mine", "created_at": 1700000003},
        {"id": "other", "prompt": "other", "created_at": 1700000002},
        {"id": "old", "prompt": "mine", "created_at": 1690000000},
        has_more=True,
    )
    found = OPENAI.parse_find(page, query, ACCOUNT)
    assert found.candidates == ("mine",)
    # What lies further back is older than the window.
    assert (found.conclusive, found.next_cursor) == (True, None)
