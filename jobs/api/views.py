"""The one view behind every dialect: authenticate, read, parse, do, render.

Each operation is a function from a command to a result; which wire format asked makes
no difference to it. Whatever goes wrong becomes an answer in the caller's dialect.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import structlog
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.db import DataError, InterfaceError, OperationalError
from django.http import (
    HttpResponse,
    HttpResponseBase,
    JsonResponse,
    StreamingHttpResponse,
)
from django.views.decorators.csrf import csrf_exempt
from django.views.defaults import server_error

from billing import errors as billing_errors
from billing import keys, throttles
from inference.errors import StorageUnavailable
from jobs import idempotency
from jobs.api import bodies, journal, operations
from jobs.dialects import base, load_dialect
from jobs.dialects.base import Dialect, Operation, Route, WireRequest, WireResponse
from jobs.errors import (
    ApiError,
    Forbidden,
    InternalError,
    MalformedBody,
    MethodNotAllowed,
    RateLimited,
    RouteNotFound,
    ServiceUnavailable,
    Unauthenticated,
    UnknownHost,
)
from jobs.routing import lookup

if TYPE_CHECKING:
    from django.http import HttpRequest

log = structlog.get_logger()

_READS = frozenset({"GET", "HEAD"})
_BODILESS = frozenset({"GET", "HEAD", "DELETE"})


@dataclass(frozen=True, eq=False)  # by identity: Django keeps views in a dict
class Endpoint:
    """The view of one path of one dialect."""

    dialect_name: str
    routes: Mapping[str, Route]
    #: Keys are sent by programs, never by a browser on its own.
    csrf_exempt: ClassVar[bool] = True

    def __call__(self, request: HttpRequest, **params: str) -> HttpResponseBase:
        dialect = load_dialect(self.dialect_name)
        method = "GET" if request.method == "HEAD" else str(request.method)
        route = self.routes.get(method)
        wire = _wire(request, params, route)
        with journal.call(wire, dialect=dialect.name, path=self.path) as entry:
            try:
                answer = _serve(request, dialect, route, wire, list(self.routes))
            except Unauthenticated as refused:
                answer = _refusal(dialect, _counted(request, refused), wire)
            except ApiError as refused:
                answer = _refusal(dialect, refused, wire)
            except (OperationalError, InterfaceError) as error:
                # Postgres is away or overloaded: nothing was committed, so the call
                # may be repeated.
                log.error("database_unavailable", error=str(error))
                answer = _refusal(dialect, ServiceUnavailable(), wire)
            except StorageUnavailable as error:
                log.error("storage_unavailable", error=str(error))
                answer = _refusal(dialect, ServiceUnavailable(), wire)
            except DataError as error:
                # A value that no check of ours knew; nothing was committed.
                log.error("database_refused_a_value", error=str(error))
                cause = MalformedBody("A value of this request cannot be kept.")
                answer = _refusal(dialect, cause, wire)
            entry.status = answer.status_code
        return answer

    @property
    def path(self) -> str:
        return next(iter(self.routes.values())).path


def _serve(
    request: HttpRequest,
    dialect: Dialect,
    route: Route | None,
    wire: WireRequest,
    allowed: list[str],
) -> HttpResponseBase:
    is_public = route is not None and route.scope is None
    credential = None if is_public else _authenticate(dialect, wire)
    if route is None:
        raise MethodNotAllowed(allowed)
    rate: Mapping[str, str] = {}
    if credential is not None:
        journal.who(credential)
        rate = _spend_request(
            credential,
            creates=route.operation in base.CREATING,
            # Akool asks for results by POST.
            reads=wire.method in _READS or route.operation is Operation.STATUS_MANY,
        )
    with _shown_in_refusals(rate):
        if credential is not None:
            credential.require(cast("str", route.scope))
        if wire.method not in _BODILESS or request.META.get("CONTENT_LENGTH"):
            body, files = bodies.read(request, limit_bytes=dialect.body_limit_bytes)
            wire = replace(wire, body=body, files=files)
        command = route.parse(wire, lookup)
        call = operations.Call(
            dialect=dialect, route=route, wire=wire, credential=credential
        )
        if route.operation is Operation.CONTENT:
            found = operations.content(call, cast("base.OneJob", command))
            return _stream(found, is_async=isinstance(request, ASGIRequest))
        answer = _answer(call, command)
    return _response(answer, rate if dialect.show_rate else {}, wire)


@contextmanager
def _shown_in_refusals(rate: Mapping[str, str]) -> Iterator[None]:
    """Let a refusal carry the rate limit too: coals has it on each answer."""
    try:
        yield
    except ApiError as refused:
        refused.headers = {**rate, **refused.headers}
        raise
    except billing_errors.MissingScope as error:
        forbidden = Forbidden(str(error), code="missing_scope")
        forbidden.headers = rate
        raise forbidden from error


def _answer(call: operations.Call, command: base.Command) -> WireResponse:
    run = partial(_noted, operations.RUN[call.route.operation], call, command)
    if call.route.operation not in base.CREATING:
        return call.route.render(run(), call.wire)
    credential = call.require_credential()
    return idempotency.once(
        account_id=credential.account_id,
        mode=credential.mode,
        key=call.wire.headers.get(call.dialect.idempotency_header),
        wire=call.wire,
        shown_once=call.route.shown_once,
        create=lambda: call.route.render(run(), call.wire),
    )


def _noted(run: operations.Run, call: operations.Call, command: base.Command) -> Any:
    result = run(call, command)
    journal.what(result)
    return result


# --------------------------------------------------------------------- the door


def _wire(
    request: HttpRequest,
    params: Mapping[str, str],
    route: Route | None,
    *,
    base_url: str | None = None,
) -> WireRequest:
    return WireRequest(
        method=str(request.method),
        path=request.path,
        operation=route.operation if route else None,
        params=params,
        query=bodies.query_of(request),
        headers={name.lower(): value for name, value in request.headers.items()},
        request_id=str(uuid.uuid4()),
        base_url=base_url or f"{request.scheme}://{request.get_host()}",
    )


def _authenticate(dialect: Dialect, wire: WireRequest) -> keys.Credential:
    presented = dialect.key_of(wire.headers)
    if not presented:
        raise Unauthenticated
    try:
        return keys.authenticate(presented)
    except billing_errors.InvalidKey as error:
        raise Unauthenticated from error


def _counted(request: HttpRequest, refused: Unauthenticated) -> ApiError:
    """Slow an address that keeps presenting keys which are none."""
    allowance = throttles.take_for_bad_key(request.META.get("REMOTE_ADDR", ""))
    return refused if allowance.allowed else _too_often(allowance)


def _too_often(allowance: throttles.Allowance) -> RateLimited:
    return RateLimited(
        retry_after_seconds=allowance.retry_after,
        limit=allowance.limit,
        headers=allowance.headers(),
    )


def _spend_request(
    credential: keys.Credential, *, creates: bool, reads: bool
) -> Mapping[str, str]:
    allowance = throttles.take(credential, creates=creates, reads=reads)
    if not allowance.allowed:
        raise _too_often(allowance)
    return allowance.headers()


# ------------------------------------------------------------------- the answer


def _response(
    answer: WireResponse, headers: Mapping[str, str], wire: WireRequest
) -> HttpResponse:
    if answer.body is None:
        response = HttpResponse(status=answer.status)
    else:
        response = JsonResponse(answer.body, status=answer.status, safe=False)
        response["Content-Type"] = answer.content_type
    for name, value in {**headers, **answer.headers}.items():
        response[name] = value
    response["X-Request-Id"] = wire.request_id
    response["Cache-Control"] = "no-store"
    return response


def _refusal(dialect: Dialect, refused: ApiError, wire: WireRequest) -> HttpResponse:
    answer = dialect.error(refused, wire)
    headers = dict(refused.headers) if dialect.show_rate else {}
    if refused.retry_after_seconds is not None:
        headers["Retry-After"] = str(refused.retry_after_seconds)
    if isinstance(refused, MethodNotAllowed):
        headers["Allow"] = ", ".join(refused.allowed)
    return _response(answer, headers, wire)


def _stream(content: operations.Content, *, is_async: bool) -> HttpResponseBase:
    # Given a plain iterator, Django's ASGI side would hold the whole file in memory.
    chunks = _one_by_one(content.chunks) if is_async else content.chunks
    response = StreamingHttpResponse(chunks, content_type=content.content_type)
    response["Content-Length"] = str(content.size_bytes)
    response["Content-Disposition"] = f'attachment; filename="{content.filename}"'
    response["X-Content-Type-Options"] = "nosniff"
    return response


async def _one_by_one(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    following = sync_to_async(partial(next, chunks, None), thread_sensitive=False)
    while (chunk := await following()) is not None:
        yield chunk


# ---------------------------------------------------------------- everything else


@csrf_exempt
def unknown(request: HttpRequest, **_: str) -> HttpResponseBase:
    """Answer a path nobody serves, in the shape of the dialect it looks like."""
    dialect = dialect_of(request.path)
    wire = _wire(request, {}, None)
    # The path itself stays out of the log: whoever mistyped may have put a key there.
    with journal.call(wire, dialect=dialect.name, path="unknown") as entry:
        answer = _refusal(dialect, RouteNotFound(), wire)
        entry.status = answer.status_code
    return answer


def foreign_host(request: HttpRequest) -> HttpResponseBase:
    """Refuse a call by a host name that is none of ours, in its dialect's shape."""
    dialect = dialect_of(request.path)
    wire = _wire(request, {}, None, base_url=settings.PUBLIC_URL)
    with journal.call(wire, dialect=dialect.name, path="foreign host") as entry:
        answer = _refusal(dialect, UnknownHost(), wire)
        entry.status = answer.status_code
    return answer


def broken(request: HttpRequest) -> HttpResponseBase:
    """Answer for a view that raised what nobody expected (Django's handler500)."""
    if request.path.startswith("/admin/"):
        return server_error(request)
    wire = _wire(request, {}, None)
    return _refusal(dialect_of(request.path), InternalError(), wire)


def dialect_of(path: str) -> Dialect:
    """Return the dialect with the longest prefix of ``path``; ours when none fits."""
    best, longest = "native", -1
    for name in _dialect_names():
        for prefix in load_dialect(name).prefixes:
            fits = path == prefix or path.startswith(prefix.rstrip("/") + "/")
            if fits and len(prefix) > longest:
                best, longest = name, len(prefix)
    return load_dialect(best)


def _dialect_names() -> list[str]:
    from jobs.dialects import DIALECTS

    return list(DIALECTS)
