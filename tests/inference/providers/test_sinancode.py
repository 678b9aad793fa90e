from __future__ import annotations

import pytest

from inference.errors import Fault, ProviderError, Unsupported
from tests.inference.providers.samples import (
    make_account,
    make_job,
    provider,
    recorded_reply,
    reply,
)

ACCOUNT = make_account("https://api.sinancode.com")
SINAN = provider("sinancode")


def test_a_submit_is_the_documented_post():
    job = make_job(
        "sinancode",
        tier="1080p",
        frames=150,
        fps=30,
        seed=11,
        negative_prompt="blur",
        prompt_expansion=True,
        shot_type="multi",
        audio_mode="generate",
    )
    call = SINAN.build_submit(job, ACCOUNT)
    assert call.url == (
        "https://api.sinancode.com/v1/generate/bailian/wan2-image-to-video"
    )
    sent = dict(call.json)
    assert sent.pop("image_url").startswith("data:image/png;base64,")
    assert sent == {
        "model": "wan2.6-i2v",
        "prompt": "a quiet street",
        "negative_prompt": "blur",
        "duration": 5,
        "resolution": "1080P",
        "seed": 11,
        "prompt_extend": True,
        "shot_type": "multi",
        "audio": True,
        "watermark": False,
    }


def test_silence_is_said_because_sound_is_the_default_there():
    assert SINAN.build_submit(make_job("sinancode"), ACCOUNT).json["audio"] is False


def test_several_shots_without_expansion_would_be_ignored_and_are_refused():
    with pytest.raises(Unsupported) as refused:
        SINAN.build_submit(make_job("sinancode", shot_type="multi"), ACCOUNT)
    assert refused.value.field == "shot_type"


def test_own_sound_is_refused():
    job = make_job("sinancode", audio_mode="url", audio_url="https://a.example/a.mp3")
    with pytest.raises(Unsupported) as refused:
        SINAN.build_submit(job, ACCOUNT)
    assert refused.value.field == "audio"


@pytest.mark.parametrize(
    ("body", "state"),
    [
        ("queued", "queued"),
        ("running", "running"),
        ("succeeded", "succeeded"),
        ("succeeded_strings", "succeeded"),
        ("failed", "failed"),
    ],
)
def test_documented_states_are_read_in_both_forms_of_result(body, state):
    answer = recorded_reply("sinancode", "status", body)
    status = SINAN.parse_status(answer, ["id"], ACCOUNT)["id"]
    assert status.state == state
    if state == "succeeded":
        assert status.video_url == "https://cdn.example/v.mp4"


EXPECTED = {
    "invalid_parameter": Fault.CUSTOMER,
    "unauthorized": Fault.ACCOUNT,
    "insufficient_credits": Fault.ACCOUNT,
    "task_not_found": Fault.HEALTH,
    "rate_limit_exceeded": Fault.BUSY,
    "internal_error": Fault.HEALTH,
}


@pytest.mark.parametrize(("name", "fault"), EXPECTED.items())
def test_each_error_is_somebodys_fault(name, fault):
    with pytest.raises(ProviderError) as refused:
        SINAN.parse_submit(recorded_reply("sinancode", "errors", name), ACCOUNT)
    assert refused.value.fault is fault


def test_an_unknown_code_goes_by_its_status():
    with pytest.raises(ProviderError) as refused:
        SINAN.parse_submit(
            reply(402, b'{"error_code":"E77","error_msg":"pay"}'), ACCOUNT
        )
    assert refused.value.fault is Fault.ACCOUNT


def test_bailians_own_name_for_blocked_content_is_known():
    body = b'{"id":"x","status":"failed","error_code":"DataInspectionFailed"}'
    status = SINAN.parse_status(reply(200, body), ["x"], ACCOUNT)["x"]
    assert status.error is not None
    assert status.error.code == "content_blocked"
    assert status.error.permanent
