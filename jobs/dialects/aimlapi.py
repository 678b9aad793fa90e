"""The wire format of AI/ML API's video generations, for its Wan image-to-video names.

Source: repository aimlapi/api-docs @ f14fa72 (2026-08-21): the Alibaba-Cloud video model
specs, universal-video-fetch.json, docs/errors-and-messages. What those leave open is
chosen in the constants below.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jobs.dialects import fields
from jobs.dialects.base import (
    Create,
    Dialect,
    JobView,
    ModelLookup,
    OneJob,
    Operation,
    Render,
    Route,
    WireRequest,
    WireResponse,
)
from jobs.errors import (
    ApiError,
    InsufficientCredits,
    InvalidRequest,
    MalformedBody,
    MethodNotAllowed,
    NotFound,
    RateLimited,
    RouteNotFound,
    ServiceUnavailable,
    SpendCapReached,
    Unauthenticated,
)
from jobs.requests import JobRequest, Sound

if TYPE_CHECKING:
    from inference.catalogue import PublicModel

PATH = "/v2/video/generations"
#: The kling specs list these beside the path above.
ALIASES = ("/v1/video/generations", "/video/generations")
#: Older specs, one path per vendor; langchain-aimlapi still speaks it.
LEGACY = "/v2/generate/video/{provider}/generation"

# ------------------------------------------------ what the documentation leaves open

#: ``error.name`` of every failed generation.
ERROR_NAME = "GenerationError"
#: An unknown ``generation_id`` is a 404 in the usual envelope with this message.
NOT_FOUND_MESSAGE = "Not found"
#: The hints of a 400 stand in an extra array of ``{path, message}`` under this name.
HINTS = "meta"
#: Legacy answers carry the id under both of its names.
LEGACY_ID = "generation_id"
#: A wrong method is a 405; the table of errors has no line for it.
METHOD_STATUS = 405
#: Models of the catalogue beyond the documented Wan names are served as well; of these
#: 5, 10 and 15 s are offered as far as the model goes. ``wan2.2-i2v-plus`` has no
#: ``duration`` in its schema and makes 5 s.
DURATIONS = (5, 10, 15)

# ------------------------------------------------------------------- the documented

#: 2,000,000 of their credits are one dollar, a hundred of ours.
CREDITS_PER_MILLICREDIT = 20
DOLLARS_PER_MILLICREDIT = 1 / 100_000
STATUSES: Mapping[str, str] = MappingProxyType(
    {
        "queued": "queued",
        "running": "generating",
        "succeeded": "completed",
        "failed": "error",
        "canceled": "error",
    }
)
MODELS = (
    "alibaba/wan-2-7-i2v",
    "alibaba/wan-2-6-i2v",
    "alibaba/wan-2-6-image-to-video-flash",
    "alibaba/wan2.5-i2v-preview",
    "alibaba/wan2.2-i2v-plus",
)
#: The one model whose schema has ``aspect_ratio``; there it has a default.
SHAPED_MODEL, SHAPE_DEFAULT = "alibaba/wan2.5-i2v-preview", "16:9"

MODEL = fields.text(
    "model",
    required=True,
    longest=200,
    rule=", ".join(MODELS) + "; any other model of this platform by its name",
    canonical="model",
)
PROMPT = fields.text(
    "prompt", required=True, canonical="prompt", rule="as long as the model allows"
)
IMAGE = fields.picture(
    "image_url",
    required=True,
    rule="link, data URI or base64",
    meaning="The still to animate; the video keeps its shape.",
)
AUDIO_URL = fields.url(
    "audio_url",
    meaning="Sound to use in place of generated sound.",
    canonical="audio.url",
)
GENERATE_AUDIO = fields.boolean(
    "generate_audio",
    rule="default true where the model makes sound",
    meaning="Whether to make sound when `audio_url` is absent.",
    canonical="audio.mode",
)
RESOLUTION = fields.text(
    "resolution",
    longest=20,
    blank_is_absent=True,
    rule="480p, 720p, 1080p as the model allows, in any letter case; the short side",
    meaning="Default 1080p; 720p for wan-2-6-image-to-video-flash.",
    canonical="resolution",
)
DURATION = fields.integer(
    "duration",
    blank_is_absent=True,
    rule="5, 10, 15 (wan2.5: 5, 10); a numeric string will do",
    meaning="Seconds. Default 10 for wan-2-7-i2v, otherwise 5.",
    canonical="seconds frames",
)
EXPANSION = fields.boolean(
    "enable_prompt_expansion",
    default=True,
    meaning="Off when this or `enhance_prompt` is false.",
    canonical="prompt_expansion",
)
ENHANCE = fields.boolean(
    "enhance_prompt", default=True, meaning="The same switch by its other name."
)
NEGATIVE_PROMPT = fields.text(
    "negative_prompt", rule="at most 500 characters", canonical="negative_prompt"
)
SEED = fields.seed("seed", meaning="The same seed gives the same video.")
WATERMARK = fields.boolean(
    "watermark",
    default=False,
    meaning="Writes “AI Generated” into the corner.",
    canonical="watermark",
)
SHOT_TYPE = fields.choice(
    "shot_type",
    ("single", "multi"),
    default="single",
    meaning="One continuous shot or several; wan-2-6 models.",
    canonical="shot_type",
)
ASPECT_RATIO = fields.choice(
    "aspect_ratio",
    ("16:9", "9:16", "1:1"),
    meaning="wan2.5-i2v-preview: 16:9 unless given, and the picture is cropped to it. "
    "Other models keep the picture's shape unless given.",
    canonical="aspect_ratio",
)
FIELDS = (
    MODEL,
    PROMPT,
    IMAGE,
    AUDIO_URL,
    GENERATE_AUDIO,
    RESOLUTION,
    DURATION,
    EXPANSION,
    ENHANCE,
    NEGATIVE_PROMPT,
    SEED,
    WATERMARK,
    SHOT_TYPE,
    ASPECT_RATIO,
)
GENERATION_ID = fields.text("generation_id", required=True, longest=200)


# ------------------------------------------------------------------------- parse


def parse_create(wire: WireRequest, models: ModelLookup) -> Create:
    body = fields.object_of(wire.body)
    name = MODEL.take(body)
    # Before the model's name, so that a text-to-video request hears about its picture.
    image = IMAGE.take(body)
    model = _model(name, models)
    expansion, enhance = EXPANSION.take(body), ENHANCE.take(body)
    with fields.wire_names(FIELDS):
        return Create(
            JobRequest.build(
                model,
                image=image,
                prompt=PROMPT.take(body),
                tier=_tier(body, model),
                seconds=_seconds(body, model),
                audio=_sound(body),
                aspect_ratio=_shape(body, model),
                prompt_expansion=expansion and enhance,
                negative_prompt=NEGATIVE_PROMPT.find(body),
                seed=SEED.find(body),
                watermark=WATERMARK.take(body),
                shot_type=SHOT_TYPE.take(body),
            )
        )


def parse_one(wire: WireRequest, models: ModelLookup) -> OneJob:
    return OneJob(GENERATION_ID.take(wire.query))


def _model(name: str, models: ModelLookup) -> PublicModel:
    if (model := models(name)) is None:
        raise InvalidRequest(MODEL.name, _not_among(MODELS, name))
    return model


def _tier(body: Mapping[str, Any], model: PublicModel) -> str | None:
    given = RESOLUTION.find(body)
    if given is None:
        return None
    if (tier := given.strip().lower()) not in model.tiers:
        raise InvalidRequest(RESOLUTION.name, _not_among(model.tiers, given))
    return tier


def _seconds(body: Mapping[str, Any], model: PublicModel) -> int | None:
    given = DURATION.find(body)
    if given is None:
        return None
    longest = model.frames_max / (model.fps_range or (model.fps,))[-1]
    offered = [seconds for seconds in DURATIONS if seconds <= round(longest)]
    if given not in offered:
        raise InvalidRequest(DURATION.name, _not_among(offered, given))
    return given


def _sound(body: Mapping[str, Any]) -> Sound | None:
    if (url := AUDIO_URL.find(body)) is not None:
        return Sound("url", url)
    wanted = GENERATE_AUDIO.find(body)
    return None if wanted is None else Sound("generate" if wanted else "none")


def _shape(body: Mapping[str, Any], model: PublicModel) -> str | None:
    default = SHAPE_DEFAULT if model.name == SHAPED_MODEL else None
    return ASPECT_RATIO.find(body) or default


def _not_among(choices: Any, given: object) -> str:
    expected = " | ".join(f"'{one}'" for one in choices)
    return f"Invalid enum value. Expected {expected}, received '{str(given)[:100]}'"


# ------------------------------------------------------------------------ render


def render_created(job: JobView, wire: WireRequest) -> WireResponse:
    spent = job.shown_millicredits
    usage = {
        "credits_used": spent * CREDITS_PER_MILLICREDIT,
        "usd_spent": round(spent * DOLLARS_PER_MILLICREDIT, 5),
    }
    body = {"id": job.id, "status": STATUSES[job.status], "meta": {"usage": usage}}
    return WireResponse(200, body)


def render_status(job: JobView, wire: WireRequest) -> WireResponse:
    body: dict[str, Any] = {"id": job.id, "status": STATUSES[job.status]}
    if job.status == "succeeded":
        body["video"] = {"url": job.video_url}
    if job.status in ("failed", "canceled"):
        body["error"] = {"name": ERROR_NAME, "message": _reason(job)}
    spent = job.shown_millicredits * CREDITS_PER_MILLICREDIT
    body["meta"] = {"usage": {"credits_used": spent}}
    return WireResponse(200, body)


def _legacy(render: Render) -> Render:
    def with_both_ids(job: JobView, wire: WireRequest) -> WireResponse:
        answer = render(job, wire)
        body = {**answer.body, LEGACY_ID: job.id}
        return WireResponse(answer.status, body, answer.headers)

    return with_both_ids


def _reason(job: JobView) -> str:
    if job.status == "canceled":
        return "The generation was canceled."
    return job.error.message if job.error else "The video could not be generated."


def render_error(error: ApiError, wire: WireRequest) -> WireResponse:
    status, message = _phrase(error, wire)
    moment = datetime.now(UTC).isoformat(timespec="milliseconds")
    body: dict[str, Any] = {
        "requestId": wire.request_id or str(uuid.uuid4()),
        "statusCode": status,
        "timestamp": moment.replace("+00:00", "Z"),
        "path": wire.path,
        "message": message,
    }
    if isinstance(error, InvalidRequest) or error.field is not None:
        said = "Required" if error.code == fields.MISSING else error.message
        path = error.field.split(".") if error.field else []
        body[HINTS] = [{"path": path, "message": said}]
    headers: dict[str, str] = {}
    if (seconds := error.retry_after_seconds) is not None:
        headers["Retry-After"] = str(seconds)
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    return WireResponse(status, body, headers)


def _phrase(error: ApiError, wire: WireRequest) -> tuple[int, str]:
    """Return the status and the documented message for the kind of error."""
    page = f"{wire.base_url}/docs/aimlapi"
    match error:
        case Unauthenticated():
            return 401, (
                "This request requires a valid API key. You can create a new API key "
                f"on the Billing page: {page}"
            )
        case InsufficientCredits():
            return 403, (
                "You've run out of credits. Please top up your balance or update your "
                f"payment method to continue: {page}"
            )
        case RouteNotFound():
            return 404, f"Cannot {wire.method} {wire.path}"
        case NotFound():
            return 404, NOT_FOUND_MESSAGE
        case MethodNotAllowed():
            return METHOD_STATUS, "Method Not Allowed"
        case RateLimited():
            return 429, "Too Many Requests"
        case MalformedBody():
            return 400, error.message
        case InvalidRequest():
            return 400, "Body validation error"
        case ServiceUnavailable():
            return 503, "Service unavailable"
        case SpendCapReached():  # 402 is not among the documented statuses
            return 403, error.message
        case _ if error.status == 500:
            return 500, "Internal server error"
        case _:
            return error.status, error.message


def new_id() -> str:
    """Return a nanoid: 21 characters of A-Z a-z 0-9 _ -."""
    return secrets.token_urlsafe(16)[:21]


# ----------------------------------------------------------------------- the table


def _routes(path: str, *, is_legacy: bool = False) -> tuple[Route, Route]:
    dress = _legacy if is_legacy else (lambda render: render)
    create = Route(
        "POST",
        path,
        Operation.CREATE,
        parse_create,
        dress(render_created),
        scope="jobs:write",
        summary="Make a video from a picture",
        fields=fields.rows(*FIELDS),
    )
    status = Route(
        "GET",
        path,
        Operation.STATUS,
        parse_one,
        dress(render_status),
        summary="How far a video is",
        fields=fields.rows(GENERATION_ID),
    )
    return create, status


DIALECT = Dialect(
    name="aimlapi",
    title="AI/ML API",
    prefixes=("/v2/video", "/v2/generate/video", *ALIASES),
    routes=(
        *_routes(PATH),
        *_routes(ALIASES[0]),
        *_routes(ALIASES[1]),
        *_routes(LEGACY, is_legacy=True),
    ),
    error=render_error,
    new_id=new_id,
)
