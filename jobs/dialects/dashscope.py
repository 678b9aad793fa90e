"""Alibaba DashScope's wire format: video-synthesis, the kf2v path, and tasks.

Facts come from Alibaba's Model Studio pages and from the code of dashscope 2.0.2.
Every body carries ``request_id``; an unknown task and a failed one are both HTTP 200;
times are UTC+8 with milliseconds and no zone. Unknown fields are ignored.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from inference.catalogue import PublicModel
from inference.geometry import Size
from jobs.dialects import base, fields
from jobs.dialects.base import (
    Create,
    Dialect,
    Field,
    JobsPage,
    JobView,
    ListJobs,
    ModelLookup,
    OneJob,
    Operation,
    Route,
    Status,
    WireRequest,
    WireResponse,
)
from jobs.errors import (
    ApiError,
    Forbidden,
    IdempotencyInFlight,
    InsufficientCredits,
    InternalError,
    InvalidRequest,
    MalformedBody,
    MethodNotAllowed,
    ModelUnavailable,
    NotAcceptableNow,
    NotFound,
    NotImplementedHere,
    PayloadTooLarge,
    QuotaExhausted,
    RateLimited,
    RouteNotFound,
    ServiceUnavailable,
    SpendCapReached,
    Unauthenticated,
)
from jobs.requests import ASPECT_RATIOS, SEED_MAX, JobRequest, Picture, Sound

# ---------------------------------------------------------------- our choices
# What Alibaba's pages leave open. Change a line here and nothing else.

#: The text of a missing async header is documented, its HTTP status is not.
SYNC_STATUS = 403
#: Of ``ModelNotFound`` and ``Model.NotExist``, both 404, we send the first.
MODEL_UNKNOWN = "ModelNotFound"
#: Paths and methods that do not exist: HTTP's own status, the nearest documented codes.
ROUTE_CODE, ROUTE_STATUS = "InvalidParameter", 404
METHOD_CODE, METHOD_STATUS = "UnsupportedOperation", 405
#: Cancelling an id nobody knows is refused as cancelling a finished task is.
CANCEL_UNKNOWN_CODE = "UnsupportedOperation"
#: A model of a dated variant (``wan2.7-i2v-2026-04-25``) is its model.
DATED = re.compile(r"-20\d\d-\d\d-\d\d$")
#: Documented for the models named; others make any whole second they can.
DURATIONS: Mapping[str, tuple[int, ...]] = {
    "wan2.6-i2v": (5, 10, 15),
    "wan2.6-i2v-flash": (5, 10, 15),
    "wan2.5-i2v-preview": (5, 10),
    "wan2.2-i2v-plus": (5,),
    "wan2.2-i2v-flash": (5,),
    "wanx2.1-i2v-plus": (5,),
    "wanx2.1-i2v-turbo": (3, 4, 5),  # from memory of the page
    "wanx2.1-kf2v-plus": (5,),
    "wan2.2-kf2v-flash": (5,),
}
#: Models whose usage block has the older three keys.
OLDER_USAGE = re.compile(r"wan2\.[012]|wanx")
VIDEO_RATIO = "standard"
#: The list names a region; we have one.
REGION = "default"
PAGE_SIZE, PAGE_SIZE_MAX = 10, 100

# ------------------------------------------------------------------- documented

URL_SECONDS = 24 * 3600
ZONE = timezone(timedelta(hours=8))
SYNC_MESSAGE = "current user api does not support synchronous calls"
CANCEL_MESSAGE = (
    "Failed to cancel the task, please confirm if the task is in PENDING status."
)
STATUSES: Mapping[Status, str] = {
    "queued": "PENDING",
    "running": "RUNNING",
    "succeeded": "SUCCEEDED",
    "failed": "FAILED",
    "canceled": "CANCELED",
}
#: In the SDK's enumeration, but no task of ours is ever in them.
NEVER = ("SUSPENDED", "UNKNOWN")


# ---------------------------------------------------------------------- create

MODEL = fields.text("model", longest=100, required=True, canonical="model")
IMG_URL = fields.picture(
    "input.img_url",
    meaning="the first frame; required unless input.media has it",
    blank_is_absent=True,
)
FIRST_FRAME = fields.picture(
    "input.first_frame_url", meaning="kf2v models", blank_is_absent=True
)
LAST_FRAME = fields.picture(
    "input.last_frame_url",
    meaning="kf2v models; wan2.7",
    canonical="last_image",
    blank_is_absent=True,
)
PROMPT = fields.text(
    "input.prompt", rule="by model", canonical="prompt", longest=100_000
)
NEGATIVE = fields.text(
    "input.negative_prompt", longest=500, canonical="negative_prompt"
)
AUDIO_URL = fields.url("input.audio_url", canonical="audio.url")
TEMPLATE = fields.text(
    "input.template",
    longest=100,
    blank_is_absent=True,
    meaning="an effect; the prompt is then ignored",
    canonical="effect",
)
RESOLUTION = fields.choice(
    "parameters.resolution",
    ("480P", "720P", "1080P"),
    any_case=True,
    rule="480P, 720P, 1080P, by model",
    canonical="resolution tier",
)
DURATION = fields.integer(
    "parameters.duration", low=1, high=60, rule="by model (5)", canonical="seconds"
)
EXTEND = fields.boolean(
    "parameters.prompt_extend", default=True, canonical="prompt_expansion"
)
WATERMARK = fields.boolean("parameters.watermark", default=False, canonical="watermark")
AUDIO = fields.boolean(
    "parameters.audio",
    rule="by model (true from 2.5 on)",
    meaning="false is silent, whatever audio_url says",
    canonical="audio.mode audio",
)
SHOT_TYPE = fields.choice(
    "parameters.shot_type",
    ("single", "multi"),
    default="single",
    meaning="acts when prompt_extend is on",
    canonical="shot_type",
)
SEED = fields.integer("parameters.seed", low=0, high=SEED_MAX, canonical="seed")
SIZE = fields.text(
    "parameters.size",
    longest=20,
    blank_is_absent=True,
    rule="width*height",
    meaning="the exact size; the picture is cropped to it",
    canonical="size",
)
RATIO = fields.choice(
    "parameters.ratio",
    ASPECT_RATIOS,
    blank_is_absent=True,
    meaning="the shape; the picture is cropped to it",
    canonical="aspect_ratio",
)

MEDIA_KINDS = ("first_frame", "last_frame", "driving_audio")


def _asset(name: str, value: Any) -> tuple[str, Any]:
    """Return the kind and the picture or address of one element of input.media."""
    if not isinstance(value, dict):
        raise InvalidRequest(name, "Must be an object with 'type' and 'url'.")
    kind = value.get("type")
    if kind not in MEDIA_KINDS:
        raise InvalidRequest(
            f"{name}.type", f"Must be one of {', '.join(MEDIA_KINDS)}."
        )
    if kind == "driving_audio":
        reader: fields.Reader[Any] = fields.url("url")
    else:
        reader = fields.picture("url")
    try:
        return kind, reader.take(value)
    except ApiError as refused:
        refused.field = f"{name}.url"
        raise


MEDIA = fields.items(
    "input.media",
    _asset,
    longest=10,
    kind="array of {type, url}",
    rule="type: " + ", ".join(MEDIA_KINDS),
    meaning="wan2.7's way to name its pictures and sound",
)
CREATE_FIELDS = (
    MODEL,
    IMG_URL,
    MEDIA,
    FIRST_FRAME,
    LAST_FRAME,
    PROMPT,
    NEGATIVE,
    AUDIO_URL,
    TEMPLATE,
    RESOLUTION,
    DURATION,
    EXTEND,
    WATERMARK,
    AUDIO,
    SHOT_TYPE,
    SEED,
    SIZE,
    RATIO,
)


def create(wire: WireRequest, models: ModelLookup) -> Create:
    if wire.headers.get("x-dashscope-async", "").strip().lower() != "enable":
        raise Forbidden(SYNC_MESSAGE, code="sync_call")
    body = fields.object_of(wire.body)
    if not MODEL.is_given(body) or body["model"] == "":
        raise InvalidRequest(
            "model", "Required parameter is empty: model.", code="BadRequest.EmptyModel"
        )
    if not body.get("input"):
        raise InvalidRequest(
            "input", "Required input is empty.", code="BadRequest.EmptyInput"
        )
    media = _media(body)
    # Before the model: who asks for text-to-video is told that a picture is missing.
    image = _first(body, media)
    model = _model(body, models)
    prompt = PROMPT.find(body) or ""
    size = _size(body)
    extend, shot_type = EXTEND.take(body), SHOT_TYPE.take(body)
    with fields.wire_names(CREATE_FIELDS):
        return Create(
            JobRequest.build(
                model,
                image=image,
                last_image=media.get("last_frame") or LAST_FRAME.find(body),
                tier=_tier(body, size),
                seconds=_seconds(body, model),
                size=size,
                aspect_ratio=RATIO.find(body),
                prompt=prompt,
                negative_prompt=NEGATIVE.find(body),
                prompt_expansion=extend,
                shot_type=shot_type if extend else "single",
                seed=SEED.find(body),
                watermark=WATERMARK.take(body),
                effect=TEMPLATE.find(body),
                audio=_sound(body, media),
                # A template puts its own text in its place; orig_prompt shows theirs.
                echo={"prompt": prompt},
            )
        )


def _model(body: Mapping[str, Any], models: ModelLookup) -> PublicModel:
    name = MODEL.take(body)
    model = _known(name, models)
    if model is None:
        raise InvalidRequest("model", f"Model not exist: {name}", code=MODEL_UNKNOWN)
    return model


def _known(name: str, models: ModelLookup) -> PublicModel | None:
    return models(name) or models(DATED.sub("", name))


def _media(body: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for place, (kind, asset) in enumerate(MEDIA.find(body) or ()):
        if kind in found:
            raise InvalidRequest(f"input.media[{place}].type", "Given twice.")
        found[kind] = asset
    return found


def _first(body: Mapping[str, Any], media: Mapping[str, Any]) -> Picture:
    picture: Picture | None = (
        media.get("first_frame") or IMG_URL.find(body) or FIRST_FRAME.find(body)
    )
    if picture is None:
        raise InvalidRequest(
            "input.img_url", "The first frame is required: text alone makes no video."
        )
    return picture


def _seconds(body: Mapping[str, Any], model: PublicModel) -> int | None:
    """Return the length asked for; None leaves it to the model (5 s)."""
    allowed = DURATIONS.get(model.name, ())
    seconds = DURATION.find(body)
    if seconds is not None and allowed and seconds not in allowed:
        listed = ", ".join(map(str, allowed))
        raise InvalidRequest(DURATION.name, f"'{model.name}' makes {listed} seconds.")
    return seconds


def _size(body: Mapping[str, Any]) -> Size | None:
    text = SIZE.find(body)
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{2,4})[*xX]([0-9]{2,4})", text.strip())
    if match is None:
        raise InvalidRequest(SIZE.name, "Must be width*height, such as 1280*720.")
    return Size(int(match[1]), int(match[2]))


def _tier(body: Mapping[str, Any], size: Size | None) -> str | None:
    """Return the tier asked for; an exact size decides it, so that it decides the price."""
    resolution = RESOLUTION.find(body)
    return resolution.lower() if resolution and size is None else None


def _sound(body: Mapping[str, Any], media: Mapping[str, Any]) -> Sound | None:
    """Return the sound asked for; None leaves it to the model."""
    wanted = AUDIO.find(body)
    url = media.get("driving_audio") or AUDIO_URL.find(body)
    if wanted is False:
        return Sound()
    if url:
        return Sound("url", url)
    return Sound("generate") if wanted else None


# ----------------------------------------------------------------------- reads


def read_task(wire: WireRequest, models: ModelLookup) -> OneJob:
    return OneJob(wire.params["id"])


def read_cancel(wire: WireRequest, models: ModelLookup) -> OneJob:
    return OneJob(wire.params["id"], only_queued=True)


PAGE_NO = fields.integer("page_no", low=1, high=1_000_000, default=1)
PAGE = fields.integer("page_size", low=1, high=PAGE_SIZE_MAX, default=PAGE_SIZE)
WANTED = fields.choice(
    "status", (*STATUSES.values(), *NEVER), any_case=True, blank_is_absent=True
)
MODEL_NAME = fields.text("model_name", longest=100, blank_is_absent=True)
KEY_ID = fields.text(
    "api_key_id",
    longest=100,
    blank_is_absent=True,
    meaning="only what this key ordered: its id, the third part of the key",
)
WHERE = fields.text(
    "region",
    longest=100,
    blank_is_absent=True,
    rule=f"`{REGION}`; others have no tasks",
)


def _moment(name: str, value: Any) -> datetime:
    """Return a moment given as yyyymmddhhmmss in UTC+8, or as milliseconds."""
    text = value.strip() if isinstance(value, str) else ""
    try:
        if re.fullmatch(r"[0-9]{14}", text):
            return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=ZONE)
        if re.fullmatch(r"[0-9]{13}", text):
            return datetime.fromtimestamp(int(text) / 1000, tz=UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidRequest(name, "There is no such time.") from error
    raise InvalidRequest(name, "Must be YYYYMMDDhhmmss.")


def _time(name: str, meaning: str) -> fields.Reader[datetime]:
    rule = "YYYYMMDDhhmmss in UTC+8, or milliseconds"
    row = Field(name, "string", rule, meaning=meaning)
    return fields.Reader(row, _moment, blank_is_absent=True)


SINCE = _time("start_time", "submitted then or later")
UNTIL = _time("end_time", "submitted before")
LIST_FIELDS = (PAGE_NO, PAGE, SINCE, UNTIL, MODEL_NAME, KEY_ID, WHERE, WANTED)


def read_list(wire: WireRequest, models: ModelLookup) -> ListJobs:
    query = wire.query
    since, until = SINCE.find(query), UNTIL.find(query)
    status = WANTED.find(query)
    if status in NEVER or WHERE.find(query) not in (None, REGION):
        # Nothing is ever in these: ask for a span of time without jobs.
        since = until = datetime.fromtimestamp(0, tz=UTC)
    name = MODEL_NAME.find(query)
    known = _known(name, models) if name else None
    return ListJobs(
        limit=PAGE.take(query),
        page=PAGE_NO.take(query),
        statuses=tuple(ours for ours, theirs in STATUSES.items() if theirs == status),
        model=known.name if known else name,
        api_key_id=KEY_ID.find(query),
        created_after=since,
        created_before=until,
        with_total=True,
    )


# --------------------------------------------------------------------- answers


def request_id(wire: WireRequest) -> str:
    return wire.request_id or str(uuid.uuid4())


def show_created(view: JobView, wire: WireRequest) -> WireResponse:
    output = {"task_status": STATUSES[view.status], "task_id": view.id}
    return WireResponse(200, {"output": output, "request_id": request_id(wire)})


def show_canceled(view: JobView, wire: WireRequest) -> WireResponse:
    return WireResponse(200, {"request_id": request_id(wire)})


def show_task(view: JobView, wire: WireRequest) -> WireResponse:
    body: dict[str, Any] = {"request_id": request_id(wire), "output": _output(view)}
    if view.status == "succeeded":
        body["usage"] = usage(view)
    return WireResponse(200, body)


def _state(view: JobView) -> dict[str, Any]:
    state = {
        "task_id": view.id,
        "task_status": STATUSES[view.status],
        "submit_time": stamp(view.created_at),
    }
    if view.started_at is not None:
        state["scheduled_time"] = stamp(view.started_at)
    if view.finished_at is not None:
        state["end_time"] = stamp(view.finished_at)
    return state


def _output(view: JobView) -> dict[str, Any]:
    output = _state(view)
    if view.status == "succeeded":
        request = view.request
        output["orig_prompt"] = request.echo.get("prompt", request.prompt)
        if request.prompt_expansion:
            expanded = view.resolved.get("expanded_prompt")
            output["actual_prompt"] = expanded or request.prompt
        output["video_url"] = view.video_url or ""
    if view.status == "failed" and view.error is not None:
        output["code"] = failure_code(view.error.code)
        output["message"] = view.error.message
    return output


def usage(view: JobView) -> dict[str, Any]:
    request = view.request
    seconds = round(request.seconds, 3)
    length = math.floor(seconds) if seconds.is_integer() else seconds
    if OLDER_USAGE.match(request.model):
        return {"video_duration": length, "video_ratio": VIDEO_RATIO, "video_count": 1}
    return {
        "duration": length,
        "input_video_duration": 0,
        "output_video_duration": length,
        "video_count": 1,
        "SR": int(request.tier.rstrip("p")) if request.tier.endswith("p") else 2160,
    }


def show_list(page: JobsPage, wire: WireRequest) -> WireResponse:
    total = page.total or 0
    return WireResponse(
        200,
        {
            "request_id": request_id(wire),
            "total": total,
            "total_page": math.ceil(total / page.limit) if page.limit else 0,
            "page_no": page.page,
            "page_size": page.limit,
            "data": [_listed(view) for view in page.jobs],
            # dashscope.v2 reads this key, and its times as a task has them.
            "tasks": [_state(view) for view in page.jobs],
        },
    )


def _listed(view: JobView) -> dict[str, Any]:
    model = view.request.model
    listed: dict[str, Any] = {
        "api_key_id": view.api_key_id,
        "caller_parent_id": str(view.account_number),
        "caller_uid": str(view.account_number),
        "gmt_create": _millis(view.created_at),
        "model_name": model,
        "region": REGION,
        "request_id": view.native_id,
        "status": STATUSES[view.status],
        "task_id": view.id,
        "user_api_unique_key": f"apikey:v1:aigc:image2video:video-synthesis:{model}",
    }
    if view.started_at is not None:
        listed["start_time"] = _millis(view.started_at)
    if view.finished_at is not None:
        listed["end_time"] = _millis(view.finished_at)
    return listed


def _millis(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def stamp(moment: datetime) -> str:
    """Return the moment as DashScope prints it: UTC+8, milliseconds, no zone.

    >>> stamp(datetime(2026, 1, 1, 2, 0, 0, 123456, tzinfo=UTC))
    '2026-01-01 10:00:00.123'
    """
    return moment.astimezone(ZONE).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


# ---------------------------------------------------------------------- errors

#: kind → code, HTTP status
_CODES: tuple[tuple[type[ApiError], str, int], ...] = (
    (RouteNotFound, ROUTE_CODE, ROUTE_STATUS),
    (NotImplementedHere, ROUTE_CODE, ROUTE_STATUS),
    (MethodNotAllowed, METHOD_CODE, METHOD_STATUS),
    (NotFound, CANCEL_UNKNOWN_CODE, 400),
    (NotAcceptableNow, "UnsupportedOperation", 400),
    (Unauthenticated, "InvalidApiKey", 401),
    (InsufficientCredits, "Arrearage", 400),
    (SpendCapReached, "Arrearage", 400),
    (QuotaExhausted, "Arrearage", 400),
    (Forbidden, "AccessDenied", 403),
    (RateLimited, "Throttling.RateQuota", 429),
    (IdempotencyInFlight, "Throttling", 429),
    (PayloadTooLarge, "InvalidParameter", 400),
    (ModelUnavailable, "ServiceUnavailable", 503),
    (ServiceUnavailable, "ServiceUnavailable", 503),
    (InternalError, "InternalError", 500),
)
#: Documented messages that say it better than ours.
_MESSAGES: tuple[tuple[type[ApiError], str], ...] = (
    (RouteNotFound, "url error, please check url!"),
    (Unauthenticated, "Invalid API-key provided."),
    (RateLimited, "Requests rate limit exceeded, please try again later."),
    (NotAcceptableNow, CANCEL_MESSAGE),
    (NotFound, CANCEL_MESSAGE),
    (MalformedBody, "Required body invalid, please check the request body format."),
)
#: Codes that parse chose because the page has one of its own for the case.
_OWN_CODES = {
    "BadRequest.EmptyInput": 400,
    "BadRequest.EmptyModel": 400,
    MODEL_UNKNOWN: 404,
}
#: What is refused after parsing comes under our names.
_WIRE_NAMES = {"effect": TEMPLATE.name}
_FAILURES = {
    "content_blocked": "DataInspectionFailed",
    "invalid_input": "InvalidParameter",
    "unsupported_option": "InvalidParameter",
    "provider_rejected": "InvalidParameter",
}
_URL_FAILURES = ("fetch_", "invalid_url")


def error(refused: ApiError, wire: WireRequest) -> WireResponse:
    known_path = not isinstance(refused, RouteNotFound)
    if (
        isinstance(refused, NotFound)
        and known_path
        and wire.operation is Operation.STATUS
    ):
        return _unknown(wire)
    code, status = _code(refused)
    body = {"code": code, "message": _message(refused), "request_id": request_id(wire)}
    return WireResponse(status, body)


def _unknown(wire: WireRequest) -> WireResponse:
    """Return the documented answer for an id nobody knows: HTTP 200."""
    output = {"task_id": wire.params.get("id", ""), "task_status": "UNKNOWN"}
    return WireResponse(200, {"request_id": request_id(wire), "output": output})


def _code(refused: ApiError) -> tuple[str, int]:
    if refused.code in _OWN_CODES:
        return refused.code, _OWN_CODES[refused.code]
    if refused.code == "sync_call":
        return "AccessDenied", SYNC_STATUS
    for kind, code, status in _CODES:
        if isinstance(refused, kind):
            return code, status
    return "InvalidParameter", 400


def _message(refused: ApiError) -> str:
    for kind, words in _MESSAGES:
        if isinstance(refused, kind):
            return words
    field = _WIRE_NAMES.get(refused.field or "", refused.field)
    if field and field not in refused.message:
        return f"{field}: {refused.message}"
    return refused.message


def failure_code(code: str) -> str:
    """Return DashScope's code for why a task failed."""
    if code in _FAILURES:
        return _FAILURES[code]
    if code.startswith(_URL_FAILURES):
        return "InvalidURL"
    if code.startswith(("invalid_", "image_", "audio_")):
        return "InvalidParameter"
    return "InternalError"


# ----------------------------------------------------------------------- table

API = "/api/v1"


def _create(path: str, summary: str) -> Route:
    return Route(
        "POST",
        path,
        Operation.CREATE,
        create,
        show_created,
        scope="jobs:write",
        summary=summary,
        fields=fields.rows(*CREATE_FIELDS),
    )


def _list(path: str) -> Route:
    return Route(
        "GET",
        path,
        Operation.LIST,
        read_list,
        show_list,
        summary="Tasks, newest first",
        fields=fields.rows(*LIST_FIELDS),
    )


DIALECT = Dialect(
    name="dashscope",
    title="Alibaba DashScope",
    prefixes=(f"{API}/services", f"{API}/tasks"),
    routes=(
        _create(
            f"{API}/services/aigc/video-generation/video-synthesis",
            "Start an image-to-video task",
        ),
        _create(
            f"{API}/services/aigc/image2video/video-synthesis",
            "Start a task with a first and a last frame",
        ),
        Route(
            "GET",
            f"{API}/tasks/{{id}}",
            Operation.STATUS,
            read_task,
            show_task,
            summary="State and result of a task",
        ),
        Route(
            "POST",
            f"{API}/tasks/{{id}}/cancel",
            Operation.CANCEL,
            read_cancel,
            show_canceled,
            scope="jobs:write",
            summary="Cancel a task that has not begun",
        ),
        _list(f"{API}/tasks"),
        _list(f"{API}/tasks/"),
    ),
    error=error,
    url_seconds=URL_SECONDS,
    body_limit_bytes=base.TWO_PICTURES_BYTES,
)
