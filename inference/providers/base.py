"""What a provider is: pairs of functions that build a call and read its answer.

An adapter has no loop, no client, no clock and no database. It turns a ``ProviderJob``
into an ``HttpCall`` and an ``HttpReply`` into plain facts; ``transport`` sends, the
caller decides. Three promises hold for every adapter:

- what the provider cannot do is refused as ``Unsupported`` naming the field, never dropped;
- ``parse_submit`` raises ``AnswerLost`` when, and only when, the provider may have the job
  although no id came back; every other ``ProviderError`` means that it has not;
- text of the provider stays inside ``str(error)``; ``error.public`` is ours.
"""

from __future__ import annotations

import base64
import dataclasses
import ipaddress
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from email.utils import parsedate_to_datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from inference.contracts import AudioMode, Lora, Quality, ShotType
from inference.errors import (
    AnswerLost,
    ContentBlocked,
    Fault,
    ProviderError,
    Unsupported,
    storable,
)
from inference.providers import account_settings
from inference.providers.account_settings import Setting

State = Literal["queued", "running", "succeeded", "failed", "unknown"]

#: A clip may be this much longer than what is sold: 81 frames at 16 fps count as 5 s.
LENGTH_TOLERANCE_SECONDS = 0.125
CONNECT_SECONDS = 10.0

# ------------------------------------------------------------------ who and what


@dataclass(frozen=True)
class ProviderAccount:
    """One account at a provider, as the operator entered it.

    ``base_url`` is everything before the paths of the provider's documentation, as in
    ``https://api.novita.ai``. ``settings`` are the operator's options (account_settings).
    """

    name: str
    base_url: str
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def secret(self, name: str) -> str:
        """Return a credential; one missing or unsendable is the account's fault."""
        if not (value := self.credentials.get(name, "")):
            raise ProviderError(
                f"account '{self.name}' has no {name}", fault=Fault.ACCOUNT
            )
        if not is_sendable(value):
            raise ProviderError(
                f"account '{self.name}': its {name} {NOT_SENDABLE}", fault=Fault.ACCOUNT
            )
        return value

    def url(self, path: str) -> str:
        return self.base_url.rstrip("/") + path


@dataclass(frozen=True)
class Picture:
    """A picture to send: its bytes, or a signed URL on the public endpoint, or both."""

    data: bytes = field(default=b"", repr=False)
    media_type: str = "image/png"
    url: str | None = None


@dataclass(frozen=True, kw_only=True)
class ProviderJob:
    """What an adapter is asked for: one clip, every option resolved.

    ``reference`` is our token for this attempt. ``audio_mode`` is the sound wanted *from
    the provider* ("none" also when the platform makes it). ``width`` by ``height`` is the
    size we shall deliver. A provider's watermark is never wanted: we finish ourselves.
    ``unasked`` names the options whose value is our own default or draw; only those
    may be left out where the provider has no such option. ``extra`` goes into the body as it is.
    """

    reference: str
    model: str
    image: Picture
    tier: str
    width: int
    height: int
    frames: int
    fps: int
    prompt: str = ""
    negative_prompt: str = ""
    last_image: Picture | None = None
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    guidance_scale_2: float | None = None
    flow_shift: float | None = None
    loras: tuple[Lora, ...] = ()
    quality: Quality = "quality"
    shot_type: ShotType = "single"
    safety_checker: bool = True
    prompt_expansion: bool = False
    premium: bool = False
    audio_mode: AudioMode = "none"
    audio_url: str | None = None
    callback_url: str | None = None
    unasked: frozenset[str] = frozenset()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.frames / self.fps

    @property
    def is_portrait(self) -> bool:
        return self.height > self.width

    def replace(self, **changes: Any) -> ProviderJob:
        return dataclasses.replace(self, **changes)


# ------------------------------------------------------------------ the wire


@dataclass(frozen=True)
class FilePart:
    filename: str
    media_type: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class HttpCall:
    """One request, ready to send. ``idempotent``: sending it twice does no harm."""

    method: Literal["GET", "POST", "DELETE"]
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    params: Mapping[str, str] = field(default_factory=dict)
    json: Any = field(default=None, repr=False)
    form: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: Mapping[str, FilePart] = field(default_factory=dict)
    timeout_seconds: float = 20.0
    idempotent: bool = False


@dataclass(frozen=True)
class HttpReply:
    """An answer, read to its end. ``headers`` has lower-case names."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)

    def json(self) -> Any:
        """Return the decoded body, or None when it is not JSON.

        Its texts are without what no database takes; see `storable`.
        """
        try:
            body = json.loads(self.body)
            return _storable(body) if b"\\u" in self.body else body
        except (ValueError, RecursionError):
            return None

    def retry_after_seconds(self) -> float | None:
        """Return what the provider asks us to wait, at most an hour."""
        millis = _number(self.headers.get("retry-after-ms"))
        if millis is not None:
            return _wait(millis / 1000)
        value = self.headers.get("retry-after", "")
        if (seconds := _number(value)) is not None:
            return _wait(seconds)
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return _wait((moment - datetime.now(UTC)).total_seconds())


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_storable(one) for one in value]
    if isinstance(value, dict):
        return {storable(name): _storable(one) for name, one in value.items()}
    return value


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if number == number else None


def _wait(seconds: float) -> float:
    return min(max(seconds, 0.0), 3600.0)


# ------------------------------------------------------------------ what comes back


@dataclass(frozen=True)
class Submitted:
    """The provider has the job. ``cost_usd`` only where the answer states it."""

    provider_id: str
    cost_usd: Decimal | None = None


@dataclass(frozen=True)
class RemoteStatus:
    """How the provider sees a job. ``progress`` is 0..1.

    ``unknown``: the provider does not know the id. ``download_headers`` belong to
    ``video_url`` alone and must not follow a redirect to another host.
    ``notes`` may hold the ``seed`` used, the ``prompt`` as we gave it, and what the
    provider made of it, ``expanded_prompt``.
    """

    state: State
    progress: float | None = None
    video_url: str | None = None
    download_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    error: ProviderError | None = None
    cost_usd: Decimal | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        return self.state in ("succeeded", "failed")


@dataclass(frozen=True)
class CallbackHint:
    """A verified callback says "look at this job"; the truth is then read by a status call."""

    provider_id: str
    finished: bool = True


class CallbackRefused(Exception):
    """A callback that is not the provider's, or not readable: answer 401, change nothing."""


@dataclass(frozen=True)
class FindQuery:
    """Which job is looked for after its submit answer was lost.

    ``since`` is just before the submit was sent, ``until`` just after it failed;
    ``known_ids`` are ids that belong to other attempts of this account. Without a
    ``prompt``, any words will do.
    """

    reference: str
    model: str
    prompt: str | None
    since: datetime
    until: datetime
    known_ids: frozenset[str] = frozenset()
    cursor: str | None = None


@dataclass(frozen=True)
class Found:
    """Jobs that fit the query. None and ``conclusive``: the provider has no such job."""

    candidates: tuple[str, ...] = ()
    conclusive: bool = False
    next_cursor: str | None = None


# ------------------------------------------------------------------ what it can do


class Evidence(StrEnum):
    """How a lost answer is found again."""

    CLIENT_TOKEN = "client_token"  # noqa: S105 - submitting again with the same token is safe
    TASK_LIST = "task_list"  # the provider lists jobs: build_find / parse_find
    CALLBACK_TOKEN = "callback_token"  # noqa: S105 - our token is in the callback URL
    NONE = "none"


@dataclass(frozen=True)
class PictureNeed:
    """In which form the provider takes pictures, and within which limits."""

    form: Literal["inline", "url", "upload"]
    media_types: tuple[str, ...] = ("image/png", "image/jpeg")
    side_min: int = 1
    side_max: int = 8192
    size_bytes_max: int = 10 * 1024 * 1024


@dataclass(frozen=True)
class Capabilities:
    """Facts of a provider that routing, submitting and polling need.

    ``poll_seconds`` is the shortest sensible interval per job; the rates are per account
    and can be lowered by the operator.
    """

    picture: PictureNeed
    evidence: Evidence
    cancel: bool = False  # can stop a job that has not started
    delete: bool = False  # can delete its copy of the video
    callback_per_job: bool = False  # takes a callback URL with each job
    callback_signed: bool = False
    status_batch: int = 1  # ids one status call takes
    poll_seconds: float = 10.0
    statuses_per_second: float = 5.0
    submits_per_second: float = 2.0
    concurrent_jobs: int = 5
    list_shows_prompts: bool = True  # else a candidate's own status tells whose it is


@dataclass(frozen=True)
class WireModel:
    """One model name on the provider's wire.

    ``seconds`` are the lengths it sells, rising; a job is made at the next longer one and
    trimmed by us. ``tiers`` maps ours to the wire's word. ``options`` are the job fields
    that can be sent; ``audio`` the kinds of sound it can be asked for (silence always can:
    we drop the track).
    """

    seconds: tuple[int, ...]
    tiers: Mapping[str, str]
    options: frozenset[str] = frozenset()
    audio: frozenset[AudioMode] = frozenset()
    prompt_required: bool = False
    last_image_required: bool = False
    prompt_max: int = 2000
    negative_prompt_max: int = 500
    usd_per_second: Mapping[str, Decimal] = field(default_factory=dict)
    usd_per_clip: Decimal | None = None

    def offers(self, option: str) -> bool:
        return option in self.options


@dataclass(frozen=True)
class CredentialField:
    """A secret the operator enters for an account."""

    name: str
    label: str
    required: bool = True


# ------------------------------------------------------------------ errors


@dataclass(frozen=True)
class ErrorRule:
    """What one error of a provider means.

    ``unknown_job``: the id of a status call is not known there. ``may_have_job``: even
    so, a submit may have been accepted.
    """

    fault: Fault
    code: str | None = None
    public: str | None = None
    unknown_job: bool = False
    may_have_job: bool = False


CUSTOMER = ErrorRule(Fault.CUSTOMER, public="The request was refused.")
BLOCKED = ErrorRule(
    Fault.CUSTOMER, ContentBlocked.default_code, ContentBlocked.default_public
)
BAD_IMAGE = ErrorRule(
    Fault.CUSTOMER, "invalid_input", "The picture was refused by the model."
)
BAD_AUDIO = ErrorRule(
    Fault.CUSTOMER, "invalid_input", "The sound was refused by the model."
)
ACCOUNT = ErrorRule(Fault.ACCOUNT)
#: The account may not use what this call is about, and everything else as before.
MODEL = ErrorRule(Fault.MODEL)
HEALTH = ErrorRule(Fault.HEALTH)
BUSY = ErrorRule(Fault.BUSY)
UNKNOWN_JOB = ErrorRule(Fault.HEALTH, unknown_job=True)
#: A gateway gave up waiting; what is behind it may have taken the job.
IN_DOUBT = ErrorRule(Fault.HEALTH, may_have_job=True)

#: For errors whose name no table knows, when the provider's own envelope was readable.
BY_STATUS: Mapping[int, ErrorRule] = MappingProxyType(
    {
        400: CUSTOMER,
        401: ACCOUNT,
        402: ACCOUNT,
        403: ACCOUNT,
        404: HEALTH,
        408: IN_DOUBT,
        409: HEALTH,
        413: BAD_IMAGE,
        415: BAD_IMAGE,
        422: CUSTOMER,
        429: BUSY,
        502: IN_DOUBT,
        504: IN_DOUBT,
    }
)

#: For answers that are not the provider's own words: a proxy, a wrong base URL, a crash.
FOREIGN_BY_STATUS: Mapping[int, ErrorRule] = MappingProxyType(
    # A 403 of a proxy or firewall is about one call or all of us, hardly about the key.
    {401: ACCOUNT, 402: ACCOUNT, 403: HEALTH, 429: BUSY, 503: HEALTH}
)


@dataclass(frozen=True)
class WireError:
    """An error in the provider's own envelope: the name its table goes by, and its text."""

    key: str
    message: str = ""


# ------------------------------------------------------------------ the adapter

#: job field → the value that asks for nothing
_NEUTRAL: Mapping[str, Any] = MappingProxyType(
    {
        "last_image": None,
        "negative_prompt": "",
        "seed": None,
        "steps": None,
        "guidance_scale": None,
        "guidance_scale_2": None,
        "flow_shift": None,
        "loras": (),
        "quality": "quality",
        "shot_type": "single",
        "safety_checker": True,
        "prompt_expansion": False,
        "premium": False,
    }
)

API_KEY = CredentialField("api_key", "API key")
NOT_SENDABLE = "is not one line of printable ASCII characters"


def is_sendable(credential: Any) -> bool:
    """Return whether a credential can stand in a header as it is.

    A blank, line break or invisible character that was pasted along with it cannot.
    """
    if not isinstance(credential, str):
        return False
    is_line = credential.isascii() and credential.isprintable()
    return is_line and credential == credential.strip()


class Provider(ABC):
    """One outside service. The base owns the sequence; an adapter writes and reads.

    Hooks of an adapter: ``write_submit``, ``read_submit``, ``write_status``,
    ``read_status``, ``read_error``; and where the service has them ``build_cancel``,
    ``build_delete``, ``build_find``, ``parse_callback``. Hooks that read may raise
    KeyError, TypeError or ValueError: the answer then counts as garbage.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    default_base_url: ClassVar[str]
    capabilities: ClassVar[Capabilities]
    models: ClassVar[Mapping[str, WireModel]]
    #: the error table: name on the wire → meaning
    errors: ClassVar[Mapping[str, ErrorRule]]
    #: names of failed jobs where they mean something else than for a refused call
    job_errors: ClassVar[Mapping[str, ErrorRule]] = MappingProxyType({})
    credential_fields: ClassVar[tuple[CredentialField, ...]] = (API_KEY,)
    #: What an account may set beyond ``account_settings.COMMON``.
    own_settings: ClassVar[Mapping[str, Setting]] = MappingProxyType({})

    # -------------------------------------------------------------- what it can do

    def model(self, name: str, account: ProviderAccount) -> WireModel:
        """Return the facts of a wire model; raise Unsupported for one not in the table."""
        try:
            return self.models[name]
        except KeyError:
            raise refusal("model", f"is not called '{name}'") from None

    def check(self, job: ProviderJob, account: ProviderAccount) -> None:
        """Raise Unsupported naming the first field this provider cannot fulfil.

        Looks at no picture bytes and no URLs, so routing can ask before anything is fetched.
        """
        model = self.model(job.model, account)
        if job.tier not in model.tiers:
            raise refusal("resolution", f"makes {', '.join(model.tiers)}")
        self.sold_seconds(job, model)
        for option, neutral in _NEUTRAL.items():
            value = getattr(job, option)
            if value == neutral or model.offers(option) or option in job.unasked:
                continue
            raise refusal(option, f"has no option '{option}'")
        if job.audio_mode != "none" and job.audio_mode not in model.audio:
            raise refusal(
                "audio", f"cannot be asked for sound of kind '{job.audio_mode}'"
            )
        if model.prompt_required and not job.prompt.strip():
            raise refusal("prompt", "needs a prompt")
        if model.last_image_required and job.last_image is None:
            raise refusal("last_image", "needs a last image")
        if len(job.prompt) > model.prompt_max:
            raise refusal("prompt", f"takes at most {model.prompt_max} characters")
        if len(job.negative_prompt) > model.negative_prompt_max:
            raise refusal(
                "negative_prompt",
                f"takes at most {model.negative_prompt_max} characters",
            )
        self.check_more(job, model)

    def check_more(self, job: ProviderJob, model: WireModel) -> None:
        """Raise Unsupported for what tables cannot say; a hook."""
        return

    def sold_seconds(self, job: ProviderJob, model: WireModel) -> int:
        """Return the next longer length this model is sold in."""
        for seconds in model.seconds:
            if job.seconds <= seconds + LENGTH_TOLERANCE_SECONDS:
                return seconds
        raise refusal("seconds", f"makes at most {model.seconds[-1]} seconds")

    def canvas(
        self, job: ProviderJob, account: ProviderAccount
    ) -> tuple[int, int] | None:
        """Return the exact size a picture must have, where the provider demands one."""
        return None

    def credentials(self, given: Mapping[str, Any]) -> dict[str, str]:
        """Return what an operator entered, without blanks around it.

        Raises ValueError naming a credential that is missing or cannot be one. What this
        provider does not need is left out.
        """
        found = {}
        for one in self.credential_fields:
            value = given.get(one.name)
            value = value.strip() if isinstance(value, str) else value
            if value in (None, ""):
                if one.required:
                    raise ValueError(f"{one.name} is missing")
                continue
            if not is_sendable(value):
                raise ValueError(f"{one.name} {NOT_SENDABLE}")
            found[one.name] = value
        return found

    def settings_problem(self, given: Any) -> str:
        """Say what is wrong with an account's settings, or answer ""."""
        known = {**account_settings.COMMON, **self.own_settings}
        return account_settings.problem(given, known)

    def unavailable(self, account: ProviderAccount, *, public_endpoint: str) -> str:
        """Say why no job can go to this account as it is set up, or answer "".

        ``public_endpoint`` is the storage address that signed URLs carry. A provider out
        in the world cannot read from a loopback one; one on this machine can.
        """
        try:
            for one in self.credential_fields:
                if one.required or account.credentials.get(one.name):
                    account.secret(one.name)
        except ProviderError as error:
            return str(error)
        if urlsplit(account.base_url).scheme not in ("http", "https"):
            return f"account '{account.name}' has no usable base URL"
        if self.capabilities.picture.form == "url" and not reaches(
            account.base_url, public_endpoint
        ):
            return (
                f"{self.title} reads pictures by URL, but the public storage endpoint "
                f"{public_endpoint or '(none)'} cannot be reached from outside; "
                "set S3_PUBLIC_ENDPOINT_URL to a public address"
            )
        return ""

    def evidence(
        self, account: ProviderAccount, *, callback_url: str | None
    ) -> Evidence:
        """Return how a lost submit answer can be found, as this attempt was sent."""
        if account.settings.get("idempotency_key"):
            return Evidence.CLIENT_TOKEN
        kind = self.capabilities.evidence
        if kind is Evidence.CALLBACK_TOKEN and not callback_url:
            return Evidence.NONE
        return kind

    def estimate_usd(
        self, job: ProviderJob, account: ProviderAccount
    ) -> Decimal | None:
        """Return what the job will cost us, where a price is known.

        The account's setting ``usd_per_second`` ({tier: price}) goes before our tables.
        """
        model = self.model(job.model, account)
        own = account.settings.get("usd_per_second") or {}
        price = decimal(own.get(job.tier)) or model.usd_per_second.get(job.tier)
        if price is not None:
            return price * self.sold_seconds(job, model)
        return model.usd_per_clip

    # -------------------------------------------------------------- submit

    def build_submit(self, job: ProviderJob, account: ProviderAccount) -> HttpCall:
        """Return the call that starts ``job``.

        Raises Unsupported, also when a picture or sound is in no form the provider takes.
        """
        self.check(job, account)
        if job.audio_mode == "url" and not job.audio_url:
            raise refusal("audio", "reads sound from a public URL only")
        call = self.write_submit(job, self.model(job.model, account), account)
        if account.settings.get("idempotency_key"):
            # Not marked idempotent: a lost answer is in doubt all the same, so that the
            # same token goes to the same account again and nowhere else.
            headers = {**call.headers, "Idempotency-Key": job.reference}
            call = dataclasses.replace(call, headers=headers)
        return call

    def parse_submit(self, reply: HttpReply, account: ProviderAccount) -> Submitted:
        body = reply.json()
        self._raise_refusal(reply, body, submitting=True)
        try:
            submitted = self.read_submit(body, account)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AnswerLost(
                f"{self.name}: unreadable answer to a submit "
                f"(HTTP {reply.status}: {excerpt(reply)})"
            ) from error
        if not submitted.provider_id:
            raise AnswerLost(f"{self.name}: a submit was answered without an id")
        return submitted

    @abstractmethod
    def write_submit(
        self, job: ProviderJob, model: WireModel, account: ProviderAccount
    ) -> HttpCall: ...

    @abstractmethod
    def read_submit(self, body: Any, account: ProviderAccount) -> Submitted: ...

    # -------------------------------------------------------------- status

    def build_status(self, ids: Sequence[str], account: ProviderAccount) -> HttpCall:
        """Return the call that asks about ``ids``, at most ``status_batch`` of them."""
        if not 1 <= len(ids) <= self.capabilities.status_batch:
            raise ValueError(
                f"{self.name} takes 1 to {self.capabilities.status_batch} ids "
                f"in one status call, got {len(ids)}"
            )
        return self.write_status(ids, account)

    def parse_status(
        self, reply: HttpReply, ids: Sequence[str], account: ProviderAccount
    ) -> dict[str, RemoteStatus]:
        """Return the state of every id of ``ids``; raise ProviderError for a failed call."""
        body = reply.json()
        try:
            self._raise_refusal(reply, body, submitting=False)
        except _UnknownJob:
            return {one: RemoteStatus("unknown") for one in ids}
        try:
            known = self.read_status(body, ids, account)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProviderError(
                f"{self.name}: unreadable status (HTTP {reply.status}: {excerpt(reply)})",
                fault=Fault.HEALTH,
            ) from error
        return {one: self._usable(known.get(one)) for one in ids}

    def _usable(self, status: RemoteStatus | None) -> RemoteStatus:
        if status is None:
            return RemoteStatus("unknown")
        if status.state == "succeeded" and not status.video_url:
            error = ProviderError(
                f"{self.name}: a job succeeded without a video", fault=Fault.HEALTH
            )
            return dataclasses.replace(status, state="failed", error=error)
        return status

    @abstractmethod
    def write_status(
        self, ids: Sequence[str], account: ProviderAccount
    ) -> HttpCall: ...

    @abstractmethod
    def read_status(
        self, body: Any, ids: Sequence[str], account: ProviderAccount
    ) -> dict[str, RemoteStatus]: ...

    # -------------------------------------------------------------- cancel and delete

    def build_cancel(self, provider_id: str, account: ProviderAccount) -> HttpCall:
        raise refusal("cancel", "cannot be canceled")

    def parse_cancel(self, reply: HttpReply, account: ProviderAccount) -> bool:
        """Return whether the job is stopped; False when it is too late for that."""
        return self._parse_done(reply)

    def build_delete(self, provider_id: str, account: ProviderAccount) -> HttpCall:
        raise refusal("delete", "cannot delete its copy")

    def parse_delete(self, reply: HttpReply, account: ProviderAccount) -> bool:
        """Return whether the copy is gone; False when the provider keeps it for now."""
        return self._parse_done(reply)

    def _parse_done(self, reply: HttpReply) -> bool:
        try:
            self._raise_refusal(reply, reply.json(), submitting=False)
        except _UnknownJob:
            return True
        except ProviderError as error:
            if error.fault is Fault.CUSTOMER:
                return False
            raise
        return True

    # -------------------------------------------------------------- evidence

    def build_find(self, query: FindQuery, account: ProviderAccount) -> HttpCall:
        """Return the call that looks for a job whose submit answer was lost."""
        raise NotImplementedError(f"{self.name} lists no jobs")

    def parse_find(
        self, reply: HttpReply, query: FindQuery, account: ProviderAccount
    ) -> Found:
        self._raise_refusal(reply, reply.json(), submitting=False)
        try:
            return self.read_find(reply.json(), query)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProviderError(
                f"{self.name}: unreadable list ({excerpt(reply)})", fault=Fault.HEALTH
            ) from error

    def read_find(self, body: Any, query: FindQuery) -> Found:
        raise NotImplementedError(f"{self.name} lists no jobs")

    # -------------------------------------------------------------- callbacks

    def parse_callback(
        self, body: bytes, headers: Mapping[str, str], account: ProviderAccount
    ) -> CallbackHint:
        """Verify and read a callback (``headers`` lower-case); raise CallbackRefused.

        Where ``callback_signed`` is false the caller has already compared the token in
        the URL, which is then the only proof.
        """
        raise CallbackRefused(f"{self.name} sends no callbacks")

    # -------------------------------------------------------------- errors

    @abstractmethod
    def read_error(self, reply: HttpReply, body: Any) -> WireError | None:
        """Return the error an answer carries in the provider's own envelope, if it does."""

    def failure(self, key: str, message: str = "") -> ProviderError:
        """Return the error of a *job* that failed; unknown names count as health."""
        rule = _lookup(self.job_errors, key) or _lookup(self.errors, key) or HEALTH
        if rule.unknown_job or rule.fault is Fault.BUSY:
            rule = HEALTH
        return self._error(rule, f"job failed: {key or '(no reason)'} {message}")

    def rule_for(self, reply: HttpReply, body: Any) -> tuple[ErrorRule, str] | None:
        """Return what an answer means if it is a refusal, and the words for our log."""
        wire = self.read_error(reply, body)
        if wire is not None:
            rule = (
                _lookup(self.errors, wire.key) or BY_STATUS.get(reply.status) or HEALTH
            )
            return rule, f"HTTP {reply.status} {wire.key} {wire.message}"
        if reply.status < 300:
            return None
        rule = FOREIGN_BY_STATUS.get(
            reply.status, IN_DOUBT if reply.status >= 500 else HEALTH
        )
        return rule, f"HTTP {reply.status} {excerpt(reply)}"

    def _raise_refusal(self, reply: HttpReply, body: Any, *, submitting: bool) -> None:
        if (refusal := self.rule_for(reply, body)) is None:
            return
        rule, words = refusal
        if submitting and rule.may_have_job:
            raise AnswerLost(f"{self.name}: {words}")
        if rule.unknown_job and not submitting:
            raise _UnknownJob(f"{self.name}: {words}", fault=rule.fault)
        raise self._error(rule, words, reply.retry_after_seconds())

    def _error(
        self, rule: ErrorRule, words: str, retry_after: float | None = None
    ) -> ProviderError:
        return ProviderError(
            f"{self.name}: {words}"[:500],
            fault=rule.fault,
            code=rule.code,
            public=rule.public,
            retry_after_seconds=retry_after,
        )

    # -------------------------------------------------------------- for adapters

    def bearer(self, account: ProviderAccount) -> dict[str, str]:
        return {"Authorization": f"Bearer {account.secret('api_key')}"}

    def picture_url(self, picture: Picture) -> str:
        """Return the picture's signed URL; without one this route cannot be used."""
        if not picture.url:
            raise refusal("image", "reads pictures from a public URL only")
        return picture.url


class _UnknownJob(ProviderError):
    """The provider does not know the id (a status call only)."""


def refusal(option: str, reason: str) -> Unsupported:
    """Return the error for what a provider cannot do; customers may read it, so it names none."""
    return Unsupported(f"The model on this route {reason}.", field=option)


def _lookup(table: Mapping[str, ErrorRule], key: str) -> ErrorRule | None:
    """Return the rule of ``key``, or of the longest dotted beginning of it."""
    while key:
        if key in table:
            return table[key]
        key = key.rpartition(".")[0]
    return None


# ------------------------------------------------------------------ small readings


def record(value: Any) -> dict[str, Any]:
    """Return ``value`` if it is a JSON object; raise ValueError otherwise."""
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return value


def optional(value: Any) -> dict[str, Any]:
    """Return ``value`` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def text(value: Any) -> str:
    """Return a non-empty string or number as text; raise ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"expected text, got {value!r}")
    return str(value)


def decimal(value: Any) -> Decimal | None:
    """Return a JSON number as Decimal, or None when there is none."""
    if value is None or isinstance(value, bool):
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def fraction(percent: Any) -> float | None:
    """Return a percentage as 0..1, or None when there is none."""
    number = decimal(percent)
    return None if number is None else min(max(float(number) / 100, 0.0), 1.0)


def excerpt(reply: HttpReply) -> str:
    """Return the start of a body for our log, on one line."""
    return " ".join(reply.body[:300].decode("utf-8", "replace").split())


def data_uri(picture: Picture) -> str:
    if not picture.data:
        raise ValueError("the picture has no bytes")
    encoded = base64.b64encode(picture.data).decode("ascii")
    return f"data:{picture.media_type};base64,{encoded}"


def is_local(url: str) -> bool:
    """Return whether ``url`` names this machine or nothing at all."""
    host = (urlsplit(url).hostname or "").lower()
    if not host or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def reaches(from_url: str, target_url: str) -> bool:
    """Return whether a service at ``from_url`` can hope to read ``target_url``."""
    if not urlsplit(target_url).hostname:
        return False
    return not is_local(target_url) or is_local(from_url)
