"""Sends the calls of adapters and says, when the line breaks, what that means.

The only file of the package that touches a socket. A call that never left is an
ordinary health error and may be repeated. A call that left and was not answered is
``AnswerLost`` unless it is idempotent. Operator-set base URLs are not filtered; results
are not downloaded here but through egress.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import ssl
import time
from collections.abc import Sequence
from typing import Any

import httpx

from inference.errors import AnswerLost, Fault, ProviderError
from inference.providers.base import (
    CONNECT_SECONDS,
    FindQuery,
    Found,
    HttpCall,
    HttpReply,
    Provider,
    ProviderAccount,
    ProviderJob,
    RemoteStatus,
    Submitted,
)

REPLY_BYTES_MAX = 8 * 1024 * 1024

_POOL = httpx.Limits(max_connections=8, max_keepalive_connections=8)

#: Raised before any byte of the request was written.
_NEVER_LEFT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
#: Likewise: what the operator entered makes no request.
_NO_REQUEST = (
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
    httpx.InvalidURL,
    UnicodeEncodeError,
)


class _Overdue(Exception):
    """The answer drips in too slowly, or is too long, to wait for."""


def client(**options: Any) -> httpx.Client:
    """Return a client for ``send``: no redirects, no proxies from the environment."""
    return httpx.Client(
        **{"verify": _trust(), **options}, follow_redirects=False, trust_env=False
    )


def async_client(**options: Any) -> httpx.AsyncClient:
    """Return a client for ``send_async``; make one per account.

    The pool is small because httpcore looks at every connection for every call: [ran]
    0.9 ms of CPU per status call with 4 connections, 1.2 with 8, 3.1 with 32, 4.8 with
    100. Eight answer 40 calls a second at 200 ms each, more than any account may ask.
    """
    options = {"limits": _POOL, "verify": _trust(), **options}
    return httpx.AsyncClient(**options, follow_redirects=False, trust_env=False)


@functools.cache
def _trust() -> ssl.SSLContext:
    # Reading the certificates takes some 30 ms, so all clients share one context.
    return httpx.create_ssl_context(trust_env=False)


# ------------------------------------------------------------------ one call


def send(http: httpx.Client, call: HttpCall) -> HttpReply:
    """Send ``call`` and read the whole answer; raise ProviderError or AnswerLost."""
    deadline = time.monotonic() + call.timeout_seconds
    chunks = _Chunks()
    try:
        with http.stream(call.method, call.url, **_options(call)) as response:
            for chunk in response.iter_bytes():
                chunks.add(chunk)
                if time.monotonic() > deadline:
                    raise _Overdue("the answer took too long")
            return chunks.reply(response)
    except (httpx.HTTPError, *_NO_REQUEST, _Overdue) as error:
        raise broken_line(call, error) from error


async def send_async(http: httpx.AsyncClient, call: HttpCall) -> HttpReply:
    chunks = _Chunks()
    try:
        async with (
            asyncio.timeout(call.timeout_seconds),
            http.stream(call.method, call.url, **_options(call)) as response,
        ):
            async for chunk in response.aiter_bytes():
                chunks.add(chunk)
            return chunks.reply(response)
    except (httpx.HTTPError, *_NO_REQUEST, _Overdue, TimeoutError) as error:
        raise broken_line(call, error) from error


def broken_line(call: HttpCall, error: Exception) -> ProviderError:
    """Return what a transport error means for this call."""
    words = f"{call.method} {call.url}: {type(error).__name__} {error}"[:400]
    if isinstance(error, httpx.LocalProtocolError):
        # Its own words would quote the header, which may hold the key.
        words = f"{call.method} {call.url}: a header that cannot be sent"
    if isinstance(error, _NO_REQUEST):
        return ProviderError(words, fault=Fault.ACCOUNT)
    if call.idempotent or isinstance(error, _NEVER_LEFT):
        return ProviderError(words, fault=Fault.HEALTH)
    return AnswerLost(words)


class _Chunks:
    def __init__(self) -> None:
        self._body = bytearray()

    def add(self, chunk: bytes) -> None:
        self._body += chunk
        if len(self._body) > REPLY_BYTES_MAX:
            raise _Overdue(f"the answer is longer than {REPLY_BYTES_MAX} bytes")

    def reply(self, response: httpx.Response) -> HttpReply:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return HttpReply(response.status_code, headers, bytes(self._body))


def _options(call: HttpCall) -> dict[str, Any]:
    options: dict[str, Any] = {
        "headers": {"Accept": "application/json", **call.headers},
        "timeout": httpx.Timeout(call.timeout_seconds, connect=CONNECT_SECONDS),
    }
    if call.params:
        options["params"] = dict(call.params)
    if call.json is not None:
        options["json"] = call.json
    if call.files:
        options["data"] = dict(call.form)
        options["files"] = {
            name: (part.filename, part.data, part.media_type)
            for name, part in call.files.items()
        }
    return options


# ------------------------------------------------------------------ whole exchanges


def submit(
    http: httpx.Client, provider: Provider, job: ProviderJob, account: ProviderAccount
) -> Submitted:
    """Start ``job``. The caller has stored its intent before."""
    reply = send(http, provider.build_submit(job, account))
    return provider.parse_submit(reply, account)


def status(
    http: httpx.Client,
    provider: Provider,
    ids: Sequence[str],
    account: ProviderAccount,
) -> dict[str, RemoteStatus]:
    reply = send(http, provider.build_status(ids, account))
    return provider.parse_status(reply, ids, account)


async def status_async(
    http: httpx.AsyncClient,
    provider: Provider,
    ids: Sequence[str],
    account: ProviderAccount,
) -> dict[str, RemoteStatus]:
    reply = await send_async(http, provider.build_status(ids, account))
    return provider.parse_status(reply, ids, account)


def cancel(
    http: httpx.Client, provider: Provider, provider_id: str, account: ProviderAccount
) -> bool:
    reply = send(http, provider.build_cancel(provider_id, account))
    return provider.parse_cancel(reply, account)


def delete(
    http: httpx.Client, provider: Provider, provider_id: str, account: ProviderAccount
) -> bool:
    reply = send(http, provider.build_delete(provider_id, account))
    return provider.parse_delete(reply, account)


def find(
    http: httpx.Client,
    provider: Provider,
    query: FindQuery,
    account: ProviderAccount,
    *,
    pages_max: int = 20,
) -> Found:
    """Look through the provider's list for a job whose answer was lost.

    Stops at ``pages_max`` pages; what was then not seen makes the result inconclusive.
    """
    candidates: list[str] = []
    for _ in range(pages_max):
        reply = send(http, provider.build_find(query, account))
        page = provider.parse_find(reply, query, account)
        candidates += page.candidates
        if page.next_cursor is None:
            return Found(tuple(candidates), page.conclusive)
        query = dataclasses.replace(query, cursor=page.next_cursor)
    return Found(tuple(candidates), conclusive=False)
