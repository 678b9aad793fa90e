"""What a dialect is: a table of routes that translate one wire format, and nothing more.

A dialect turns a ``WireRequest`` into a ``Command`` (parse) and a result into a
``WireResponse`` (render). It loads nothing, moves no money and decides nothing: ids
it reads are looked up by the view, models by the ``ModelLookup`` it is handed.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Protocol

from inference.catalogue import PublicModel
from jobs.errors import ApiError
from jobs.requests import JobRequest, Sound, WebhookTarget

Scope = Literal["jobs:write", "jobs:read", "billing:read", "admin"]
Status = Literal["queued", "running", "succeeded", "failed", "canceled"]


class Operation(StrEnum):
    """Everything a customer can ask for, in any dialect."""

    CREATE = "create"
    CREATE_MANY = "create_many"
    ADD_AUDIO = "add_audio"
    REMIX = "remix"
    QUOTE = "quote"
    STATUS = "status"
    STATUS_MANY = "status_many"
    LIST = "list"
    CANCEL = "cancel"
    DELETE = "delete"
    CONTENT = "content"
    EFFECTS = "effects"
    MODELS = "models"
    MODEL = "model"
    BALANCE = "balance"
    LEDGER = "ledger"
    TOKEN = "token"  # noqa: S105 - an operation, not a secret
    KEYS_LIST = "keys_list"
    KEY_CREATE = "key_create"
    KEY_REVOKE = "key_revoke"
    WEBHOOK_CREATE = "webhook_create"
    WEBHOOKS = "webhooks"


#: A first and a last picture of the largest size, as base64, and room for the rest.
TWO_PICTURES_BYTES = 32 * 1024 * 1024

#: What makes something new each time, so an idempotency key holds it to once.
CREATING = frozenset(
    {
        Operation.CREATE,
        Operation.CREATE_MANY,
        Operation.ADD_AUDIO,
        Operation.REMIX,
        Operation.KEY_CREATE,
        Operation.WEBHOOK_CREATE,
    }
)


# ------------------------------------------------------------------ the wire


@dataclass(frozen=True)
class Upload:
    """A file part of a multipart body."""

    filename: str
    content_type: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class WireRequest:
    """One HTTP call, read once and made safe: no NUL, no lone surrogate, bounded depth.

    ``body`` is the decoded JSON (any type), or the text fields of a form as a dict.
    ``headers`` has lower-case names. ``operation`` is None when no route matched.
    """

    method: str
    path: str
    operation: Operation | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    files: Mapping[str, Upload] = field(default_factory=dict)
    request_id: str = ""
    #: scheme://host[:port] under which the caller reached us
    base_url: str = ""


@dataclass(frozen=True)
class WireResponse:
    """What goes out. ``body`` is JSON-serialisable, or None for an empty answer."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


# ------------------------------------------------------- what parse answers


@dataclass(frozen=True)
class Create:
    request: JobRequest


@dataclass(frozen=True)
class CreateMany:
    requests: tuple[JobRequest, ...]


@dataclass(frozen=True)
class AddAudio:
    source_id: str
    audio: Sound
    webhook: WebhookTarget | None = None
    echo: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Remix:
    source_id: str
    prompt: str


@dataclass(frozen=True)
class OneJob:
    """Status, cancel, delete or content of one job, by the id this dialect gave.

    ``only_queued`` makes a cancel of a job that has begun NotAcceptableNow.
    """

    id: str
    variant: str = "video"
    only_queued: bool = False


@dataclass(frozen=True)
class ManyJobs:
    ids: tuple[str, ...]


@dataclass(frozen=True)
class ListJobs:
    """A page of jobs, newest first unless ``ascending``.

    By ``after`` (an id of this dialect; cursor style) or by ``page`` (1-based).
    """

    limit: int
    page: int | None = None
    after: str | None = None
    ascending: bool = False
    statuses: tuple[Status, ...] = ()
    model: str | None = None
    #: only what was ordered by this key
    api_key_id: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    with_total: bool = False


@dataclass(frozen=True)
class Token:
    """Exchange of a client id and secret for a bearer token."""

    client_id: str
    client_secret: str


@dataclass(frozen=True)
class Ask:
    """A call with nothing but plain values: balance, models, effects, keys…"""

    values: Mapping[str, Any] = field(default_factory=dict)


Command = (
    Create | CreateMany | AddAudio | Remix | OneJob | ManyJobs | ListJobs | Token | Ask
)


# ------------------------------------------------------- what render is given


@dataclass(frozen=True)
class Failure:
    """Why a job failed, in words a customer may read."""

    code: str
    message: str
    retryable: bool


@dataclass(frozen=True)
class JobView:
    """A job as its owner may see it. ``id`` has this dialect's form; URLs are fresh.

    ``progress`` is 0..1. Credits are milli-credits. ``resolved`` holds what was decided
    on the way: seed, width, height, frames, fps, expanded prompt, upscaler, audio…
    """

    id: str
    native_id: str
    status: Status
    step: str
    progress: float
    request: JobRequest
    created_at: datetime
    stage: str = ""
    kind: Literal["video", "audio"] = "video"
    resolved: Mapping[str, Any] = field(default_factory=dict)
    simulated: bool = False
    queue_position: int | None = None
    eta_seconds: float | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    video_url: str | None = None
    #: a platform address that stays the same and redirects to a fresh signed one
    permanent_video_url: str | None = None
    permanent_poster_url: str | None = None
    urls_expire_at: datetime | None = None
    poster_url: str | None = None
    preview_url: str | None = None
    last_frame_url: str | None = None
    output: Mapping[str, Any] = field(default_factory=dict)  # Artifact's measurements
    quoted_millicredits: int = 0
    held_millicredits: int = 0
    charged_millicredits: int = 0
    refunded_millicredits: int = 0
    error: Failure | None = None
    source_id: str | None = None  # of a remix or an audio job, in this dialect's form
    files_deleted: bool = False
    account_number: int = 0
    account_id: str = ""
    #: which of the account's keys ordered it
    api_key_id: str = ""

    @property
    def is_finished(self) -> bool:
        return self.status in ("succeeded", "failed", "canceled")

    @property
    def shown_millicredits(self) -> int:
        """Return what a charge-up-front service would show: 0 once given back."""
        return self.charged_millicredits or self.held_millicredits


@dataclass(frozen=True)
class JobsPage:
    jobs: Sequence[JobView]
    has_more: bool = False
    next_cursor: str | None = None
    page: int = 1
    limit: int = 0
    total: int | None = None


@dataclass(frozen=True)
class ManyResult:
    """Answers for several jobs at once; ``missing`` are unknown or foreign ids."""

    jobs: Sequence[JobView]
    missing: Sequence[str] = ()
    errors: Mapping[str, ApiError] = field(default_factory=dict)


@dataclass(frozen=True)
class BalanceView:
    available_millicredits: int
    held_millicredits: int
    plan: str
    account_id: str
    account_number: int = 0
    mode: str = "live"
    debt_millicredits: int = 0
    is_frozen: bool = False
    #: charged this month; counted only for a call that asks ``with_usage``
    used_this_month_millicredits: int = 0


@dataclass(frozen=True)
class ModelView:
    model: PublicModel
    name: str
    available: bool
    price_from_millicredits: int | None = None


@dataclass(frozen=True)
class EffectView:
    code: str
    name: str
    version: int = 1
    description: str = ""
    logo_url: str | None = None
    preview_url: str | None = None
    models: Sequence[str] = ()
    created_at: datetime | None = None
    id: str = ""
    #: whether the caller's plan has it
    available: bool = True


@dataclass(frozen=True)
class EffectsPage:
    effects: Sequence[EffectView]
    total: int = 0
    page: int = 1
    limit: int = 0


@dataclass(frozen=True)
class Event:
    """Something to tell a customer about a job: ``job.succeeded`` and its siblings."""

    id: str
    type: str
    created_at: datetime
    job: JobView


# ----------------------------------------------------------------- the table


class ModelLookup(Protocol):
    """Find a public model by name or alias, or answer None."""

    def __call__(self, name: str) -> PublicModel | None: ...


Parse = Callable[[WireRequest, ModelLookup], Command]
#: Turns a result (JobView, JobsPage, ManyResult, BalanceView…) into the answer.
Render = Callable[[Any, WireRequest], WireResponse]


@dataclass(frozen=True)
class Field:
    """One field of a request body, for the documentation table and the OpenAPI schema.

    ``meaning`` says what it does here; ``canonical`` names the job option it sets;
    ``schema`` has the JSON Schema keywords of the rule, as far as they can say it.
    """

    name: str
    type: str
    rule: str
    default: str = "-"
    required: bool = False
    meaning: str = ""
    canonical: str = ""
    schema: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Route:
    """``method`` ``path`` does ``operation``; ``{id}`` parts of the path become params.

    ``shown_once`` names what of the answer is a secret: it is never stored, and null
    when a repeated call gets the answer again.
    """

    method: Literal["GET", "POST", "DELETE", "PUT", "PATCH"]
    path: str
    operation: Operation
    parse: Parse
    render: Render
    scope: Scope | None = "jobs:read"
    summary: str = ""
    fields: tuple[Field, ...] = ()
    shown_once: tuple[str, ...] = ()


@dataclass(frozen=True)
class SignedCall:
    """A webhook of a dialect's own kind, ready to send."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def _bearer(headers: Mapping[str, str]) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


@dataclass(frozen=True)
class Dialect:
    """One wire format.

    ``prefixes`` are the path prefixes whose unmatched calls it answers for.
    ``url_seconds`` is the life of the signed URLs it hands out. ``key_of`` reads the
    presented API key from lower-case headers. ``show_rate`` adds ``X-RateLimit-*``.
    ``visible`` says whether jobs made in other dialects show here (native only).
    ``body_limit_bytes`` caps a request body.
    """

    name: str
    title: str
    prefixes: tuple[str, ...]
    routes: tuple[Route, ...]
    error: Callable[[ApiError, WireRequest], WireResponse]
    url_seconds: int = 3600
    #: makes an id of this API's form; None: the job's own id is shown
    new_id: Callable[[], str] | None = lambda: str(uuid.uuid4())
    key_of: Callable[[Mapping[str, str]], str | None] = _bearer
    show_rate: bool = False
    visible: Literal["own", "all"] = "own"
    #: One such picture, where there is no other or it must be a URL.
    body_limit_bytes: int = 16 * 1024 * 1024
    idempotency_header: str = "idempotency-key"
    #: event → the call of this dialect's own webhook format, with the given secrets
    webhook: Callable[[Event, Mapping[str, str]], SignedCall] | None = None
    #: True: that call is encrypted with the account's ``client_id``, ``client_secret``
    seals_webhooks: bool = False
