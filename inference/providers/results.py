"""Brings a finished video from the provider to a local file.

A link to another host goes through egress like any address we did not choose. A link to
the account's own base URL, which the operator set, is read directly and alone carries the
account's key. Both are capped in size and time. Whatever is wrong with a result is the
provider's health, never the customer's fault; what a later look may cure is ResultAway.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx

from inference.egress import FILE_TOO_LARGE, Egress
from inference.errors import (
    Fault,
    FetchFailed,
    InputRejected,
    ProviderError,
    ResultAway,
)
from inference.providers.base import CONNECT_SECONDS, ProviderAccount, RemoteStatus

#: Longest silence of a server that is sending a video.
STALL_SECONDS = 20.0


def download(
    status: RemoteStatus,
    account: ProviderAccount,
    target: Path,
    *,
    egress: Egress,
    http: httpx.Client,
    max_bytes: int,
    deadline_seconds: float = 300.0,
) -> int:
    """Write the video of ``status`` to ``target`` and return its size.

    Raises ResultAway where there is no whole answer, and ProviderError for one that is no
    video; then there is no file at ``target``.
    """
    url = status.video_url or ""
    deadline = time.monotonic() + deadline_seconds
    try:
        if not _same_origin(url, account.base_url):
            size = _through_egress(url, target, egress, max_bytes, deadline)
        else:
            size = _own(
                url,
                dict(status.download_headers),
                target,
                egress,
                http,
                max_bytes,
                deadline,
            )
        _check_kind(target, size)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return size


def _through_egress(
    url: str, target: Path, egress: Egress, max_bytes: int, deadline: float
) -> int:
    left = max(1.0, deadline - time.monotonic())
    try:
        return egress.fetch_to(url, target, max_bytes=max_bytes, deadline_seconds=left)
    except (InputRejected, FetchFailed) as error:
        words = f"{urlsplit(url).hostname}: {error}"
        is_answer = isinstance(error, InputRejected) and error.code == FILE_TOO_LARGE
        raise (_bad_result if is_answer else _away)(words) from error


def _own(
    url: str,
    headers: dict[str, str],
    target: Path,
    egress: Egress,
    http: httpx.Client,
    max_bytes: int,
    deadline: float,
) -> int:
    left = max(1.0, deadline - time.monotonic())
    timeout = httpx.Timeout(min(STALL_SECONDS, left), connect=CONNECT_SECONDS)
    headers = {"Accept": "*/*", "Accept-Encoding": "identity", **headers}
    try:
        with http.stream("GET", url, headers=headers, timeout=timeout) as response:
            if response.is_redirect:
                # The key stays here: what the link leads to is fetched without it.
                onward = urljoin(url, response.headers.get("location", ""))
                return _through_egress(onward, target, egress, max_bytes, deadline)
            if response.status_code != 200:
                raise _away(f"the result answers HTTP {response.status_code}")
            announced = response.headers.get("content-length", "")
            if announced.isdigit() and int(announced) > max_bytes:
                raise _bad_result(f"the result announces {announced} bytes")
            return _write(response.iter_raw(), target, max_bytes, deadline)
    except httpx.HTTPError as error:
        raise _away(f"{type(error).__name__} {error}") from error


def _write(
    chunks: Iterator[bytes], target: Path, max_bytes: int, deadline: float
) -> int:
    size = 0
    with target.open("wb") as file:
        for chunk in chunks:
            size += file.write(chunk)
            if size > max_bytes:
                raise _bad_result(f"the result has more than {max_bytes} bytes")
            if time.monotonic() > deadline:
                raise _away("the result comes too slowly")
    return size


def _check_kind(target: Path, size: int) -> None:
    """Refuse what is plainly no video file; the probe that follows decides the rest."""
    with target.open("rb") as file:
        head = file.read(12)
    is_mp4 = head[4:8] == b"ftyp"
    is_webm = head[:4] == b"\x1a\x45\xdf\xa3"
    if not (is_mp4 or is_webm):
        raise _bad_result(f"the result is no video ({size} bytes, {head!r})")


def _bad_result(reason: str) -> ProviderError:
    return ProviderError(f"result: {reason}"[:400], fault=Fault.HEALTH)


def _away(reason: str) -> ResultAway:
    return ResultAway(f"result: {reason}"[:400], fault=Fault.HEALTH)


def _same_origin(url: str, other: str) -> bool:
    one, two = urlsplit(url), urlsplit(other)
    return (one.scheme, one.netloc.lower()) == (two.scheme, two.netloc.lower())
