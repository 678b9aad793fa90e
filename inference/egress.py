"""The only way out to addresses that customers or providers name.

``check_url`` refuses what can be told from the text of a URL alone; it asks no name
server. ``Egress`` fetches and posts: each name is resolved once, every address it has
must be public, and the connection goes to one of exactly these addresses while TLS and
the Host header keep the name. Proxies and compression are never used; redirects are
followed only when fetching, at most three, each checked anew. Size, total time and speed
are capped. Private services can be reached only where the operator allows host:port.
"""

from __future__ import annotations

import contextlib
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urljoin, urlsplit

import certifi
import httpcore
import idna

from inference.errors import FetchFailed, InputRejected

URL_LENGTH_MAX: Final = 4096
REDIRECTS_MAX: Final = 3
REPLY_BYTES: Final = 1024  # what is kept of a webhook receiver's answer
CONNECT_SECONDS: Final = 10.0
RESOLVE_SECONDS: Final = 5.0
RATE_GRACE_SECONDS: Final = 5.0
RATE_BYTES_PER_SECOND: Final = 1024
FILE_TOO_LARGE: Final = "file_too_large"  # the code of a file over its limit
USER_AGENT: Final = "Zoetrope/1"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
#: name, port → addresses; raises OSError
Resolver = Callable[[str, int], list[str]]

# What ``is_global`` of Python 3.11 lets through although it leads inside.
_V4_DENIED: Final = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",
            "100.64.0.0/10",
            "168.63.129.16/32",  # Azure's host agent
            "192.0.0.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",  # 6to4 relay
            "192.175.48.0/24",
            "198.18.0.0/15",
            "224.0.0.0/3",  # multicast, reserved, broadcast
        ),
    )
)
# Only 2000::/3 is routed; these parts of it lead to IPv4, nowhere or a laboratory.
_V6_GLOBAL: Final = ipaddress.IPv6Network("2000::/3")
_V6_DENIED: Final = tuple(
    map(
        ipaddress.IPv6Network,
        ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"),
    )
)
_PRIVATE_SUFFIXES: Final = (
    *(".localhost", ".local", ".internal", ".intranet", ".lan", ".home.arpa"),
    *(".in-addr.arpa", ".ip6.arpa", ".onion"),
)
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_UNSAFE: Final = re.compile(r"[\x00-\x20\x7f\\]")
_default_allowed: frozenset[str] = frozenset()


def configure(allow_hosts: Iterable[str]) -> None:
    """Set which private ``host:port`` ``check_url`` lets through in this process."""
    global _default_allowed
    _default_allowed = frozenset(entry.lower() for entry in allow_hosts)


@dataclass(frozen=True)
class Target:
    """A URL taken apart and found harmless as text. ``host`` is ASCII, without brackets."""

    scheme: str
    host: str
    port: int
    path: str  # with its query, percent-encoded
    allowed: bool  # the operator allows this private host

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def check_url(
    url: str,
    *,
    allow_hosts: Collection[str] | None = None,
    https_only: bool = False,
    field: str = "url",
) -> Target:
    """Return ``url`` taken apart, or raise InputRejected naming ``field``.

    Wrong scheme or port, user names, control characters, backslashes, private names and
    private addresses in any notation are refused. Nothing is looked up.
    """
    try:
        return _target(
            url,
            _default_allowed if allow_hosts is None else allow_hosts,
            https_only=https_only,
        )
    except _RefusedError as refused:
        raise InputRejected(str(refused), field=field, code="invalid_url") from refused


def is_public(address: Address) -> bool:
    """Say whether ``address`` lies on the public Internet, and only there."""
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not any(address in net for net in _V4_DENIED)
    return address in _V6_GLOBAL and not any(address in net for net in _V6_DENIED)


class _RefusedError(ValueError):
    """The URL, or where it leads, is not allowed; the text may be shown."""

    code = "invalid_url"


class _TooLargeError(_RefusedError):
    code = FILE_TOO_LARGE


def _target(url: str, allow_hosts: Collection[str], *, https_only: bool) -> Target:
    if len(url) > URL_LENGTH_MAX:
        raise _RefusedError(f"A URL may have at most {URL_LENGTH_MAX} characters.")
    if _UNSAFE.search(url):
        raise _RefusedError("A URL may not hold spaces, backslashes or control codes.")
    try:
        url.encode()  # a lone surrogate cannot be sent
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _RefusedError("This is not a well-formed URL.") from error
    scheme = parts.scheme.lower()
    if scheme not in {"http", "https"}:
        raise _RefusedError("A URL must start with http:// or https://.")
    if "@" in parts.netloc:
        raise _RefusedError("A URL may not hold a user name or password.")
    host = _host(parts.hostname or "")
    default = 443 if scheme == "https" else 80
    if port is None:
        if parts.netloc.endswith(":"):
            raise _RefusedError("This is not a well-formed URL.")
        port = default
    allowed = f"{host}:{port}" in allow_hosts or f"[{host}]:{port}" in allow_hosts
    if not allowed:
        if https_only and scheme != "https":
            raise _RefusedError("The URL must start with https://.")
        if port not in {80, 443}:
            raise _RefusedError("A URL must use port 80 or 443.")
        _check_host(host)
    return Target(scheme, host, port, _path(parts.path, parts.query), allowed)


def _host(raw: str) -> str:
    """Return the host in its one plain form: ASCII, lower case, dotted decimal."""
    # Resolvers fold circled digits, full-width letters and ideographic full stops.
    host = unicodedata.normalize("NFKC", raw).lower().rstrip(".")
    if len(host) > 253:
        raise _RefusedError("The URL's host name is too long.")
    if ":" in host:
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError as error:
            raise _RefusedError("The URL's IPv6 address is malformed.") from error
    try:
        name = idna.encode(host, uts46=True).decode() if not host.isascii() else host
    except idna.IDNAError as error:
        raise _RefusedError("The URL's host name is malformed.") from error
    labels = name.split(".")
    if len(name) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise _RefusedError("The URL's host name is malformed.")
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):
        # Ends in a number: an IPv4 address, perhaps as 0x7f.1, 0177.1 or 2130706433.
        try:
            return socket.inet_ntoa(socket.inet_aton(name))
        except OSError as error:
            raise _RefusedError("The URL's IPv4 address is malformed.") from error
    return name


def _check_host(host: str) -> None:
    try:
        address: Address | None = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if address is not None:
        if not is_public(address):
            raise _RefusedError("The URL leads to a private address.")
    elif "." not in host or f".{host}".endswith(_PRIVATE_SUFFIXES):
        raise _RefusedError("The URL leads to a private name.")


def _path(path: str, query: str) -> str:
    safe = "/%:@!$&'()*+,;=~-._"
    encoded = quote(path or "/", safe=safe)
    return f"{encoded}?{quote(query, safe=safe + '?')}" if query else encoded


def system_resolver(name: str, port: int) -> list[str]:
    """Return the addresses the system knows for ``name``."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True)
class Reply:
    """A webhook receiver's answer; at most 1 kB of its body is kept."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class Egress:
    """Fetches and posts for one process; safe to share between threads."""

    def __init__(
        self,
        allow_hosts: Iterable[str] = (),
        *,
        deny_hosts: Iterable[str] = (),
        resolver: Resolver = system_resolver,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """``deny_hosts`` are names of our own that nobody may have posted to."""
        self._allowed = frozenset(entry.lower() for entry in allow_hosts)
        self._denied = frozenset(name.lower() for name in deny_hosts)
        self._resolver = resolver
        self._ssl = ssl_context or ssl.create_default_context(cafile=certifi.where())

    def fetch(
        self,
        url: str,
        *,
        max_bytes: int,
        accept: str = "*/*",
        deadline_seconds: float = 20.0,
        field: str = "url",
    ) -> bytes:
        """Return what is at ``url``.

        Raises InputRejected naming ``field`` when it may not or can never be had, and
        FetchFailed when a later try may help.
        """
        chunks = self._download(url, max_bytes, accept, deadline_seconds, field)
        return b"".join(chunks)

    def fetch_to(
        self,
        url: str,
        target: Path,
        *,
        max_bytes: int,
        accept: str = "*/*",
        deadline_seconds: float = 300.0,
        field: str = "url",
        may_lead_to: Callable[[str], bool] | None = None,
    ) -> int:
        """Write what is at ``url`` to ``target``; return its size. Raises as ``fetch``.

        After an error there is no file at ``target``. ``may_lead_to`` says of a host (with
        its port unless 443) whether a redirect there is followed; then only by https.
        """
        size = 0
        try:
            with target.open("wb") as file:
                for chunk in self._download(
                    url, max_bytes, accept, deadline_seconds, field, may_lead_to
                ):
                    size += file.write(chunk)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return size

    def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        timeout_seconds: float = 15.0,
        field: str = "url",
    ) -> Reply:
        """Post ``body`` and return the answer, whatever its status; follow no redirect.

        Raises InputRejected when the address may not be reached, FetchFailed when no
        answer came.
        """
        clock = _Clock(timeout_seconds)
        sent = {"content-type": "application/json", **_safe(headers)}
        try:
            target = _target(url, self._allowed, https_only=True)
            if target.host in self._denied and not target.allowed:
                raise _RefusedError("The URL leads back to this service.")
            with self._exchange("POST", target, sent, clock, body) as response:
                kept = b""
                try:
                    for chunk in response.iter_stream():
                        kept += chunk[: REPLY_BYTES - len(kept)]
                        if len(kept) >= REPLY_BYTES:
                            break
                except httpcore.TimeoutException:
                    pass  # the status has come: the receiver has answered
                return Reply(response.status, kept, _headers(response))
        except _RefusedError as refused:
            raise _rejected(refused, field) from refused
        except _NETWORK_ERRORS as error:
            raise _failed(error) from error

    def _download(
        self,
        url: str,
        max_bytes: int,
        accept: str,
        deadline_seconds: float,
        field: str,
        may_lead_to: Callable[[str], bool] | None = None,
    ) -> Iterator[bytes]:
        clock, https_only = _Clock(deadline_seconds), may_lead_to is not None
        try:
            for hop in range(REDIRECTS_MAX + 1):
                target = _target(url, self._allowed, https_only=https_only)
                if hop and may_lead_to and not may_lead_to(target.authority):
                    raise _RefusedError(
                        "The URL redirects to a host that is not allowed."
                    )
                sent = {"accept": accept}
                with self._exchange("GET", target, sent, clock, None) as response:
                    headers = _headers(response)
                    if response.status in {301, 302, 303, 307, 308}:
                        url = _redirected(target, headers.get("location", ""))
                        continue
                    _check_answer(response.status, headers, max_bytes)
                    yield from _capped(response, clock, max_bytes)
                    return
            raise _RefusedError("The URL redirects too often.")
        except _RefusedError as refused:
            raise _rejected(refused, field) from refused
        except _NETWORK_ERRORS as error:
            raise _failed(error) from error

    @contextlib.contextmanager
    def _exchange(
        self,
        method: str,
        target: Target,
        headers: Mapping[str, str],
        clock: _Clock,
        body: bytes | None,
    ) -> Iterator[httpcore.Response]:
        # A pool of one, for one exchange: its backend knows the target and the deadline.
        backend = _PinnedBackend(target, self._resolver, clock)
        with (
            httpcore.ConnectionPool(
                ssl_context=self._ssl, max_connections=1, network_backend=backend
            ) as pool,
            pool.stream(
                method,
                str(target),
                headers=[
                    ("host", target.authority),
                    ("user-agent", USER_AGENT),
                    ("accept-encoding", "identity"),
                    ("connection", "close"),
                    *headers.items(),
                ],
                content=body,
                extensions={
                    "timeout": {
                        "connect": CONNECT_SECONDS,
                        "read": CONNECT_SECONDS,
                        "write": CONNECT_SECONDS,
                        "pool": 1.0,
                    }
                },
            ) as response,
        ):
            yield response


class _Clock:
    """The total time one exchange, its redirects included, may take."""

    def __init__(self, seconds: float) -> None:
        self._started = time.monotonic()
        self._seconds = seconds

    @property
    def spent(self) -> float:
        return time.monotonic() - self._started

    def allow(self, timeout: float | None, error: type[Exception]) -> float:
        """Return the shorter of ``timeout`` and what is left; raise ``error`` at the end."""
        left = self._seconds - self.spent
        if left <= 0:
            raise error("the deadline has passed")
        return left if timeout is None else min(timeout, left)


class _PinnedBackend(httpcore.NetworkBackend):
    """Connects to an address that was checked, and to nothing else."""

    def __init__(self, target: Target, resolver: Resolver, clock: _Clock) -> None:
        self._target = target
        self._resolver = resolver
        self._clock = clock

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        if (host.strip("[]"), port) != (self._target.host, self._target.port):
            raise _RefusedError("The URL leads to another host than the one checked.")
        addresses = self._addresses()
        failure: Exception = httpcore.ConnectError("no address")
        for address in addresses:
            allowed = self._clock.allow(timeout, httpcore.ConnectTimeout)
            try:
                stream = httpcore.SyncBackend().connect_tcp(
                    address, port, allowed, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _TimedStream(stream, self._clock)
        raise failure

    def _addresses(self) -> list[str]:
        """Return the host's addresses, all of them fit to be reached."""
        seconds = self._clock.allow(RESOLVE_SECONDS, httpcore.ConnectTimeout)
        found = _resolved(self._resolver, self._target.host, self._target.port, seconds)
        if not found:
            raise httpcore.ConnectError("the name has no address")
        if not self._target.allowed:
            for text in found:
                # One private address among public ones is how a filter is fooled.
                if not is_public(ipaddress.ip_address(text.partition("%")[0])):
                    raise _RefusedError("The URL leads to a private address.")
        return found[:4]


class _TimedStream(httpcore.NetworkStream):
    """A stream whose every wait also ends at the exchange's deadline."""

    def __init__(self, stream: httpcore.NetworkStream, clock: _Clock) -> None:
        self._stream = stream
        self._clock = clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        allowed = self._clock.allow(timeout, httpcore.ReadTimeout)
        return self._stream.read(max_bytes, allowed)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        allowed = self._clock.allow(timeout, httpcore.WriteTimeout)
        self._stream.write(buffer, allowed)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        allowed = self._clock.allow(timeout, httpcore.ConnectTimeout)
        secure = self._stream.start_tls(ssl_context, server_hostname, allowed)
        return _TimedStream(secure, self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


_NETWORK_ERRORS: Final = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    FetchFailed,
)


def _resolved(resolver: Resolver, name: str, port: int, seconds: float) -> list[str]:
    try:
        return [str(ipaddress.ip_address(name))]  # an address needs no name server
    except ValueError:
        pass
    # getaddrinfo has no timeout of its own, so it is left behind when it hangs.
    answers: queue.Queue[list[str] | OSError] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(resolver(name, port))
        except (OSError, UnicodeError) as error:
            answers.put(OSError(str(error)))

    threading.Thread(target=ask, daemon=True, name="resolve").start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty as error:
        raise httpcore.ConnectTimeout("the name server does not answer") from error
    if isinstance(answer, OSError):
        raise httpcore.ConnectError(f"the name cannot be resolved: {answer}")
    return answer


def _headers(response: httpcore.Response) -> dict[str, str]:
    return {
        name.decode("latin-1").lower(): value.decode("latin-1")
        for name, value in response.headers
    }


def _safe(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not re.fullmatch(r"[A-Za-z0-9-]+", name) or re.search(r"[\r\n\0]", value):
            raise ValueError(f"header {name!r} is malformed")
    return {name.lower(): value for name, value in headers.items()}


def _redirected(target: Target, location: str) -> str:
    try:
        return urljoin(str(target), location)
    except ValueError as error:  # such as a bracket that nothing closes
        raise _RefusedError("The URL redirects to a malformed one.") from error


def _check_answer(status: int, headers: Mapping[str, str], max_bytes: int) -> None:
    if status in {408, 425, 429} or status >= 500:
        raise FetchFailed(f"The URL answers with status {status}.")
    if status != 200:
        raise _RefusedError(f"The URL answers with status {status}.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise _RefusedError("The URL answers in a compressed form nobody asked for.")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(max_bytes)


def _capped(
    response: httpcore.Response, clock: _Clock, max_bytes: int
) -> Iterator[bytes]:
    size, begun = 0, clock.spent
    for chunk in response.iter_stream():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        reading = clock.spent - begun
        if reading > RATE_GRACE_SECONDS and size < RATE_BYTES_PER_SECOND * reading:
            raise httpcore.ReadTimeout("too slow")
        yield chunk


def _too_large(max_bytes: int) -> _TooLargeError:
    limit = f"{max_bytes / 2**20:g} MB" if max_bytes >= 2**20 else f"{max_bytes} bytes"
    return _TooLargeError(f"The file at the URL has more than {limit}.")


def _rejected(refused: _RefusedError, field: str) -> InputRejected:
    return InputRejected(str(refused), field=field, code=refused.code)


def _failed(error: Exception) -> FetchFailed:
    if isinstance(error, FetchFailed):
        return error
    if isinstance(error, httpcore.TimeoutException):
        return FetchFailed(f"The URL does not answer in time ({error}).")
    return FetchFailed(f"The URL cannot be reached ({type(error).__name__}: {error}).")
