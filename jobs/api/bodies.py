"""Request bodies, read once and made safe before any dialect sees them.

JSON and forms come out as plain values that everything behind can hold (see
``strict_json``); everything else is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.core.exceptions import (
    RequestDataTooBig,
    SuspiciousOperation,
    TooManyFilesSent,
)
from django.core.files.uploadedfile import UploadedFile
from django.http import UnreadablePostError
from django.http.multipartparser import MultiPartParserError

from jobs import strict_json
from jobs.dialects.base import Upload
from jobs.errors import (
    MalformedBody,
    PayloadTooLarge,
    RequestTimeout,
    ServiceUnavailable,
    UnsupportedMediaType,
)

if TYPE_CHECKING:
    from django.http import HttpRequest


def read(request: HttpRequest, *, limit_bytes: int) -> tuple[Any, Mapping[str, Upload]]:
    """Return the decoded body (or None) and the file parts of the request.

    Raises PayloadTooLarge, UnsupportedMediaType, RequestTimeout, ServiceUnavailable,
    MalformedBody or InvalidRequest.
    """
    mark = request.META.get("HTTP_ZOETROPE_BODY")
    if mark == "too-large" or _declared(request) > limit_bytes:
        raise PayloadTooLarge(f"The body may have at most {limit_bytes // 2**20} MB.")
    if mark == "no-room":
        raise ServiceUnavailable("Too many large requests at once; try again shortly.")
    if mark == "too-slow":
        raise RequestTimeout
    if mark == "charset":
        raise UnsupportedMediaType("The body must be UTF-8.")
    if request.META.get("HTTP_CONTENT_ENCODING", "identity") != "identity":
        raise UnsupportedMediaType("Content-Encoding is not supported.")
    kind = request.content_type or ""
    try:
        if kind == "multipart/form-data":
            return _form(request)
        if kind == "application/x-www-form-urlencoded" and request.body:
            if request.body.count(b"%") > strict_json.ESCAPES_MAX:
                raise MalformedBody("The body has too many escapes.")
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
    """Return the JSON value in ``raw``."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedBody("The body is not valid UTF-8.") from error
    return strict_json.parse(text)


def _form(request: HttpRequest) -> tuple[dict[str, Any], dict[str, Upload]]:
    fields: dict[str, Any] = {}
    for name, value in request.POST.items():
        strict_json.check_text(name, "form field name")
        strict_json.check_text(str(value), name)
        fields[name] = value
    for name in request.FILES:
        strict_json.check_text(name, "file part name")
    files = {
        name: Upload(part.name or "", part.content_type or "", part.read())
        for name, part in request.FILES.items()
        if isinstance(part, UploadedFile)
    }
    return fields, files


def _declared(request: HttpRequest) -> int:
    length = request.META.get("CONTENT_LENGTH") or "0"
    return int(length[:20]) if length.isascii() and length.isdigit() else 0
