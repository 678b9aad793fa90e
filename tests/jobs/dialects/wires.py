"""Requests for dialect tests: well-formed ones, and everything a stranger might send."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from jobs.dialects import load_dialect
from jobs.dialects.base import Command, Create, Route, WireRequest, WireResponse
from jobs.errors import ApiError, InvalidRequest
from jobs.requests import JobRequest
from tests.wire import pairs

PHOTO_URL = "https://example.com/photo.jpg"


def picture(
    width: int = 640, height: int = 480, *, format: str = "PNG", mode: str = "RGB"
) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height)).save(out, format)
    return out.getvalue()


def as_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def route_of(dialect: str, method: str, path: str) -> Route:
    found = pairs.find_route(
        load_dialect(dialect), WireRequest(method=method, path=path)
    )
    assert found is not None, f"{dialect} does not serve {method} {path}"
    return found


def send(
    dialect: str,
    method: str,
    path: str,
    body: Any = None,
    *,
    query: Mapping[str, str] | None = None,
    files: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Command:
    """Return what the dialect makes of the call."""
    route = route_of(dialect, method, path)
    wire = WireRequest(
        method=method,
        path=path,
        body=body,
        query=query or {},
        files=files or {},
        headers=headers or {},
    )
    wire = dataclasses.replace(wire, params=pairs.params_of(route, path))
    return route.parse(wire, pairs.lookup)


def changed(body: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Return a copy of ``body`` with the field at the dotted ``name`` set."""
    first, _, rest = name.partition(".")
    inner = body.get(first)
    if rest:
        value = changed(inner if isinstance(inner, Mapping) else {}, rest, value)
    return {**body, first: value}


def without(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a copy of ``body`` that lacks the field at the dotted ``name``."""
    first, _, rest = name.partition(".")
    if rest:
        return {**body, first: without(body[first], rest)}
    return {key: value for key, value in body.items() if key != first}


def created(dialect: str, path: str, body: Any, **more: Any) -> JobRequest:
    command = send(dialect, "POST", path, body, **more)
    assert isinstance(command, Create)
    return command.request


def refused(call: Callable[[], Any]) -> InvalidRequest:
    """Return the refusal that ``call`` ends in."""
    try:
        made = call()
    except InvalidRequest as error:
        return error
    raise AssertionError(f"accepted as {made}")


def refusal(dialect: str, error: ApiError, path: str = "/") -> WireResponse:
    wire = WireRequest(method="POST", path=path, request_id="7d0b9f2e")
    return load_dialect(dialect).error(error, wire)


def refusals(
    dialect_name: str,
    body: Any,
    *,
    query: Mapping[str, str],
    files: Mapping[str, Any] | None = None,
) -> Iterator[WireResponse]:
    """Send the same to every path of a dialect; give what it refused with."""
    dialect = load_dialect(dialect_name)
    for route in dialect.routes:
        wire = WireRequest(
            method=route.method,
            path=route.path,
            params={"id": "a", "provider": "b"},
            body=body,
            query=query,
            files=files or {},
        )
        try:
            route.parse(wire, pairs.lookup)
        except ApiError as error:
            yield dialect.error(error, wire)


#: The JSON values there are, and some that only a broken parser lets through.
anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(min_value=10**30, max_value=10**40),
        st.floats(),
        st.text(max_size=30),
        st.sampled_from(
            [
                *("", " ", "5", "5.0", "-1", "1e5", "true", "480p", "1080P", "16:9"),
                *("single", "1280x720", "99999x99999", "0x0", "\x00", "\ud800", "٣"),
                *(PHOTO_URL, "http://127.0.0.1/a", "file:///etc/passwd", "ftp://a/b"),
                *(
                    "http://[",
                    "data:image/png;base64,AAAA",
                    "data:,x",
                    "AAAA",
                    "x" * 9000,
                ),
            ]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=8), inner, max_size=3),
    ),
    max_leaves=6,
)


def bodies(good: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Return bodies: anything at all, or a good one with some fields gone astray."""
    some = st.dictionaries(st.sampled_from(sorted(good)), anything, max_size=4)
    spoilt = some.map(lambda wrong: {**good, **wrong})
    missing = st.sets(st.sampled_from(sorted(good))).map(
        lambda gone: {name: value for name, value in good.items() if name not in gone}
    )
    return st.one_of(spoilt, missing, anything)


queries = st.dictionaries(
    st.sampled_from(
        ["page", "per_page", "limit", "after", "order", "variant", "generation_id", "x"]
    ),
    st.one_of(st.text(max_size=20), st.sampled_from(["1", "0", "-1", "1e9", "asc"])),
    max_size=5,
)
