"""The wire format of Sinancode's bailian wan2-image-to-video, on ``wan2.6-i2v``.

Source: the i2v page; docs.sinancode.com/en/api-reference/endpoint/get-task, /en/quickstart.
What those pages leave open is chosen in the constants below.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jobs.dialects import fields
from jobs.dialects.base import (
    Create,
    Dialect,
    JobView,
    ModelLookup,
    OneJob,
    Operation,
    Route,
    WireRequest,
    WireResponse,
)
from jobs.errors import (
    ApiError,
    InvalidRequest,
    MethodNotAllowed,
    ModelUnavailable,
    PayloadTooLarge,
)
from jobs.requests import JobRequest, PictureRules, Sound

NEWEST_MODEL = "wan2.6-i2v"

# ------------------------------------------------ what the documentation leaves open

#: No page shows a refused request: it answers in the words of the task object,
#: ``{"error_code", "error_msg"}``, with our own stable codes, and these HTTP statuses
#: where ours differ (the others are 401, 402, 404, 405, 409, 429 and 5xx as they are).
ERROR_STATUS: Mapping[int, int] = MappingProxyType({413: 400, 415: 400, 422: 400})
#: The older page has an array of URL strings; this is the newer page's array of objects.
RESULT_TYPE = "video"
#: A job its owner canceled is ``failed`` with this code; the API has no word for it.
CANCELED_CODE = "canceled"

# ------------------------------------------------------------------- the documented

STATUSES: Mapping[str, str] = MappingProxyType(
    {
        "queued": "pending",
        "running": "processing",
        "succeeded": "completed",
        "failed": "failed",
        "canceled": "failed",
    }
)
PICTURES = PictureRules(
    side_min=360,
    side_max=2000,
    max_bytes=10 * 1024 * 1024,
    formats=("JPEG", "PNG", "BMP", "WEBP"),
    opaque_formats=("PNG",),
)

IMAGE = fields.picture(
    "image_url",
    required=True,
    rules=PICTURES,
    rule="http(s) URL or base64; JPEG, PNG without alpha, BMP, WEBP; each side "
    "360 to 2000 pixels; at most 10 MB",
    meaning="Base64 that breaks a rule is refused; a URL whose picture does becomes a "
    "failed task with that `error_code`, and costs nothing.",
)
AUDIO = fields.boolean(
    "audio",
    default=True,
    meaning="Makes sound; looked at only when `audio_url` is empty.",
    canonical="audio.mode",
)
AUDIO_URL = fields.url(
    "audio_url",
    rule="wav or mp3, 3 to 30 s, at most 15 MB",
    meaning="Sound to put under the video.",
    canonical="audio.url",
)
DURATION = fields.integer(
    "duration",
    choices=(5, 10, 15),
    default=5,
    meaning="Seconds.",
    canonical="seconds frames",
)
MODEL = fields.choice(
    "model",
    (NEWEST_MODEL,),
    default=NEWEST_MODEL,
    blank_is_absent=True,
    meaning="Blank or absent means the newest.",
    canonical="model",
)
NEGATIVE_PROMPT = fields.text(
    "negative_prompt", longest=500, canonical="negative_prompt"
)
PROMPT = fields.text(
    "prompt", longest=2000, meaning="Ignored with a `template`.", canonical="prompt"
)
PROMPT_EXTEND = fields.boolean(
    "prompt_extend",
    default=True,
    meaning="Elaborates the prompt.",
    canonical="prompt_expansion",
)
RESOLUTION = fields.choice(
    "resolution",
    ("720P", "1080P"),
    default="1080P",
    any_case=True,
    meaning="The short side; the video keeps the picture's shape.",
    canonical="resolution",
)
SEED = fields.integer(
    "seed",
    low=0,
    high=2_147_483_647,
    meaning="Random when absent.",
    canonical="seed",
)
SHOT_TYPE = fields.choice(
    "shot_type",
    ("single", "multi"),
    default="single",
    meaning="Acts only with `prompt_extend`.",
    canonical="shot_type",
)
TEMPLATE = fields.text(
    "template",
    longest=100,
    blank_is_absent=True,
    rule="the name of an effect",
    canonical="effect",
)
WATERMARK = fields.boolean(
    "watermark",
    default=False,
    meaning="Writes “AI Generated” into the bottom right corner.",
    canonical="watermark",
)
FIELDS = (
    IMAGE,
    AUDIO,
    AUDIO_URL,
    DURATION,
    MODEL,
    NEGATIVE_PROMPT,
    PROMPT,
    PROMPT_EXTEND,
    RESOLUTION,
    SEED,
    SHOT_TYPE,
    TEMPLATE,
    WATERMARK,
)
_WIRE_NAMES = {name: f.name for f in FIELDS for name in f.row.canonical.split()}


# ------------------------------------------------------------------------- parse


def parse_create(wire: WireRequest, models: ModelLookup) -> Create:
    body = fields.object_of(wire.body)
    image = IMAGE.take(body)
    name = MODEL.take(body)
    if (model := models(name)) is None:
        raise ModelUnavailable(name)
    template, prompt = TEMPLATE.find(body), PROMPT.find(body)
    extend, shot_type = PROMPT_EXTEND.take(body), SHOT_TYPE.take(body)
    with fields.wire_names(FIELDS):
        return Create(
            JobRequest.build(
                model,
                image=image,
                prompt=None if template else prompt,
                effect=template,
                prompt_expansion=extend,
                shot_type=shot_type if extend else "single",
                negative_prompt=NEGATIVE_PROMPT.find(body),
                seconds=DURATION.take(body),
                tier=RESOLUTION.take(body).lower(),
                audio=_sound(body),
                seed=SEED.find(body),
                watermark=WATERMARK.take(body),
                picture_rules=PICTURES,
            )
        )


def parse_one(wire: WireRequest, models: ModelLookup) -> OneJob:
    return OneJob(wire.params["id"])


def _sound(body: Mapping[str, Any]) -> Sound:
    wanted = AUDIO.take(body)
    if (url := AUDIO_URL.find(body)) is not None:
        return Sound("url", url)
    return Sound("generate" if wanted else "none")


# ------------------------------------------------------------------------ render


def render_created(job: JobView, wire: WireRequest) -> WireResponse:
    return WireResponse(200, {"task_id": job.id})


def render_task(job: JobView, wire: WireRequest) -> WireResponse:
    body: dict[str, Any] = {"id": job.id, "status": STATUSES[job.status]}
    if job.status == "succeeded":
        body["result"] = [{"type": RESULT_TYPE, "url": job.video_url}]
    elif job.status == "canceled":
        body |= {"error_code": CANCELED_CODE, "error_msg": "The task was canceled."}
    elif job.status == "failed":
        code = job.error.code if job.error else "generation_failed"
        message = job.error.message if job.error else ""
        body |= {"error_code": code, "error_msg": message}
    return WireResponse(200, body)


def render_error(error: ApiError, wire: WireRequest) -> WireResponse:
    code, message = error.code, error.message
    if isinstance(error, PayloadTooLarge) and error.field == IMAGE.name:
        code = "image_too_large"
    elif code == fields.MISSING:
        code = InvalidRequest.code
    if error.field is not None:
        message = f"{_WIRE_NAMES.get(error.field, error.field)}: {message}"
    headers: dict[str, str] = {}
    if (seconds := error.retry_after_seconds) is not None:
        headers["Retry-After"] = str(seconds)
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    status = ERROR_STATUS.get(error.status, error.status)
    return WireResponse(status, {"error_code": code, "error_msg": message}, headers)


# ----------------------------------------------------------------------- the table

ROUTES = (
    Route(
        "POST",
        "/v1/generate/bailian/wan2-image-to-video",
        Operation.CREATE,
        parse_create,
        render_created,
        scope="jobs:write",
        summary="Make a video from a picture",
        fields=fields.rows(*FIELDS),
    ),
    Route(
        "GET",
        "/v1/tasks/{id}",
        Operation.STATUS,
        parse_one,
        render_task,
        summary="How far a video is",
    ),
)

DIALECT = Dialect(
    name="sinancode",
    title="Sinancode",
    prefixes=("/v1/generate", "/v1/tasks"),
    routes=ROUTES,
    error=render_error,
)
