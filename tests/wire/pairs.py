"""Golden pairs: what a vendor documents or a client was seen to send, kept as files.

A pair names its ``source``, ``date`` and ``mark`` (D documentation, R repository,
S captured from a client library, I our own choice where nobody says). It holds

* ``request``: method, path, query, headers, body (or ``form`` and ``files``),
* ``asked``: what that request means, in the fields of our JobRequest (creates only),
* ``result``: what our side has to tell: a job, a page, a balance or an error; none where
  the request itself is refused,
* ``response``: status, headers and body that the vendor gives for it, word for word.

``…`` stands for what the source itself leaves out: any text may be there. Keys named in
``may_also_have`` may appear beside those of the body. No pair is written by a renderer.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from inference.catalogue import ALIASES, MODELS, PublicModel
from jobs import errors
from jobs.dialects import load_dialect
from jobs.dialects.base import (
    BalanceView,
    Create,
    Dialect,
    Failure,
    JobsPage,
    JobView,
    ManyResult,
    Route,
    Upload,
    WireRequest,
    WireResponse,
)
from jobs.requests import JobRequest, Picture, Sound

HERE = Path(__file__).parent
PHOTO = (HERE.parent / "photos" / "astronaut.jpg").read_bytes()
MOMENT = datetime(2026, 3, 3, 14, 22, 11, tzinfo=UTC)
Pair = Mapping[str, Any]


def names(dialect: str) -> list[str]:
    return sorted(path.stem for path in (HERE / dialect).glob("*.json"))


def read(dialect: str, name: str) -> Pair:
    pair: Pair = json.loads((HERE / dialect / f"{name}.json").read_text("utf-8"))
    assert {"source", "date", "mark"} <= pair.keys(), (
        f"{name} says not where it is from"
    )
    return pair


def check(dialect_name: str, name: str) -> None:
    """Assert that the dialect reads and writes what the pair says."""
    pair = read(dialect_name, name)
    dialect = load_dialect(dialect_name)
    wire = wire_of(pair["request"])
    route = find_route(dialect, wire)
    made: JobRequest | None = None
    if route is not None:
        params = params_of(route, wire.path)
        wire = dataclasses.replace(wire, params=params, operation=route.operation)
    if route is not None and "response" in pair and "result" not in pair:
        with pytest.raises(errors.ApiError) as refused:
            route.parse(wire, lookup)
        _same_response(pair["response"], dialect.error(refused.value, wire))
        return
    if route is not None and "error" not in pair.get("result", {}):
        command = route.parse(wire, lookup)
        made = command.request if isinstance(command, Create) else None
        if "asked" in pair:
            _same_values(pair["asked"], command)
    if "response" not in pair:
        return
    answer = _answer(dialect, route, wire, pair["result"], made)
    _same_response(pair["response"], answer)


def lookup(name: str) -> PublicModel | None:
    return MODELS.get(ALIASES.get(name, name))


# ----------------------------------------------------------------- the request


def wire_of(request: Mapping[str, Any]) -> WireRequest:
    files = {
        name: Upload(part["filename"], part["content_type"], PHOTO)
        for name, part in request.get("files", {}).items()
    }
    return WireRequest(
        method=request["method"],
        path=request["path"],
        query=request.get("query", {}),
        headers={n.lower(): v for n, v in request.get("headers", {}).items()},
        body=request.get("form", request.get("body")),
        files=files,
        request_id="7d0b9f2e-5c1a-4d3e-9b8f-0a1b2c3d4e5f",
        base_url="https://zoetrope.example",
    )


def find_route(dialect: Dialect, wire: WireRequest) -> Route | None:
    for route in dialect.routes:
        pattern = re.sub(r"\{\w+\}", "[^/]+", route.path)
        if route.method == wire.method and re.fullmatch(pattern, wire.path):
            return route
    return None


def params_of(route: Route, path: str) -> Mapping[str, str]:
    pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.path)
    found = re.fullmatch(pattern, path)
    assert found is not None
    return found.groupdict()


# ------------------------------------------------------------------ the result


def view_of(given: Mapping[str, Any], made: JobRequest | None = None) -> JobView:
    """Return a job as our side sees it; ``given`` overrides, ``request`` shapes it."""
    values = dict(given)
    shape = values.pop("request", {})
    if "audio" in shape:
        shape = {**shape, "audio": Sound(**shape["audio"])}
    request = made or JobRequest.build(
        MODELS[shape.pop("model", "wan2.2-i2v")],
        image=Picture(data=PHOTO, size=(512, 512), format="JPEG"),
        **shape,
    )
    for name in ("created_at", "started_at", "finished_at", "expires_at"):
        if isinstance(values.get(name), str):
            values[name] = datetime.fromisoformat(values[name])
    if isinstance(values.get("error"), Mapping):
        values["error"] = Failure(retryable=False, **values["error"])
    defaults: dict[str, Any] = {
        "native_id": "0198f6a0-0000-7000-8000-000000000000",
        "step": "generate",
        "progress": 0.0,
        "request": request,
        "created_at": MOMENT,
    }
    return JobView(**{**defaults, **values})


def error_of(given: Mapping[str, Any]) -> errors.ApiError:
    arguments = dict(given)
    kind: type[errors.ApiError] = getattr(errors, arguments.pop("kind"))
    return kind(**arguments)


def _answer(
    dialect: Dialect,
    route: Route | None,
    wire: WireRequest,
    result: Mapping[str, Any],
    made: JobRequest | None,
) -> WireResponse:
    if "error" in result:
        return dialect.error(error_of(result["error"]), wire)
    assert route is not None
    return route.render(_result(result, made), wire)


def _result(result: Mapping[str, Any], made: JobRequest | None) -> Any:
    match result:
        case {"job": job}:
            return view_of(job, made)
        case {"page": page}:
            values = dict(page)
            jobs = [view_of(job) for job in values.pop("jobs")]
            return JobsPage(jobs=jobs, **values)
        case {"many": many}:
            values = dict(many)
            jobs = [view_of(job) for job in values.pop("jobs", [])]
            refused = values.pop("errors", {})
            causes = {name: error_of(cause) for name, cause in refused.items()}
            return ManyResult(jobs=jobs, errors=causes, **values)
        case {"token": token}:
            return token
        case {"balance": balance}:
            return BalanceView(**balance)
        case _:
            raise AssertionError(f"no result in {result}")


# --------------------------------------------------------------- what must agree


def _same_values(asked: Mapping[str, Any], command: Any) -> None:
    subject = command.request if isinstance(command, Create) else command
    stored = subject.stored() if isinstance(subject, JobRequest) else vars(subject)
    for name, value in asked.items():
        found = json.loads(json.dumps(stored[name], default=str))
        assert found == value, f"{name}: {found!r} is not {value!r}"


def _same_response(wanted: Mapping[str, Any], answer: WireResponse) -> None:
    assert answer.status == wanted["status"]
    for name, value in wanted.get("headers", {}).items():
        assert same(value, answer.headers.get(name)), name
    if "body" in wanted:
        body = json.loads(json.dumps(answer.body))
        extra = set(wanted.get("may_also_have", ()))
        body = {n: v for n, v in body.items() if n in wanted["body"] or n not in extra}
        assert same(wanted["body"], body), f"{body} is not {wanted['body']}"


def same(wanted: Any, found: Any) -> bool:
    """Say whether ``found`` is what the pair says, types included (5 is not 5.0)."""
    if isinstance(wanted, str) and "…" in wanted:
        pattern = ".*".join(map(re.escape, wanted.split("…")))
        return isinstance(found, str) and bool(re.fullmatch(pattern, found, re.S))
    if isinstance(wanted, dict):
        return (
            isinstance(found, dict)
            and wanted.keys() == found.keys()
            and all(same(wanted[name], found[name]) for name in wanted)
        )
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(wanted) == len(found)
            and all(map(same, wanted, found))
        )
    return type(wanted) is type(found) and bool(wanted == found)
