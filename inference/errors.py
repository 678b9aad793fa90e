"""What can go wrong while a video is made.

RenderError                     any failure of one step
├── InputRejected               the customer's input cannot be used (permanent)
│   └── PictureSizeRejected     its sides or pixels are outside our limits
├── ContentBlocked              a safety rule refused input or output (permanent)
├── Unsupported                 this engine or provider cannot do what was asked (permanent)
├── Stopped                     ``should_stop`` answered true; not a failure of the job
├── NotYet                      there is nothing to do till later; not a failure either
├── OutOfMemory                 the device or host had too little memory (permanent: on this
│                               route, whatever is tried)
├── EngineFailed                the engine broke; another try may help
│   └── EngineBroken            the process can make no more videos (sticky CUDA error)
├── FetchFailed                 a customer's or provider's address did not answer well
├── WeightsMissing              weights are not where they should be (permanent for this host)
├── ProviderError               an outside service refused or broke (see its ``fault``)
│   ├── AnswerLost              it may have taken the job; nobody knows yet
│   └── ResultAway              it has the video, which cannot be had just now
└── OutageError                 one of our own services is away; never counts as a try
    ├── StorageUnavailable
    └── CannotSign              no file can be signed here; the process must end

``permanent`` is the one bit that decides retry; ``public`` is safe to show to a customer.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class RenderError(Exception):
    """A step failed.

    ``code`` is stable and part of the public API. ``public`` is the sentence a customer
    may read; ``str(error)`` may hold internal detail. ``counts`` says whether the failure
    uses up one of the step's tries. ``retry_after_seconds`` is the earliest sensible retry.
    """

    default_code: ClassVar[str] = "generation_failed"
    default_permanent: ClassVar[bool] = False
    default_public: ClassVar[str] = "The video could not be generated."
    counts: ClassVar[bool] = True

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        permanent: bool | None = None,
        public: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.permanent = self.default_permanent if permanent is None else permanent
        self.public = public or self.default_public
        self.retry_after_seconds = retry_after_seconds


class InputRejected(RenderError):
    """The customer's picture, sound or text cannot be used; ``field`` names which."""

    default_code = "invalid_input"
    default_permanent = True

    def __init__(self, message: str, *, field: str, code: str | None = None) -> None:
        super().__init__(message, code=code, public=message)
        self.field = field


class PictureSizeRejected(InputRejected):
    """``is_too_large``: a side or the area is over the limits, not under them."""

    default_code = "image_size_invalid"

    def __init__(self, message: str, *, is_too_large: bool) -> None:
        super().__init__(message, field="image")
        self.is_too_large = is_too_large


class ContentBlocked(RenderError):
    default_code = "content_blocked"
    default_permanent = True
    default_public = "The request or its result was refused by the safety policy."


class Unsupported(RenderError):
    default_code = "unsupported_option"
    default_permanent = True

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message, public=message)
        self.field = field


class Stopped(RenderError):
    """The caller asked to stop: canceled, drained, past its deadline or no longer ours."""

    default_code = "stopped"
    counts = False


class NotYet(RenderError):
    """An engine asks to be called again in ``retry_after_seconds``.

    Till then it holds no worker. It tells by the request's ``running_seconds`` that the
    time has come.
    """

    default_code = "not_yet"
    counts = False


class OutOfMemory(RenderError):
    default_code = "out_of_memory"
    default_public = "The video was too large for the machine that tried to make it."


class EngineFailed(RenderError):
    default_code = "engine_failed"


class EngineBroken(EngineFailed):
    """The process must end: what it holds on the device can no longer be trusted."""


class FetchFailed(RenderError):
    """An address named by a customer or provider did not answer; later it may."""

    default_code = "fetch_failed"

    def __init__(self, message: str) -> None:
        super().__init__(message, public=message)


class WeightsMissing(RenderError):
    default_code = "model_unavailable"
    default_permanent = True
    default_public = "The model is not available at present."


class Fault(StrEnum):
    """Whose fault a provider's refusal is; decides retry, breaker and incident."""

    CUSTOMER = "customer"  # the request itself: fail the job, refund
    ACCOUNT = "account"  # our account there: next route, raise an incident
    MODEL = (
        "model"  # our account has not this model, option or job: likewise, but stays
    )
    HEALTH = "health"  # the service: retry, count against the breaker
    BUSY = "busy"  # 429: retry later, counts against nobody


class ProviderError(RenderError):
    """An outside service refused or broke. ``str(error)`` never reaches a customer."""

    default_code = "provider_failed"

    def __init__(
        self,
        message: str,
        *,
        fault: Fault,
        code: str | None = None,
        public: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(
            storable(message),
            code=code or ("provider_rejected" if fault is Fault.CUSTOMER else None),
            permanent=fault is Fault.CUSTOMER,
            public=public,
            retry_after_seconds=retry_after_seconds,
        )
        self.fault = fault


def storable(words: str) -> str:
    """Return a service's words without what no database takes (NUL, half characters)."""
    return words.encode("utf-8", "replace").decode().replace("\0", " ")


class AnswerLost(ProviderError):
    """A submit went out and no id came back: reconcile before anyone retries or refunds."""

    counts = False

    def __init__(self, message: str) -> None:
        super().__init__(message, fault=Fault.HEALTH)


class ResultAway(ProviderError):
    """A finished video could not be fetched or asked for; later it may be."""

    counts = False


class OutageError(RenderError):
    default_code = "temporarily_unavailable"
    counts = False


class StorageUnavailable(OutageError):
    pass


class CannotSign(OutageError):
    """The certificate of this host signs nothing that readers accept, whatever the file."""
