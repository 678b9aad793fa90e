"""coals.ai's MagiCoal: its documentation, word for word, and its refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from jobs.dialects.base import ListJobs, WireRequest
from jobs.dialects.magicoal import render_status
from jobs.errors import ApiError, IdempotencyMismatch, MethodNotAllowed
from tests.jobs.dialects import wires
from tests.wire import pairs

CREATE = "/api/v1/magicoal/generate/i2v"
GOOD = {
    "image": wires.PHOTO_URL,
    "prompt": "waves",
    "num_frames": 81,
    "guidance_scale": 3.5,
    "seed": 1,
}


def create(**changes: Any) -> Any:
    return wires.created("magicoal", CREATE, {**GOOD, **changes})


@pytest.mark.parametrize("name", pairs.names("magicoal"))
def test_it_reads_and_writes_what_is_documented(name: str) -> None:
    pairs.check("magicoal", name)


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("image", "https://example.com/another.jpg"),
        ("prompt", "rain"),
        ("num_frames", 17),
        ("guidance_scale", 9.5),
        ("seed", 2),
    ],
)
def test_each_field_changes_the_job(field: str, other: object) -> None:
    assert create(**{field: other}).fingerprint() != create().fingerprint()


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("image", None),
        ("image", ""),
        ("image", "http://example.com/not-https.jpg"),
        ("image", "https://10.0.0.1/a.jpg"),
        ("image", "not base64!"),
        ("image", wires.as_base64(wires.picture(format="BMP"))),
        ("prompt", "x" * 2001),
        ("prompt", 5),
        ("num_frames", 80),
        ("num_frames", 15),
        ("num_frames", 163),
        ("num_frames", "many"),
        ("num_frames", True),
        ("guidance_scale", 0.9),
        ("guidance_scale", 10.1),
        ("seed", "lucky"),
        ("seed", -2),
    ],
)
def test_a_wrong_field_is_a_422_that_names_it(field: str, wrong: object) -> None:
    error = wires.refused(lambda: create(**{field: wrong}))
    answer = wires.refusal("magicoal", error)
    assert answer.status == 422
    assert list(answer.body["error"]["details"]) == [field]


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_base64_is_taken_with_and_without_a_data_uri(prefix: str) -> None:
    image = create(image=prefix + wires.as_base64(wires.picture(480, 832))).image
    assert image.size == (480, 832)


def test_text_to_video_is_refused_naming_the_image() -> None:
    error = wires.refused(
        lambda: wires.created(
            "magicoal", "/api/v1/magicoal/generate/t2v", {"prompt": "waves"}
        )
    )
    answer = wires.refusal("magicoal", error)
    assert answer.status == 422
    assert "image" in answer.body["error"]["details"]


def test_the_last_page_holds_what_is_left() -> None:
    command = wires.send(
        "magicoal",
        "GET",
        "/api/v1/magicoal/videos",
        query={"per_page": "100", "page": "3"},
    )
    assert isinstance(command, ListJobs)
    assert (command.limit, command.page) == (100, 3)


@pytest.mark.parametrize("query", [{"per_page": "101"}, {"page": "0"}, {"page": "x"}])
def test_a_page_beyond_the_documented_limits_is_refused(query: dict[str, str]) -> None:
    error = wires.refused(
        lambda: wires.send("magicoal", "GET", "/api/v1/magicoal/videos", query=query)
    )
    assert error.field in query


def test_progress_stays_in_the_documented_ranges_and_never_falls() -> None:
    seen = [
        (status, step, share / 50)
        for status, step in (("running", "generate"), ("running", "finish"))
        for share in range(51)
    ]
    seen.append(("running", "review", 1.0))
    last = 25
    for status, step, share in seen:
        job = pairs.view_of(
            {"id": "a", "status": status, "step": step, "progress": share}
        )
        data = render_status(job, WireRequest(method="GET", path="/")).body["data"]
        low, high = (25, 90) if step == "generate" else (90, 100)
        assert data["status"] == "generating"
        assert low <= data["progress"] <= high
        assert data["progress"] >= last
        assert not data["done"]
        last = data["progress"]


def test_a_canceled_job_is_a_failed_one_that_cost_nothing() -> None:
    job = pairs.view_of({"id": "a", "status": "canceled"})
    data = render_status(job, WireRequest(method="GET", path="/")).body["data"]
    assert (data["status"], data["done"], data["credits_charged"]) == (
        "failed",
        True,
        0.0,
    )
    assert data["error"]["code"] == "CANCELED"


@pytest.mark.parametrize("error", [MethodNotAllowed(["POST"]), IdempotencyMismatch()])
def test_every_refusal_has_the_envelope(error: ApiError) -> None:
    body = wires.refusal("magicoal", error).body
    assert body["success"] is False
    assert {"code", "message"} <= body["error"].keys()


@given(wires.bodies(GOOD), wires.queries)
def test_whatever_is_sent_gets_a_documented_answer(
    body: object, query: dict[str, str]
) -> None:
    for answer in wires.refusals("magicoal", body, query=query):
        assert answer.status in (400, 413, 422)
        assert answer.body["success"] is False
        assert {"code", "message"} <= answer.body["error"].keys()
