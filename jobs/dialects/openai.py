"""The wire format of the OpenAI Videos API, for any model of this platform.

Source: openai (PyPI) 3.52.0, openai (npm) 6.49.0 and 7.55.0 and litellm 1.106.2, read and
captured. What they leave open is chosen in the constants below.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from inference.geometry import SHORT_SIDE, Size
from jobs import pictures
from jobs.dialects import fields
from jobs.dialects.base import (
    Create,
    Dialect,
    JobsPage,
    JobView,
    ListJobs,
    ManyResult,
    ModelLookup,
    OneJob,
    Operation,
    Remix,
    Route,
    WireRequest,
    WireResponse,
)
from jobs.errors import (
    ApiError,
    Forbidden,
    IdempotencyInFlight,
    IdempotencyMismatch,
    InsufficientCredits,
    InvalidRequest,
    MalformedBody,
    MethodNotAllowed,
    ModelUnavailable,
    NotAcceptableNow,
    NotFound,
    QuotaExhausted,
    RateLimited,
    RouteNotFound,
    SpendCapReached,
    Unauthenticated,
)
from jobs.requests import JobRequest, PictureRules

if TYPE_CHECKING:
    from inference.catalogue import PublicModel
    from jobs.requests import Picture

PATH = "/v1/videos"

# ------------------------------------------------ what the clients' code leaves open

#: Any whole number of seconds that the model makes is taken, not only 4, 8 and 12. A
#: model that cannot make the default of 4 s uses its own default length.
SECONDS_DEFAULT = 4
#: Any even WxH the model makes is taken, not only the four documented sizes. A model
#: that cannot make the default size uses its own default resolution, portrait too.
SIZE_DEFAULT, SHAPE_DEFAULT = "720x1280", "9:16"
#: A request without a model means this one; operators say what it stands for.
MODEL_DEFAULT = "sora-2"
#: Unknown models are a 400 with this code.
UNKNOWN_MODEL_CODE = "model_not_found"
#: A job its owner canceled is ``failed`` with this code.
CANCELED_CODE = "canceled"
#: How often the polling helpers should ask: a tenth of what is left, within bounds.
POLL_SHARE, POLL_MS_MIN, POLL_MS_MAX = 0.1, 1000, 5000
POLL_MS_DEFAULT = 1000
#: These get ``x-should-retry: false``: the clients would repeat a 409, 429 or 503 in vain.
NOT_WORTH_RETRYING = (
    InsufficientCredits,
    SpendCapReached,
    QuotaExhausted,
    ModelUnavailable,
    NotAcceptableNow,
)

# ------------------------------------------------------------------- the documented

STATUSES: Mapping[str, str] = MappingProxyType(
    {
        "queued": "queued",
        "running": "in_progress",
        "succeeded": "completed",
        "failed": "failed",
        "canceled": "failed",
    }
)
PICTURES = PictureRules(formats=("JPEG", "PNG", "WEBP"))
VARIANTS = ("video", "thumbnail", "spritesheet")
PAGE_DEFAULT, PAGE_MAX = 20, 100
_WXH = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")

PROMPT = fields.text(
    "prompt",
    required=True,
    shortest=1,
    rule="as long as the model allows",
    meaning="What happens in the video.",
    canonical="prompt",
)
REFERENCE = fields.picture(
    "input_reference",
    required=True,
    rules=PICTURES,
    rule="file part (PNG, JPEG, WebP), or `input_reference[image_url]`: URL or data URI",
    meaning="The still to animate. Required here: there is no text-to-video.",
)
MODEL = fields.text(
    "model",
    longest=200,
    default=MODEL_DEFAULT,
    blank_is_absent=True,
    rule="any model or alias of this platform",
    canonical="model",
)
SECONDS = fields.integer(
    "seconds",
    blank_is_absent=True,
    rule="4, 8, 12 and any other whole number the model makes; a string or a number",
    meaning="Default 4, or the model's own where it cannot make 4.",
    canonical="seconds frames",
)
SIZE = fields.text(
    "size",
    longest=20,
    blank_is_absent=True,
    rule="720x1280, 1280x720, 1024x1792, 1792x1024 or any even WxH the model makes",
    meaning="The exact size; the picture is cropped to fill it. Default 720x1280.",
    canonical="size resolution",
)
FIELDS = (PROMPT, REFERENCE, MODEL, SECONDS, SIZE)

LIMIT = fields.integer("limit", low=0, high=PAGE_MAX, default=PAGE_DEFAULT)
AFTER = fields.text("after", longest=200, blank_is_absent=True)
ORDER = fields.choice("order", ("desc", "asc"), default="desc")
VARIANT = fields.choice("variant", VARIANTS, default="video")
REMIX_PROMPT = fields.text("prompt", required=True, shortest=1, canonical="prompt")


# ------------------------------------------------------------------------- parse


def parse_create(wire: WireRequest, models: ModelLookup) -> Create:
    body = fields.object_of(wire.body)
    prompt = PROMPT.take(body)
    image = _reference(wire, body)
    name = MODEL.take(body)
    if (model := models(name)) is None:
        raise InvalidRequest(
            MODEL.name,
            f"The model '{name}' does not exist or you do not have access to it.",
            code=UNKNOWN_MODEL_CODE,
        )
    size = _size(body, model)
    # A model that cannot make the default size makes its own, in the same shape.
    shown_size = size or model.size_for(9 / 16, model.tier_default)
    if (seconds := SECONDS.find(body)) is None:
        seconds = _usual_seconds(model)
    with fields.wire_names(FIELDS):
        request = JobRequest.build(
            model,
            image=image,
            prompt=prompt,
            size=size,
            aspect_ratio=None if size else SHAPE_DEFAULT,
            seconds=seconds,
            picture_rules=PICTURES,
        )
    shown = seconds or round(request.seconds)
    echo = {"model": name, "seconds": str(shown), "size": str(shown_size)}
    return Create(request.replace(echo=echo))


def parse_one(wire: WireRequest, models: ModelLookup) -> OneJob:
    return OneJob(wire.params["id"])


def parse_content(wire: WireRequest, models: ModelLookup) -> OneJob:
    return OneJob(wire.params["id"], variant=VARIANT.take(wire.query))


def parse_list(wire: WireRequest, models: ModelLookup) -> ListJobs:
    return ListJobs(
        limit=LIMIT.take(wire.query) or PAGE_DEFAULT,
        after=AFTER.find(wire.query),
        ascending=ORDER.take(wire.query) == "asc",
    )


def parse_remix(wire: WireRequest, models: ModelLookup) -> Remix:
    prompt = REMIX_PROMPT.take(fields.object_of(wire.body))
    return Remix(wire.params["id"], prompt)


def _reference(wire: WireRequest, body: Mapping[str, Any]) -> Picture:
    """Return the picture: a file part, a text part or an object of a JSON body."""
    name = REFERENCE.name
    if (upload := wire.files.get(name)) is not None:
        image = pictures.from_upload(name, upload)
        fields.check_picture(name, image, PICTURES)
        return image
    given = body.get(name)
    # A form spells an object's members as name[member].
    members = given if isinstance(given, Mapping) else {}
    url = members.get("image_url") or body.get(f"{name}[image_url]")
    file_id = members.get("file_id") or body.get(f"{name}[file_id]")
    if url is None and isinstance(given, str) and given.strip():
        url = given
    if url is not None:
        return REFERENCE.convert(name, url)
    if file_id is not None:
        raise InvalidRequest(
            name, "Files by id are not kept here: send the image itself or 'image_url'."
        )
    if given is not None and given != "" and not members:
        raise InvalidRequest(name, "Must be an image file or {'image_url': …}.")
    raise InvalidRequest(
        name,
        "An image is required: videos are made from 'input_reference' here, "
        "text-to-video is not offered.",
        code=fields.MISSING,
    )


def _size(body: Mapping[str, Any], model: PublicModel) -> Size | None:
    """Return the exact size, or None when the model cannot make the default one."""
    given = SIZE.find(body)
    size = _parsed(given or SIZE_DEFAULT)
    if min(size.width, size.height) <= SHORT_SIDE[model.tiers[-1]]:
        return size
    if given is None:
        return None
    tiers = ", ".join(model.tiers)
    raise InvalidRequest(
        SIZE.name, f"Model '{model.name}' makes sizes of {tiers}; got {size}."
    )


def _parsed(text: str) -> Size:
    if (match := _WXH.fullmatch(text.strip())) is None:
        raise InvalidRequest(SIZE.name, "Must be WIDTHxHEIGHT, such as 1280x720.")
    return Size(int(match[1]), int(match[2]))


def _usual_seconds(model: PublicModel) -> int | None:
    if model.seconds_choices and SECONDS_DEFAULT not in model.seconds_choices:
        return None
    if model.seconds_range is not None:
        low, high = model.seconds_range
    else:
        low, high = model.frames_min / model.fps, model.frames_max / model.fps
    return SECONDS_DEFAULT if low <= SECONDS_DEFAULT <= high else None


# ------------------------------------------------------------------------ render


def render_video(job: JobView, wire: WireRequest) -> WireResponse:
    headers = {}
    if not job.is_finished:
        headers["openai-poll-after-ms"] = str(_poll_after_ms(job))
    return WireResponse(200, _video(job), headers)


def render_list(page: JobsPage, wire: WireRequest) -> WireResponse:
    data = [_video(job) for job in page.jobs]
    body = {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": page.has_more,
    }
    return WireResponse(200, body)


def render_deleted(result: ManyResult, wire: WireRequest) -> WireResponse:
    body = {"id": wire.params["id"], "object": "video.deleted", "deleted": True}
    return WireResponse(200, body)


def render_content(job: JobView, wire: WireRequest) -> WireResponse:
    """Answer for a file by its address; a door that streams the bytes goes before this."""
    variant = wire.query.get("variant") or "video"
    urls = {
        "video": job.video_url,
        "thumbnail": job.poster_url,
        "spritesheet": job.preview_url,
    }
    if (url := urls.get(variant)) is None:
        return render_error(NotFound(f"{variant} yet"), wire)
    return WireResponse(302, None, {"Location": url})


def _video(job: JobView) -> dict[str, Any]:
    request = job.request
    return {
        "id": job.id,
        "object": "video",
        "model": request.echo.get("model", request.model),
        "status": STATUSES[job.status],
        "progress": _percent(job),
        "created_at": int(job.created_at.timestamp()),
        "completed_at": _completed_at(job),
        "expires_at": int(job.expires_at.timestamp()) if job.expires_at else None,
        "prompt": request.prompt,
        "remixed_from_video_id": job.source_id,
        "seconds": request.echo.get("seconds", f"{request.seconds:g}"),
        "size": request.echo.get("size", str(request.size or "")),
        "error": _failure(job),
    }


def _percent(job: JobView) -> int:
    if job.status == "succeeded":
        return 100
    return min(99, max(0, int(job.progress * 100)))


def _completed_at(job: JobView) -> int | None:
    if job.status != "succeeded" or job.finished_at is None:
        return None
    return int(job.finished_at.timestamp())


def _failure(job: JobView) -> dict[str, str] | None:
    if job.status == "canceled":
        return {"code": CANCELED_CODE, "message": "The video was canceled."}
    if job.status != "failed":
        return None
    if job.error is None:
        return {"code": "generation_failed", "message": "The video could not be made."}
    return {"code": job.error.code, "message": job.error.message}


def _poll_after_ms(job: JobView) -> int:
    if job.eta_seconds is None:
        return POLL_MS_DEFAULT
    wait = int(job.eta_seconds * 1000 * POLL_SHARE)
    return min(max(wait, POLL_MS_MIN), POLL_MS_MAX)


def render_error(error: ApiError, wire: WireRequest) -> WireResponse:
    status, kind, code = _phrase(error)
    message = error.message
    if isinstance(error, RouteNotFound):
        message = f"Invalid URL ({wire.method} {wire.path})"
    elif code == "missing_required_parameter" and error.field != REFERENCE.name:
        message = f"Missing required parameter: '{error.field}'."
    elif status == 400 and error.field is not None:
        message = f"Invalid '{error.field}': {message}"
    headers: dict[str, str] = {}
    if (seconds := error.retry_after_seconds) is not None:
        headers["Retry-After"] = str(seconds)
    if isinstance(error, NOT_WORTH_RETRYING):
        headers["x-should-retry"] = "false"
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    said = {"message": message, "type": kind, "param": error.field, "code": code}
    return WireResponse(status, {"error": said}, headers)


def _phrase(error: ApiError) -> tuple[int, str, str | None]:
    """Return the HTTP status, the error's type and its code."""
    invalid = "invalid_request_error"
    match error:
        case Unauthenticated():
            return 401, invalid, "invalid_api_key"
        case InsufficientCredits() | SpendCapReached() | QuotaExhausted():
            return 429, "insufficient_quota", "insufficient_quota"
        case RateLimited():
            return 429, "requests", "rate_limit_exceeded"
        case Forbidden():
            return 403, invalid, "insufficient_permissions"
        case RouteNotFound():
            return 404, invalid, "unknown_url"
        case MethodNotAllowed():
            return 405, invalid, "method_not_supported"
        case NotFound() | NotAcceptableNow() | IdempotencyInFlight():
            return error.status, invalid, error.code
        case IdempotencyMismatch():
            return 400, invalid, error.code
        case MalformedBody():
            return 400, invalid, None
        case InvalidRequest():
            return 400, invalid, _code(error)
        case _ if error.status >= 500:
            return error.status, "server_error", error.code
        case _:
            return error.status, invalid, error.code


def _code(error: InvalidRequest) -> str:
    if error.code == fields.MISSING:
        return "missing_required_parameter"
    return "invalid_value" if error.code == InvalidRequest.code else error.code


def new_id() -> str:
    return f"video_{secrets.token_hex(24)}"


# ----------------------------------------------------------------------- the table

ROUTES = (
    Route(
        "POST",
        PATH,
        Operation.CREATE,
        parse_create,
        render_video,
        scope="jobs:write",
        summary="Make a video from a picture (multipart or JSON)",
        fields=fields.rows(*FIELDS),
    ),
    Route(
        "GET",
        PATH,
        Operation.LIST,
        parse_list,
        render_list,
        summary="Videos, newest first unless order=asc",
        fields=fields.rows(LIMIT, AFTER, ORDER),
    ),
    Route(
        "GET",
        f"{PATH}/{{id}}",
        Operation.STATUS,
        parse_one,
        render_video,
        summary="How far a video is",
    ),
    Route(
        "DELETE",
        f"{PATH}/{{id}}",
        Operation.DELETE,
        parse_one,
        render_deleted,
        scope="jobs:write",
        summary="Delete a video's files",
    ),
    Route(
        "GET",
        f"{PATH}/{{id}}/content",
        Operation.CONTENT,
        parse_content,
        render_content,
        summary="The bytes of the video, its thumbnail or its preview",
        fields=fields.rows(VARIANT),
    ),
    Route(
        "POST",
        f"{PATH}/{{id}}/remix",
        Operation.REMIX,
        parse_remix,
        render_video,
        scope="jobs:write",
        summary="Make a finished video again with another prompt",
        fields=fields.rows(REMIX_PROMPT),
    ),
)

DIALECT = Dialect(
    name="openai",
    title="OpenAI Videos",
    prefixes=(PATH,),
    routes=ROUTES,
    error=render_error,
    new_id=new_id,
)
