from __future__ import annotations

from decimal import Decimal

import pytest

from inference.errors import AnswerLost, Fault, ProviderError, Unsupported
from tests.inference.providers.samples import (
    make_account,
    make_job,
    provider,
    recorded_reply,
)

ACCOUNT = make_account("https://api.aimlapi.com")
AIML = provider("aimlapi")


def test_wan_2_7_carries_every_documented_field():
    job = make_job(
        "aimlapi",
        frames=10 * 30,
        fps=30,
        tier="1080p",
        negative_prompt="blur",
        seed=5,
        prompt_expansion=True,
        audio_mode="url",
        audio_url="https://files.example/a.mp3",
    )
    call = AIML.build_submit(job, ACCOUNT)
    assert call.url == "https://api.aimlapi.com/v2/video/generations"
    sent = dict(call.json)
    assert sent.pop("image_url").startswith("data:image/png;base64,")
    assert sent == {
        "model": "alibaba/wan-2-7-i2v",
        "prompt": "a quiet street",
        "resolution": "1080p",
        "duration": 10,
        "enhance_prompt": True,
        "enable_prompt_expansion": True,
        "negative_prompt": "blur",
        "seed": 5,
        "audio_url": "https://files.example/a.mp3",
        "watermark": False,
    }


def test_both_switches_turn_expansion_off():
    sent = AIML.build_submit(make_job("aimlapi"), ACCOUNT).json
    assert sent["enhance_prompt"] is False
    assert sent["enable_prompt_expansion"] is False


def test_wan_2_6_can_be_silent_and_cut_into_shots():
    job = make_job("aimlapi", "alibaba/wan-2-6-i2v", shot_type="multi")
    sent = AIML.build_submit(job, ACCOUNT).json
    assert (sent["generate_audio"], sent["shot_type"]) == (False, "multi")


def test_wan_2_2_says_its_resolution_in_capitals_and_no_duration():
    job = make_job("aimlapi", "alibaba/wan2.2-i2v-plus", tier="1080p")
    sent = AIML.build_submit(job, ACCOUNT).json
    assert sent["resolution"] == "1080P"
    assert "duration" not in sent


@pytest.mark.parametrize(
    ("size", "ratio", "canvas"),
    [
        ((1280, 720), "16:9", (1280, 720)),
        ((720, 1280), "9:16", (720, 1280)),
        ((800, 720), "1:1", (720, 720)),
    ],
)
def test_wan_2_5_has_three_shapes_and_pictures_are_padded_to_them(size, ratio, canvas):
    job = make_job(
        "aimlapi",
        "alibaba/wan2.5-i2v-preview",
        tier="720p",
        width=size[0],
        height=size[1],
    )
    assert AIML.build_submit(job, ACCOUNT).json["aspect_ratio"] == ratio
    assert AIML.canvas(job, ACCOUNT) == canvas


@pytest.mark.parametrize(("asked", "sold"), [(2, 5), (5, 5), (6, 10), (11, 15)])
def test_the_next_longer_length_is_bought(asked, sold):
    job = make_job("aimlapi", frames=asked * 30, fps=30)
    assert AIML.build_submit(job, ACCOUNT).json["duration"] == sold


def test_sixteen_seconds_are_refused():
    with pytest.raises(Unsupported, match="15 seconds"):
        AIML.build_submit(make_job("aimlapi", frames=16 * 30, fps=30), ACCOUNT)


def test_the_documented_accept_states_the_cost():
    submitted = AIML.parse_submit(
        recorded_reply("aimlapi", "submit", "accepted"), ACCOUNT
    )
    assert submitted.provider_id == "V2cdWP9kao8xiofM-OvwG"
    assert submitted.cost_usd == Decimal("1.95")


@pytest.mark.parametrize(
    ("body", "state"),
    [
        ("queued", "queued"),
        ("running", "running"),
        ("succeeded", "succeeded"),
        ("succeeded_with_usage", "succeeded"),
        ("failed", "failed"),
        ("failed_passed_through", "failed"),
    ],
)
def test_documented_states_are_read(body, state):
    answer = recorded_reply("aimlapi", "status", body)
    status = AIML.parse_status(answer, ["id"], ACCOUNT)["id"]
    assert status.state == state
    if body == "succeeded_with_usage":
        assert status.cost_usd == Decimal("0.65")


def test_a_status_call_asks_by_query():
    call = AIML.build_status(["V2c"], ACCOUNT)
    assert (call.method, dict(call.params)) == ("GET", {"generation_id": "V2c"})


EXPECTED = {
    "VALIDATION": Fault.CUSTOMER,
    "UNAUTHORIZED": Fault.ACCOUNT,
    "OUT_OF_CREDITS": Fault.ACCOUNT,
    "NOT_FOUND": Fault.HEALTH,
    "TOO_MANY_REQUESTS": Fault.BUSY,
    "INTERNAL": Fault.HEALTH,
    "UNAVAILABLE": Fault.HEALTH,
}


@pytest.mark.parametrize(("name", "fault"), EXPECTED.items())
def test_each_error_is_somebodys_fault(name, fault):
    with pytest.raises(ProviderError) as refused:
        AIML.parse_submit(recorded_reply("aimlapi", "errors", name), ACCOUNT)
    assert refused.value.fault is fault
    assert not isinstance(refused.value, AnswerLost)


@pytest.mark.parametrize("name", ["BAD_GATEWAY", "GENERATION_TIMEOUT"])
def test_a_gateway_that_gave_up_may_have_passed_the_job_on(name):
    with pytest.raises(AnswerLost):
        AIML.parse_submit(recorded_reply("aimlapi", "errors", name), ACCOUNT)
