"""The ASGI door: what must be refused before Django reads a request.

Bodies are cut off at the limit while they arrive, so memory stays flat whatever a client
claims or sends; a caller without a well-formed API key may send next to nothing.
The request then goes on with an empty body and a mark, and the view answers in the
caller's dialect. Character sets other than UTF-8 never reach Django's own decoding,
which fails on some of them before any view could answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Scope = dict[str, Any]
Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Seen by views as ``request.META["HTTP_ZOETROPE_BODY"]``; callers cannot send it.
MARK = b"zoetrope-body"
TOO_LARGE = b"too-large"
CHARSET = b"charset"
#: A type with its boundary has less than 150 characters.
CONTENT_TYPE_MAX = 1000


class Door:
    """Wraps the Django application."""

    def __init__(
        self,
        application: Application,
        *,
        limit_bytes: int,
        stranger_bytes: int,
        is_known: Callable[[str], bool],
    ) -> None:
        """``is_known`` says by its form alone whether a text may be an API key."""
        self._application = application
        self._limit_bytes = limit_bytes
        self._stranger_bytes = stranger_bytes
        self._is_known = is_known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        headers = [(name, value) for name, value in scope["headers"] if name != MARK]
        headers, is_foreign = _without_charset(headers)
        if is_foreign:
            headers.append((MARK, CHARSET))
        limit = self._limit_of(headers)
        body, is_too_large = b"", _declared(headers) > limit
        if not is_too_large:
            body, is_too_large = await _read(receive, limit)
        if is_too_large:
            headers.append((MARK, TOO_LARGE))
        await self._application(
            {**scope, "headers": headers}, _replay(body, receive), send
        )

    def _limit_of(self, headers: list[tuple[bytes, bytes]]) -> int:
        for name, value in headers:
            if name in (b"authorization", b"x-api-key"):
                key = value.rpartition(b" ")[2].decode("latin-1")
                if self._is_known(key):
                    return self._limit_bytes
        return self._stranger_bytes


async def _read(receive: Receive, limit: int) -> tuple[bytes, bool]:
    """Return the body, or nothing and True as soon as it is over the limit."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"", False
        size += len(message.get("body", b""))
        if size > limit:
            return b"", True
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts), False


def _declared(headers: list[tuple[bytes, bytes]]) -> int:
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _without_charset(
    headers: list[tuple[bytes, bytes]],
) -> tuple[list[tuple[bytes, bytes]], bool]:
    """Return the headers with plain content types, and if one was not UTF-8."""
    found = False
    kept = []
    for name, value in headers:
        if name == b"content-type" and b";" in value:
            value, is_foreign = _plain_type(value)
            found = found or is_foreign
        kept.append((name, value))
    return kept, found


def _plain_type(value: bytes) -> tuple[bytes, bool]:
    """Return a content type with its boundary alone, and if it asks for foreign text.

    Nobody reads other parameters, and Django's way of reading them raises on some
    (those of RFC 2231, with a star), believes others and takes minutes for long ones.
    """
    # Django strips and lowers text, not bytes: a no-break space counts there.
    kind, *parameters = value[:CONTENT_TYPE_MAX].decode("latin-1").split(";")
    is_foreign = len(value) > CONTENT_TYPE_MAX
    kept = [kind]
    for parameter in parameters:
        name, _, said = parameter.partition("=")
        match name.strip().lower():
            case "boundary":
                kept.append(parameter)
            case "charset":
                charset = said.strip().strip("\"'").lower().replace("_", "-")
                is_foreign = is_foreign or charset not in ("utf-8", "utf8")
            case starred if "*" in starred:
                is_foreign = True
            case _:
                pass
    return ";".join(kept).encode("latin-1"), is_foreign


def _replay(body: bytes, receive: Receive) -> Receive:
    is_sent = False

    async def again() -> Message:
        nonlocal is_sent
        if not is_sent:
            is_sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again
