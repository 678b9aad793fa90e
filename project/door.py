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
    """Return the headers without a character set that is not UTF-8, and if there was one."""
    found = False
    kept = []
    for name, value in headers:
        if name == b"content-type" and b"charset" in value.lower():
            kind, *parameters = value.split(b";")
            others = []
            for parameter in parameters:
                key, _, charset = parameter.strip().partition(b"=")
                if key.strip().lower() == b"charset":
                    plain = charset.strip(b" \"'").lower().replace(b"_", b"-")
                    found = found or plain not in (b"utf-8", b"utf8")
                else:
                    others.append(parameter)
            value = b";".join([kind, *others])
        kept.append((name, value))
    return kept, found


def _replay(body: bytes, receive: Receive) -> Receive:
    is_sent = False

    async def again() -> Message:
        nonlocal is_sent
        if not is_sent:
            is_sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again
