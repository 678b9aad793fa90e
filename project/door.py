"""The ASGI door: what must be refused before Django reads a request.

Bodies are cut off while they arrive, so memory stays flat whatever a client claims or
sends. Up to ``stranger_bytes`` anybody may send; for more the API key is verified first,
and all large bodies together have a room of limited size, of which no key takes more
than half. A body that does not arrive in time is given up. The request then goes on with
an empty body and a mark, and the view answers in the caller's dialect. Character sets
other than UTF-8, and cookies that are none of ours, never reach Django's own reading of
headers, which fails or takes minutes on some before any view could answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

Scope = dict[str, Any]
Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

#: Seen by views as ``request.META["HTTP_ZOETROPE_BODY"]``; callers cannot send it.
MARK: Final = b"zoetrope-body"
TOO_LARGE: Final = b"too-large"
TOO_SLOW: Final = b"too-slow"
#: Not read, and not the caller's mistake; or the key is not good, which the view finds.
NO_ROOM: Final = b"no-room"
CHARSET: Final = b"charset"
#: A type with its boundary has less than 150 characters.
CONTENT_TYPE_MAX: Final = 1000
#: Ours are three, of letters and digits; together they have a few hundred characters.
COOKIE_MAX: Final = 16_384
#: A body may take so long, and longer only while it keeps up this rate from its start.
BODY_SECONDS: Final = 30.0
BODY_BYTES_PER_SECOND: Final = 32 * 1024
_NOTHING: Final[deque[bytes]] = deque()


class Door:
    """Wraps the Django application."""

    def __init__(
        self,
        application: Application,
        *,
        limit_bytes: int,
        stranger_bytes: int,
        room_bytes: int,
        is_well_formed: Callable[[str], bool],
        is_good: Callable[[str], bool],
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        """``is_good`` may ask the database: it runs in a thread, for large bodies only."""
        self._application = application
        self._limit_bytes = limit_bytes
        self._stranger_bytes = stranger_bytes
        self._room = _Room(room_bytes)
        self._is_well_formed = is_well_formed
        self._is_good = is_good
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        headers, foreign = _plain(scope["headers"])
        seat = _Seat()
        try:
            body, mark = await self._read(headers, receive, seat)
            if mark == _GONE:
                return
            if mark or foreign:
                headers.append((MARK, mark or CHARSET))
            await self._application(
                {**scope, "headers": headers}, _replay(body, receive), send
            )
        finally:
            self._room.leave(seat)

    async def _read(
        self, headers: Headers, receive: Receive, seat: _Seat
    ) -> tuple[deque[bytes], bytes]:
        """Return the body, or nothing and the mark that says why."""
        declared = _declared(headers)
        if declared > self._limit_bytes:
            return _NOTHING, TOO_LARGE
        if declared > self._stranger_bytes and (mark := await self._ask(headers, seat)):
            return _NOTHING, mark
        parts: deque[bytes] = deque()
        size = 0
        try:
            async with asyncio.timeout(self._body_seconds) as patience:
                began = (patience.when() or 0.0) - self._body_seconds
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return _NOTHING, _GONE
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self._stranger_bytes:
                        mark = await self._admit(headers, seat, size)
                        if mark:
                            return _NOTHING, mark
                        allowed = self._body_seconds + size / BODY_BYTES_PER_SECOND
                        patience.reschedule(began + allowed)
                    parts.append(part)
                    if not message.get("more_body", False):
                        return parts, b""
        except TimeoutError:
            return _NOTHING, TOO_SLOW

    async def _admit(self, headers: Headers, seat: _Seat, size: int) -> bytes:
        """Take room for a body of ``size`` so far; return the mark of a refusal."""
        if size > self._limit_bytes:
            return TOO_LARGE
        if not seat.key and (mark := await self._ask(headers, seat)):
            return mark
        return b"" if self._room.take(seat, size) else NO_ROOM

    async def _ask(self, headers: Headers, seat: _Seat) -> bytes:
        """Seat the caller by a good key; return the mark of one without."""
        keys = self._keys(headers)
        for key in keys:
            if await asyncio.to_thread(self._is_good, key):
                seat.key = key
                return b""
        return NO_ROOM if keys else TOO_LARGE

    def _keys(self, headers: Headers) -> list[str]:
        """Return what may be the caller's key: at most one of each header."""
        found = {
            name: key
            for name, value in headers
            if name in (b"authorization", b"x-api-key")
            and self._is_well_formed(key := value.rpartition(b" ")[2].decode("latin-1"))
        }
        return list(found.values())


#: In place of a mark: the caller left before the body was whole.
_GONE: Final = b"gone"


class _Seat:
    """What one request has of the room."""

    def __init__(self) -> None:
        self.key = ""
        self.size = 0


class _Room:
    """How much of large bodies this process holds at once, in bytes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._by_key: Counter[str] = Counter()

    def take(self, seat: _Seat, size: int) -> bool:
        """Let the seat grow to ``size``; False when there is no room for that."""
        more = size - seat.size
        if (
            self._taken + more > self._size
            or self._by_key[seat.key] + more > self._size // 2
        ):
            return False
        self._taken += more
        self._by_key[seat.key] += more
        seat.size = size
        return True

    def leave(self, seat: _Seat) -> None:
        if not seat.size:
            return
        self._taken -= seat.size
        self._by_key[seat.key] -= seat.size
        if not self._by_key[seat.key]:
            del self._by_key[seat.key]


def _declared(headers: Headers) -> int:
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0


def _plain(headers: Iterable[tuple[bytes, bytes]]) -> tuple[Headers, bool]:
    """Return the headers with plain content types, and if one was not UTF-8."""
    is_foreign = False
    kept = []
    for name, value in headers:
        if name == MARK or (name == b"cookie" and _is_odd(value)):
            continue
        if name == b"content-type" and b";" in value:
            value, is_other = _plain_type(value)
            is_foreign = is_foreign or is_other
        kept.append((name, value))
    return kept, is_foreign


def _is_odd(cookie: bytes) -> bool:
    # Older Pythons need a minute to unquote 100 kB of backslashes (CVE-2024-7592).
    return b"\\" in cookie or len(cookie) > COOKIE_MAX


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


def _replay(parts: deque[bytes], receive: Receive) -> Receive:
    """Give the parts one by one, letting go of each; then wait for the caller to leave."""
    is_over = False

    async def again() -> Message:
        nonlocal is_over
        if not is_over:
            body = parts.popleft() if parts else b""
            is_over = not parts
            return {"type": "http.request", "body": body, "more_body": not is_over}
        while True:
            message = await receive()
            # What still comes of a body that was refused interests nobody.
            if message["type"] != "http.request":
                return message

    return again
