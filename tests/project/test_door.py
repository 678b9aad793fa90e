"""The ASGI door, driven as granian drives it: scope, receive, send."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from project.door import Door

KEY = b"Bearer key"
Header = tuple[bytes, bytes]


class Inside:
    """Stands behind the door and notes what came through."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.body: bytes | None = None
        self.then: Callable[[], Awaitable[Any]] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.headers = dict(scope["headers"])
        self.body, more = b"", True
        while more:
            message = await receive()
            self.body += message["body"]
            more = message["more_body"]
        if self.then is not None:
            await self.then()

    @property
    def mark(self) -> bytes | None:
        return self.headers.get(b"zoetrope-body")


class Keys:
    """Keys begin with k; those in ``good`` are ours. Counts the questions."""

    def __init__(self, *good: str) -> None:
        self.good = good
        self.asked: list[str] = []

    def is_well_formed(self, key: str) -> bool:
        return key.startswith("k")

    def is_good(self, key: str) -> bool:
        self.asked.append(key)
        return key in self.good


def door(inside: Inside, keys: Keys, **options: Any) -> Door:
    given = {"limit_bytes": 100, "stranger_bytes": 10, "room_bytes": 1000, **options}
    return Door(
        inside, is_well_formed=keys.is_well_formed, is_good=keys.is_good, **given
    )


async def pushed(through: Door, chunks: list[bytes], *headers: Header) -> int:
    """Send a request, then leave; return how many chunks were read."""
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        if read == len(chunks):
            return {"type": "http.disconnect"}
        read += 1
        more = read < len(chunks)
        return {"type": "http.request", "body": chunks[read - 1], "more_body": more}

    async def send(_: Any) -> None:
        raise AssertionError("the door answers nothing itself")

    await through({"type": "http", "headers": list(headers)}, receive, send)
    return read


async def silent(_: Any) -> None:
    """Send nothing."""


def knock(chunks: list[bytes], headers: list[Header]) -> tuple[Inside, int]:
    """Send a request; return what came through and how many chunks were read."""
    inside = Inside()
    read = asyncio.run(pushed(door(inside, Keys("key")), chunks, *headers))
    return inside, read


def test_a_body_in_chunks_arrives_whole() -> None:
    inside, _ = knock([b"ab", b"cd"], [(b"authorization", KEY)])
    assert inside.body == b"abcd"
    assert b"zoetrope-body" not in inside.headers


def test_a_body_over_the_limit_is_cut_off_while_it_arrives() -> None:
    inside, read = knock([b"x" * 60] * 1000, [(b"authorization", KEY)])
    assert (inside.body, inside.headers[b"zoetrope-body"]) == (b"", b"too-large")
    assert read == 2


def test_a_declared_length_over_the_limit_is_not_read_at_all() -> None:
    headers = [(b"authorization", KEY), (b"content-length", b"101")]
    inside, read = knock([b"x"], headers)
    assert inside.headers[b"zoetrope-body"] == b"too-large"
    assert read == 0


def test_without_a_well_formed_key_next_to_nothing_is_read() -> None:
    inside, read = knock([b"x" * 8] * 1000, [(b"authorization", b"Bearer bad")])
    assert inside.headers[b"zoetrope-body"] == b"too-large"
    assert read == 2


def test_what_anybody_may_send_costs_no_question() -> None:
    inside, keys = Inside(), Keys("key")
    asyncio.run(pushed(door(inside, keys), [b"x" * 10], (b"authorization", KEY)))
    assert inside.body == b"x" * 10
    assert keys.asked == []


@pytest.mark.parametrize("name", [b"authorization", b"x-api-key"])
@pytest.mark.parametrize("declared", [True, False])
def test_a_larger_body_needs_a_key_that_is_good(name: bytes, declared: bool) -> None:
    length = [(b"content-length", b"50")] if declared else []
    for key, body in ((b"key", b"x" * 50), (b"kept-by-nobody", b"")):
        inside, keys = Inside(), Keys("key")
        chunks = [b"x" * 10] * 5
        read = asyncio.run(pushed(door(inside, keys), chunks, (name, key), *length))
        assert inside.body == body
        assert inside.mark == (None if body else b"no-room")
        assert keys.asked == [key.decode()]
        assert read == (5 if body else 0 if declared else 2)


def test_many_made_up_keys_are_not_all_looked_up() -> None:
    inside, keys = Inside(), Keys("key")
    many = [(b"x-api-key", b"k%d" % n) for n in range(100)]
    asyncio.run(pushed(door(inside, keys), [b"x" * 50], *many))
    assert len(keys.asked) == 1


def test_large_bodies_share_a_room_and_no_key_takes_more_than_half() -> None:
    inside, keys = Inside(), Keys("k1", "k2", "k3")
    shared = door(inside, keys, room_bytes=200)

    async def ask(key: bytes, size: int) -> bytes | None:
        other = Inside()
        shared._application = other
        await pushed(shared, [b"x" * size], (b"x-api-key", key))
        return other.mark

    async def while_80_are_held() -> None:
        assert await ask(b"k1", 30) == b"no-room"
        assert await ask(b"k1", 20) is None

        async def while_160_are_held() -> None:
            assert await ask(b"k3", 50) == b"no-room"
            assert await ask(b"k3", 9) is None

        inside.then = while_160_are_held
        shared._application = inside
        await pushed(shared, [b"x" * 80], (b"x-api-key", b"k2"))

    async def story() -> None:
        inside.then = while_80_are_held
        await pushed(shared, [b"x" * 80], (b"x-api-key", b"k1"))
        assert await ask(b"k1", 100) is None  # all is free again

    asyncio.run(story())


@pytest.mark.parametrize("begun", [b"", b"x" * 20])
def test_a_body_that_does_not_arrive_is_given_up(begun: bytes) -> None:
    inside = Inside()

    async def story() -> None:
        messages = [{"type": "http.request", "body": begun, "more_body": True}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            return await asyncio.Event().wait()

        waiting = door(inside, Keys("key"), body_seconds=0.05)
        scope = {"type": "http", "headers": [(b"authorization", KEY)]}
        await asyncio.wait_for(waiting(scope, receive, silent), 5)

    asyncio.run(story())
    assert (inside.body, inside.mark) == (b"", b"too-slow")


def test_half_a_request_is_no_request() -> None:
    inside = Inside()

    async def story() -> None:
        messages = [{"type": "http.request", "body": b"x", "more_body": True}]

        async def receive() -> Any:
            return messages.pop() if messages else {"type": "http.disconnect"}

        await door(inside, Keys())({"type": "http", "headers": []}, receive, silent)

    asyncio.run(story())
    assert inside.body is None


def test_the_rest_of_a_refused_body_is_no_news_to_the_application() -> None:
    """Django takes a second message for a fault, unless it says that the caller left."""
    told = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        told.extend([await receive(), await receive()])

    through = Door(
        application,
        limit_bytes=100,
        stranger_bytes=10,
        room_bytes=1000,
        is_well_formed=lambda _: False,
        is_good=lambda _: False,
    )
    asyncio.run(pushed(through, [b"x" * 60] * 5))
    assert [message["type"] for message in told] == ["http.request", "http.disconnect"]


@pytest.mark.parametrize("cookie", [b'a="' + b"\\" * 100 + b'"', b"a=1;" * 100_000])
def test_cookies_that_would_take_long_to_read_are_dropped(cookie: bytes) -> None:
    inside, _ = knock([b"x"], [(b"cookie", cookie), (b"cookie", b"sessionid=a1")])
    assert inside.headers == {b"cookie": b"sessionid=a1"}


def test_a_caller_cannot_set_the_mark() -> None:
    inside, _ = knock([b"x"], [(b"zoetrope-body", b"too-large")])
    assert b"zoetrope-body" not in inside.headers


@pytest.mark.parametrize(
    ("sent", "kept", "is_marked"),
    [
        (b"application/json; charset=bz2_codec", b"application/json", True),
        (b'application/json; charset="UTF-8"', b"application/json", False),
        (b"multipart/form-data; boundary=x", b"multipart/form-data; boundary=x", False),
        (b"application/json; a*=foo''x", b"application/json", True),
        (b"application/json; charset*=utf-8''utf-7", b"application/json", True),
        (b"application/json; charset*0*=utf-8''utf-7", b"application/json", True),
        (b"application/json; charset\xa0=utf-7", b"application/json", True),
        (b"application/json; v=1; q=2", b"application/json", False),
        (
            b"multipart/form-data; boundary=x; charset*=utf-8''bz2_codec",
            b"multipart/form-data; boundary=x",
            True,
        ),
        (b'text/plain; a="' + b";" * 100_000, b"text/plain", True),
    ],
)
def test_only_utf8_and_the_boundary_go_through(
    sent: bytes, kept: bytes, is_marked: bool
) -> None:
    inside, _ = knock([b"x"], [(b"content-type", sent)])
    assert inside.headers[b"content-type"] == kept
    assert (inside.headers.get(b"zoetrope-body") == b"charset") is is_marked
