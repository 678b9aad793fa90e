"""OpenAI Videos: what its clients send and read, and how they are refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.dialects import openai
from jobs.dialects.base import ListJobs, OneJob, Upload, WireRequest
from jobs.errors import (
    ApiError,
    IdempotencyInFlight,
    InsufficientCredits,
    MethodNotAllowed,
    ModelUnavailable,
    NotAcceptableNow,
    NotFound,
    RouteNotFound,
    ServiceUnavailable,
)
from jobs.requests import JobRequest
from tests.jobs.dialects import wires
from tests.wire import pairs

CREATE = "/v1/videos"
GOOD = {
    "prompt": "waves",
    "model": "wan2.6-i2v",
    "seconds": "4",
    "size": "720x1280",
    "input_reference": {"image_url": wires.PHOTO_URL},
}


def create(**changes: Any) -> JobRequest:
    return wires.created("openai", CREATE, {**GOOD, **changes})


def upload(data: bytes = pairs.PHOTO) -> dict[str, Upload]:
    return {"input_reference": Upload("a.jpg", "image/jpeg", data)}


@pytest.mark.parametrize("name", pairs.names("openai"))
def test_it_reads_and_writes_what_clients_do(name: str) -> None:
    pairs.check("openai", name)


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("prompt", "rain"),
        ("model", "wan2.7-i2v"),
        ("seconds", "8"),
        ("size", "1280x720"),
        ("input_reference", {"image_url": "https://example.com/another.jpg"}),
    ],
)
def test_each_field_changes_the_job(field: str, other: object) -> None:
    assert create(**{field: other}).fingerprint() != create().fingerprint()


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("prompt", None),
        ("prompt", ""),
        ("prompt", "x" * 2001),
        ("model", "nobody"),
        ("model", 5),
        ("seconds", "0"),
        ("seconds", 0),
        ("seconds", "1"),
        ("seconds", "16"),
        ("seconds", "4.5"),
        ("seconds", True),
        ("size", "large"),
        ("size", "1281x720"),
        ("size", "0x0"),
        ("size", "3840x2160"),
        ("size", "99998x1080"),
        ("input_reference", None),
        ("input_reference", []),
        ("input_reference", 5),
        ("input_reference", {"file_id": "file_1"}),
        ("input_reference", {"image_url": "http://127.0.0.1/a.png"}),
        ("input_reference", {"image_url": 5}),
        ("input_reference", "not base64!"),
    ],
)
def test_a_wrong_field_is_a_400_with_its_param(field: str, wrong: object) -> None:
    error = wires.refused(lambda: create(**{field: wrong}))
    answer = wires.refusal("openai", error)
    assert answer.status == 400
    said = answer.body["error"]
    assert (said["type"], said["param"]) == ("invalid_request_error", field)


def test_a_request_without_a_picture_is_told_that_it_needs_one() -> None:
    form = {"prompt": "waves", "model": "sora-2", "seconds": "4"}
    error = wires.refused(lambda: wires.created("openai", CREATE, form))
    said = wires.refusal("openai", error).body["error"]
    assert said["param"] == "input_reference"
    assert "image" in said["message"]


def test_a_file_part_is_the_picture() -> None:
    form = {name: GOOD[name] for name in ("prompt", "model", "seconds", "size")}
    made = wires.created("openai", CREATE, form, files=upload())
    assert made.image.size == (512, 512)


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"not a picture", wires.picture(format="BMP")]
)
def test_a_file_that_is_no_documented_picture_is_refused(data: bytes) -> None:
    form = {"prompt": "waves"}
    error = wires.refused(
        lambda: wires.created("openai", CREATE, form, files=upload(data))
    )
    assert error.field == "input_reference"


@pytest.mark.parametrize(
    ("size", "tier"),
    [
        ("720x1280", "720p"),
        ("1280x720", "720p"),
        ("1024x1792", "1080p"),
        ("1792x1024", "1080p"),
    ],
)
def test_a_size_is_exact_and_priced_by_its_short_side(size: str, tier: str) -> None:
    made = create(size=size)
    assert (str(made.size), made.tier) == (size, tier)
    assert made.echo["size"] == size


@pytest.mark.parametrize("seconds", ["4", "8", "12", "5", "10", "15", 7])
def test_any_whole_second_of_the_model_is_made_exactly(seconds: str | int) -> None:
    made = create(seconds=seconds)
    assert made.seconds == int(seconds)
    assert made.echo["seconds"] == str(seconds)


@pytest.mark.parametrize(
    ("model", "seconds", "size"),
    [
        ("sora-2", 4.0, "720x1280"),
        ("motion", 4.0, "720x1280"),
        ("wan2.1-i2v", 81 / 16, "720x1280"),
        ("wan2.2-i2v", 65 / 16, None),
        ("wan-tiny", 17 / 16, None),
        ("akool-i2v", 5.0, "720x1280"),
    ],
)
def test_the_defaults_are_theirs_where_the_model_can(
    model: str, seconds: float, size: str | None
) -> None:
    form = {"prompt": "waves", "model": model}
    made = wires.created("openai", CREATE, form, files=upload())
    assert made.seconds == seconds
    assert str(made.size) == str(size)
    width, height = map(int, made.echo["size"].split("x"))
    assert width < height


def test_the_default_model_is_an_alias() -> None:
    made = wires.created("openai", CREATE, {"prompt": "waves"}, files=upload())
    assert made.echo["model"] == "sora-2"
    assert made.model == "wan2.7-i2v"


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ({}, ListJobs(limit=20)),
        ({"limit": "2", "after": "video_1"}, ListJobs(limit=2, after="video_1")),
        ({"order": "asc"}, ListJobs(limit=20, ascending=True)),
    ],
)
def test_a_list_is_asked_by_limit_after_and_order(
    query: dict[str, str], page: ListJobs
) -> None:
    assert wires.send("openai", "GET", CREATE, query=query) == page


@pytest.mark.parametrize(
    "query", [{"limit": "101"}, {"limit": "all"}, {"order": "random"}]
)
def test_a_wrong_list_parameter_is_named(query: dict[str, str]) -> None:
    error = wires.refused(lambda: wires.send("openai", "GET", CREATE, query=query))
    assert error.field in query


def test_content_comes_in_three_variants() -> None:
    path = f"{CREATE}/video_1/content"
    for variant in ("video", "thumbnail", "spritesheet"):
        command = wires.send("openai", "GET", path, query={"variant": variant})
        assert command == OneJob("video_1", variant=variant)
    assert wires.send("openai", "GET", path) == OneJob("video_1", variant="video")
    error = wires.refused(
        lambda: wires.send("openai", "GET", path, query={"variant": "poster"})
    )
    assert error.field == "variant"


@pytest.mark.parametrize(
    ("eta", "wait"), [(None, 1000), (1, 1000), (20, 2000), (900, 5000)]
)
def test_clients_are_told_when_to_ask_again(eta: float | None, wait: int) -> None:
    job = pairs.view_of({"id": "video_1", "status": "running", "eta_seconds": eta})
    answer = openai.render_video(job, WireRequest(method="GET", path=CREATE))
    assert answer.headers["openai-poll-after-ms"] == str(wait)


def test_a_canceled_video_has_failed() -> None:
    job = pairs.view_of({"id": "video_1", "status": "canceled"})
    body = openai.render_video(job, WireRequest(method="GET", path=CREATE)).body
    assert (body["status"], body["error"]["code"]) == ("failed", "canceled")


@pytest.mark.parametrize(
    ("error", "retry"),
    [
        (
            InsufficientCredits(required_millicredits=1, available_millicredits=0),
            "false",
        ),
        (ModelUnavailable("sora-2"), "false"),
        (NotAcceptableNow("It has ended."), "false"),
        (ServiceUnavailable(), None),
        (IdempotencyInFlight(), None),
    ],
)
def test_clients_repeat_only_what_may_help(error: ApiError, retry: str | None) -> None:
    assert wires.refusal("openai", error).headers.get("x-should-retry") == retry


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFound(), 404),
        (RouteNotFound(), 404),
        (MethodNotAllowed(["GET"]), 405),
        (ServiceUnavailable(), 503),
        (ApiError("Odd."), 400),
    ],
)
def test_every_refusal_has_the_error_object(error: ApiError, status: int) -> None:
    answer = wires.refusal("openai", error)
    assert answer.status == status
    assert answer.body["error"].keys() == {"message", "type", "param", "code"}


def test_ids_look_like_theirs() -> None:
    assert openai.new_id().startswith("video_")
    assert openai.new_id() != openai.new_id()


@given(
    wires.bodies(
        {**GOOD, "input_reference[image_url]": "", "input_reference[file_id]": ""}
    ),
    wires.queries,
    st.none() | st.binary(max_size=64),
)
def test_whatever_is_sent_gets_a_documented_answer(
    body: object, query: dict[str, str], data: bytes | None
) -> None:
    files = {} if data is None else upload(data)
    for answer in wires.refusals("openai", body, query=query, files=files):
        assert answer.status in (400, 413)
        assert answer.body["error"].keys() == {"message", "type", "param", "code"}
