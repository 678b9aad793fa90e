"""Pictures as they arrive on the wire: URL, data URI, bare base64 or a file part.

Only what can be told without decoding or a name lookup is checked here: length, base64,
magic bytes, header dimensions, URL form. The rest is found when the job is prepared.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING

from inference.contracts import Limits
from inference.egress import check_url
from inference.errors import InputRejected
from inference.media.images import read_header
from jobs.errors import InvalidRequest, PayloadTooLarge
from jobs.requests import Picture

if TYPE_CHECKING:
    from jobs.dialects.base import Upload

LIMITS = Limits()
_DATA_URI = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(;[\w=.+-]+)*;base64,", re.I)
#: Characters before the data of a data URI; millions would cost a gigabyte to match.
_DATA_URI_HEAD_MAX = 500
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,30}://", re.I)
_WHITESPACE = b" \t\r\n"


def from_text(field: str, value: object, *, limits: Limits = LIMITS) -> Picture:
    """Return the picture that ``value`` (URL, data URI or base64) stands for.

    Raises InvalidRequest naming ``field``, PayloadTooLarge when it is over the cap.
    """
    if not isinstance(value, str):
        raise InvalidRequest(field, "Must be a string: a URL, a data URI or base64.")
    text = value.strip()
    if not text:
        raise InvalidRequest(field, "An image is required.")
    if _SCHEME.match(text):
        return from_url(field, text)
    if (match := _DATA_URI.match(text[:_DATA_URI_HEAD_MAX])) is not None:
        text = text[match.end() :]
    elif text[:5].lower() == "data:":
        raise InvalidRequest(field, "A data URI must be base64-encoded.")
    return from_bytes(field, _decode(field, text, limits), limits=limits)


def from_url(field: str, url: str) -> Picture:
    try:
        check_url(url)
    except InputRejected as refused:
        raise InvalidRequest(field, str(refused)) from refused
    return Picture(url=url)


def from_upload(field: str, upload: Upload, *, limits: Limits = LIMITS) -> Picture:
    return from_bytes(field, upload.data, limits=limits)


def from_bytes(field: str, data: bytes, *, limits: Limits = LIMITS) -> Picture:
    if len(data) > limits.image_bytes:
        raise PayloadTooLarge(_too_large(limits), field=field)
    try:
        header = read_header(data, limits)
    except InputRejected as refused:
        raise InvalidRequest(field, str(refused), code=refused.code) from refused
    return Picture(
        data=data,
        size=(header.width, header.height),
        format=header.format,
        has_alpha=header.has_alpha,
    )


def _decode(field: str, text: str, limits: Limits) -> bytes:
    # Four characters carry three bytes: refuse before spending memory on decoding.
    if len(text) * 3 // 4 > limits.image_bytes + 3:
        raise PayloadTooLarge(_too_large(limits), field=field)
    try:
        # As bytes: text is translated a character at a time.
        compact = text.encode("ascii").translate(None, _WHITESPACE)
        return base64.b64decode(compact, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(
            field, "Must be an http(s) URL, a data URI or valid base64."
        ) from error


def _too_large(limits: Limits) -> str:
    return f"The image may have at most {limits.image_bytes // 2**20} MB."
