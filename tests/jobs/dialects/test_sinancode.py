"""Sinancode: its pages, word for word, its picture rules and its refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from jobs.dialects.base import WireRequest
from jobs.dialects.sinancode import PICTURES, render_task
from jobs.errors import ApiError, InvalidRequest, MethodNotAllowed, PayloadTooLarge
from jobs.requests import JobRequest
from tests.jobs.dialects import wires
from tests.wire import pairs

CREATE = "/v1/generate/bailian/wan2-image-to-video"
GOOD = {
    "image_url": wires.PHOTO_URL,
    "audio": True,
    "duration": 5,
    "model": "wan2.6-i2v",
    "negative_prompt": "blur",
    "prompt": "waves",
    "prompt_extend": True,
    "resolution": "1080P",
    "seed": 1,
    "shot_type": "single",
    "watermark": False,
}


def create(**changes: Any) -> JobRequest:
    return wires.created("sinancode", CREATE, {**GOOD, **changes})


@pytest.mark.parametrize("name", pairs.names("sinancode"))
def test_it_reads_and_writes_what_is_documented(name: str) -> None:
    pairs.check("sinancode", name)


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("image_url", "https://example.com/another.jpg"),
        ("audio", False),
        ("audio_url", "https://example.com/a.wav"),
        ("duration", 10),
        ("negative_prompt", "fog"),
        ("prompt", "rain"),
        ("prompt_extend", False),
        ("resolution", "720P"),
        ("seed", 2),
        ("shot_type", "multi"),
        ("template", "flying"),
        ("watermark", True),
    ],
)
def test_each_field_changes_the_job(field: str, other: object) -> None:
    assert create(**{field: other}).fingerprint() != create().fingerprint()


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("image_url", None),
        ("image_url", "http://[::1]/a.jpg"),
        ("audio", "loud"),
        ("audio_url", "gopher://example.com"),
        ("duration", 7),
        ("model", "wan9-i2v"),
        ("negative_prompt", "x" * 501),
        ("prompt", "x" * 2001),
        ("prompt_extend", 2),
        ("resolution", "480P"),
        ("seed", -1),
        ("seed", 2_147_483_648),
        ("shot_type", "double"),
        ("watermark", "maybe"),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(field: str, wrong: object) -> None:
    error = wires.refused(lambda: create(**{field: wrong}))
    answer = wires.refusal("sinancode", error)
    assert answer.status == 400
    assert answer.body.keys() == {"error_code", "error_msg"}
    assert answer.body["error_msg"].startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("picture", "code"),
    [
        (wires.picture(359, 800), "image_size_invalid"),
        (wires.picture(800, 2001), "image_size_invalid"),
        (wires.picture(20_000, 400), "image_size_invalid"),
        (wires.picture(63, 63), "image_size_invalid"),
        (wires.picture(800, 800, format="GIF"), "image_format_unsupported"),
        (wires.picture(800, 800)[:20] + bytes(100), "invalid_image"),
        (wires.picture(800, 800, mode="RGBA"), "image_alpha_unsupported"),
    ],
    ids=lambda value: value if isinstance(value, str) else "picture",
)
def test_base64_that_breaks_a_picture_rule_is_refused_at_once(
    picture: bytes, code: str
) -> None:
    error = wires.refused(lambda: create(image_url=wires.as_base64(picture)))
    answer = wires.refusal("sinancode", error)
    assert answer.status == 400
    assert answer.body["error_code"] == code


def test_base64_over_10_mb_is_refused_at_once() -> None:
    with pytest.raises(PayloadTooLarge) as caught:
        create(image_url="A" * (15 * 1024 * 1024))
    answer = wires.refusal("sinancode", caught.value)
    assert (answer.status, answer.body["error_code"]) == (400, "image_too_large")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "WEBP"])
def test_every_documented_format_is_taken(format: str) -> None:
    picture = wires.picture(360, 2000, format=format)
    image = create(image_url=wires.as_base64(picture)).image
    assert (image.size, image.format) == ((360, 2000), format)


def test_a_url_carries_the_rules_to_where_it_is_fetched() -> None:
    stored = create().stored()
    rules = JobRequest.load(stored).picture_rules
    assert rules == PICTURES
    broken = rules.broken_by(
        width=100, height=800, size_bytes=1, format="PNG", has_alpha=False
    )
    assert broken is not None
    assert broken[0] == "image_size_invalid"


def test_shot_type_acts_only_with_prompt_extend() -> None:
    assert create(prompt_extend=False, shot_type="multi") == create(prompt_extend=False)


def test_audio_is_looked_at_only_without_an_audio_url() -> None:
    url = "https://example.com/a.mp3"
    assert create(audio=False, audio_url=url) == create(audio=True, audio_url=url)
    assert create(audio_url="") == create()


@pytest.mark.parametrize("model", ["", "  ", None])
def test_no_model_is_the_newest(model: str | None) -> None:
    assert create(model=model).model == "wan2.6-i2v"


def test_an_unknown_effect_is_named_as_the_template() -> None:
    answer = wires.refusal("sinancode", InvalidRequest("effect", "There is none."))
    assert answer.body["error_msg"] == "template: There is none."


def test_a_failed_task_carries_the_rule_it_broke() -> None:
    job = pairs.view_of(
        {
            "id": "a",
            "status": "failed",
            "error": {"code": "image_size_invalid", "message": "Too small."},
        }
    )
    body = render_task(job, WireRequest(method="GET", path="/")).body
    assert (body["status"], body["error_code"]) == ("failed", "image_size_invalid")


@pytest.mark.parametrize("error", [MethodNotAllowed(["POST"]), ApiError("Odd.")])
def test_every_refusal_has_code_and_message(error: ApiError) -> None:
    assert wires.refusal("sinancode", error).body.keys() == {"error_code", "error_msg"}


@given(wires.bodies(GOOD), wires.queries)
def test_whatever_is_sent_gets_a_documented_answer(
    body: object, query: dict[str, str]
) -> None:
    for answer in wires.refusals("sinancode", body, query=query):
        assert answer.status == 400
        assert answer.body.keys() == {"error_code", "error_msg"}
