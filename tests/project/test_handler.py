"""The ASGI handler, driven as granian drives it: each request has one thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.signals import request_finished, request_started
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path

from project.handler import Handler

_both_are_in = threading.Barrier(2, timeout=10)


def which(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(threading.get_ident()))


def together(request: HttpRequest) -> HttpResponse:
    _both_are_in.wait()
    return which(request)


def read(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(len(request.POST)))


urlpatterns = [
    path("which", which),
    path("together", together),
    path("read", read),
]


@pytest.fixture
def handler() -> Iterator[Handler]:
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[]):
        yield Handler()


async def get(
    handler: Handler, where: str, form: bytes | None = None
) -> tuple[int, int]:
    """Return the status and the number that the view answered: its thread, mostly."""
    sent: list[Any] = []
    asked = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if asked.is_set():
            await asyncio.sleep(60)  # the client stays
        asked.set()
        return {"type": "http.request", "body": form or b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET" if form is None else "POST",
        "path": where,
        "query_string": b"",
        "headers": [
            (b"host", b"127.0.0.1"),
            (b"content-type", b"multipart/form-data; boundary=x"),
            (b"content-length", b"%d" % len(form or b"")),
        ],
    }
    await handler(scope, receive, send)
    body = sent[1]["body"]
    return sent[0]["status"], int(body) if body.isdigit() else 0


def test_signals_and_view_share_a_thread_that_is_kept(handler: Handler) -> None:
    seen: list[int] = []

    def note(**_: Any) -> None:
        seen.append(threading.get_ident())

    request_started.connect(note)
    request_finished.connect(note)
    try:

        async def twice() -> list[int]:
            return [(await get(handler, "/which"))[1] for _ in range(2)]

        threads = asyncio.run(twice())
    finally:
        request_started.disconnect(note)
        request_finished.disconnect(note)
    assert len({*threads, *seen}) == 1
    assert len(seen) == 4
    assert threads[0] != threading.get_ident()


def test_requests_at_the_same_time_do_not_wait_for_each_other(handler: Handler) -> None:
    async def both() -> tuple[tuple[int, int], tuple[int, int]]:
        return await asyncio.gather(
            get(handler, "/together"), get(handler, "/together")
        )

    answers = asyncio.run(both())
    assert [status for status, _ in answers] == [200, 200]
    assert len({thread for _, thread in answers}) == 2


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        (b'name="a"', 200),
        (b"name=a; filename*=utf-8''%e2%82%ac.png", 200),
        (b"n*0=a; n*=b; n*0*=c", 400),
        (b"name*=bz2_codec''a", 200),
    ],
)
def test_a_form_with_an_impossible_header_is_a_bad_request(
    handler: Handler, parameters: bytes, status: int
) -> None:
    form = (
        b"--x\r\nContent-Disposition: form-data; %s\r\n\r\nv\r\n--x--\r\n" % parameters
    )
    assert asyncio.run(get(handler, "/read", form))[0] == status


def test_only_http_is_served(handler: Handler) -> None:
    with pytest.raises(ValueError, match="websocket"):
        asyncio.run(handler({"type": "websocket"}, _never, _never))


async def _never(*_: Any) -> Any:
    raise AssertionError("nothing is read or sent")
