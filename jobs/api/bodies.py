"""Request bodies, read once and made safe before any dialect sees them.

JSON and forms come out as plain values without NUL, lone surrogates, NaN, deep nesting
or numbers of absurd length; everything else is refused with the reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from django.core.exceptions import (
    RequestDataTooBig,
    SuspiciousOperation,
    TooManyFilesSent,
)
from django.core.files.uploadedfile import UploadedFile
from django.http import UnreadablePostError
from django.http.multipartparser import MultiPartParserError

from jobs.dialects.base import Upload
from jobs.errors import (
    InvalidRequest,
    MalformedBody,
    PayloadTooLarge,
    UnsupportedMediaType,
)

if TYPE_CHECKING:
    from django.http import HttpRequest

#: Deeper than any request of any dialect; Python's own parser gives up near 1,000.
DEPTH_MAX = 64
#: Decimal digits of the longest number taken: 64-bit seeds have 20.
DIGITS_MAX = 40


def read(request: HttpRequest, *, limit_bytes: int) -> tuple[Any, Mapping[str, Upload]]:
    """Return the decoded body (or None) and the file parts of the request.

    Raises PayloadTooLarge, UnsupportedMediaType, MalformedBody or InvalidRequest.
    """
    mark = request.META.get("HTTP_ZOETROPE_BODY")
    if mark == "too-large" or _declared(request) > limit_bytes:
        raise PayloadTooLarge(f"The body may have at most {limit_bytes // 2**20} MB.")
    if mark == "charset":
        raise UnsupportedMediaType("The body must be UTF-8.")
    if request.META.get("HTTP_CONTENT_ENCODING", "identity") != "identity":
        raise UnsupportedMediaType("Content-Encoding is not supported.")
    kind = request.content_type or ""
    try:
        if kind == "multipart/form-data":
            return _form(request)
        if kind == "application/x-www-form-urlencoded" and request.body:
            return _form(request)
        raw = request.body
    except RequestDataTooBig as error:
        raise PayloadTooLarge("The body is too large.") from error
    except (
        UnreadablePostError,
        MultiPartParserError,
        TooManyFilesSent,
        SuspiciousOperation,
    ) as error:
        raise MalformedBody("The body could not be read.") from error
    if len(raw) > limit_bytes:
        raise PayloadTooLarge(f"The body may have at most {limit_bytes // 2**20} MB.")
    if not raw.strip():
        return None, {}
    if kind not in ("application/json", "text/json", "text/plain", ""):
        raise UnsupportedMediaType("Send application/json or multipart/form-data.")
    return parse_json(raw), {}


def query_of(request: HttpRequest) -> dict[str, str]:
    """Return the query's parameters; of repeated ones the last counts."""
    values = {name: str(value) for name, value in request.GET.items()}
    return {name: value for name, value in values.items() if "\x00" not in value}


def parse_json(raw: bytes) -> Any:
    """Return the JSON value in ``raw``; of repeated keys the last one counts."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedBody("The body is not valid UTF-8.") from error
    _check_depth(text)
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_int=_integer,
            parse_float=_number,
        )
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidRequest):
            raise
        raise MalformedBody("The body is not valid JSON.") from error
    # Both need an escape or a raw control character; most bodies have neither.
    if "\\u" in text or "\x00" in text:
        _check_text(value, "")
    return value


def _form(request: HttpRequest) -> tuple[dict[str, Any], dict[str, Upload]]:
    fields: dict[str, Any] = {}
    for name, value in request.POST.items():
        _check_string(name, "form field name")
        _check_string(str(value), name)
        fields[name] = value
    files = {
        name: Upload(part.name or "", part.content_type or "", part.read())
        for name, part in request.FILES.items()
        if isinstance(part, UploadedFile)
    }
    return fields, files


def _declared(request: HttpRequest) -> int:
    length = request.META.get("CONTENT_LENGTH") or "0"
    return int(length) if length.isascii() and length.isdigit() else 0


def _check_depth(text: str) -> None:
    # A cheap upper bound first: a body without many brackets cannot nest deeply.
    if text.count("[") + text.count("{") <= DEPTH_MAX:
        return
    depth = 0
    is_text = is_escaped = False
    for character in text:
        if is_text:
            if is_escaped:
                is_escaped = False
            elif character == "\\":
                is_escaped = True
            elif character == '"':
                is_text = False
        elif character == '"':
            is_text = True
        elif character in "[{":
            depth += 1
            if depth > DEPTH_MAX:
                raise MalformedBody(f"Nested deeper than {DEPTH_MAX} levels.")
        elif character in "]}":
            depth -= 1


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedBody(f"{name} is not valid JSON.")


def _integer(text: str) -> int:
    if len(text) > DIGITS_MAX:
        raise MalformedBody(f"A number has more than {DIGITS_MAX} digits.")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise MalformedBody("A number is out of range.")
    return value


def _check_text(value: Any, where: str) -> None:
    match value:
        case str():
            _check_string(value, where)
        case dict():
            for name, item in value.items():
                _check_string(name, "field name")
                _check_text(item, f"{where}.{name}" if where else name)
        case list():
            for item in value:
                _check_text(item, where)
        case _:
            pass  # numbers and literals hold no text


def _check_string(value: str, where: str) -> None:
    if "\x00" in value:
        raise InvalidRequest(where or None, "Must not contain NUL characters.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(where or None, "Must be valid Unicode text.") from error
