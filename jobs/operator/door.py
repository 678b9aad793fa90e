"""Who may call and how often, how bodies are read, and how refusals look: RFC 9457."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import structlog
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework import exceptions
from rest_framework.authentication import BaseAuthentication
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.parsers import JSONParser
from rest_framework.permissions import SAFE_METHODS, IsAuthenticated
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing import errors as billing_errors
from billing import operator_keys, throttles
from billing.operator_keys import OperatorKey
from billing.throttles import Allowance
from jobs import strict_json
from jobs.errors import IdempotencyInFlight, IdempotencyMismatch, InvalidRequest

log = structlog.get_logger()
PROBLEM = "application/problem+json"
TYPE = "https://zoetrope.dev/problems/"


class OperatorKeyAuthentication(BaseAuthentication):
    """``Authorization: Bearer zoe_operator_…``; ``request.auth`` is the key's row."""

    def authenticate(self, request: Request) -> tuple[Any, OperatorKey]:
        scheme, _, presented = request.headers.get("authorization", "").partition(" ")
        try:
            if scheme.lower() != "bearer":
                raise billing_errors.InvalidKey
            key = operator_keys.authenticate(presented.strip())
        except billing_errors.InvalidKey as error:
            raise exceptions.AuthenticationFailed(
                "A valid operator key is required."
            ) from error
        return key.user, key

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class _Scheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """How the key is described in the OpenAPI document."""

    target_class = OperatorKeyAuthentication
    name = "operatorKey"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": "zoe_operator_…"}


class StrictJSONParser(JSONParser):
    """JSON read as strictly as the customers' (see ``strict_json``)."""

    def parse(
        self,
        stream: Any,
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        try:
            return strict_json.parse(stream.read().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise exceptions.ParseError("The body is not valid UTF-8.") from error
        except InvalidRequest as refused:
            if refused.field is None:
                raise exceptions.ParseError(refused.message) from refused
            raise Unacceptable({refused.field: [refused.message]}) from refused


class Conflict(exceptions.APIException):
    status_code = 409
    default_code = "conflict"


class Unacceptable(exceptions.ValidationError):
    """The request was read and a field of it is wrong."""

    status_code = 422


class TooOften(exceptions.APIException):
    status_code = 429
    default_code = "rate_limited"

    def __init__(self, allowance: Allowance) -> None:
        self.allowance = allowance
        super().__init__(
            f"Rate limit exceeded. Retry after {allowance.retry_after} seconds."
        )


class AlwaysJSON(DefaultContentNegotiation):
    """There is one form of answer, whatever a client says it accepts."""

    def select_renderer(
        self, request: Request, renderers: Any, format_suffix: str | None = None
    ) -> Any:
        return renderers[0], renderers[0].media_type


class OperatorView(APIView):
    """What every view of the operator API shares."""

    authentication_classes = (OperatorKeyAuthentication,)
    permission_classes = (IsAuthenticated,)
    parser_classes = (StrictJSONParser,)
    renderer_classes = (JSONRenderer,)
    content_negotiation_class = AlwaysJSON
    #: Django permission that the key's operator needs, by method.
    rights: ClassVar[Mapping[str, str]] = {}
    #: What the key has left; None while nobody showed one.
    _allowance: Allowance | None = None

    def perform_authentication(self, request: Request) -> None:
        """Ask who it is, and how often they asked before anything else is done."""
        try:
            super().perform_authentication(request)
        except exceptions.AuthenticationFailed:
            guesses = throttles.take_for_bad_key(request.META.get("REMOTE_ADDR", ""))
            if not guesses.allowed:
                raise TooOften(guesses) from None
            raise
        assert isinstance(request.auth, OperatorKey)
        self._allowance = throttles.take_for_operator(
            request.auth.pk, creates=request.method not in SAFE_METHODS
        )
        if not self._allowance.allowed:
            raise TooOften(self._allowance)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        # Nothing has such an id, and Postgres does not even look for it.
        if any("\0" in str(value) for value in kwargs.values()):
            raise exceptions.NotFound

    def check_permissions(self, request: Request) -> None:
        super().check_permissions(request)
        right = self.rights.get(str(request.method))
        if right and not request.user.has_perm(right):
            raise exceptions.PermissionDenied(
                f"The operator this key acts for lacks the right {right}."
            )

    def get_exception_handler(self) -> Callable[..., Response | None]:
        return handle

    def finalize_response(
        self, request: Request, response: Any, *args: Any, **kwargs: Any
    ) -> Any:
        done = super().finalize_response(request, response, *args, **kwargs)
        done["Cache-Control"] = "no-store"
        if self._allowance is not None:
            for name, value in self._allowance.headers().items():
                done[name] = value
        return done


# --------------------------------------------------------------------------- refusals


def handle(error: Exception, context: Mapping[str, Any]) -> Response | None:
    """Return the problem document of a refusal; None lets Django answer a bug."""
    match error:
        case billing_errors.BadRequest():
            error = Unacceptable({error.field: [error.reason]})
        case InvalidRequest() | IdempotencyMismatch():
            error = Unacceptable({error.field or "body": [error.message]})
        case IdempotencyInFlight():
            error = _InFlight(error.message)
        case billing_errors.UnknownPlan():
            error = Unacceptable({"plan": [str(error)]})
        case billing_errors.UnknownAccount() | billing_errors.UnknownKey() | Http404():
            error = exceptions.NotFound()
        case billing_errors.ReferenceReused() | billing_errors.AlreadySettled():
            error = Conflict(str(error))
        case billing_errors.BillingError():
            error = Conflict(str(error))
        case OperationalError() | InterfaceError():
            log.error("database_unavailable", error=str(error))
            error = _Away()
        case exceptions.ValidationError() if error.status_code == 400:
            error = Unacceptable(error.detail)
        case _:
            pass
    if not isinstance(error, exceptions.APIException):
        return None
    headers = {}
    if (challenge := getattr(error, "auth_header", None)) is not None:
        headers["WWW-Authenticate"] = challenge
    if isinstance(error, _Away):
        headers["Retry-After"] = "5"
    if isinstance(error, _InFlight):
        headers["Retry-After"] = "1"
    if isinstance(error, TooOften):
        headers |= error.allowance.headers()
        headers["Retry-After"] = str(error.allowance.retry_after)
    body = problem(error.status_code, _code(error), _words(error))
    if isinstance(error, exceptions.ValidationError):
        body["errors"] = list(_fields(error.detail))
        body["detail"] = " ".join(
            f"{e['field']}: {e['message']}" for e in body["errors"]
        )
    return Response(
        body, status=error.status_code, headers=headers, content_type=PROBLEM
    )


class _InFlight(Conflict):
    default_code = "idempotency_in_flight"


class _Away(exceptions.APIException):
    status_code = 503
    default_detail = "A part of ours is away; nothing was done. Try again."
    default_code = "service_unavailable"


def problem(status: int, code: str, detail: str) -> dict[str, Any]:
    return {
        "type": TYPE + code,
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": str(uuid.uuid4()),
    }


def _code(error: exceptions.APIException) -> str:
    if isinstance(error, exceptions.ValidationError):
        return "invalid_request"
    return str(error.default_code)


def _words(error: exceptions.APIException) -> str:
    return str(error.detail) if isinstance(error.detail, str) else ""


def _fields(detail: Any, path: str = "") -> Iterator[dict[str, str]]:
    """Yield each complaint with the dotted name of its field."""
    if isinstance(detail, dict):
        for name, inner in detail.items():
            field = "" if name == "non_field_errors" else str(name)
            yield from _fields(inner, ".".join(filter(None, (path, field))))
    elif isinstance(detail, list):
        for number, inner in enumerate(detail):
            nested = f"{path}.{number}" if isinstance(inner, dict | list) else path
            yield from _fields(inner, nested)
    else:
        yield {"field": path or "body", "message": str(detail)}


@csrf_exempt
def unknown(request: HttpRequest) -> HttpResponse:
    """Answer a path of the operator API that does not exist."""
    body = problem(404, "route_not_found", "There is no such path.")
    return JsonResponse(body, status=404, content_type=PROBLEM)
