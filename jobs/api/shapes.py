"""The JSON of our own API's answers as JSON Schema: what the OpenAPI document refers to.

What an answer must have is said here in full; tests hold real answers to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, get_args

from inference.contracts import AudioMode
from jobs.requests import ASPECT_RATIOS
from jobs.states import Status, Step

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
NUMBER: Final[Schema] = {"type": "number"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
FLAG: Final[Schema] = {"type": "boolean"}
TIME: Final[Schema] = {"type": "string", "format": "date-time"}
UUID: Final[Schema] = {"type": "string", "format": "uuid"}
URL: Final[Schema] = {"type": "string", "format": "uri"}
ANY_OBJECT: Final[Schema] = {"type": "object"}


def or_null(schema: Mapping[str, Any]) -> Schema:
    if "$ref" in schema:
        return {"anyOf": [dict(schema), {"type": "null"}]}
    found: Schema = {**schema, "type": [schema["type"], "null"]}
    if "enum" in found:
        found["enum"] = [*found["enum"], None]
    return found


def said(schema: Mapping[str, Any], text: str) -> Schema:
    return {**schema, "description": text}


def one_of(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}


def kind(word: str) -> Schema:
    return {"type": "string", "const": word}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: Mapping[str, Any]) -> Schema:
    return {"type": "array", "items": dict(items)}


def record(**properties: Mapping[str, Any]) -> Schema:
    """Return an object that always has all of ``properties``."""
    return {
        "type": "object",
        "required": list(properties),
        "properties": {name: dict(value) for name, value in properties.items()},
    }


def page(item: str) -> Schema:
    return record(
        object=kind("list"),
        data=array(ref(item)),
        has_more=FLAG,
        next_cursor=said(or_null(TEXT), "Give it as `cursor` to read on."),
    )


def listed(item: str) -> Schema:
    return record(object=kind("list"), data=array(ref(item)))


_PARAMETERS = record(
    prompt=TEXT,
    negative_prompt=TEXT,
    resolution=TEXT,
    size=or_null(TEXT),
    aspect_ratio=or_null(one_of(*ASPECT_RATIOS)),
    frames=COUNT,
    fps=COUNT,
    seconds=NUMBER,
    seed=said(or_null(COUNT), "Drawn for you when you gave none."),
    steps=or_null(COUNT),
    guidance_scale=or_null(NUMBER),
    guidance_scale_2=or_null(NUMBER),
    flow_shift=or_null(NUMBER),
    loras=array(ANY_OBJECT),
    quality=TEXT,
    shot_type=TEXT,
    audio={
        "type": "object",
        "required": ["mode"],
        "properties": {"mode": one_of(*get_args(AudioMode)), "url": URL},
    },
    watermark=FLAG,
    safety_checker=FLAG,
    prompt_expansion=FLAG,
    effect=or_null(TEXT),
    premium=FLAG,
    priority={"type": "integer"},
    retention_seconds=or_null(COUNT),
)

_VIDEO = record(
    url=said(URL, "Signed; read the job again for a fresh one."),
    poster_url=or_null(URL),
    preview_url=or_null(URL),
    last_frame_url=or_null(URL),
    urls_expire_at=or_null(TIME),
    content_type=TEXT,
    width=COUNT,
    height=COUNT,
    fps=NUMBER,
    frames=COUNT,
    seconds=NUMBER,
    size_bytes=COUNT,
    sha256=TEXT,
    has_audio=FLAG,
    notes=ANY_OBJECT,
)

_JOB = record(
    id=UUID,
    object=kind("job"),
    kind=one_of("video", "audio"),
    model=TEXT,
    status=one_of(*(status.value for status in Status)),
    step=one_of(*(step.value for step in Step)),
    stage=or_null(TEXT),
    progress={"type": "number", "minimum": 0, "maximum": 1},
    queue_position=or_null(COUNT),
    eta_seconds=or_null(NUMBER),
    simulated=said(FLAG, "Made by a test key: a rehearsal, marked TEST."),
    created_at=TIME,
    started_at=or_null(TIME),
    finished_at=or_null(TIME),
    expires_at=said(or_null(TIME), "When the files are deleted."),
    credits=record(quoted=NUMBER, held=NUMBER, charged=NUMBER, refunded=NUMBER),
    parameters=said(_PARAMETERS, "Every option, with all defaults resolved."),
    video=or_null(ref("Video")),
    error=or_null(ref("JobError")),
    source_id=or_null(TEXT),
    metadata={"type": "object", "additionalProperties": TEXT},
)

_MODEL = record(
    id=TEXT,
    object=kind("model"),
    created={"type": "integer"},
    owned_by=TEXT,
    label=TEXT,
    alias_of=or_null(TEXT),
    available=said(FLAG, "Whether this key can use it now."),
    fps=COUNT,
    fps_range=or_null(array(COUNT)),
    frames=record(min=COUNT, max=COUNT, default=COUNT, step=COUNT),
    seconds=record(min=NUMBER, max=NUMBER, choices=or_null(array(NUMBER))),
    resolutions=array(TEXT),
    default_resolution=TEXT,
    default_audio=TEXT,
    options=array(TEXT),
    defaults=ANY_OBJECT,
    resolution_defaults=said(
        ANY_OBJECT, "Defaults that are otherwise at a resolution, by resolution."
    ),
    prompt_max_characters=COUNT,
    last_image_required=FLAG,
    max_loras=COUNT,
)

_KEY = record(
    id=TEXT,
    object=kind("api_key"),
    name=TEXT,
    mode=one_of("live", "test"),
    prefix=TEXT,
    client_id=said(or_null(TEXT), "Of its client pair, if it has one."),
    scopes=array(TEXT),
    daily_spend_cap_credits=or_null(NUMBER),
    created_at=TIME,
    expires_at=or_null(TIME),
    revoked_at=or_null(TIME),
    last_used_at=or_null(TIME),
)

_ENDPOINT = record(
    id=UUID,
    object=kind("webhook_endpoint"),
    url=URL,
    description=TEXT,
    events=array(TEXT),
    enabled=FLAG,
    disabled_reason=or_null(TEXT),
    created_at=TIME,
)

_SECRET = said(TEXT, "Signs what is sent; keep it.")


def _with(schema: Schema, **more: Mapping[str, Any]) -> Schema:
    return {
        **schema,
        "required": [*schema["required"], *more],
        "properties": {**schema["properties"], **more},
    }


SHAPES: Final[dict[str, Schema]] = {
    "Job": _JOB,
    "Video": _VIDEO,
    "JobError": record(code=TEXT, message=TEXT, retryable=FLAG),
    "JobPage": page("Job"),
    "DeletedJob": _with(_JOB, deleted={"type": "boolean", "const": True}),
    "Quote": record(
        object=kind("quote"),
        model=TEXT,
        credits=NUMBER,
        price_version=TEXT,
        lines=array(record(description=TEXT, credits=NUMBER)),
        frames=COUNT,
        fps=COUNT,
        seconds=NUMBER,
        resolution=TEXT,
    ),
    "Model": _MODEL,
    "ModelList": listed("Model"),
    "Balance": record(
        object=kind("balance"),
        mode=one_of("live", "test"),
        plan=TEXT,
        available_credits=NUMBER,
        held_credits=NUMBER,
        debt_credits=NUMBER,
        frozen=FLAG,
    ),
    "Movement": record(
        id=TEXT,
        object=kind("movement"),
        kind=TEXT,
        reference=TEXT,
        available_credits=NUMBER,
        held_credits=NUMBER,
        available_after_credits=NUMBER,
        held_after_credits=NUMBER,
        reason=TEXT,
        created_at=TIME,
    ),
    "MovementPage": page("Movement"),
    "ApiKey": _KEY,
    "ApiKeyList": record(data=array(ref("ApiKey"))),
    "NewApiKey": _with(
        _KEY,
        key=said(or_null(TEXT), "The key itself, shown this once; null in a replay."),
        client_secret=said(or_null(TEXT), "Of its client pair, shown this once."),
    ),
    "WebhookEndpoint": _ENDPOINT,
    "WebhookEndpointList": listed("WebhookEndpoint"),
    "NewWebhookEndpoint": _with(
        _ENDPOINT,
        secret=said(or_null(TEXT), "Signs what is sent; keep it. Null in a replay."),
    ),
    "WebhookKeys": record(
        object=kind("webhook_keys"),
        secret=_SECRET,
        public_key=said(TEXT, "Verifies the v1a signatures."),
    ),
    "WebhookDelivery": record(
        id=TEXT,
        object=kind("webhook_delivery"),
        event_id=UUID,
        type=TEXT,
        job_id=or_null(UUID),
        url=URL,
        state=one_of("pending", "delivered", "failed"),
        tries=COUNT,
        next_try_at=or_null(TIME),
        log=array(ANY_OBJECT),
    ),
    "WebhookDeliveryList": listed("WebhookDelivery"),
    "Effect": record(
        code=TEXT,
        object=kind("effect"),
        name=TEXT,
        description=TEXT,
        version={"type": "integer"},
        logo_url=or_null(URL),
        preview_url=or_null(URL),
        models=said(or_null(array(TEXT)), "null: every model."),
        available=FLAG,
    ),
    "EffectPage": record(
        object=kind("list"),
        data=array(ref("Effect")),
        page=COUNT,
        limit=COUNT,
        total=COUNT,
        has_more=FLAG,
    ),
    "Problem": {
        "type": "object",
        "description": "RFC 9457.",
        "required": ["type", "title", "status", "detail", "code", "request_id"],
        "properties": {
            "type": URL,
            "title": TEXT,
            "status": {"type": "integer"},
            "detail": said(TEXT, "For people."),
            "code": said(TEXT, "For programs; stable."),
            "request_id": TEXT,
            "errors": array(record(field=TEXT, message=TEXT)),
            "required_credits": NUMBER,
            "available_credits": NUMBER,
            "supported_by": array(TEXT),
            "retry_after_seconds": COUNT,
        },
    },
}

#: (method, path) → status and name of the answer
ANSWERS: Final[Mapping[tuple[str, str], tuple[int, str]]] = {
    ("POST", "/v1/jobs"): (202, "Job"),
    ("GET", "/v1/jobs"): (200, "JobPage"),
    ("GET", "/v1/jobs/{id}"): (200, "Job"),
    ("DELETE", "/v1/jobs/{id}"): (200, "DeletedJob"),
    ("POST", "/v1/jobs/{id}/cancel"): (200, "Job"),
    ("POST", "/v1/jobs/{id}/audio"): (202, "Job"),
    ("GET", "/v1/effects"): (200, "EffectPage"),
    ("POST", "/v1/quotes"): (200, "Quote"),
    ("GET", "/v1/models"): (200, "ModelList"),
    ("GET", "/v1/models/{name}"): (200, "Model"),
    ("GET", "/v1/balance"): (200, "Balance"),
    ("GET", "/v1/ledger"): (200, "MovementPage"),
    ("GET", "/v1/keys"): (200, "ApiKeyList"),
    ("POST", "/v1/keys"): (201, "NewApiKey"),
    ("DELETE", "/v1/keys/{id}"): (200, "ApiKey"),
    ("POST", "/v1/webhooks"): (201, "NewWebhookEndpoint"),
    ("GET", "/v1/webhooks"): (200, "WebhookEndpointList"),
    ("GET", "/v1/webhooks/keys"): (200, "WebhookKeys"),
    ("DELETE", "/v1/webhooks/{id}"): (200, "WebhookEndpoint"),
    ("POST", "/v1/webhooks/{id}/rotate"): (200, "NewWebhookEndpoint"),
    ("POST", "/v1/webhooks/{id}/test"): (202, "WebhookDelivery"),
    ("GET", "/v1/webhooks/{id}/deliveries"): (200, "WebhookDeliveryList"),
    ("POST", "/v1/webhooks/deliveries/{delivery}/replay"): (202, "WebhookDelivery"),
}
