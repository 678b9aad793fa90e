"""The ASGI door, driven as granian drives it: scope, receive, send."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from project.door import Door

KEY = b"Bearer good"


class Inside:
    """Stands behind the door and notes what came through."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.body = b""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.headers = dict(scope["headers"])
        self.body = (await receive())["body"]


def knock(
    chunks: list[bytes], headers: list[tuple[bytes, bytes]]
) -> tuple[Inside, int]:
    """Send a request; return what came through and how many chunks were read."""
    inside, read = Inside(), 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        more = read < len(chunks)
        return {"type": "http.request", "body": chunks[read - 1], "more_body": more}

    async def send(_: Any) -> None:
        raise AssertionError("the door answers nothing itself")

    door = Door(
        inside, limit_bytes=100, stranger_bytes=10, is_known=lambda key: key == "good"
    )
    asyncio.run(door({"type": "http", "headers": headers}, receive, send))
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
