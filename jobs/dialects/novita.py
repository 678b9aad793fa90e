"""Novita's wire format: ``/v3/async/wan-i2v``, its siblings, and task-result.

Facts come from novita.ai's API reference and from novita-client 0.7.1, whose parser
decides what must never be missing: success is HTTP 200 and nothing else, ``extra`` is
always an object, and a number inside it is a string of digits or left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from inference.contracts import Lora
from inference.errors import InputRejected, PictureSizeRejected
from jobs.dialects import fields
from jobs.dialects.base import (
    Ask,
    BalanceView,
    Create,
    Dialect,
    Event,
    JobView,
    ModelLookup,
    OneJob,
    Operation,
    Route,
    SignedCall,
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
    MethodNotAllowed,
    ModelUnavailable,
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
from jobs.requests import SEED_MAX, JobRequest, Sound, WebhookTarget

# ---------------------------------------------------------------- our choices
# What Novita's pages leave open. Change a line here and nothing else.

#: One copy of the error table says 400 for an empty balance, another 403.
BALANCE_STATUS = 400
#: The page knows only Wan 2.1's task type; its siblings answer with the same word.
TASK_TYPE = "WAN_IMG_TO_VIDEO"
#: ``test_mode.enabled`` without ``return_task_status`` rehearses success.
TEST_STATUS_DEFAULT = "TASK_STATUS_SUCCEED"
#: A LoRA without ``scale`` is applied fully.
LORA_SCALE_DEFAULT = 1.0
#: ``/v3/user`` counts in 1/10000 USD, as the balance page of the same service says;
#: a milli-credit is 1/100000 USD.
MILLICREDITS_PER_UNIT = 10
#: Their "Wan 2.2 Professional" has the resolutions of Alibaba's plus model.
WAN_22 = "wan2.2-i2v-plus"
#: A canceled task has no status of its own.
CANCELED_REASON = "The task was canceled."
#: Wrong methods are not in the error table; the status is HTTP's own.
METHOD_STATUS = 405

# ------------------------------------------------------------------- documented

URL_SECONDS = 3600  # "video_url_ttl": "3600"
SEED_RANGE = (-1, 9_999_999_999)
SIZES: Mapping[tuple[int, int], str] = {
    (832, 480): "480p",
    (480, 832): "480p",
    (1280, 720): "720p",
    (720, 1280): "720p",
}
STATUSES = {
    "queued": "TASK_STATUS_QUEUED",
    "running": "TASK_STATUS_PROCESSING",
    "succeeded": "TASK_STATUS_SUCCEED",
    "failed": "TASK_STATUS_FAILED",
    "canceled": "TASK_STATUS_FAILED",
}
TEST_STATUSES = {"TASK_STATUS_SUCCEED": "succeeded", "TASK_STATUS_FAILED": "failed"}


# --------------------------------------------------------------- shared fields


def _lora(name: str, value: Any) -> Lora:
    if not isinstance(value, dict):
        raise InvalidRequest(name, "Must be an object with 'path' and 'scale'.")
    path = fields.text("path", shortest=1, longest=1024, required=True)
    scale = fields.number("scale", low=0, high=4, default=LORA_SCALE_DEFAULT)
    try:
        return Lora(path=path.take(value), scale=scale.take(value))
    except InvalidRequest as refused:
        refused.field = f"{name}.{refused.field}"
        raise


HOOK_URL = fields.url(
    "extra.webhook.url",
    https_only=True,
    meaning="told once when the task ends; required with extra.webhook",
    canonical="webhook",
)
HOOK_TEST = fields.boolean(
    "extra.webhook.test_mode.enabled",
    meaning="nothing is generated, one mock event is sent, nothing is charged",
    canonical="webhook",
)
HOOK_STATUS = fields.choice(
    "extra.webhook.test_mode.return_task_status",
    tuple(TEST_STATUSES),
    default=TEST_STATUS_DEFAULT,
    meaning="what the mock event reports",
    canonical="webhook",
)
HOOK = (HOOK_URL, HOOK_TEST, HOOK_STATUS)


def _webhook(body: Mapping[str, Any]) -> WebhookTarget | None:
    if fields.lookup(body, "extra.webhook") is None:
        return None
    url = HOOK_URL.take(body)
    tested = fields.lookup(body, "extra.webhook.test_mode") is not None
    status = TEST_STATUSES[HOOK_STATUS.take(body)]
    test_status = status if tested and HOOK_TEST.take(body) else None
    return WebhookTarget(url=url, format="novita", test_status=test_status)


# -------------------------------------------------------------------- Wan 2.1

MODEL_NAME = fields.choice(
    "model_name", ("wan2.1-i2v",), meaning="the older page requires it"
)
IMAGE_URL = fields.picture("image_url", required=True, meaning="the first frame")
PROMPT = fields.text(
    "prompt", required=True, shortest=1, longest=2000, canonical="prompt"
)
NEGATIVE = fields.text("negative_prompt", longest=2000, canonical="negative_prompt")
WIDTH = fields.integer(
    "width",
    choices=(480, 720, 832, 1280),
    default=832,
    meaning="with height chooses sharpness; the picture keeps its shape",
    canonical="tier",
)
HEIGHT = fields.integer(
    "height", choices=(480, 720, 832, 1280), default=480, canonical="tier"
)
SEED = fields.integer(
    "seed",
    low=SEED_RANGE[0],
    high=SEED_RANGE[1],
    default=-1,
    meaning="-1 is random; above 2147483647 it is taken modulo 2147483648",
    canonical="seed",
)
STEPS = fields.integer("steps", low=1, high=40, canonical="steps", rule="1 to 40 (30)")
GUIDANCE = fields.number(
    "guidance_scale", low=0, high=10, canonical="guidance_scale", rule="0 to 10 (5.0)"
)
SHIFT = fields.number("flow_shift", low=1, high=10, default=5.0, canonical="flow_shift")
SAFETY = fields.boolean(
    "enable_safety_checker", default=True, canonical="safety_checker"
)
FAST = fields.boolean(
    "fast_mode", default=False, meaning="fewer steps", canonical="quality"
)
LORAS = fields.items(
    "loras",
    _lora,
    longest=3,
    kind="array of {path, scale}",
    rule="at most 3, scale 0 to 4",
    canonical="loras",
)
WAN_21_FIELDS = (
    MODEL_NAME,
    IMAGE_URL,
    PROMPT,
    NEGATIVE,
    WIDTH,
    HEIGHT,
    SEED,
    STEPS,
    GUIDANCE,
    SHIFT,
    SAFETY,
    FAST,
    LORAS,
    *HOOK,
)


def create_wan_21(wire: WireRequest, models: ModelLookup) -> Create:
    body = fields.object_of(wire.body)
    MODEL_NAME.find(body)
    with fields.wire_names(WAN_21_FIELDS):
        return Create(
            JobRequest.build(
                _known(models, "wan2.1-i2v"),
                image=IMAGE_URL.take(body),
                tier=_tier(body),
                prompt=PROMPT.take(body),
                negative_prompt=NEGATIVE.find(body),
                seed=fold_seed(SEED.take(body)),
                steps=STEPS.find(body),
                guidance_scale=GUIDANCE.find(body),
                flow_shift=SHIFT.take(body),
                safety_checker=SAFETY.take(body),
                quality="fast" if FAST.take(body) else None,
                loras=LORAS.find(body) or None,
                webhook=_webhook(body),
            )
        )


def fold_seed(seed: int) -> int | None:
    """Return the seed used for a 64-bit ``seed``; None asks for a random one.

    >>> fold_seed(-1), fold_seed(42), fold_seed(9_999_999_999)
    (None, 42, 1410065407)
    """
    return None if seed == -1 else seed % (SEED_MAX + 1)


def _tier(body: Mapping[str, Any]) -> str:
    if not (WIDTH.is_given(body) and HEIGHT.is_given(body)):
        # The newer page: if either is missing, both take their default.
        for side in (WIDTH, HEIGHT):
            side.find(body)
        return SIZES[(832, 480)]
    pair = (WIDTH.take(body), HEIGHT.take(body))
    if pair not in SIZES:
        known = ", ".join(f"{width}x{height}" for width, height in SIZES)
        raise InvalidRequest("width", f"width x height must be one of {known}.")
    return SIZES[pair]


# ------------------------------------------------------- Wan 2.2 and 2.5: nested


@dataclasses.dataclass(frozen=True)
class _Sibling:
    """The fields of one newer call; None where that call has no such field."""

    model: str
    image: fields.Reader[Any]
    prompt: fields.Reader[str]
    negative: fields.Reader[str]
    resolution: fields.Reader[str]
    duration: fields.Reader[int]
    extend: fields.Reader[bool]
    watermark: fields.Reader[bool]
    seed: fields.Reader[int]
    audio: fields.Reader[bool] | None = None
    audio_url: fields.Reader[str] | None = None
    shot_type: fields.Reader[str] | None = None
    last_image: fields.Reader[Any] | None = None
    first_clip: fields.Reader[str] | None = None
    template: fields.Reader[str] | None = None

    @property
    def readers(self) -> tuple[fields.Reader[Any], ...]:
        own = (getattr(self, field.name) for field in dataclasses.fields(self))
        return (*(one for one in own if isinstance(one, fields.Reader)), *HOOK)

    def create(self, wire: WireRequest, models: ModelLookup) -> Create:
        body = fields.object_of(wire.body)
        if self.first_clip is not None and self.first_clip.is_given(body):
            raise InvalidRequest(
                self.first_clip.name, "Continuing a clip is not supported."
            )
        with fields.wire_names(self.readers, audio__url=_name_of(self.audio_url)):
            return Create(
                JobRequest.build(
                    _known(models, self.model),
                    image=self.image.take(body),
                    last_image=self.last_image and self.last_image.find(body),
                    tier=self.resolution.take(body).lower(),
                    seconds=self.duration.take(body),
                    prompt=self.prompt.find(body),
                    negative_prompt=self.negative.find(body),
                    prompt_expansion=self.extend.take(body),
                    watermark=self.watermark.take(body),
                    seed=self.seed.find(body),
                    shot_type=self.shot_type and self.shot_type.find(body),
                    effect=self.template and self.template.find(body),
                    audio=self._sound(body),
                    webhook=_webhook(body),
                )
            )

    def _sound(self, body: Mapping[str, Any]) -> Sound | None:
        """Return the sound asked for; None leaves it to the model.

        ``audio: false`` wins over a URL, as DashScope's page has it for these models.
        """
        wanted = self.audio.find(body) if self.audio else None
        url = self.audio_url.find(body) if self.audio_url else None
        if wanted is False:
            return Sound()
        if url:
            return Sound("url", url)
        return Sound("generate") if wanted else None


def _name_of(reader: fields.Reader[Any] | None) -> str:
    return reader.name if reader else "audio"


def _nested(model: str, **changes: Any) -> _Sibling:
    facts: dict[str, Any] = {
        "image": fields.picture("input.img_url", required=True),
        "prompt": fields.text("input.prompt", longest=2000, canonical="prompt"),
        "negative": fields.text(
            "input.negative_prompt", longest=500, canonical="negative_prompt"
        ),
        "extend": fields.boolean(
            "parameters.prompt_extend", default=True, canonical="prompt_expansion"
        ),
        "watermark": fields.boolean(
            "parameters.watermark", default=False, canonical="watermark"
        ),
        "seed": fields.integer(
            "parameters.seed", low=0, high=SEED_MAX, canonical="seed"
        ),
    }
    return _Sibling(model=model, **facts | changes)


def _flat(model: str, **changes: Any) -> _Sibling:
    facts: dict[str, Any] = {
        "image": fields.picture("image_url", required=True),
        "prompt": fields.text("prompt", longest=5000, canonical="prompt"),
        "negative": fields.text(
            "negative_prompt", longest=500, canonical="negative_prompt"
        ),
        "resolution": fields.choice(
            "resolution",
            ("720P", "1080P"),
            default="1080P",
            any_case=True,
            canonical="tier resolution",
        ),
        "duration": fields.integer(
            "duration", low=2, high=15, default=5, canonical="seconds"
        ),
        "extend": fields.boolean(
            "prompt_extend", default=True, canonical="prompt_expansion"
        ),
        "watermark": fields.boolean("watermark", default=False, canonical="watermark"),
        "seed": fields.integer("seed", low=0, high=SEED_MAX, canonical="seed"),
        "last_image": fields.picture("last_frame_url", canonical="last_image"),
        "first_clip": fields.text("first_clip_url", rule="refused: not supported"),
        "audio_url": fields.url("driving_audio_url", canonical="audio"),
    }
    return _Sibling(model=model, **facts | changes)


def _resolution(*choices: str) -> fields.Reader[str]:
    return fields.choice(
        "parameters.resolution",
        choices,
        default="1080P",
        any_case=True,
        canonical="tier resolution",
    )


def _duration(*choices: int) -> fields.Reader[int]:
    return fields.integer(
        "parameters.duration", choices=choices, default=5, canonical="seconds"
    )


WAN_22_CALL = _nested(
    WAN_22,
    prompt=fields.text("input.prompt", longest=800, canonical="prompt"),
    resolution=_resolution("480P", "1080P"),
    duration=_duration(5),
)
WAN_25_CALL = _nested(
    "wan2.5-i2v-preview",
    resolution=_resolution("480P", "720P", "1080P"),
    duration=_duration(5, 10),
    audio=fields.boolean("parameters.audio", canonical="audio", rule="(true)"),
    audio_url=fields.url("input.audio_url", canonical="audio"),
)
WAN_26_CALL = _nested(
    "wan2.6-i2v",
    resolution=_resolution("720P", "1080P"),
    duration=_duration(5, 10, 15),
    audio=fields.boolean("parameters.audio", canonical="audio", rule="(true)"),
    audio_url=fields.url("input.audio_url", canonical="audio"),
    shot_type=fields.choice(
        "parameters.shot_type",
        ("single", "multi"),
        default="single",
        canonical="shot_type",
    ),
    template=fields.text(
        "input.template",
        longest=100,
        blank_is_absent=True,
        meaning="an effect; the prompt is then ignored",
        canonical="effect",
    ),
)
#: The 2.6 page shows the nested body; clients that use 2.7's flat one are taken too.
WAN_26_FLAT_CALL = _flat(
    "wan2.6-i2v",
    prompt=fields.text("prompt", longest=2000, canonical="prompt"),
)
WAN_27_CALL = _flat("wan2.7-i2v")


def create_wan_26(wire: WireRequest, models: ModelLookup) -> Create:
    body = fields.object_of(wire.body)
    call = WAN_26_CALL if "input" in body else WAN_26_FLAT_CALL
    return call.create(wire, models)


def _known(models: ModelLookup, name: str) -> Any:
    model = models(name)
    if model is None:
        raise ModelUnavailable(name)
    return model


# ----------------------------------------------------------------------- reads

TASK_ID = fields.text("task_id", shortest=1, longest=200, required=True)


def read_task_id(wire: WireRequest, models: ModelLookup) -> OneJob:
    return OneJob(TASK_ID.take(wire.query))


def ask(wire: WireRequest, models: ModelLookup) -> Ask:
    return Ask()


def show_created(view: JobView, wire: WireRequest) -> WireResponse:
    return WireResponse(200, {"task_id": view.id})


def show_task(view: JobView, wire: WireRequest) -> WireResponse:
    return WireResponse(200, task_result(view))


def show_user(balance: BalanceView, wire: WireRequest) -> WireResponse:
    units = balance.available_millicredits // MILLICREDITS_PER_UNIT
    return WireResponse(
        200, {"allow_features": [], "credit_balance": units, "free_trial": {}}
    )


def task_result(view: JobView) -> dict[str, Any]:
    """Return the task-result object, the same in an answer and in a webhook."""
    return {
        "extra": _extra(view),
        "task": {
            "task_id": view.id,
            "task_type": TASK_TYPE,
            "status": STATUSES[view.status],
            "reason": _reason(view),
            "eta": 0 if view.is_finished else max(0, round(view.eta_seconds or 0)),
            "progress_percent": _percent(view),
        },
        "images": [],
        "videos": _videos(view),
        "audios": [],
    }


def _extra(view: JobView) -> dict[str, Any]:
    extra: dict[str, Any] = {"enable_nsfw_detection": view.request.safety_checker}
    moments = (view.created_at, view.started_at, view.finished_at)
    if None not in moments:
        # novita-client's parser wants all three times or no debug_info at all.
        names = ("submit_time_ms", "execute_time_ms", "complete_time_ms")
        extra["debug_info"] = {"request_info": ""} | {
            name: str(int(moment.timestamp() * 1000))
            for name, moment in zip(names, moments, strict=True)
            if moment is not None
        }
    seed = view.resolved.get("seed", view.request.seed)
    if seed is not None:
        extra["seed"] = str(seed)
    return extra


def _videos(view: JobView) -> list[dict[str, str]]:
    if view.status != "succeeded" or not view.video_url:
        return []
    return [
        {
            "video_url": view.video_url,
            "video_url_ttl": str(URL_SECONDS),
            "video_type": "mp4",
        }
    ]


def _reason(view: JobView) -> str:
    if view.status == "canceled":
        return CANCELED_REASON
    return view.error.message if view.error else ""


def _percent(view: JobView) -> int:
    if view.status == "succeeded":
        return 100
    return min(99, max(0, int(view.progress * 100)))


# --------------------------------------------------------------------- webhook


def webhook(event: Event, secrets: Mapping[str, str]) -> SignedCall:
    """Return the ASYNC_TASK_RESULT call; Novita documents no signature."""
    payload = task_result(event.job)
    target = event.job.request.webhook
    if target is not None:
        payload["extra"]["webhook"] = {"url": target.url}
    body = {"event_type": "ASYNC_TASK_RESULT", "payload": payload}
    return SignedCall(
        json.dumps(body).encode(), headers={"content-type": "application/json"}
    )


# ---------------------------------------------------------------------- errors

_REASONS: tuple[tuple[type[ApiError], str, int], ...] = (
    (RouteNotFound, "API_NOT_FOUND", 404),
    (NotFound, "TASK_NOT_FOUND", 404),
    (MethodNotAllowed, "API_NOT_FOUND", METHOD_STATUS),
    (InsufficientCredits, "BILLING_BALANCE_NOT_ENOUGH", BALANCE_STATUS),
    (SpendCapReached, "BILLING_BALANCE_NOT_ENOUGH", BALANCE_STATUS),
    (QuotaExhausted, "BILLING_BALANCE_NOT_ENOUGH", BALANCE_STATUS),
    (Forbidden, "FEATURE_NOT_ALLOWED", 403),
    (RateLimited, "RATE_LIMIT_EXCEEDED", 429),
    (PayloadTooLarge, "IMAGE_FILE_EXCEEDS_MAX_SIZE", 400),
    (IdempotencyInFlight, "IDEMPOTENCY_IN_FLIGHT", 409),
    (ModelUnavailable, "CREATE_TASK_FAILED", 500),
    (NotImplementedHere, "API_NOT_FOUND", 404),
    (InternalError, "TASK_FAILED", 500),
)


def error(refused: ApiError, wire: WireRequest) -> WireResponse:
    reason, status = _phrase(refused, wire)
    # An unknown effect is found after parsing, under our name for it.
    field = "input.template" if refused.field == "effect" else refused.field
    message = refused.message
    if field and field not in message:
        message = f"{field}: {message}"
    metadata = {"trace_id": wire.request_id} if wire.request_id else {}
    body = {"code": status, "reason": reason, "message": message, "metadata": metadata}
    return WireResponse(status, body)


def _phrase(refused: ApiError, wire: WireRequest) -> tuple[str, int]:
    if isinstance(refused, Unauthenticated):
        if key_of(wire.headers) is None:
            return "MISSING_API_KEY", 400
        return "INVALID_API_KEY", 403
    if isinstance(refused, ServiceUnavailable):
        creating = wire.operation is Operation.CREATE
        return ("CREATE_TASK_FAILED" if creating else "GET_RESULT_FAILED"), 500
    for kind, reason, status in _REASONS:
        if isinstance(refused, kind):
            return reason, status
    if isinstance(refused, InvalidRequest):
        return _invalid(refused), 400
    return "INVALID_REQUEST_BODY", 400


def _invalid(refused: InvalidRequest) -> str:
    """Return the reason for a wrong field; unusable picture bytes have their own."""
    match refused.__cause__:
        case PictureSizeRejected(is_too_large=True):
            return "IMAGE_EXCEEDS_MAX_RESOLUTION"
        case PictureSizeRejected():
            return "INVALID_IMAGE_SIZE"
        case InputRejected(code="invalid_image" | "image_format_unsupported"):
            return "INVALID_IMAGE_FORMAT"
        case _:
            return "INVALID_REQUEST_BODY"


def key_of(headers: Mapping[str, str]) -> str | None:
    """Return the key: ``Bearer <key>``, or bare as the JavaScript SDK sends it."""
    value = headers.get("authorization", "").strip()
    scheme, _, rest = value.partition(" ")
    if scheme.lower() == "bearer":
        value = rest.strip()
    return value or None


# ----------------------------------------------------------------------- table

Parser = Callable[[WireRequest, ModelLookup], Create]


def _create(path: str, parse: Parser, *readers: fields.Reader[Any]) -> Route:
    return Route(
        "POST",
        path,
        Operation.CREATE,
        parse,
        show_created,
        scope="jobs:write",
        summary="Start an image-to-video task",
        fields=fields.rows(*readers),
    )


DIALECT = Dialect(
    name="novita",
    title="Novita",
    prefixes=("/v3",),
    routes=(
        _create("/v3/async/wan-i2v", create_wan_21, *WAN_21_FIELDS),
        _create("/v3/async/wan-2.2-i2v", WAN_22_CALL.create, *WAN_22_CALL.readers),
        _create(
            "/v3/async/wan-2.5-i2v-preview", WAN_25_CALL.create, *WAN_25_CALL.readers
        ),
        _create(
            "/v3/async/wan2.6-i2v",
            create_wan_26,
            *WAN_26_CALL.readers,
            *WAN_26_FLAT_CALL.readers[: -len(HOOK)],
        ),
        _create("/v3/async/wan2.7-i2v", WAN_27_CALL.create, *WAN_27_CALL.readers),
        Route(
            "GET",
            "/v3/async/task-result",
            Operation.STATUS,
            read_task_id,
            show_task,
            summary="State and result of a task",
            fields=fields.rows(TASK_ID),
        ),
        Route(
            "GET",
            "/v3/user",
            Operation.BALANCE,
            ask,
            show_user,
            scope="billing:read",
            summary="Credit balance",
        ),
    ),
    error=error,
    url_seconds=URL_SECONDS,
    key_of=key_of,
    webhook=webhook,
)
