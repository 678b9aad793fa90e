"""Why a call was refused, in our own words; each dialect says it in its own.

ApiError                       any refusal; carries what a dialect needs to phrase it
├── InvalidRequest             a field is wrong (``field``, ``reason``)
│   ├── MalformedBody          the body could not be read at all
│   └── UnsupportedOption      the model cannot do it (``models`` that can)
├── UnknownHost                called by a host name that is none of ours
├── Unauthenticated            no key, or not a good one: always the same answer
├── Forbidden                  the key or plan does not allow it
├── InsufficientCredits        ``required_millicredits``, ``available_millicredits``
├── SpendCapReached            the daily cap of the key or account
├── QuotaExhausted             the plan's free allowance is used up
├── NotFound                   unknown or somebody else's id: the same answer
│   └── RouteNotFound          no such path
├── MethodNotAllowed           ``allowed`` methods
├── NotAcceptableNow           the state of the job does not allow it
├── IdempotencyInFlight        the first call with this key is still running
├── IdempotencyMismatch        this key was used for another request
├── RequestTimeout             the body did not arrive in time
├── PayloadTooLarge
├── UnsupportedMediaType
├── RateLimited                ``retry_after_seconds``
├── ModelUnavailable           no enabled route can make this model now
├── NotImplementedHere         a documented call we do not serve
├── InternalError              our fault; the log has the reason
└── ServiceUnavailable         one of our parts is away; try again
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar


class ApiError(Exception):
    """A refusal. ``status`` is the HTTP status our own API uses; ``code`` is stable."""

    status: ClassVar[int] = 400
    code: str = "invalid_request"
    #: for dialects that show rate limits
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self, message: str, *, field: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        if code is not None:
            self.code = code

    @property
    def retry_after_seconds(self) -> int | None:
        return None


class InvalidRequest(ApiError):
    """``field`` is the canonical or wire name; ``message`` says what would be right."""

    status = 422
    code = "invalid_request"

    def __init__(self, field: str | None, message: str, *, code: str | None = None):
        super().__init__(message, field=field, code=code)


class MalformedBody(InvalidRequest):
    status = 400
    code = "malformed_body"

    def __init__(self, message: str) -> None:
        super().__init__(None, message)


class UnsupportedOption(InvalidRequest):
    code = "unsupported_option"

    def __init__(self, field: str, model: str, models: Sequence[str]) -> None:
        others = ", ".join(models) or "no model at present"
        super().__init__(
            field,
            f"Model '{model}' does not support '{field}'. Supported by: {others}.",
        )
        self.models = tuple(models)


class UnknownHost(ApiError):
    code = "unknown_host"

    def __init__(self) -> None:
        super().__init__(
            "This host name is not served here; the operator's ALLOWED_HOSTS names "
            "those that are."
        )


class Unauthenticated(ApiError):
    status = 401
    code = "unauthenticated"

    def __init__(self) -> None:
        super().__init__("A valid API key is required.")


class Forbidden(ApiError):
    status = 403
    code = "forbidden"


class InsufficientCredits(ApiError):
    status = 402
    code = "insufficient_credits"

    def __init__(self, *, required_millicredits: int, available_millicredits: int):
        super().__init__(
            f"This request needs {required_millicredits / 1000:g} credits; "
            f"{available_millicredits / 1000:g} are available."
        )
        self.required_millicredits = required_millicredits
        self.available_millicredits = available_millicredits


class SpendCapReached(ApiError):
    status = 402
    code = "spend_cap_reached"


class QuotaExhausted(ApiError):
    status = 403
    code = "quota_exhausted"


class NotFound(ApiError):
    status = 404
    code = "not_found"

    def __init__(self, what: str = "job") -> None:
        super().__init__(f"No such {what}.")


class RouteNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("path")


class MethodNotAllowed(ApiError):
    status = 405
    code = "method_not_allowed"

    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__(f"Allowed methods: {', '.join(allowed)}.")
        self.allowed = tuple(allowed)


class NotAcceptableNow(ApiError):
    status = 409
    code = "conflict"


class IdempotencyInFlight(ApiError):
    status = 409
    code = "idempotency_in_flight"

    def __init__(self) -> None:
        super().__init__("The first request with this idempotency key is in progress.")

    @property
    def retry_after_seconds(self) -> int:
        return 1


class IdempotencyMismatch(ApiError):
    status = 422
    code = "idempotency_mismatch"

    def __init__(self) -> None:
        super().__init__(
            "This idempotency key was used for a different request.",
            field="Idempotency-Key",
        )


class RequestTimeout(ApiError):
    status = 408
    code = "request_timeout"

    def __init__(self) -> None:
        super().__init__("The body did not arrive in time.")


class PayloadTooLarge(ApiError):
    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(ApiError):
    status = 415
    code = "unsupported_media_type"


class RateLimited(ApiError):
    status = 429
    code = "rate_limited"

    def __init__(
        self,
        *,
        retry_after_seconds: int,
        limit: int,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            f"Rate limit exceeded. Retry after {retry_after_seconds} seconds."
        )
        self._retry_after_seconds = retry_after_seconds
        self.limit = limit
        self.headers = headers or {}

    @property
    def retry_after_seconds(self) -> int:
        return self._retry_after_seconds


class ModelUnavailable(ApiError):
    status = 503
    code = "model_unavailable"

    def __init__(self, model: str) -> None:
        super().__init__(f"Model '{model}' is not available at present.", field="model")
        self.model = model


class NotImplementedHere(ApiError):
    status = 501
    code = "not_implemented"


class InternalError(ApiError):
    status = 500
    code = "internal_error"

    def __init__(self) -> None:
        super().__init__("Something went wrong on our side.")


class ServiceUnavailable(ApiError):
    status = 503
    code = "service_unavailable"

    def __init__(self, message: str = "Please try again shortly.") -> None:
        super().__init__(message)

    @property
    def retry_after_seconds(self) -> int:
        return 5
