"""Akool's wire format: image2Video v4, its token call, quota, models and webhook.

Facts come from docs.akool.com and from AKOOL-Official's image-to-video demo. Business
errors ride in HTTP 200 with a ``code`` other than 1000; ``_ids`` is one comma-joined
string; letter case in paths matters.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets as random
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from inference.catalogue import Feature, PublicModel
from jobs.dialects import fields
from jobs.dialects.base import (
    AddAudio,
    Ask,
    BalanceView,
    Create,
    CreateMany,
    Dialect,
    EffectsPage,
    Event,
    JobView,
    ManyJobs,
    ManyResult,
    ModelLookup,
    ModelView,
    Operation,
    Route,
    SignedCall,
    Token,
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
    NotAcceptableNow,
    NotFound,
    NotImplementedHere,
    QuotaExhausted,
    RateLimited,
    RouteNotFound,
    ServiceUnavailable,
    SpendCapReached,
    Unauthenticated,
)
from jobs.requests import JobRequest, Sound, WebhookTarget

# ---------------------------------------------------------------- our choices
# What Akool's pages leave open. Change a line here and nothing else.

#: No page says how "10 s or premium without a Pro plan" is refused.
PLAN_CODE = 1009
#: Third parties saw both 1006 and 1104 when credits were short.
CREDITS_CODE = 1006
#: "Too frequent" as third parties saw it.
THROTTLE_CODE = 1005
#: Ids nobody knows are left out; when none is known the whole call is refused.
UNKNOWN_CODE = 1008
#: HTTP is 200 for every business error; paths and methods that do not exist are none.
ROUTE_STATUS, METHOD_STATUS, OUTAGE_STATUS = 404, 405, 503
#: A failed item's reason has no documented field; extra fields are safe.
REASON_FIELD = "error_msg"
#: ``type`` of a webhook about an image2Video job.
WEBHOOK_TYPE = "image2video"
#: The documented words for a job being worked on. Queued ones are canceled and refunded.
BUSY_MESSAGE = "video resource is processing, please try again later"
FOREIGN_MESSAGE = "You do not have permission to operate"
#: Most ids one call may name.
IDS_MAX = 100
#: The demo's name of the model that every plan may use, for ours.
MODEL_NAMES = {"AkoolImage2VideoFastV1": "akool-i2v"}
#: What third parties saw for an array or a wrong key; we give it the parameter code.
RESULTS_FAILED = "Failed to get results"

# ------------------------------------------------------------------- documented

OK = 1000
PARAMETER, EMPTY_AUTH, BAD_TOKEN, BAD_KEY = 1003, 1102, 1101, 1109
FORBIDDEN, CREATE_FAILED = 1009, 1015
URL_SECONDS = 7 * 86400
MODEL = "akool-i2v"
IMAGE_TO_VIDEO = "1501"
STATUSES = {"queued": 1, "running": 2, "succeeded": 3, "failed": 4, "canceled": 4}
AI_SOUND, OWN_SOUND, NO_SOUND = 1, 2, 3


# ---------------------------------------------------------------------- create

IMAGE_URL = fields.picture("image_url", required=True, meaning="the first frame")
PROMPT = fields.text(
    "prompt", meaning="required; ignored with effect_code", canonical="prompt"
)
NEGATIVE = fields.text(
    "negative_prompt",
    required=True,
    rule="may be empty",
    canonical="negative_prompt",
)
EXTEND = fields.boolean("extend_prompt", default=False, canonical="prompt_expansion")
RESOLUTION = fields.choice(
    "resolution",
    ("720p", "1080p", "4k"),
    required=True,
    any_case=True,
    canonical="resolution tier",
)
AUDIO_TYPE = fields.integer(
    "audio_type",
    choices=(AI_SOUND, OWN_SOUND, NO_SOUND),
    required=True,
    meaning="1 made for the video, 2 your audio_url, 3 none",
    canonical="audio audio.mode",
)
AUDIO_URL = fields.url(
    "audio_url", meaning="required when audio_type is 2", canonical="audio.url"
)
LENGTH = fields.integer(
    "video_length",
    choices=(5, 10),
    required=True,
    meaning="10 needs a pro plan",
    canonical="seconds",
)
PREMIUM = fields.boolean(
    "is_premium_model", default=False, meaning="needs a pro plan", canonical="premium"
)
EFFECT = fields.text(
    "effect_code", longest=100, blank_is_absent=True, canonical="effect"
)
WEBHOOK = fields.url(
    "webhookurl",
    https_only=True,
    meaning="lower-case u; called when the job ends",
    canonical="webhook",
)
CREATE_FIELDS = (
    IMAGE_URL,
    PROMPT,
    NEGATIVE,
    EXTEND,
    RESOLUTION,
    AUDIO_TYPE,
    AUDIO_URL,
    LENGTH,
    PREMIUM,
    EFFECT,
    WEBHOOK,
)


def create(wire: WireRequest, models: ModelLookup) -> Create:
    body = fields.object_of(wire.body)
    with fields.wire_names(CREATE_FIELDS):
        return Create(
            JobRequest.build(
                _known(models, MODEL),
                image=IMAGE_URL.take(body),
                tier=RESOLUTION.take(body),
                seconds=LENGTH.take(body),
                audio=_sound(body, AUDIO_TYPE.take(body)),
                negative_prompt=NEGATIVE.take(body),
                **_common(body),
            )
        )


def _common(body: Mapping[str, Any]) -> dict[str, Any]:
    prompt, extend = _prompt(body), EXTEND.take(body)
    hook = WEBHOOK.find(body)
    return {
        "prompt": prompt,
        "prompt_expansion": extend,
        "premium": PREMIUM.take(body),
        "effect": EFFECT.find(body),
        "webhook": WebhookTarget(hook, format="akool") if hook else None,
        # An effect puts its own text in the prompt's place; the answer repeats theirs.
        "echo": {
            "prompt": prompt,
            "negative_prompt": NEGATIVE_TEXT.find(body) or "",
            "extend_prompt": extend,
        },
    }


def _prompt(body: Mapping[str, Any]) -> str:
    prompt = PROMPT.find(body) or ""
    if not prompt.strip() and not EFFECT.is_given(body):
        raise InvalidRequest(PROMPT.name, "Parameter cannot be empty.")
    return prompt


def _sound(body: Mapping[str, Any], kind: int) -> Sound:
    if kind == OWN_SOUND:
        return Sound("url", AUDIO_URL.take(body))
    return Sound("generate" if kind == AI_SOUND else "none")


def _known(models: ModelLookup, name: str) -> PublicModel:
    model = models(name)
    if model is None:
        raise ModelUnavailable(name)
    return model


# ----------------------------------------------------------------------- batch

NEGATIVE_TEXT = fields.text("negative_prompt", canonical="negative_prompt")
MODEL_NAME = fields.text(
    "model_name",
    longest=100,
    default=MODEL,
    blank_is_absent=True,
    rule="a value of aigModel/list",
    canonical="model",
)
LAST_IMAGE = fields.picture(
    "last_image_url", canonical="last_image", blank_is_absent=True
)
BATCH_RESOLUTION = fields.text(
    "resolution", required=True, rule="by model", canonical="resolution tier"
)
BATCH_LENGTH = fields.integer(
    "video_length", required=True, low=1, high=60, rule="by model", canonical="seconds"
)
BATCH_AUDIO = fields.boolean("generate_audio", default=False, canonical="audio")
BATCH_AUDIO_TYPE = fields.integer(
    "audio_type",
    choices=(AI_SOUND, OWN_SOUND, NO_SOUND),
    meaning="not on the page, but Akool's own demo sends it; wins over generate_audio",
    canonical="audio.mode",
)
COUNT = fields.integer("count", low=1, high=10, default=1, meaning="copies to make")
BATCH_FIELDS = (
    IMAGE_URL,
    PROMPT,
    MODEL_NAME,
    NEGATIVE_TEXT,
    EXTEND,
    BATCH_RESOLUTION,
    BATCH_LENGTH,
    LAST_IMAGE,
    BATCH_AUDIO,
    BATCH_AUDIO_TYPE,
    AUDIO_URL,
    PREMIUM,
    EFFECT,
    COUNT,
    WEBHOOK,
)


def create_batch(wire: WireRequest, models: ModelLookup) -> CreateMany:
    body = fields.object_of(wire.body)
    name = MODEL_NAME.take(body)
    model = models(MODEL_NAMES.get(name, name))
    if model is None:
        raise InvalidRequest(MODEL_NAME.name, "Not a value of aigModel/list.")
    count = COUNT.take(body)
    common = _common(body)
    common["echo"] |= {"model_name": name, "batch_count": count}
    with fields.wire_names(BATCH_FIELDS):
        request = JobRequest.build(
            model,
            image=IMAGE_URL.take(body),
            last_image=LAST_IMAGE.find(body),
            tier=BATCH_RESOLUTION.take(body).lower(),
            seconds=BATCH_LENGTH.take(body),
            audio=_sound(body, _batch_sound(body)),
            negative_prompt=NEGATIVE_TEXT.find(body),
            **common,
        )
    return CreateMany((request,) * count)


def _batch_sound(body: Mapping[str, Any]) -> int:
    kind = BATCH_AUDIO_TYPE.find(body)
    if kind is not None:
        return kind
    return AI_SOUND if BATCH_AUDIO.take(body) else NO_SOUND


# ----------------------------------------------------------------- other calls

PRE_VIDEO = fields.text(
    "pre_video_id", shortest=1, longest=64, required=True, meaning="a finished job"
)
NEW_AUDIO = fields.integer(
    "audio_type", choices=(AI_SOUND, OWN_SOUND), required=True, canonical="audio.mode"
)
CLIENT_ID = fields.text("clientId", shortest=1, longest=200, required=True)
CLIENT_SECRET = fields.text("clientSecret", shortest=1, longest=200, required=True)


def add_audio(wire: WireRequest, models: ModelLookup) -> AddAudio:
    body = fields.object_of(wire.body)
    return AddAudio(PRE_VIDEO.take(body), _sound(body, NEW_AUDIO.take(body)))


def read_ids(wire: WireRequest, models: ModelLookup) -> ManyJobs:
    body = fields.object_of(wire.body)
    given = body.get("_ids")
    names = given.split(",") if isinstance(given, str) else []
    ids = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not ids or len(ids) > IDS_MAX:
        raise InvalidRequest("_ids", RESULTS_FAILED)
    return ManyJobs(ids)


def read_token(wire: WireRequest, models: ModelLookup) -> Token:
    body = fields.object_of(wire.body)
    return Token(CLIENT_ID.take(body), CLIENT_SECRET.take(body))


def ask(wire: WireRequest, models: ModelLookup) -> Ask:
    return Ask()


def ask_models(wire: WireRequest, models: ModelLookup) -> Ask:
    types = wire.query.get("types[]") or wire.query.get("types") or ""
    return Ask({"types": types})


# --------------------------------------------------------------------- answers


def _ok(data: object, msg: str = "OK") -> WireResponse:
    return WireResponse(200, {"code": OK, "msg": msg, "data": data})


def show_created(view: JobView, wire: WireRequest) -> WireResponse:
    return _ok(record(view))


def show_batch(result: ManyResult, wire: WireRequest) -> WireResponse:
    if not result.jobs:
        for refused in result.errors.values():
            raise refused
    # Derived, not stored: the same batch answers the same id.
    named = ",".join(view.id for view in result.jobs)
    batch_id = hashlib.sha256(named.encode()).hexdigest()[:24]
    return _ok(
        {
            "successList": [
                record(view)
                | {
                    "model_name": view.request.echo.get("model_name", MODEL),
                    "batch_id": batch_id,
                    "batch_count": view.request.echo.get("batch_count", 1),
                }
                for view in result.jobs
            ],
            "errorList": [
                {"code": code_of(refused, wire), "msg": said(refused)}
                for refused in result.errors.values()
            ],
        }
    )


def show_results(result: ManyResult, wire: WireRequest) -> WireResponse:
    if not result.jobs:
        return WireResponse(200, {"code": UNKNOWN_CODE, "msg": CONTENT_UNKNOWN})
    return _ok({"result": [result_item(view) for view in result.jobs]})


def show_deleted(result: ManyResult, wire: WireRequest) -> WireResponse:
    refused = [
        {"_id": name, "msg": _delete_message(cause)}
        for name, cause in result.errors.items()
    ]
    foreign = [{"_id": name, "msg": FOREIGN_MESSAGE} for name in result.missing]
    return _ok(
        {
            "successIds": [view.id for view in result.jobs],
            "noPermissionItems": refused + foreign,
        },
        msg="Delete successfully",
    )


def _delete_message(cause: ApiError) -> str:
    return BUSY_MESSAGE if isinstance(cause, NotAcceptableNow) else FOREIGN_MESSAGE


def show_audio_job(view: JobView, wire: WireRequest) -> WireResponse:
    return _ok(record(view) | _progressed(view))


def show_quota(balance: BalanceView, wire: WireRequest) -> WireResponse:
    return _ok({"credit": balance.available_millicredits // 1000})


def show_effects(page: EffectsPage, wire: WireRequest) -> WireResponse:
    return _ok(
        {
            "result": [
                {
                    "_id": _hex24(effect.id or effect.code),
                    "create_time": millis(effect.created_at),
                    "logo": effect.logo_url or "",
                    "name": effect.name,
                    "video_url": effect.preview_url or "",
                    "effect_code": effect.code,
                }
                for effect in page.effects
            ],
            "count": page.total,
        }
    )


def show_models(views: Sequence[ModelView], wire: WireRequest) -> WireResponse:
    types = wire.query.get("types[]") or wire.query.get("types") or ""
    if types and IMAGE_TO_VIDEO not in types.split(","):
        return _ok([])
    ranked = sorted(views, key=lambda view: view.name != MODEL)
    return _ok(
        [
            _model(view, sort=len(ranked) - place)
            for place, view in enumerate(ranked)
            if view.available
        ]
    )


def show_token(result: str | ApiError, wire: WireRequest) -> WireResponse:
    if isinstance(result, ApiError):
        return error(result, wire)
    return WireResponse(200, {"code": OK, "token": result})


def _model(view: ModelView, *, sort: int) -> dict[str, Any]:
    model = view.model
    value = next((k for k, v in MODEL_NAMES.items() if v == view.name), view.name)
    credit = math.ceil((view.price_from_millicredits or 0) / 1000)
    sizes = [(tier, model.size_for(16 / 9, tier)) for tier in model.tiers]
    lengths = model.seconds_choices or _whole_seconds(model)
    sound = {
        "required": False,
        "type": True,
        "default": model.audio_default == "generate",
        "extra_credit_multiplier": 1,
    }
    return {
        "sort": sort,
        "group": "image2video",
        "provider": "akool" if view.name == MODEL else "zoetrope",
        "type": int(IMAGE_TO_VIDEO),
        "value": value,
        "name": value,
        "label": model.label,
        "description": model.label,
        "isPro": False,
        "resolutionList": [
            {
                "label": tier,
                "value": tier,
                "width": size.width,
                "height": size.height,
                "unit_credit": credit,
            }
            for tier, size in sizes
        ],
        "durationList": list(lengths),
        "generate_audio": sound,
        "requiresPay": True,
        "supportedLastFrame": model.offers(Feature.LAST_IMAGE),
        "supportedExtendPrompt": True,
        "maxImageCount": 1,
        "maxCount": COUNT_MAX,
    }


COUNT_MAX = 10


def _whole_seconds(model: PublicModel) -> list[int]:
    """Return the usual lengths a model of free length can make."""
    low, high = model.frames_min / model.fps, model.frames_max / model.fps
    return [n for n in (5, 10, 15) if low <= n <= high + 0.1] or [max(1, round(high))]


def record(view: JobView) -> dict[str, Any]:
    """Return what the create call answers."""
    request = view.request
    made = millis(view.created_at)
    return {
        "create_time": made,
        "uid": view.account_number,
        "team_id": _hex24(view.account_id),
        "status": STATUSES[view.status],
        "webhookUrl": request.webhook.url if request.webhook else "",
        "resolution": request.tier,
        "file_name": f"Image2Video_{made}.mp4",
        "effect_name": str(view.resolved.get("effect_name") or ""),
        "_id": view.id,
        "image_url": request.image.url or "",
        "prompt": request.echo.get("prompt", request.prompt),
        "negative_prompt": request.echo.get("negative_prompt", request.negative_prompt),
        "extend_prompt": request.echo.get("extend_prompt", request.prompt_expansion),
        "audio_type": {"generate": AI_SOUND, "url": OWN_SOUND}.get(
            request.audio.mode, NO_SOUND
        ),
        "audio_url": request.audio.url or "",
        "deduction_credit": math.ceil(view.shown_millicredits / 1000),
        "effect_code": request.effect or "",
    }


def result_item(view: JobView) -> dict[str, Any]:
    """Return one entry of resultsByIds."""
    item = record(view) | _progressed(view)
    item["video_url"] = view.video_url or ""
    if view.status in ("failed", "canceled"):
        item[REASON_FIELD] = view.error.message if view.error else "Canceled"
    return item


def _progressed(view: JobView) -> dict[str, Any]:
    moment = view.finished_at or view.started_at or view.created_at
    seconds = round(float(view.output.get("seconds") or 0), 3)
    added = {"pre_video_id": view.source_id or ""} if view.kind == "audio" else {}
    return {
        "update_time": millis(moment),
        "video_duration": int(seconds) if seconds.is_integer() else seconds,
        "only_add_audio": view.kind == "audio",
        **added,
    }


def millis(moment: datetime | None) -> int:
    return int(moment.timestamp() * 1000) if moment else 0


def _hex24(name: str) -> str:
    """Return 24 hexadecimal digits that stand for ``name``, as Akool's ids look."""
    return hashlib.sha256(name.encode()).hexdigest()[:24]


def new_id() -> str:
    """Return an id like theirs: seconds, then 16 random hexadecimal digits."""
    return f"{int(time.time()):08x}{random.token_hex(8)}"


# --------------------------------------------------------------------- webhook


def webhook(event: Event, secrets: Mapping[str, str]) -> SignedCall:
    """Return the encrypted, signed call; ``secrets`` holds client_id, client_secret."""
    view = event.job
    plain: dict[str, Any] = {
        "_id": view.id,
        "status": STATUSES[view.status],
        "type": WEBHOOK_TYPE,
    }
    if view.status == "succeeded":
        plain["url"] = view.video_url or ""
    # A repeated delivery must be the same call, so nothing in it is drawn anew.
    nonce = int(hashlib.sha256(event.id.encode()).hexdigest(), 16) % 9000 + 1000
    body = sealed(
        json.dumps(plain, separators=(",", ":"), ensure_ascii=False),
        client_id=secrets["client_id"],
        client_secret=secrets["client_secret"],
        timestamp=millis(event.created_at),
        nonce=str(nonce),
    )
    return SignedCall(
        json.dumps(body).encode(), headers={"content-type": "application/json"}
    )


def sealed(
    plaintext: str, *, client_id: str, client_secret: str, timestamp: int, nonce: str
) -> dict[str, Any]:
    """Return the webhook body for ``plaintext``.

    AES-CBC with PKCS#7: the key is the secret (24 or 32 characters), the vector the
    client id (16 characters). The signature is the SHA-1 of four strings, sorted and
    joined; both are the documented scheme.
    """
    padder = padding.PKCS7(algorithms.AES.block_size).padder()
    padded = padder.update(plaintext.encode()) + padder.finalize()
    cipher = Cipher(
        algorithms.AES(client_secret.encode()), modes.CBC(client_id.encode())
    ).encryptor()
    sealed_data = b64encode(cipher.update(padded) + cipher.finalize()).decode()
    parts = sorted([client_id, str(timestamp), nonce, sealed_data])
    return {
        "signature": hashlib.sha1("".join(parts).encode()).hexdigest(),  # noqa: S324 the documented scheme
        "dataEncrypt": sealed_data,
        "timestamp": timestamp,
        "nonce": nonce,
    }


# ---------------------------------------------------------------------- errors

CONTENT_UNKNOWN = "The content you get does not exist"
#: kind → code, documented words (ours when None), HTTP status
_CODES: tuple[tuple[type[ApiError], int, str | None, int], ...] = (
    (RouteNotFound, PARAMETER, "No such interface", ROUTE_STATUS),
    (NotImplementedHere, PARAMETER, "No such interface", ROUTE_STATUS),
    (MethodNotAllowed, PARAMETER, None, METHOD_STATUS),
    (NotFound, UNKNOWN_CODE, CONTENT_UNKNOWN, 200),
    (InsufficientCredits, CREDITS_CODE, None, 200),
    (SpendCapReached, CREDITS_CODE, None, 200),
    (QuotaExhausted, CREDITS_CODE, None, 200),
    (Forbidden, PLAN_CODE, None, 200),
    (NotAcceptableNow, FORBIDDEN, None, 200),
    (RateLimited, THROTTLE_CODE, None, 200),
    (IdempotencyInFlight, THROTTLE_CODE, None, 200),
    (ModelUnavailable, CREATE_FAILED, None, 200),
    (ServiceUnavailable, CREATE_FAILED, None, OUTAGE_STATUS),
    (InternalError, CREATE_FAILED, None, OUTAGE_STATUS),
)
#: What is refused after parsing comes under our names.
_WIRE_NAMES = {
    "effect": "effect_code",
    "premium": "is_premium_model",
    "webhook": "webhookurl",
}


def error(refused: ApiError, wire: WireRequest) -> WireResponse:
    status = next(
        (http for kind, _, _, http in _CODES if isinstance(refused, kind)), 200
    )
    if isinstance(refused, Unauthenticated):
        msg = (
            "Authorization cannot be empty"
            if key_of(wire.headers) is None
            else "Invalid authorization or The request token has expired"
        )
    else:
        msg = said(refused)
    return WireResponse(status, {"code": code_of(refused, wire), "msg": msg})


def code_of(refused: ApiError, wire: WireRequest) -> int:
    if isinstance(refused, Unauthenticated):
        if wire.operation is Operation.TOKEN:
            return BAD_TOKEN
        if key_of(wire.headers) is None:
            return EMPTY_AUTH
        return BAD_TOKEN if wire.headers.get("authorization", "").strip() else BAD_KEY
    for kind, code, _, _ in _CODES:
        if isinstance(refused, kind):
            return code
    return PARAMETER


def said(refused: ApiError) -> str:
    for kind, _, words, _ in _CODES:
        if isinstance(refused, kind) and words:
            return words
    if refused.message == RESULTS_FAILED:
        return RESULTS_FAILED
    field = _WIRE_NAMES.get(refused.field or "", refused.field)
    if field and field not in refused.message:
        return f"{field}: {refused.message}"
    return refused.message


def key_of(headers: Mapping[str, str]) -> str | None:
    """Return the key or token; with both headers present Authorization wins."""
    value = headers.get("authorization", "").strip()
    if value:
        scheme, _, rest = value.partition(" ")
        return (rest.strip() if scheme.lower() == "bearer" else value) or None
    return headers.get("x-api-key", "").strip() or None


# ----------------------------------------------------------------------- table

V3, V4 = "/api/open/v3", "/api/open/v4"

DIALECT = Dialect(
    name="akool",
    title="Akool",
    prefixes=("/api/open",),
    routes=(
        Route(
            "POST",
            f"{V4}/image2Video/createBySourcePrompt",
            Operation.CREATE,
            create,
            show_created,
            scope="jobs:write",
            summary="Start an image-to-video job",
            fields=fields.rows(*CREATE_FIELDS),
        ),
        Route(
            "POST",
            f"{V4}/image2Video/createBySourcePrompt/batch",
            Operation.CREATE_MANY,
            create_batch,
            show_batch,
            scope="jobs:write",
            summary="Start up to ten copies",
            fields=fields.rows(*BATCH_FIELDS),
        ),
        Route(
            "POST",
            f"{V4}/image2Video/resultsByIds",
            Operation.STATUS_MANY,
            read_ids,
            show_results,
            summary="State and results of jobs; _ids is a comma-joined string",
        ),
        Route(
            "POST",
            f"{V4}/image2Video/delbyids",
            Operation.DELETE,
            read_ids,
            show_deleted,
            scope="jobs:write",
            summary="Delete finished jobs; _ids is a comma-joined string",
        ),
        Route(
            "POST",
            f"{V4}/image2Video/updateVideoAudio",
            Operation.ADD_AUDIO,
            add_audio,
            show_audio_job,
            scope="jobs:write",
            summary="Add or replace the sound of a finished job",
            fields=fields.rows(PRE_VIDEO, AUDIO_URL, NEW_AUDIO),
        ),
        Route(
            "GET",
            f"{V4}/image2Video/effects",
            Operation.EFFECTS,
            ask,
            show_effects,
            summary="Effects on offer",
        ),
        Route(
            "GET",
            f"{V4}/aigModel/list",
            Operation.MODELS,
            ask_models,
            show_models,
            summary="Models for the batch call",
        ),
        Route(
            "GET",
            f"{V3}/faceswap/quota/info",
            Operation.BALANCE,
            ask,
            show_quota,
            scope="billing:read",
            summary="Credits left",
        ),
        Route(
            "POST",
            f"{V3}/getToken",
            Operation.TOKEN,
            read_token,
            show_token,
            scope=None,
            summary="Exchange clientId and clientSecret for a token",
            fields=fields.rows(CLIENT_ID, CLIENT_SECRET),
        ),
    ),
    error=error,
    url_seconds=URL_SECONDS,
    new_id=new_id,
    key_of=key_of,
    webhook=webhook,
    seals_webhooks=True,
)
