"""AI/ML API: its specs, word for word, and its refusals."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
from hypothesis import given

from jobs.dialects import aimlapi
from jobs.dialects.base import WireRequest
from jobs.errors import ApiError, MethodNotAllowed, QuotaExhausted, SpendCapReached
from tests.jobs.dialects import wires
from tests.wire import pairs

CREATE = "/v2/video/generations"
WAN27, WAN26 = "alibaba/wan-2-7-i2v", "alibaba/wan-2-6-i2v"
WAN25, WAN22 = "alibaba/wan2.5-i2v-preview", "alibaba/wan2.2-i2v-plus"
GOOD = {
    "model": WAN26,
    "prompt": "waves",
    "image_url": wires.PHOTO_URL,
    "resolution": "1080p",
    "duration": 5,
    "enable_prompt_expansion": True,
    "enhance_prompt": True,
    "negative_prompt": "blur",
    "seed": 1,
    "watermark": False,
    "shot_type": "single",
    "generate_audio": True,
}


def create(**changes: Any) -> Any:
    return wires.created("aimlapi", CREATE, {**GOOD, **changes})


@pytest.mark.parametrize("name", pairs.names("aimlapi"))
def test_it_reads_and_writes_what_is_documented(name: str) -> None:
    pairs.check("aimlapi", name)


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("model", WAN27),
        ("prompt", "rain"),
        ("image_url", "https://example.com/another.jpg"),
        ("audio_url", "https://example.com/a.mp3"),
        ("resolution", "720P"),
        ("duration", "10"),
        ("enable_prompt_expansion", False),
        ("enhance_prompt", False),
        ("negative_prompt", "fog"),
        ("seed", 2),
        ("watermark", True),
        ("shot_type", "multi"),
        ("generate_audio", False),
        ("aspect_ratio", "9:16"),
    ],
)
def test_each_field_changes_the_job(field: str, other: object) -> None:
    assert create(**{field: other}).fingerprint() != create().fingerprint()


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("model", None),
        ("model", "nobody/nothing"),
        ("prompt", None),
        ("prompt", "x" * 2001),
        ("image_url", None),
        ("image_url", "http://localhost/a.jpg"),
        ("audio_url", "file:///etc/passwd"),
        ("resolution", "480p"),
        ("resolution", 720),
        ("duration", 7),
        ("duration", "long"),
        ("duration", 5.5),
        ("enhance_prompt", "perhaps"),
        ("negative_prompt", "x" * 501),
        ("seed", 1.5),
        ("shot_type", "double"),
        ("aspect_ratio", "4:3"),
    ],
)
def test_a_wrong_field_is_a_400_with_a_hint_that_names_it(
    field: str, wrong: object
) -> None:
    error = wires.refused(lambda: create(**{field: wrong}))
    answer = wires.refusal("aimlapi", error, CREATE)
    assert answer.status == answer.body["statusCode"] == 400
    assert answer.body["message"] == "Body validation error"
    assert answer.body["meta"][0]["path"] == [field]


def test_a_hint_reads_as_theirs() -> None:
    error = wires.refused(lambda: create(resolution="480p"))
    assert error.message == (
        "Invalid enum value. Expected '720p' | '1080p', received '480p'"
    )


@pytest.mark.parametrize(
    ("model", "offered"), [(WAN27, {5, 10, 15}), (WAN25, {5, 10}), (WAN22, {5})]
)
def test_a_model_offers_the_lengths_of_its_spec(model: str, offered: set[int]) -> None:
    body = {name: GOOD[name] for name in ("prompt", "image_url")}
    for seconds in (5, 10, 15):
        wanted = {**body, "model": model, "duration": seconds}
        if seconds in offered:
            assert wires.created("aimlapi", CREATE, wanted).seconds == seconds
        else:
            error = wires.refused(partial(wires.created, "aimlapi", CREATE, wanted))
            assert error.field == "duration"


def test_a_text_to_video_request_hears_about_its_picture() -> None:
    body = {"model": "alibaba/wan-2-6-t2v", "prompt": "waves"}
    error = wires.refused(lambda: wires.created("aimlapi", CREATE, body))
    assert error.field == "image_url"


def test_an_option_the_model_lacks_is_refused_by_its_name() -> None:
    error = wires.refused(lambda: create(model=WAN27, shot_type="multi"))
    assert error.field == "shot_type"


@pytest.mark.parametrize(
    "path",
    [CREATE, *aimlapi.ALIASES, "/v2/generate/video/alibaba/generation"],
)
def test_every_alias_makes_the_same_job(path: str) -> None:
    assert wires.created("aimlapi", path, GOOD) == create()


def test_a_refunded_job_used_no_credits() -> None:
    job = pairs.view_of({"id": "a", "status": "canceled", "refunded_millicredits": 5})
    body = aimlapi.render_status(job, WireRequest(method="GET", path=CREATE)).body
    assert body["status"] == "error"
    assert body["meta"]["usage"]["credits_used"] == 0


def test_ids_look_like_nanoids() -> None:
    ids = {aimlapi.new_id() for _ in range(200)}
    assert len(ids) == 200
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{21}", one) for one in ids)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MethodNotAllowed(["GET", "POST"]), 405),
        (SpendCapReached("Over the cap."), 403),
        (QuotaExhausted("Used up."), 403),
    ],
)
def test_every_refusal_has_the_envelope(error: ApiError, status: int) -> None:
    answer = wires.refusal("aimlapi", error, CREATE)
    assert answer.status == answer.body["statusCode"] == status
    assert answer.body["path"] == CREATE


@given(wires.bodies(GOOD), wires.queries)
def test_whatever_is_sent_gets_a_documented_answer(
    body: object, query: dict[str, str]
) -> None:
    keys = {"requestId", "statusCode", "timestamp", "path", "message"}
    for answer in wires.refusals("aimlapi", body, query=query):
        assert answer.status in (400, 413)
        assert keys <= answer.body.keys() <= keys | {"meta"}
