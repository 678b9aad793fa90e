"""Our own API under ``/v1``: the first dialect, and the one that shows everything.

Refusals are RFC 9457 problem documents whose ``errors`` name the field. Options that
are unknown are refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast, get_args

from inference.contracts import AudioMode, Lora
from inference.geometry import Size
from jobs import pictures, strict_json
from jobs.dialects import base, fields
from jobs.dialects.base import (
    AddAudio,
    Ask,
    Create,
    Dialect,
    Field,
    JobsPage,
    JobView,
    ListJobs,
    ManyResult,
    ModelLookup,
    OneJob,
    Operation,
    Route,
    WireRequest,
    WireResponse,
)
from jobs.errors import (
    ApiError,
    InsufficientCredits,
    InvalidRequest,
    RateLimited,
    Unauthenticated,
    UnsupportedOption,
)
from jobs.requests import ASPECT_RATIOS, JobRequest, Picture, Sound, WebhookTarget
from jobs.states import Status

PAGE_DEFAULT = 20
PAGE_MAX = 100
METADATA_KEYS_MAX = 20
METADATA_TEXT_MAX = 500
EVENTS = ("job.running", "job.succeeded", "job.failed", "job.canceled")

# ------------------------------------------------------------------ the request

MODEL = fields.text(
    "model", longest=64, default="motion", meaning="Which public model makes it."
)
PROMPT = fields.text("prompt", meaning="What should happen.", canonical="prompt")
NEGATIVE = fields.text(
    "negative_prompt", meaning="What should not.", canonical="negative_prompt"
)
RESOLUTION = fields.choice(
    "resolution",
    ("480p", "720p", "1080p", "4k"),
    any_case=True,
    meaning="Sharpness; the picture's shape is kept. Default: the model's.",
    canonical="resolution",
)
ASPECT = fields.choice(
    "aspect_ratio",
    ASPECT_RATIOS,
    meaning="Crop the picture to this shape.",
    canonical="aspect_ratio",
)
SECONDS = fields.number("seconds", meaning="Length. Default: the model's.")
FRAMES = fields.integer(
    "frames", low=1, high=10_000, meaning="Length in frames, instead of seconds."
)
FPS = fields.integer("fps", low=1, high=120, meaning="Frames per second.")
SEED = fields.seed("seed", random=-1, meaning="Same seed, same video.")
STEPS = fields.integer("steps", low=1, high=1000, meaning="Denoising steps.")
GUIDANCE = fields.number(
    "guidance_scale", low=0, high=100, meaning="How closely the prompt is followed."
)
GUIDANCE_2 = fields.number(
    "guidance_scale_2", low=0, high=100, meaning="The same for the low-noise expert."
)
SHIFT = fields.number("flow_shift", low=0, high=100, meaning="Noise schedule shift.")
QUALITY = fields.choice(
    "quality", ("quality", "fast"), meaning="fast: fewer steps, less detail."
)
SHOT = fields.choice("shot_type", ("single", "multi"), meaning="One take, or cuts.")
WATERMARK = fields.boolean(
    "watermark", default=False, meaning="A visible “AI Generated” mark."
)
SAFETY = fields.boolean(
    "safety_checker", default=True, meaning="Within what your plan allows."
)
EXPANSION = fields.boolean(
    "prompt_expansion", default=False, meaning="Let us enrich the prompt."
)
EFFECT = fields.text(
    "effect",
    longest=64,
    meaning="An effect template; the prompt is then ignored.",
    blank_is_absent=True,
)
PREMIUM = fields.boolean("premium", meaning="The model's premium variant.")
PRIORITY = fields.integer(
    "priority",
    low=-10,
    high=10,
    meaning="Which of your own waiting jobs gets your next free slot.",
)
RETENTION = fields.integer(
    "retention_seconds",
    low=60,
    high=365 * 86_400,
    meaning="Keep files this long, if your plan keeps them longer.",
)

_PLAIN = (
    *(PROMPT, NEGATIVE, ASPECT, SEED, STEPS, GUIDANCE, GUIDANCE_2, SHIFT, QUALITY),
    *(SHOT, WATERMARK, SAFETY, EXPANSION, EFFECT, PREMIUM, PRIORITY, RETENTION),
)
_READERS = (MODEL, RESOLUTION, SECONDS, FRAMES, FPS, *_PLAIN)
_LORA = {
    "type": "object",
    "required": ["path"],
    "additionalProperties": False,
    "properties": {
        "path": {"type": "string", "minLength": 1, "maxLength": 500},
        "scale": {"type": ["number", "string", "null"]},
        "path_low": {"type": ["string", "null"], "maxLength": 500},
        "scale_low": {"type": ["number", "string", "null"]},
    },
}
_AUDIO = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "mode": {"type": "string", "enum": list(get_args(AudioMode))},
        "url": {"type": ["string", "null"]},
    },
}
_HOOK = {
    "type": "object",
    "required": ["url"],
    "additionalProperties": False,
    "properties": {
        "url": {"type": "string", "format": "uri"},
        "events": {"type": "array", "items": {"type": "string", "enum": list(EVENTS)}},
    },
}
# Forms carry lists and objects as JSON text.
_JSON_TEXT = {"type": "string", "pattern": r"^[\[{]"}
_STRUCTURED = (
    Field("image", "string or file", "URL, data URI, base64, or a file part",
          required=True, meaning="The still to start from.", canonical="image"),
    Field("last_image", "string or file", "as image", meaning="The still to end on.",
          canonical="last_image"),
    Field("size", "string", "WIDTHxHEIGHT, even",
          meaning="Exact size; crops to fill. Where you give no resolution, its area "
          "decides it, and so the price.",
          canonical="size", schema={"pattern": "^[0-9]{1,5}[xX][0-9]{1,5}$"}),
    Field("loras", "array", "{path, scale, path_low, scale_low}",
          meaning="Adapters, where the model takes them.", canonical="loras",
          schema={"anyOf": [{"type": "array", "items": _LORA}, _JSON_TEXT]}),
    Field("audio", "string or object", "none, generate, or {mode, url}",
          meaning="The sound. Default: the model's.", canonical="audio",
          schema={"anyOf": [{"type": "string", "enum": ["none", "generate"]}, _AUDIO,
                            _JSON_TEXT]}),
    Field("webhook", "string or object", "https URL or {url, events}",
          meaning="Told when this job changes.", canonical="webhook",
          schema={"anyOf": [{"type": "string", "format": "uri"}, _HOOK, _JSON_TEXT]}),
    Field("metadata", "object", "at most 20 texts of 500 characters",
          meaning="Kept with the job and shown back.", canonical="metadata",
          schema={"anyOf": [{"type": "object", "maxProperties": METADATA_KEYS_MAX,
                             "propertyNames": {"maxLength": 64},
                             "additionalProperties": {
                                 "type": "string", "maxLength": METADATA_TEXT_MAX}},
                            _JSON_TEXT]}),
)  # fmt: skip
FIELDS = (*fields.rows(*_READERS), *_STRUCTURED)
AUDIO_FIELDS = tuple(
    field for field in _STRUCTURED if field.name in ("audio", "webhook")
)
_KNOWN = frozenset(field.name for field in FIELDS)


def request_of(wire: WireRequest, models: ModelLookup) -> JobRequest:
    body = fields.object_of(wire.body)
    for name in body:
        if name not in _KNOWN:
            raise InvalidRequest(name, "Unknown field.")
    for name in wire.files:
        if name not in ("image", "last_image"):
            raise InvalidRequest(name, "Unknown file part.")
    model = models(MODEL.take(body))
    if model is None:
        raise InvalidRequest("model", "Unknown model; see /v1/models.")
    options = {reader.name: reader.find(body) for reader in _PLAIN}
    image = _picture("image", wire, body)
    if image is None:
        raise InvalidRequest("image", "An image is required.")
    return JobRequest.build(
        model,
        image=image,
        last_image=_picture("last_image", wire, body),
        tier=RESOLUTION.find(body),
        seconds=SECONDS.find(body),
        frames=FRAMES.find(body),
        fps=FPS.find(body),
        size=_size(body.get("size")),
        loras=_loras(_structure("loras", body)),
        audio=_sound(_structure("audio", body)),
        webhook=_webhook(_structure("webhook", body)),
        metadata=_metadata(_structure("metadata", body)),
        **options,
    )


def _picture(name: str, wire: WireRequest, body: Mapping[str, Any]) -> Picture | None:
    if name in wire.files:
        return pictures.from_upload(name, wire.files[name])
    value = body.get(name)
    return None if value is None else pictures.from_text(name, value)


def _structure(name: str, body: Mapping[str, Any]) -> Any:
    """Return an object or list; forms carry them as JSON text."""
    value = body.get(name)
    if isinstance(value, str) and value[:1] in ("{", "["):
        return strict_json.parse(value, where=name)
    return value


def _object(name: str, value: Any, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(name, "Must be an object.")
    for key in value:
        if key not in known:
            raise InvalidRequest(f"{name}.{key}", "Unknown field.")
    return value


def _size(value: Any) -> Size | None:
    if value is None:
        return None
    width, _, height = str(value).lower().partition("x")
    if not (isinstance(value, str) and width.isdecimal() and height.isdecimal()):
        raise InvalidRequest("size", "Must read like 1280x720.")
    if not (
        width.isascii() and height.isascii() and max(map(len, (width, height))) < 6
    ):
        raise InvalidRequest("size", "Must read like 1280x720.")
    return Size(int(width), int(height))


_SCALE = fields.number("scale", low=-4, high=4, default=1.0)
_SCALE_LOW = fields.number("scale_low", low=-4, high=4)
_PATH = fields.text("path", longest=500, shortest=1, required=True)
_PATH_LOW = fields.text("path_low", longest=500)


def _loras(value: Any) -> tuple[Lora, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise InvalidRequest("loras", "Must be an array.")
    found = []
    for place, entry in enumerate(value):
        name = f"loras[{place}]"
        one = _object(name, entry, ("path", "scale", "path_low", "scale_low"))
        try:
            found.append(
                Lora(
                    path=_PATH.take(one),
                    scale=_SCALE.take(one),
                    path_low=_PATH_LOW.find(one),
                    scale_low=_SCALE_LOW.find(one),
                )
            )
        except InvalidRequest as refused:
            refused.field = f"{name}.{refused.field}"
            raise
    return tuple(found) or None


_AUDIO_URL = fields.url("url")
_HOOK_URL = fields.url("url", https_only=True)


def _sound(value: Any) -> Sound | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = {"mode": value}
    given = _object("audio", value, ("mode", "url"))
    mode: Any = given.get("mode", "url" if "url" in given else "none")
    if mode not in get_args(AudioMode):
        raise InvalidRequest("audio.mode", "Must be one of none, generate, url.")
    try:
        return Sound(mode=mode, url=_AUDIO_URL.find(given))
    except InvalidRequest as refused:
        refused.field = "audio.url"
        raise


def _webhook(value: Any) -> WebhookTarget | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = {"url": value}
    given = _object("webhook", value, ("url", "events"))
    events = given.get("events", list(EVENTS[1:]))
    if not isinstance(events, list) or not all(event in EVENTS for event in events):
        raise InvalidRequest(
            "webhook.events", f"Each must be one of {', '.join(EVENTS)}."
        )
    try:
        address = _HOOK_URL.take(given)
    except InvalidRequest as refused:
        refused.field = "webhook.url"
        raise
    return WebhookTarget(url=address, events=tuple(events))


def _metadata(value: Any) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > METADATA_KEYS_MAX:
        raise InvalidRequest(
            "metadata", f"Must be an object of at most {METADATA_KEYS_MAX} entries."
        )
    for key, text in value.items():
        if not isinstance(text, str) or len(text) > METADATA_TEXT_MAX or len(key) > 64:
            raise InvalidRequest(
                f"metadata.{key[:64]}",
                f"Must be a text of at most {METADATA_TEXT_MAX} characters.",
            )
    return value


# The calls around a job.
_TIME = {"format": "date-time"}
LIST_FIELDS = (
    Field("limit", "integer", f"1 to {PAGE_MAX}", default=str(PAGE_DEFAULT),
          schema={"minimum": 1, "maximum": PAGE_MAX}),
    Field("cursor", "string", meaning="The next_cursor of the page before.",
          rule="", schema={"maxLength": 64}),
    Field("status", "string", "one or more, with commas between",
          meaning="Only jobs that are so."),
    Field("model", "string", "", meaning="Only jobs of this model."),
    Field("created_after", "string", "ISO 8601 with zone", schema=_TIME),
    Field("created_before", "string", "ISO 8601 with zone", schema=_TIME),
)  # fmt: skip
EFFECTS_FIELDS = (
    Field("page", "integer", "from 1", default="1", schema={"minimum": 1}),
    LIST_FIELDS[0],
)
LEDGER_FIELDS = (
    Field("limit", "integer", "1 to 100", default="50",
          schema={"minimum": 1, "maximum": 100}),
    Field("cursor", "string", "", meaning="The next_cursor of the page before."),
)  # fmt: skip
CONTENT_FIELDS = (
    Field("variant", "string", "video, thumbnail, spritesheet", default="video",
          schema={"enum": ["video", "thumbnail", "spritesheet"]}),
)  # fmt: skip
KEY_FIELDS = (
    Field("name", "string", "at most 100 characters", schema={"maxLength": 100}),
    Field("mode", "string", "live, test", default="that of the key that asks",
          schema={"enum": ["live", "test"]}),
    Field("scopes", "array", "", default="jobs:write, jobs:read, billing:read",
          schema={"minItems": 1, "items": {"type": "string"}}),
    Field("expires_at", "string", "ISO 8601 with zone, in the future", schema=_TIME),
    Field("daily_spend_cap_credits", "number", "0 or more", schema={"minimum": 0}),
    Field("client_pair", "boolean", "", default="false",
          meaning="Also give it an id and a secret of 16 and 32 characters (Akool)."),
)  # fmt: skip
ENDPOINT_FIELDS = (
    Field("url", "string", "https URL", required=True, schema={"format": "uri"}),
    Field("description", "string", "", schema={"maxLength": 200}),
    Field("events", "array", "", default="all", meaning="Which events to send.",
          schema={"items": {"type": "string"}}),
)  # fmt: skip

# ------------------------------------------------------------------- parse


def _create(wire: WireRequest, models: ModelLookup) -> Create:
    return Create(request_of(wire, models))


def _one(wire: WireRequest, _: ModelLookup) -> OneJob:
    return OneJob(wire.params["id"], variant=wire.query.get("variant", "video"))


_LIMIT = fields.integer("limit", low=1, high=PAGE_MAX, default=PAGE_DEFAULT)
_CURSOR = fields.text("cursor", longest=64, blank_is_absent=True)
_STATUS = fields.text("status", longest=100, blank_is_absent=True)
_QUERY = ("limit", "cursor", "status", "model", "created_after", "created_before")


def _list(wire: WireRequest, _: ModelLookup) -> ListJobs:
    for name in wire.query:
        if name not in _QUERY:
            raise InvalidRequest(name, "Unknown parameter.")
    statuses = (_STATUS.find(wire.query) or "").split(",")
    known = [status.value for status in Status]
    for status in filter(None, statuses):
        if status not in known:
            raise InvalidRequest("status", f"Must be one of {', '.join(known)}.")
    return ListJobs(
        limit=_LIMIT.take(wire.query),
        after=_CURSOR.find(wire.query),
        statuses=cast("tuple[base.Status, ...]", tuple(filter(None, statuses))),
        model=wire.query.get("model"),
        created_after=_time("created_after", wire.query),
        created_before=_time("created_before", wire.query),
    )


def _time(name: str, query: Mapping[str, str]) -> datetime | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        # A plus sign in a query string arrives as a blank.
        moment = datetime.fromisoformat(text.replace(" ", "+"))
        if moment.tzinfo is None:
            raise InvalidRequest(name, "Must say its time zone.")
        # Postgres takes no zone as far from UTC as Python does.
        return moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(name, "Must be an ISO 8601 time.") from error


def _ask(wire: WireRequest, _: ModelLookup) -> Ask:
    return Ask({**wire.query, **wire.params})


def _ask_body(wire: WireRequest, _: ModelLookup) -> Ask:
    return Ask(fields.object_of(wire.body))


def _add_audio(wire: WireRequest, _: ModelLookup) -> AddAudio:
    body = fields.object_of(wire.body)
    for name in body:
        if name not in ("audio", "webhook"):
            raise InvalidRequest(name, "Unknown field.")
    sound = _sound(_structure("audio", body))
    if sound is None:
        raise InvalidRequest("audio", "Required: generate, or {mode, url}.")
    if sound.mode == "url" and not sound.url:
        raise InvalidRequest("audio.url", "Required when the audio mode is 'url'.")
    return AddAudio(
        wire.params["id"], sound, webhook=_webhook(_structure("webhook", body))
    )


_PAGE = fields.integer("page", low=1, high=10_000, default=1)


def _effects_page(wire: WireRequest, _: ModelLookup) -> Ask:
    for name in wire.query:
        if name not in ("page", "limit"):
            raise InvalidRequest(name, "Unknown parameter.")
    return Ask({"page": _PAGE.take(wire.query), "limit": _LIMIT.take(wire.query)})


def _webhooks(action: str) -> base.Parse:
    known = [field.name for field in ENDPOINT_FIELDS] if action == "create" else []

    def parse(wire: WireRequest, _: ModelLookup) -> Ask:
        body = fields.object_of(wire.body)
        for name in body:
            if name not in known:
                raise InvalidRequest(name, "Unknown field.")
        return Ask({**body, **wire.params, "action": action})

    return parse


# ------------------------------------------------------------------- render


def _credits(millicredits: int) -> float:
    return millicredits / 1000


def job_body(job: JobView) -> dict[str, Any]:
    """Return the job as our API, webhooks and admin show it."""
    return {
        "id": job.native_id,
        "object": "job",
        "kind": job.kind,
        "model": job.request.model,
        "status": job.status,
        "step": job.step,
        "stage": job.stage or None,
        "progress": round(job.progress, 4),
        "queue_position": job.queue_position,
        "eta_seconds": job.eta_seconds,
        "simulated": job.simulated,
        "created_at": _stamp(job.created_at),
        "started_at": _stamp(job.started_at),
        "finished_at": _stamp(job.finished_at),
        "expires_at": _stamp(job.expires_at),
        "credits": {
            "quoted": _credits(job.quoted_millicredits),
            "held": _credits(job.held_millicredits),
            "charged": _credits(job.charged_millicredits),
            "refunded": _credits(job.refunded_millicredits),
        },
        "parameters": _parameters(job),
        "video": _video(job),
        "error": job.error
        and {
            "code": job.error.code,
            "message": job.error.message,
            "retryable": job.error.retryable,
        },
        "source_id": job.source_id,
        "metadata": dict(job.request.metadata),
    }


_NOT_SHOWN = ("seed", "prompt", "as_asked")


def _parameters(job: JobView) -> dict[str, Any]:
    request = job.request
    audio: dict[str, str] = {"mode": request.audio.mode}
    if request.audio.url:
        audio["url"] = request.audio.url
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "resolution": request.tier,
        "size": str(request.size) if request.size else None,
        "aspect_ratio": request.aspect_ratio,
        "frames": request.frames,
        "fps": request.fps,
        "seconds": round(request.seconds, 4),
        "seed": request.seed,
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "guidance_scale_2": request.guidance_scale_2,
        "flow_shift": request.flow_shift,
        "loras": [vars(lora) for lora in request.loras],
        "quality": request.quality,
        "shot_type": request.shot_type,
        "audio": audio,
        "watermark": request.watermark,
        "safety_checker": request.safety_checker,
        "prompt_expansion": request.prompt_expansion,
        "effect": request.effect,
        "premium": request.premium,
        "priority": request.priority,
        "retention_seconds": request.retention_seconds,
        # The prompt stays the customer's; what became of it is beside it.
        **{k: v for k, v in job.resolved.items() if k not in _NOT_SHOWN},
    }


def _video(job: JobView) -> dict[str, Any] | None:
    if job.video_url is None:
        return None
    facts = ("width", "height", "fps", "frames", "seconds", "size_bytes", "sha256")
    return {
        "url": job.video_url,
        "poster_url": job.poster_url,
        "preview_url": job.preview_url,
        "last_frame_url": job.last_frame_url,
        "urls_expire_at": _stamp(job.urls_expire_at),
        "content_type": "video/mp4",
        **{name: job.output.get(name) for name in facts},
        "has_audio": job.output.get("has_audio", False),
        "notes": job.output.get("notes", {}),
    }


def _stamp(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _created(job: JobView, _: WireRequest) -> WireResponse:
    return WireResponse(202, job_body(job), {"Location": f"/v1/jobs/{job.native_id}"})


def _job(job: JobView, _: WireRequest) -> WireResponse:
    return WireResponse(200, job_body(job))


def _page(page: JobsPage, _: WireRequest) -> WireResponse:
    return WireResponse(
        200,
        {
            "object": "list",
            "data": [job_body(job) for job in page.jobs],
            "has_more": page.has_more,
            "next_cursor": page.next_cursor,
        },
    )


def _deleted(result: ManyResult, _: WireRequest) -> WireResponse:
    return WireResponse(200, job_body(result.jobs[0]) | {"deleted": True})


def _quoted(quote: Any, _: WireRequest) -> WireResponse:
    return WireResponse(
        200,
        {
            "object": "quote",
            "model": quote.request.model,
            "credits": _credits(quote.amount_millicredits),
            "price_version": quote.price_version,
            "lines": [
                {"description": text, "credits": _credits(amount)}
                for text, amount in quote.lines
            ],
            "frames": quote.request.frames,
            "fps": quote.request.fps,
            "seconds": round(quote.request.seconds, 4),
            "resolution": quote.request.tier,
        },
    )


def model_body(view: base.ModelView) -> dict[str, Any]:
    """Return a model; the first four keys are OpenAI's."""
    model = view.model
    low, high = model.seconds_range or (
        model.frames_min / model.fps,
        model.frames_max / model.fps,
    )
    return {
        "id": view.name,
        "object": "model",
        "created": 0,
        "owned_by": "zoetrope",
        "label": model.label,
        "alias_of": model.name if view.name != model.name else None,
        "available": view.available,
        "fps": model.fps,
        "fps_range": model.fps_range,
        "frames": {
            "min": model.frames_min,
            "max": model.frames_max,
            "default": model.frames_default,
            "step": model.frame_step,
        },
        "seconds": {
            "min": round(low, 4),
            "max": round(high, 4),
            "choices": model.seconds_choices or None,
        },
        "resolutions": [*model.tiers, *model.upscaled_tiers],
        "default_resolution": model.tier_default,
        "default_audio": model.audio_default,
        "options": sorted(feature.value for feature in model.features),
        "defaults": dict(model.defaults),
        "resolution_defaults": {
            tier: dict(values) for tier, values in model.tier_defaults.items()
        },
        "prompt_max_characters": model.prompt_max,
        "last_image_required": model.last_image_required,
        "max_loras": model.loras_max,
    }


def _models(views: list[base.ModelView], _: WireRequest) -> WireResponse:
    data = [model_body(view) for view in views]
    return WireResponse(200, {"object": "list", "data": data})


def _model(view: base.ModelView, _: WireRequest) -> WireResponse:
    return WireResponse(200, model_body(view))


def _effects(page: base.EffectsPage, _: WireRequest) -> WireResponse:
    return WireResponse(
        200,
        {
            "object": "list",
            "data": [
                {
                    "code": effect.code,
                    "object": "effect",
                    "name": effect.name,
                    "description": effect.description,
                    "version": effect.version,
                    "logo_url": effect.logo_url,
                    "preview_url": effect.preview_url,
                    "models": list(effect.models) or None,
                    "available": effect.available,
                }
                for effect in page.effects
            ],
            "page": page.page,
            "limit": page.limit,
            "total": page.total,
            "has_more": page.page * page.limit < page.total,
        },
    )


def _balance(view: base.BalanceView, _: WireRequest) -> WireResponse:
    return WireResponse(
        200,
        {
            "object": "balance",
            "mode": view.mode,
            "plan": view.plan,
            "available_credits": _credits(view.available_millicredits),
            "held_credits": _credits(view.held_millicredits),
            "debt_credits": _credits(view.debt_millicredits),
            "frozen": view.is_frozen,
        },
    )


def _plain(status: int) -> base.Render:
    def render(result: Any, _: WireRequest) -> WireResponse:
        return WireResponse(status, result)

    return render


# ------------------------------------------------------------------- refusals


def error(refused: ApiError, wire: WireRequest) -> WireResponse:
    """Return the RFC 9457 problem document of a refusal."""
    body: dict[str, Any] = {
        "type": f"https://zoetrope.dev/problems/{refused.code}",
        "title": refused.code.replace("_", " ").capitalize(),
        "status": refused.status,
        "detail": refused.message,
        "code": refused.code,
        "request_id": wire.request_id,
    }
    if refused.field is not None:
        body["errors"] = [{"field": refused.field, "message": refused.message}]
    match refused:
        case InsufficientCredits():
            body["required_credits"] = _credits(refused.required_millicredits)
            body["available_credits"] = _credits(refused.available_millicredits)
        case UnsupportedOption():
            body["supported_by"] = list(refused.models)
        case RateLimited():
            body["retry_after_seconds"] = refused.retry_after_seconds
        case _:
            pass
    headers = {}
    if isinstance(refused, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return WireResponse(refused.status, body, headers, "application/problem+json")


ROUTES = (
    Route("POST", "/v1/jobs", Operation.CREATE, _create, _created, "jobs:write",
          "Make a video from a still", FIELDS),
    Route("GET", "/v1/jobs", Operation.LIST, _list, _page, "jobs:read", "List jobs",
          LIST_FIELDS),
    Route("GET", "/v1/jobs/{id}", Operation.STATUS, _one, _job, "jobs:read",
          "Read a job"),
    Route("DELETE", "/v1/jobs/{id}", Operation.DELETE, _one, _deleted, "jobs:write",
          "Delete a job's files"),
    Route("POST", "/v1/jobs/{id}/cancel", Operation.CANCEL, _one, _job, "jobs:write",
          "Cancel a job"),
    Route("GET", "/v1/jobs/{id}/content", Operation.CONTENT, _one, _job, "jobs:read",
          "Download a finished file", CONTENT_FIELDS),
    Route("POST", "/v1/jobs/{id}/audio", Operation.ADD_AUDIO, _add_audio, _created,
          "jobs:write", "Put another sound under a finished video", AUDIO_FIELDS),
    Route("GET", "/v1/effects", Operation.EFFECTS, _effects_page, _effects,
          "jobs:read", "List effects", EFFECTS_FIELDS),
    Route("POST", "/v1/quotes", Operation.QUOTE, _create, _quoted, "jobs:read",
          "What a job would cost", FIELDS),
    Route("GET", "/v1/models", Operation.MODELS, _ask, _models, "jobs:read",
          "List models"),
    Route("GET", "/v1/models/{name}", Operation.MODEL, _ask, _model, "jobs:read",
          "Read a model"),
    Route("GET", "/v1/balance", Operation.BALANCE, _ask, _balance, "billing:read",
          "Credits left"),
    Route("GET", "/v1/ledger", Operation.LEDGER, _ask, _plain(200), "billing:read",
          "Every movement of credits", LEDGER_FIELDS),
    Route("GET", "/v1/keys", Operation.KEYS_LIST, _ask, _plain(200), "admin",
          "List API keys"),
    Route("POST", "/v1/keys", Operation.KEY_CREATE, _ask_body, _plain(201), "admin",
          "Make an API key", KEY_FIELDS, shown_once=("key", "client_secret")),
    Route("POST", "/v1/webhooks", Operation.WEBHOOK_CREATE, _webhooks("create"),
          _plain(201), "jobs:write", "Add a webhook endpoint", ENDPOINT_FIELDS,
          shown_once=("secret",)),
    Route("GET", "/v1/webhooks", Operation.WEBHOOKS, _webhooks("list"), _plain(200),
          "jobs:read", "List webhook endpoints"),
    Route("GET", "/v1/webhooks/keys", Operation.WEBHOOKS, _webhooks("keys"),
          _plain(200), "jobs:write", "What webhooks are signed with"),
    Route("DELETE", "/v1/webhooks/{id}", Operation.WEBHOOKS, _webhooks("disable"),
          _plain(200), "jobs:write", "Disable a webhook endpoint"),
    Route("POST", "/v1/webhooks/{id}/rotate", Operation.WEBHOOKS, _webhooks("rotate"),
          _plain(200), "jobs:write", "Give a webhook endpoint a new secret"),
    Route("POST", "/v1/webhooks/{id}/test", Operation.WEBHOOKS, _webhooks("test"),
          _plain(202), "jobs:write", "Send a test event"),
    Route("GET", "/v1/webhooks/{id}/deliveries", Operation.WEBHOOKS, _webhooks("log"),
          _plain(200), "jobs:read", "Read the delivery log"),
    Route("POST", "/v1/webhooks/deliveries/{delivery}/replay", Operation.WEBHOOKS,
          _webhooks("replay"), _plain(202), "jobs:write", "Send a delivery again"),
    Route("DELETE", "/v1/keys/{id}", Operation.KEY_REVOKE, _ask, _plain(200), "admin",
          "Revoke an API key"),
)  # fmt: skip

DIALECT = Dialect(
    name="native",
    title="Zoetrope",
    prefixes=("/v1",),
    routes=ROUTES,
    error=error,
    url_seconds=3600,
    new_id=None,
    body_limit_bytes=base.TWO_PICTURES_BYTES,
    show_rate=True,
    visible="all",
)
