"""DashScope's dialect: Model Studio's pages and what its own SDK sends and reads."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from dashscope.v2.resources._jobs import Job, JobList
from hypothesis import given
from hypothesis import strategies as st

from jobs.dialects.base import (
    Create,
    JobsPage,
    ListJobs,
    OneJob,
    Operation,
    WireRequest,
)
from jobs.dialects.dashscope import DIALECT, failure_code, show_list, show_task
from jobs.errors import ApiError, Forbidden, InvalidRequest, NotFound, RouteNotFound
from jobs.requests import JobRequest, Sound
from tests.jobs.dialects import wires
from tests.wire import pairs

VIDEO = "/api/v1/services/aigc/video-generation/video-synthesis"
KF2V = "/api/v1/services/aigc/image2video/video-synthesis"
ASYNC = {"x-dashscope-async": "enable"}
OTHER = "https://example.com/another.jpg"
SOUND = "https://example.com/a.mp3"
GOOD: dict[str, Any] = {
    "model": "wan2.6-i2v",
    "input": {"img_url": wires.PHOTO_URL, "prompt": "waves"},
    "parameters": {"seed": 1, "duration": 5},
}


def created(body: Any, path: str = VIDEO) -> JobRequest:
    return wires.created("dashscope", path, body, headers=ASYNC)


def create(field: str = "", value: object = None) -> JobRequest:
    return created(wires.changed(GOOD, field, value) if field else GOOD)


@pytest.mark.parametrize("name", pairs.names("dashscope"))
def test_it_reads_and_writes_what_is_documented(name: str) -> None:
    pairs.check("dashscope", name)


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("model", "wan2.6-i2v-flash"),
        ("input.img_url", OTHER),
        ("input.prompt", "rain"),
        ("input.negative_prompt", "fog"),
        ("input.audio_url", SOUND),
        ("input.template", "flying"),
        ("parameters.resolution", "720P"),
        ("parameters.duration", 10),
        ("parameters.duration", "15"),
        ("parameters.prompt_extend", False),
        ("parameters.watermark", True),
        ("parameters.audio", False),
        ("parameters.shot_type", "multi"),
        ("parameters.seed", 2),
        ("parameters.size", "1280*720"),
        ("parameters.ratio", "9:16"),
    ],
)
def test_each_field_changes_the_job(field: str, other: object) -> None:
    assert create(field, other).fingerprint() != create().fingerprint()


@pytest.mark.parametrize(
    ("kind", "field"),
    [("last_frame", "last_image"), ("driving_audio", "audio")],
)
def test_each_kind_of_media_changes_the_job(kind: str, field: str) -> None:
    media = [{"type": "first_frame", "url": wires.PHOTO_URL}]
    plain = created({"model": "wan2.7-i2v", "input": {"media": media}})
    media = [*media, {"type": kind, "url": OTHER}]
    more = created({"model": "wan2.7-i2v", "input": {"media": media}})
    assert plain.image == more.image
    assert getattr(plain, field) != getattr(more, field)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("input.img_url", None),
        ("input.img_url", ""),
        ("input.img_url", "http://127.0.0.1/a.png"),
        ("input.img_url", "not base64!"),
        ("input.prompt", "x" * 2001),
        ("input.prompt", 5),
        ("input.negative_prompt", "x" * 501),
        ("input.audio_url", "file:///etc/passwd"),
        ("input.media", {}),
        ("parameters.resolution", "480P"),
        ("parameters.resolution", "4K"),
        ("parameters.duration", 7),
        ("parameters.duration", 0),
        ("parameters.prompt_extend", "maybe"),
        ("parameters.shot_type", "triple"),
        ("parameters.seed", -1),
        ("parameters.seed", 2_147_483_648),
        ("parameters.size", "big"),
        ("parameters.size", "9999*9999"),
        ("parameters.ratio", "2:1"),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(field: str, wrong: object) -> None:
    refused = wires.refused(lambda: create(field, wrong))
    answer = wires.refusal("dashscope", refused, VIDEO)
    assert (answer.status, answer.body["code"]) == (400, "InvalidParameter")
    assert field in answer.body["message"]


@pytest.mark.parametrize(
    ("model", "field", "wrong"),
    [
        ("wan2.5-i2v-preview", "parameters.duration", 15),
        ("wan2.2-i2v-plus", "parameters.duration", 10),
        ("wan2.2-i2v-plus", "parameters.resolution", "720P"),
        ("wan2.2-i2v-flash", "parameters.resolution", "1080P"),
        ("wan2.2-i2v-plus", "input.prompt", "x" * 801),
        ("wan2.2-i2v-plus", "parameters.shot_type", "multi"),
        ("wan2.7-i2v", "parameters.duration", 16),
        ("wan2.7-i2v", "input.prompt", "x" * 5001),
        ("wan2.6-i2v", "input.last_frame_url", OTHER),
        ("wanx2.1-kf2v-plus", "input.last_frame_url", None),
    ],
)
def test_what_one_model_cannot_do_is_named(
    model: str, field: str, wrong: object
) -> None:
    body = wires.changed({**GOOD, "model": model}, field, wrong)
    assert wires.refused(lambda: created(body)).field == field


@pytest.mark.parametrize(
    ("model", "seconds", "tier", "sound"),
    [
        ("wan2.7-i2v", 5, "1080p", "generate"),
        ("wan2.6-i2v", 5, "1080p", "generate"),
        ("wan2.6-i2v-flash", 5, "1080p", "generate"),
        ("wan2.5-i2v-preview", 5, "1080p", "generate"),
        ("wan2.2-i2v-plus", 5, "1080p", "none"),
        ("wan2.2-i2v-flash", 5, "720p", "none"),
        ("wanx2.1-i2v-plus", 5, "720p", "none"),
        ("wanx2.1-i2v-turbo", 5, "720p", "none"),
    ],
)
def test_defaults_are_those_of_the_model(
    model: str, seconds: int, tier: str, sound: str
) -> None:
    made = created({"model": model, "input": {"img_url": wires.PHOTO_URL}})
    assert (made.seconds, made.tier, made.audio.mode) == (seconds, tier, sound)
    assert made.prompt_expansion
    assert made.shot_type == "single"
    assert not made.watermark


def test_a_dated_variant_is_its_model() -> None:
    assert create("model", "wan2.7-i2v-2026-04-25").model == "wan2.7-i2v"


def test_any_model_of_the_platform_may_be_named() -> None:
    assert create("model", "motion").model == "motion"


def test_silence_wins_over_a_sound() -> None:
    body = wires.changed(GOOD, "input.audio_url", SOUND)
    assert created(body).audio == Sound("url", SOUND)
    assert created(wires.changed(body, "parameters.audio", False)).audio == Sound()


def test_an_exact_size_decides_the_tier_and_so_the_price() -> None:
    body = wires.changed(GOOD, "parameters.resolution", "720P")
    made = created(wires.changed(body, "parameters.size", "1920*1080"))
    assert (str(made.size), made.tier) == ("1920x1080", "1080p")


def test_unknown_fields_are_ignored() -> None:
    body = wires.changed(GOOD, "input.extend_prompt", True)
    body = wires.changed(body, "input.function", "video-synthesis")
    body = wires.changed(body, "parameters.n", 1)
    assert created(body) == created(GOOD)


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_bare_base64_and_data_uris_are_pictures(prefix: str) -> None:
    text = prefix + wires.as_base64(wires.picture(832, 480))
    assert create("input.img_url", text).image.size == (832, 480)


@pytest.mark.parametrize(
    ("media", "field"),
    [
        ([{"type": "first_clip", "url": OTHER}], "input.media[0].type"),
        ([{"type": "first_frame"}], "input.media[0].url"),
        ([{"type": "first_frame", "url": "http://10.1.1.1/"}], "input.media[0].url"),
        ([{"type": "driving_audio", "url": OTHER}], "input.img_url"),
        (["x"], "input.media[0]"),
        ([{"type": "first_frame", "url": OTHER}] * 2, "input.media[1].type"),
    ],
)
def test_wrong_media_is_named_by_its_place(media: object, field: str) -> None:
    body = {"model": "wan2.7-i2v", "input": {"media": media}}
    assert wires.refused(lambda: created(body)).field == field


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "BadRequest.EmptyModel"),
        ({"model": ""}, 400, "BadRequest.EmptyModel"),
        ({"model": "wan2.6-i2v"}, 400, "BadRequest.EmptyInput"),
        ({"model": "wan2.6-i2v", "input": {}}, 400, "BadRequest.EmptyInput"),
        ({"model": "wan9", "input": {"img_url": OTHER}}, 404, "ModelNotFound"),
        ({"model": "wan9", "input": {"prompt": "p"}}, 400, "InvalidParameter"),
        ([], 400, "InvalidParameter"),
    ],
)
def test_empty_and_unknown_have_codes_of_their_own(
    body: object, status: int, code: str
) -> None:
    answer = wires.refusal("dashscope", wires.refused(lambda: created(body)), VIDEO)
    assert (answer.status, answer.body["code"]) == (status, code)


@pytest.mark.parametrize("headers", [{}, {"x-dashscope-async": "disable"}])
def test_a_synchronous_call_is_denied(headers: dict[str, str]) -> None:
    with pytest.raises(Forbidden) as denied:
        wires.created("dashscope", VIDEO, GOOD, headers=headers)
    answer = wires.refusal("dashscope", denied.value, VIDEO)
    assert (answer.status, answer.body["code"]) == (403, "AccessDenied")
    assert "synchronous" in answer.body["message"]


# ----------------------------------------------------------------------- tasks


def test_an_unknown_task_is_http_200_and_unknown() -> None:
    wire = WireRequest("GET", "/", operation=Operation.STATUS, params={"id": "nope"})
    answer = DIALECT.error(NotFound(), wire)
    assert answer.status == 200
    assert answer.body["output"] == {"task_id": "nope", "task_status": "UNKNOWN"}


def test_an_unknown_path_is_no_unknown_task() -> None:
    wire = WireRequest("GET", "/api/v1/tasks/a/b", operation=None)
    assert DIALECT.error(RouteNotFound(), wire).status == 404


def test_only_a_queued_task_may_be_canceled() -> None:
    command = wires.send("dashscope", "POST", "/api/v1/tasks/t/cancel")
    assert command == OneJob("t", only_queued=True)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("content_blocked", "DataInspectionFailed"),
        ("invalid_image", "InvalidParameter"),
        ("invalid_url", "InvalidURL"),
        ("fetch_failed", "InvalidURL"),
        ("engine_failed", "InternalError"),
        ("anything_new", "InternalError"),
    ],
)
def test_why_a_task_failed_is_said_in_their_codes(ours: str, theirs: str) -> None:
    assert failure_code(ours) == theirs


@pytest.mark.parametrize(
    "status", ["queued", "running", "succeeded", "failed", "canceled"]
)
def test_their_sdk_reads_every_state(status: str) -> None:
    view = pairs.view_of({"id": "t", "status": status, "video_url": "https://v"})
    body = show_task(view, WireRequest("GET", "/")).body
    job = Job.from_payload(body)
    assert job.task_id == "t"
    assert job.finished == view.is_finished
    assert job.succeeded == (status == "succeeded")


def test_their_sdk_reads_the_list() -> None:
    finished = {"started_at": pairs.MOMENT, "finished_at": pairs.MOMENT}
    view = pairs.view_of({"id": "t", "status": "failed", **finished})
    page = JobsPage([view], total=21, page=2, limit=10)
    body = show_list(page, WireRequest("GET", "/")).body
    assert (body["total"], body["total_page"]) == (21, 3)
    listed = JobList.from_payload(body)
    assert [task.task_id for task in listed.tasks] == ["t"]
    assert listed.tasks[0].status == "FAILED"
    # The documented entries count milliseconds, the newer SDK's are times as text.
    assert body["data"][0]["end_time"] == 1772547731000
    assert listed.tasks[0].finished_at == "2026-03-03 22:22:11.000"


def listed(**query: str) -> ListJobs:
    command = wires.send("dashscope", "GET", "/api/v1/tasks", query=query)
    assert isinstance(command, ListJobs)
    return command


def test_list_times_are_utc_plus_8_or_milliseconds() -> None:
    moment = datetime(2023, 4, 20, 11, 30, 58, tzinfo=UTC)
    assert listed(start_time="20230420193058").created_after == moment
    assert listed(end_time="1681990258000").created_before == moment


@pytest.mark.parametrize(
    "query",
    [
        {"page_no": "0"},
        {"page_size": "101"},
        {"page_size": "many"},
        {"status": "DONE"},
        {"start_time": "yesterday"},
        {"end_time": "20231399999999"},
    ],
)
def test_a_wrong_query_names_its_field(query: dict[str, str]) -> None:
    assert wires.refused(lambda: listed(**query)).field in query


@pytest.mark.parametrize("status", ["SUSPENDED", "UNKNOWN"])
def test_states_nobody_is_in_list_nothing(status: str) -> None:
    command = listed(status=status)
    assert command.created_after == command.created_before


# ----------------------------------------------------------------- bad input


@st.composite
def strange(draw: st.DrawFn) -> Any:
    """Return a create body of which any part may be anything."""
    inputs = wires.bodies(
        {**GOOD["input"], "audio_url": SOUND, "template": "", "last_frame_url": ""}
        | {"media": [{"type": "first_frame", "url": OTHER}], "negative_prompt": "x"}
    )
    parameters = wires.bodies(
        {
            "resolution": "720P",
            "duration": 5,
            "prompt_extend": True,
            "size": "",
            "seed": 1,
        }
        | {"shot_type": "multi", "audio": True, "watermark": True, "ratio": "16:9"}
    )
    models = st.one_of(
        st.sampled_from(["wan2.6-i2v", "wan2.7-i2v", "wan2.2-kf2v-flash", "motion"]),
        wires.anything,
    )
    return draw(
        st.one_of(
            st.fixed_dictionaries(
                {"model": models, "input": inputs, "parameters": parameters}
            ),
            wires.bodies(GOOD),
        )
    )


@pytest.mark.parametrize("path", [VIDEO, KF2V])
@given(body=strange())
def test_anything_is_a_job_or_a_documented_refusal(path: str, body: Any) -> None:
    try:
        made = wires.send("dashscope", "POST", path, body, headers=ASYNC)
        assert isinstance(made, Create)
    except ApiError as refused:
        answer = DIALECT.error(refused, WireRequest("POST", path))
        assert answer.status in (400, 404)
        assert answer.body.keys() == {"code", "message", "request_id"}
        json.dumps(answer.body)


@given(
    query=st.dictionaries(
        st.sampled_from(
            [
                *("page_no", "page_size", "start_time", "end_time"),
                *("status", "model_name", "api_key_id", "region"),
            ]
        ),
        st.one_of(st.text(max_size=20), st.sampled_from(["1", "0", "٣", "1" * 14])),
    )
)
def test_any_query_is_a_page_or_a_refusal(query: dict[str, str]) -> None:
    try:
        assert listed(**query).limit in range(1, 101)
    except InvalidRequest as refused:
        json.dumps(DIALECT.error(refused, WireRequest("GET", "/")).body)
