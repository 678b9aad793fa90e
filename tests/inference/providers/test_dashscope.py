from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from inference.errors import Fault, ProviderError, Unsupported
from inference.providers.base import FindQuery, Picture
from tests.fakes.bodies import load
from tests.inference.providers.samples import (
    PNG,
    make_account,
    make_job,
    provider,
    recorded_reply,
    reply,
)

ACCOUNT = make_account("https://dashscope-intl.aliyuncs.com")
DASH = provider("dashscope")
DATA = "data:image/png;base64,"


def test_wan_2_6_is_the_documented_post():
    job = make_job(
        "dashscope",
        "wan2.6-i2v",
        tier="720p",
        frames=150,
        fps=30,
        seed=1,
        negative_prompt="blur",
        prompt_expansion=True,
        audio_mode="generate",
        shot_type="multi",
    )
    call = DASH.build_submit(job, ACCOUNT)
    assert call.url.endswith("/api/v1/services/aigc/video-generation/video-synthesis")
    assert call.headers["X-DashScope-Async"] == "enable"
    source = call.json["input"]
    assert source.pop("img_url").startswith(DATA)
    assert call.json == {
        "model": "wan2.6-i2v",
        "input": {"prompt": "a quiet street", "negative_prompt": "blur"},
        "parameters": {
            "resolution": "720P",
            "duration": 5,
            "prompt_extend": True,
            "watermark": False,
            "audio": True,
            "shot_type": "multi",
            "seed": 1,
        },
    }


def test_wan_2_7_lists_its_media():
    job = make_job(
        "dashscope",
        "wan2.7-i2v",
        frames=90,
        fps=30,
        last_image=Picture(PNG),
        audio_mode="url",
        audio_url="https://files.example/a.mp3",
    )
    sent = DASH.build_submit(job, ACCOUNT).json
    assert [medium["type"] for medium in sent["input"]["media"]] == [
        "first_frame",
        "last_frame",
        "driving_audio",
    ]
    assert sent["parameters"]["duration"] == 3
    assert "audio" not in sent["parameters"]


def test_first_and_last_frame_models_have_a_path_of_their_own():
    call = DASH.build_submit(make_job("dashscope", "wanx2.1-kf2v-plus"), ACCOUNT)
    assert call.url.endswith("/api/v1/services/aigc/image2video/video-synthesis")
    assert call.json["input"]["first_frame_url"].startswith(DATA)
    assert call.json["input"]["last_frame_url"].startswith(DATA)


def test_first_and_last_frame_models_need_a_last_frame():
    job = make_job("dashscope", "wanx2.1-kf2v-plus", last_image=None)
    with pytest.raises(Unsupported) as refused:
        DASH.build_submit(job, ACCOUNT)
    assert refused.value.field == "last_image"


def test_a_workspace_is_an_account_setting():
    account = make_account("https://d.example", workspace="ws-1")
    assert DASH.build_status(["t"], account).headers["X-DashScope-WorkSpace"] == "ws-1"


@pytest.mark.parametrize(
    ("body", "state"),
    [
        ("queued", "queued"),
        ("running", "running"),
        ("succeeded", "succeeded"),
        ("succeeded_older", "succeeded"),
        ("failed", "failed"),
        ("canceled", "failed"),
        ("unknown", "unknown"),
    ],
)
def test_documented_states_are_read(body, state):
    answer = recorded_reply("dashscope", "status", body)
    status = DASH.parse_status(answer, ["id"], ACCOUNT)["id"]
    assert status.state == state
    if body == "succeeded":
        assert status.notes == {"prompt": "a prompt"}
    if body == "failed":
        assert status.error is not None
        assert status.error.fault is Fault.CUSTOMER


def test_the_documented_accept_gives_the_task():
    submitted = DASH.parse_submit(
        recorded_reply("dashscope", "submit", "accepted"), ACCOUNT
    )
    assert submitted.provider_id == "a8532587-fb7c-4b62-8d4e-0c46b17950d1"


EXPECTED = {
    "InvalidParameter": Fault.CUSTOMER,
    "DataInspectionFailed": Fault.CUSTOMER,
    "BadRequest.EmptyInput": Fault.CUSTOMER,
    "BadRequest.EmptyParameters": Fault.CUSTOMER,
    "BadRequest.EmptyModel": Fault.CUSTOMER,
    "InvalidURL": Fault.HEALTH,
    "Arrearage": Fault.ACCOUNT,
    "UnsupportedOperation": Fault.CUSTOMER,
    "InvalidApiKey": Fault.ACCOUNT,
    "AccessDenied": Fault.ACCOUNT,
    "AccessDenied.Unpurchased": Fault.MODEL,
    "ModelNotFound": Fault.HEALTH,
    "Model.NotExist": Fault.HEALTH,
    "Throttling": Fault.BUSY,
    "Throttling.RateQuota": Fault.BUSY,
    "Throttling.AllocationQuota": Fault.BUSY,
    "InternalError": Fault.HEALTH,
    "ServiceUnavailable": Fault.HEALTH,
}


@pytest.mark.parametrize(("name", "fault"), EXPECTED.items())
def test_each_error_is_somebodys_fault(name, fault):
    with pytest.raises(ProviderError) as refused:
        DASH.parse_submit(recorded_reply("dashscope", "errors", name), ACCOUNT)
    assert refused.value.fault is fault


def test_blocked_content_says_so_in_our_words():
    with pytest.raises(ProviderError) as refused:
        DASH.parse_submit(
            recorded_reply("dashscope", "errors", "DataInspectionFailed"), ACCOUNT
        )
    assert refused.value.code == "content_blocked"


def test_a_cancel_that_comes_too_late_is_no_error():
    late = recorded_reply("dashscope", "errors", "UnsupportedOperation")
    assert DASH.parse_cancel(late, ACCOUNT) is False
    done = recorded_reply("dashscope", "cancel", "canceled")
    assert DASH.parse_cancel(done, ACCOUNT) is True


def make_query(**changes: Any) -> FindQuery:
    moment = datetime.fromtimestamp(1745568428.109, UTC)
    values: dict[str, Any] = {
        "reference": "ref",
        "model": "wanx2.1-kf2v-plus",
        "prompt": "p",
        "since": moment - timedelta(seconds=5),
        "until": moment + timedelta(seconds=5),
        **changes,
    }
    return FindQuery(**values)


def test_the_list_is_asked_in_beijing_time():
    call = DASH.build_find(make_query(), ACCOUNT)
    assert call.params["start_time"] == "20250425160702"
    assert call.params["model_name"] == "wanx2.1-kf2v-plus"


def test_a_listed_task_of_the_window_is_a_candidate_unless_it_is_known():
    item = load("dashscope", "list")["item"].filled()
    page = load("dashscope", "list")["page"].filled(items=[item])
    answer = reply(200, json.dumps(page).encode())
    found = DASH.parse_find(answer, make_query(), ACCOUNT)
    assert (found.candidates, found.conclusive) == ((item["task_id"],), True)
    known = make_query(known_ids=frozenset({item["task_id"]}))
    assert DASH.parse_find(answer, known, ACCOUNT).candidates == ()
