"""The wire format of coals.ai's MagiCoal API, served on the model ``wan2.2-i2v``.

Source: coals.ai/docs/magicoal (i2v, t2v, status, videos), /docs/errors, /docs/rate-limits,
/docs/authentication. What those pages leave open is chosen in the constants below.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from jobs.dialects import fields
from jobs.dialects.base import (
    Ask,
    BalanceView,
    Create,
    Dialect,
    JobsPage,
    JobView,
    ListJobs,
    ModelLookup,
    OneJob,
    Operation,
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
    NotImplementedHere,
    PayloadTooLarge,
    QuotaExhausted,
    RateLimited,
    ServiceUnavailable,
    SpendCapReached,
    Unauthenticated,
    UnsupportedMediaType,
)
from jobs.requests import JobRequest, PictureRules

if TYPE_CHECKING:
    from datetime import datetime


PREFIX = "/api/v1/magicoal"
MODEL = "wan2.2-i2v"

# ------------------------------------------------ what the documentation leaves open

#: A failed job answers 200 with these words and ``error: {code, message}``.
FAILED_STATUS = FAILED_STAGE = "failed"
#: The error code of a job its owner canceled; the API has no word for it.
CANCELED_CODE = "CANCELED"
#: ``progress`` of a queued job; the documented ranges start with generation.
QUEUED_PROGRESS = 0
#: Seeds have no documented range: any up to 64 bits is taken, -1 asks for a random one.
RANDOM_SEED = -1
#: Error kind → HTTP status and code. 402 is not among the documented statuses, so an
#: empty wallet is a 403; a used-up free tier likewise.
ERRORS: tuple[tuple[type[ApiError], int, str], ...] = (
    (Unauthenticated, 401, "UNAUTHORIZED"),
    (InsufficientCredits, 403, "INSUFFICIENT_CREDITS"),
    (SpendCapReached, 403, "SPEND_CAP_REACHED"),
    (QuotaExhausted, 403, "QUOTA_EXCEEDED"),
    (Forbidden, 403, "FORBIDDEN"),
    (MethodNotAllowed, 405, "METHOD_NOT_ALLOWED"),
    (NotFound, 404, "NOT_FOUND"),
    (NotAcceptableNow, 409, "CONFLICT"),
    (IdempotencyInFlight, 409, "CONFLICT"),
    (IdempotencyMismatch, 422, "VALIDATION_ERROR"),
    (PayloadTooLarge, 413, "PAYLOAD_TOO_LARGE"),
    (RateLimited, 429, "RATE_LIMIT_EXCEEDED"),
    (MalformedBody, 400, "BAD_REQUEST"),
    (UnsupportedMediaType, 400, "BAD_REQUEST"),
    (InvalidRequest, 422, "VALIDATION_ERROR"),
    (NotImplementedHere, 501, "NOT_IMPLEMENTED"),
    (ModelUnavailable, 503, "SERVICE_UNAVAILABLE"),
    (ServiceUnavailable, 503, "SERVICE_UNAVAILABLE"),
)
SERVER_ERROR = "SERVER_ERROR"

# ------------------------------------------------------------------- the documented

VALIDATION_MESSAGE = "The request failed validation."
PAGE_DEFAULT, PAGE_MAX = 15, 100
GENERATING_FROM, SAVING_FROM, COMPLETED = 25, 90, 100
#: JPEG, PNG and WebP only; everything else is ours to judge.
PICTURES = PictureRules(formats=("JPEG", "PNG", "WEBP"))

IMAGE = fields.picture(
    "image",
    required=True,
    rules=PICTURES,
    https_only=True,
    rule="base64 (with or without a data URI) or a public HTTPS URL; JPEG, PNG, WebP",
    meaning="The still to animate; the video keeps its shape.",
)
PROMPT = fields.text(
    "prompt", longest=2000, canonical="prompt", meaning="What happens in the video."
)
FRAMES = fields.integer(
    "num_frames",
    low=17,
    high=161,
    odd=True,
    default=81,
    canonical="frames seconds",
    meaning="Length at 16 frames a second.",
)
GUIDANCE = fields.number(
    "guidance_scale",
    low=1.0,
    high=10.0,
    default=3.5,
    canonical="guidance_scale",
    meaning="How closely the prompt is followed.",
)
SEED = fields.seed(
    "seed", random=RANDOM_SEED, meaning="The same seed gives the same video."
)
FIELDS = (IMAGE, PROMPT, FRAMES, GUIDANCE, SEED)

PER_PAGE = fields.integer("per_page", low=1, high=PAGE_MAX, default=PAGE_DEFAULT)
PAGE = fields.integer("page", low=1, high=1_000_000, default=1)


# ------------------------------------------------------------------------- parse


def parse_create(wire: WireRequest, models: ModelLookup) -> Create:
    body = fields.object_of(wire.body)
    image = IMAGE.take(body)
    if (model := models(MODEL)) is None:
        raise ModelUnavailable(MODEL)
    with fields.wire_names(FIELDS):
        return Create(
            JobRequest.build(
                model,
                image=image,
                prompt=PROMPT.find(body),
                frames=FRAMES.take(body),
                guidance_scale=GUIDANCE.take(body),
                seed=SEED.find(body),
                picture_rules=PICTURES,
            )
        )


def parse_text_only(wire: WireRequest, models: ModelLookup) -> Create:
    fields.object_of(wire.body)
    raise InvalidRequest(
        IMAGE.name,
        "Videos are made from an image here: send 'image' to "
        f"{PREFIX}/generate/i2v. Text-to-video is not offered.",
    )


def parse_one(wire: WireRequest, models: ModelLookup) -> OneJob:
    return OneJob(wire.params["id"])


def parse_list(wire: WireRequest, models: ModelLookup) -> ListJobs:
    return ListJobs(
        limit=PER_PAGE.take(wire.query),
        page=PAGE.take(wire.query),
        statuses=("succeeded",),
        with_total=True,
    )


def parse_quota(wire: WireRequest, models: ModelLookup) -> Ask:
    return Ask({"with_usage": True})


# ------------------------------------------------------------------------ render


def render_created(job: JobView, wire: WireRequest) -> WireResponse:
    data = {
        "uuid": job.id,
        "type": "i2v",
        "status": "queued",
        "credits_charged": _credits(job.shown_millicredits),
    }
    return WireResponse(202, {"success": True, "data": data})


def render_status(job: JobView, wire: WireRequest) -> WireResponse:
    is_done = job.status == "succeeded"
    status, stage, progress = _position(job)
    data: dict[str, Any] = {
        "uuid": job.id,
        "type": "i2v",
        "status": status,
        "stage": stage,
        "progress": progress,
        "done": job.is_finished,
        "video_url": job.permanent_video_url if is_done else None,
        "thumbnail_url": job.permanent_poster_url if is_done else None,
    }
    if is_done:
        data["duration_seconds"] = job.request.seconds
    data["credits_charged"] = _credits(job.shown_millicredits)
    data["created_at"] = _time(job.created_at)
    if job.status in ("failed", "canceled"):
        data["error"] = _failure(job)
    return WireResponse(200, {"success": True, "data": data})


def render_list(page: JobsPage, wire: WireRequest) -> WireResponse:
    total = page.total or 0
    meta = {
        "current_page": page.page,
        "per_page": page.limit,
        "total": total,
        "last_page": max(1, math.ceil(total / page.limit)),
        "has_more": page.has_more,
    }
    data = [_listed(job) for job in page.jobs]
    return WireResponse(200, {"success": True, "data": data, "meta": meta})


def render_quota(balance: BalanceView, wire: WireRequest) -> WireResponse:
    left, used = balance.available_millicredits, balance.used_this_month_millicredits
    # The page shows no body: the names are those of a sibling service's account call.
    # Credits are not dealt out by the month here: its quota is what it used, holds, has.
    quota = used + balance.held_millicredits + left
    data = {
        "plan_type": balance.plan,
        "balance": _credits(left),
        "quota_monthly": _credits(quota),
        "used_this_month": _credits(used),
        "remaining_quota": _credits(left),
    }
    return WireResponse(200, {"success": True, "data": data})


def render_error(error: ApiError, wire: WireRequest) -> WireResponse:
    status, code = next(
        ((status, code) for kind, status, code in ERRORS if isinstance(error, kind)),
        (error.status, SERVER_ERROR if error.status >= 500 else "BAD_REQUEST"),
    )
    said: dict[str, Any] = {"code": code, "message": error.message}
    if code == "VALIDATION_ERROR":
        said["message"] = VALIDATION_MESSAGE
        said["details"] = {error.field or "body": [error.message]}
    headers: dict[str, str] = {}
    if (seconds := error.retry_after_seconds) is not None:
        headers["Retry-After"] = str(seconds)
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    return WireResponse(status, {"success": False, "error": said}, headers)


def _position(job: JobView) -> tuple[str, str, int]:
    """Return the status, stage and progress that the documented ranges give the job."""
    if job.status == "succeeded":
        return "completed", "completed", COMPLETED
    if job.status == "queued":
        return "queued", "queued", QUEUED_PROGRESS
    share = min(max(job.progress, 0.0), 1.0)
    if job.status == "running" and job.step in ("collect", "finish", "review", "done"):
        return "generating", "saving", _between(SAVING_FROM, COMPLETED - 1, share)
    progress = _between(GENERATING_FROM, SAVING_FROM, share)
    if job.status == "running":
        return "generating", "generating_video", progress
    return FAILED_STATUS, FAILED_STAGE, progress


def _between(low: int, high: int, share: float) -> int:
    return low + math.floor((high - low) * share)


def _failure(job: JobView) -> dict[str, str]:
    if job.status == "canceled":
        return {"code": CANCELED_CODE, "message": "The job was canceled."}
    if job.error is None:
        return {"code": "GENERATION_FAILED", "message": "The video could not be made."}
    return {"code": job.error.code.upper(), "message": job.error.message}


def _listed(job: JobView) -> dict[str, Any]:
    return {
        "uuid": job.id,
        "type": "i2v",
        "prompt": job.request.prompt,
        "status": "completed",
        "video_url": job.permanent_video_url,
        "thumbnail_url": job.permanent_poster_url,
        "duration_seconds": job.request.seconds,
        "credits_charged": _credits(job.shown_millicredits),
        "created_at": _time(job.created_at),
    }


def _credits(millicredits: int) -> float:
    return millicredits / 1000


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


# ----------------------------------------------------------------------- the table

ROUTES = (
    Route(
        "POST",
        f"{PREFIX}/generate/i2v",
        Operation.CREATE,
        parse_create,
        render_created,
        scope="jobs:write",
        summary="Make a video from a picture",
        fields=fields.rows(*FIELDS),
    ),
    Route(
        "POST",
        f"{PREFIX}/generate/t2v",
        Operation.CREATE,
        parse_text_only,
        render_created,
        scope="jobs:write",
        summary="Text-to-video: refused, naming the image",
    ),
    Route(
        "GET",
        f"{PREFIX}/status/{{id}}",
        Operation.STATUS,
        parse_one,
        render_status,
        summary="How far a video is",
    ),
    Route(
        "GET",
        f"{PREFIX}/videos",
        Operation.LIST,
        parse_list,
        render_list,
        summary="Finished videos, newest first",
        fields=fields.rows(PER_PAGE, PAGE),
    ),
    Route(
        "GET",
        f"{PREFIX}/quota",
        Operation.BALANCE,
        parse_quota,
        render_quota,
        summary="Credits of the account",
    ),
)

DIALECT = Dialect(
    name="magicoal",
    title="coals.ai MagiCoal",
    prefixes=(PREFIX,),
    routes=ROUTES,
    error=render_error,
    show_rate=True,
)
