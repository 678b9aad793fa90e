"""Novita's dialect: what its pages document and its clients send, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from novita_client.proto import V3TaskResponse, V3TaskResponseStatus

from inference.catalogue import MODELS
from jobs.dialects.base import Create, Event, Failure, OneJob, WireRequest
from jobs.dialects.novita import DIALECT, error, task_result
from jobs.errors import ApiError, InvalidRequest, ServiceUnavailable, Unauthenticated
from jobs.requests import JobRequest, Picture, WebhookTarget
from tests.jobs.dialects import wires
from tests.wire import pairs

WAN_21 = "/v3/async/wan-i2v"
OTHER = "https://example.com/another.jpg"
SOUND = "https://example.com/a.mp3"
HOOK = "https://hooks.example.com/in"
GOOD: dict[str, dict[str, Any]] = {
    WAN_21: {"image_url": wires.PHOTO_URL, "prompt": "waves", "seed": 1},
    "/v3/async/wan-2.2-i2v": {
        "input": {"img_url": wires.PHOTO_URL, "prompt": "waves"},
        "parameters": {"seed": 1},
    },
    "/v3/async/wan-2.5-i2v-preview": {
        "input": {"img_url": wires.PHOTO_URL, "prompt": "waves"},
        "parameters": {"seed": 1},
    },
    "/v3/async/wan2.6-i2v": {
        "input": {"img_url": wires.PHOTO_URL, "prompt": "waves"},
        "parameters": {"seed": 1},
    },
    "/v3/async/wan2.7-i2v": {
        "image_url": wires.PHOTO_URL,
        "prompt": "waves",
        "seed": 1,
    },
}


def create(path: str = WAN_21, **changes: Any) -> JobRequest:
    body = GOOD[path]
    for name, value in changes.items():
        body = wires.changed(body, name.replace("__", "."), value)
    return wires.created("novita", path, body)


@pytest.mark.parametrize("name", pairs.names("novita"))
def test_it_reads_and_writes_what_is_documented(name: str) -> None:
    pairs.check("novita", name)


NESTED = [
    ("input.img_url", OTHER),
    ("input.prompt", "rain"),
    ("input.negative_prompt", "fog"),
    ("parameters.prompt_extend", False),
    ("parameters.seed", 2),
]
HONOURED = {
    WAN_21: [
        ("image_url", OTHER),
        ("prompt", "rain"),
        ("negative_prompt", "fog"),
        ("seed", 2),
        ("seed", 9_999_999_999),
        ("steps", 12),
        ("guidance_scale", 7.5),
        ("flow_shift", 3.5),
        ("enable_safety_checker", False),
        ("fast_mode", True),
        ("loras", [{"path": "a/b", "scale": 0.5}]),
        ("extra.webhook.url", HOOK),
    ],
    "/v3/async/wan-2.2-i2v": [*NESTED, ("parameters.resolution", "480P")],
    "/v3/async/wan-2.5-i2v-preview": [
        *NESTED,
        ("input.audio_url", SOUND),
        ("parameters.audio", False),
        ("parameters.watermark", True),
        ("parameters.resolution", "720P"),
        ("parameters.duration", 10),
        ("extra.webhook.url", HOOK),
    ],
    "/v3/async/wan2.6-i2v": [
        *NESTED,
        ("input.audio_url", SOUND),
        ("input.template", "dolly"),
        ("parameters.audio", False),
        ("parameters.watermark", True),
        ("parameters.resolution", "720p"),
        ("parameters.duration", "15"),
        ("parameters.shot_type", "multi"),
    ],
    "/v3/async/wan2.7-i2v": [
        ("image_url", OTHER),
        ("last_frame_url", OTHER),
        ("prompt", "rain"),
        ("negative_prompt", "fog"),
        ("driving_audio_url", SOUND),
        ("resolution", "720P"),
        ("duration", 15),
        ("prompt_extend", False),
        ("watermark", True),
        ("seed", 2),
    ],
}


@pytest.mark.parametrize(
    ("path", "field", "other"),
    [(path, *change) for path, changes in HONOURED.items() for change in changes],
)
def test_each_field_changes_the_job(path: str, field: str, other: object) -> None:
    changed = wires.created("novita", path, wires.changed(GOOD[path], field, other))
    assert changed.fingerprint() != create(path).fingerprint()


def test_the_size_pair_chooses_sharpness_only() -> None:
    assert create(width=720, height=1280).tier == "720p"
    assert create(width=480, height=832) == create(width=832, height=480) == create()


def test_the_flow_shift_is_novitas_default_at_both_sizes() -> None:
    assert create().flow_shift == create(width=1280, height=720).flow_shift == 5.0


def test_half_a_size_is_the_default_size() -> None:
    assert create(width=1280) == create()


@pytest.mark.parametrize(
    ("path", "field", "wrong"),
    [
        (WAN_21, "image_url", None),
        (WAN_21, "image_url", "http://127.0.0.1/a.png"),
        (WAN_21, "image_url", "not base64!"),
        (WAN_21, "prompt", None),
        (WAN_21, "prompt", ""),
        (WAN_21, "prompt", "x" * 2001),
        (WAN_21, "negative_prompt", "x" * 2001),
        (WAN_21, "model_name", "wan2.2-i2v"),
        (WAN_21, "width", 100),
        (WAN_21, "seed", -2),
        (WAN_21, "seed", 10_000_000_000),
        (WAN_21, "steps", 0),
        (WAN_21, "steps", 41),
        (WAN_21, "guidance_scale", 10.5),
        (WAN_21, "flow_shift", 0.5),
        (WAN_21, "fast_mode", "maybe"),
        (WAN_21, "loras", [{}] * 4),
        (WAN_21, "extra.webhook.url", "http://169.254.169.254/"),
        (WAN_21, "extra.webhook.url", "http://example.com/hook"),
        ("/v3/async/wan-2.2-i2v", "parameters.resolution", "720P"),
        ("/v3/async/wan-2.2-i2v", "parameters.duration", 10),
        ("/v3/async/wan-2.2-i2v", "input.prompt", "x" * 801),
        ("/v3/async/wan-2.5-i2v-preview", "parameters.duration", 15),
        ("/v3/async/wan2.6-i2v", "parameters.shot_type", "triple"),
        ("/v3/async/wan2.7-i2v", "duration", 16),
        ("/v3/async/wan2.7-i2v", "resolution", "480P"),
        ("/v3/async/wan2.7-i2v", "first_clip_url", "https://example.com/a.mp4"),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(
    path: str, field: str, wrong: object
) -> None:
    body = wires.changed(GOOD[path], field, wrong)
    refused = wires.refused(lambda: wires.created("novita", path, body))
    answer = wires.refusal("novita", refused, path)
    assert answer.status == 400
    assert answer.body["reason"] == "INVALID_REQUEST_BODY"
    assert field in answer.body["message"]


def test_the_two_sides_must_make_a_known_size() -> None:
    refused = wires.refused(lambda: create(width=832, height=832))
    assert refused.field == "width"


@pytest.mark.parametrize(
    ("lora", "field"),
    [
        ({}, "loras[0].path"),
        ({"path": ""}, "loras[0].path"),
        ({"path": "a/b", "scale": 4.1}, "loras[0].scale"),
        ("a/b", "loras[0]"),
    ],
)
def test_a_wrong_lora_is_named_by_its_place(lora: object, field: str) -> None:
    assert wires.refused(lambda: create(loras=[lora])).field == field


def test_bytes_that_are_no_picture_have_a_reason_of_their_own() -> None:
    noise = wires.as_base64(b"not a picture" * 20)
    refused = wires.refused(lambda: create(image_url=noise))
    answer = wires.refusal("novita", refused)
    assert (answer.status, answer.body["reason"]) == (400, "INVALID_IMAGE_FORMAT")


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (8193, 100, "IMAGE_EXCEEDS_MAX_RESOLUTION"),
        (5001, 5000, "IMAGE_EXCEEDS_MAX_RESOLUTION"),
        (63, 800, "INVALID_IMAGE_SIZE"),
    ],
)
def test_a_picture_of_a_wrong_size_is_told_so(
    width: int, height: int, reason: str
) -> None:
    picture = wires.as_base64(wires.picture(width, height))
    refused = wires.refused(lambda: create(image_url=picture))
    answer = wires.refusal("novita", refused)
    assert (answer.status, answer.body["reason"]) == (400, reason)


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_base64_pictures_are_taken(prefix: str) -> None:
    image = create(image_url=prefix + wires.as_base64(wires.picture(832, 480))).image
    assert (image.size, image.format) == ((832, 480), "PNG")


def test_wan_2_6_takes_the_flat_body_of_2_7_as_well() -> None:
    path = "/v3/async/wan2.6-i2v"
    flat = {"image_url": wires.PHOTO_URL, "prompt": "waves", "duration": 10}
    request = wires.created("novita", path, flat)
    assert (request.model, request.seconds) == ("wan2.6-i2v", 10)


# -------------------------------------------------------------------- webhooks


@pytest.mark.parametrize(
    ("test_mode", "status"),
    [
        ({"enabled": False, "return_task_status": "TASK_STATUS_FAILED"}, None),
        ({"enabled": True}, "succeeded"),
        ({"enabled": True, "return_task_status": "TASK_STATUS_FAILED"}, "failed"),
    ],
)
def test_test_mode_asks_for_a_mock_event(test_mode: object, status: str | None) -> None:
    hook = {"url": HOOK, "test_mode": test_mode}
    request = create(extra={"webhook": hook})
    assert request.webhook == WebhookTarget(HOOK, format="novita", test_status=status)


@pytest.mark.parametrize(
    ("hook", "field"),
    [
        ({}, "extra.webhook.url"),
        ({"url": ""}, "extra.webhook.url"),
        ({"url": HOOK, "test_mode": {}}, "extra.webhook.test_mode.enabled"),
        (
            {"url": HOOK, "test_mode": {"enabled": True, "return_task_status": "OK"}},
            "extra.webhook.test_mode.return_task_status",
        ),
    ],
)
def test_a_half_given_webhook_is_refused(hook: object, field: str) -> None:
    refused = wires.refused(lambda: create(extra={"webhook": hook}))
    assert refused.field == field


def finished(**changes: Any) -> Any:
    request = create(extra={"webhook": {"url": HOOK}})
    view = pairs.view_of(
        {
            "id": "task-1",
            "status": "succeeded",
            "video_url": "https://files.example/v.mp4",
            "started_at": "2026-03-03T14:22:12+00:00",
            "finished_at": "2026-03-03T14:23:11+00:00",
        },
        request,
    )
    return dataclasses.replace(view, **changes)


def test_the_webhook_is_the_task_result_with_its_address() -> None:
    view = finished()
    assert DIALECT.webhook is not None
    event = Event("evt_1", "job.succeeded", datetime.now(UTC), view)
    sent = json.loads(DIALECT.webhook(event, {}).body)
    assert sent["event_type"] == "ASYNC_TASK_RESULT"
    assert sent["payload"]["extra"].pop("webhook") == {"url": HOOK}
    assert sent["payload"] == task_result(view)


# --------------------------------------------------------------- their client


@pytest.mark.parametrize("status", ["queued", "running", "failed", "canceled"])
def test_novitas_own_parser_reads_every_state(status: Any) -> None:
    view = finished(status=status, video_url=None, finished_at=None, started_at=None)
    parsed = V3TaskResponse.from_dict(task_result(view))
    assert parsed.get_video_urls() == []
    assert parsed.finished() == (status in ("failed", "canceled"))


def test_novitas_own_parser_reads_the_video() -> None:
    parsed = V3TaskResponse.from_dict(task_result(finished(resolved={"seed": 7})))
    assert parsed.task.status is V3TaskResponseStatus.TASK_STATUS_SUCCEED
    assert parsed.get_video_urls() == ["https://files.example/v.mp4"]
    assert parsed.extra.seed == 7


def test_progress_never_reads_100_before_the_end() -> None:
    view = finished(status="running", progress=1.0, video_url=None)
    assert task_result(view)["task"]["progress_percent"] == 99


def test_a_failed_task_says_why() -> None:
    view = finished(status="failed", error=Failure("x", "No cats.", retryable=False))
    assert task_result(view)["task"]["reason"] == "No cats."


# ---------------------------------------------------------------------- errors


def test_every_error_repeats_its_status_as_code() -> None:
    for kind in (Unauthenticated(), ServiceUnavailable(), InvalidRequest("a", "b")):
        answer = wires.refusal("novita", kind)
        assert answer.body["code"] == answer.status
        assert isinstance(answer.body["metadata"], dict)


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Bearer abc", "abc"),
        ("bearer abc", "abc"),
        ("abc", "abc"),
        ("Bearer ", None),
        ("", None),
    ],
)
def test_a_key_comes_with_or_without_its_scheme(header: str, key: str | None) -> None:
    assert DIALECT.key_of({"authorization": header}) == key


# ----------------------------------------------------------------- bad input

SPOILT = {
    path: wires.bodies(
        {
            **{field.partition(".")[0]: None for field, _ in HONOURED[path]},
            **body,
            "model_name": "wan2.1-i2v",
            "width": 832,
            "height": 480,
            "extra": {"webhook": {"url": HOOK, "test_mode": {"enabled": True}}},
        }
    )
    for path, body in GOOD.items()
}


@pytest.mark.parametrize("path", list(GOOD))
@given(data=st.data())
def test_anything_is_a_job_or_a_documented_refusal(
    path: str, data: st.DataObject
) -> None:
    body = data.draw(SPOILT[path])
    try:
        assert isinstance(wires.send("novita", "POST", path, body), Create)
    except ApiError as refused:
        answer = error(refused, WireRequest("POST", path))
        assert answer.body.keys() == {"code", "reason", "message", "metadata"}
        assert answer.status == answer.body["code"] == 400
        json.dumps(answer.body)


@given(query=st.dictionaries(st.sampled_from(["task_id", "x"]), st.text()))
def test_any_query_names_a_task_or_is_refused(query: dict[str, str]) -> None:
    path = "/v3/async/task-result"
    name = query.get("task_id", "")
    if 1 <= len(name) <= 200:
        assert wires.send("novita", "GET", path, query=query) == OneJob(name)
    else:
        refused = wires.refused(lambda: wires.send("novita", "GET", path, query=query))
        assert refused.field == "task_id"


def test_the_table_of_models_has_what_the_paths_ask_for() -> None:
    named = {create(path).model for path in GOOD}
    assert named <= MODELS.keys()
    assert create().image == Picture(url=wires.PHOTO_URL)
