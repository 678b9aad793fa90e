from __future__ import annotations

import json

import pytest

from inference.contracts import Lora
from inference.errors import Fault, ProviderError, Unsupported
from inference.providers.base import CallbackRefused, Picture
from tests.fakes.bodies import recorded
from tests.inference.providers.samples import (
    PNG,
    make_account,
    make_job,
    provider,
    recorded_reply,
)

ACCOUNT = make_account("https://api.novita.ai")
NOVITA = provider("novita")


def test_wan_2_1_carries_every_documented_field():
    job = make_job(
        "novita",
        tier="720p",
        width=720,
        height=1280,
        frames=81,
        negative_prompt="blur",
        seed=42,
        steps=30,
        guidance_scale=5.0,
        flow_shift=5.0,
        loras=(Lora("hf/one", 0.8),),
        quality="fast",
        safety_checker=False,
        callback_url="https://us.example/cb/token-1",
    )
    call = NOVITA.build_submit(job, ACCOUNT)
    assert call.url == "https://api.novita.ai/v3/async/wan-i2v"
    assert call.json == {
        "image_url": "https://files.example/first.png",
        "prompt": "a quiet street",
        "negative_prompt": "blur",
        "width": 720,
        "height": 1280,
        "seed": 42,
        "steps": 30,
        "guidance_scale": 5.0,
        "flow_shift": 5.0,
        "enable_safety_checker": False,
        "fast_mode": True,
        "loras": [{"path": "hf/one", "scale": 0.8}],
        "extra": {"webhook": {"url": "https://us.example/cb/token-1"}},
    }


def test_wan_2_6_nests_input_and_parameters():
    job = make_job(
        "novita",
        "wan2.6-i2v",
        tier="1080p",
        frames=300,
        fps=30,
        seed=1,
        audio_mode="url",
        audio_url="https://files.example/a.mp3",
    )
    assert NOVITA.build_submit(job, ACCOUNT).json == {
        "input": {
            "img_url": "https://files.example/first.png",
            "prompt": "a quiet street",
            "audio_url": "https://files.example/a.mp3",
        },
        "parameters": {
            "resolution": "1080P",
            "duration": 10,
            "prompt_extend": False,
            "seed": 1,
            "watermark": False,
            "shot_type": "single",
        },
    }


def test_wan_2_7_is_flat_and_takes_any_second():
    last = Picture(PNG, url="https://files.example/last.png")
    job = make_job("novita", "wan2.7-i2v", frames=7 * 30, fps=30, last_image=last)
    sent = NOVITA.build_submit(job, ACCOUNT).json
    assert sent["duration"] == 7
    assert sent["last_frame_url"] == "https://files.example/last.png"


def test_a_picture_without_a_public_address_cannot_go():
    job = make_job("novita", image=Picture(PNG))
    with pytest.raises(Unsupported) as refused:
        NOVITA.build_submit(job, ACCOUNT)
    assert refused.value.field == "image"


def test_1080p_of_wan_2_2_ends_at_five_seconds():
    job = make_job("novita", "wan-2.2-i2v", tier="1080p", frames=8 * 16)
    with pytest.raises(Unsupported) as refused:
        NOVITA.build_submit(job, ACCOUNT)
    assert refused.value.field == "seconds"


@pytest.mark.parametrize(
    ("body", "state", "progress"),
    [
        ("queued", "queued", 0.0),
        ("running", "running", 0.54),
        ("succeeded", "succeeded", 1.0),
        ("failed", "failed", None),
    ],
)
def test_documented_states_are_read(body, state, progress):
    answer = recorded_reply("novita", "status", body)
    status = NOVITA.parse_status(answer, ["id"], ACCOUNT)["id"]
    assert (status.state, status.progress) == (state, progress)
    if state == "succeeded":
        assert status.video_url == "https://cdn.example/v.mp4"
        assert status.notes == {"seed": 42}


EXPECTED = {
    **dict.fromkeys(
        (
            "INVALID_REQUEST_BODY",
            "IMAGE_FILE_EXCEEDS_MAX_SIZE",
            "INVALID_IMAGE_FORMAT",
            "IMAGE_EXCEEDS_MAX_RESOLUTION",
            "INVALID_IMAGE_SIZE",
            "INVALID_AUDIO_FILE",
            "ILLEGAL_PROMPT",
            "ILLEGAL_IMAGE_CONTENT",
        ),
        Fault.CUSTOMER,
    ),
    **dict.fromkeys(
        (
            "BILLING_AUTH_FAILED",
            "BILLING_BALANCE_NOT_ENOUGH",
            "MISSING_API_KEY",
            "INVALID_API_KEY",
            "NEED_REAL_NAME_VERIFY",
        ),
        Fault.ACCOUNT,
    ),
    **dict.fromkeys(
        (
            "API_NOT_FOUND",
            "TASK_NOT_FOUND",
            "BILLING_FAILED",
            "CREATE_TASK_FAILED",
            "GET_RESULT_FAILED",
            "TASK_FAILED",
        ),
        Fault.HEALTH,
    ),
    "FEATURE_NOT_ALLOWED": Fault.MODEL,
    "API_NOT_ALLOWED": Fault.MODEL,
    "RATE_LIMIT_EXCEEDED": Fault.BUSY,
}


@pytest.mark.parametrize(("name", "fault"), EXPECTED.items())
def test_each_error_is_somebodys_fault(name, fault):
    with pytest.raises(ProviderError) as refused:
        NOVITA.parse_submit(recorded_reply("novita", "errors", name), ACCOUNT)
    assert refused.value.fault is fault


def test_an_empty_balance_is_our_affair_although_it_says_400():
    with pytest.raises(ProviderError) as refused:
        NOVITA.parse_submit(
            recorded_reply("novita", "errors", "BILLING_BALANCE_NOT_ENOUGH"), ACCOUNT
        )
    assert not refused.value.permanent
    assert refused.value.fault is Fault.ACCOUNT


def test_the_documented_webhook_points_at_its_task():
    _, body = recorded("novita", "callback", "event")
    hint = NOVITA.parse_callback(body, {}, ACCOUNT)
    assert hint.provider_id == "9490dde7-5e4d-4b0a-a2f3-1f0c7f6fd111"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"event_type":"OTHER","payload":{}}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_a_webhook_of_another_shape_is_refused(body):
    with pytest.raises(CallbackRefused):
        NOVITA.parse_callback(body, {}, ACCOUNT)


def test_the_task_id_of_a_webhook_must_be_text():
    event = {"event_type": "ASYNC_TASK_RESULT", "payload": {"task": {"task_id": {}}}}
    with pytest.raises(CallbackRefused):
        NOVITA.parse_callback(json.dumps(event).encode(), {}, ACCOUNT)
