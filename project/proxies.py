"""Whose word about a caller counts: a proxy's that the settings name, nobody else's.

From a peer in TRUSTED_PROXIES the caller's address is the last one in X-Forwarded-For
that is not itself such a proxy; it takes the place of REMOTE_ADDR, so that logs, rate
limits and the login lock all see the same. From any other peer every forwarding header
is dropped before anything can believe it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from django.conf import settings
from django.core import checks
from django.http import HttpRequest, HttpResponseBase

FORWARDING = (
    "HTTP_X_FORWARDED_FOR",
    "HTTP_X_FORWARDED_PROTO",
    "HTTP_X_FORWARDED_HOST",
    "HTTP_X_FORWARDED_PORT",
    "HTTP_FORWARDED",
    "HTTP_X_REAL_IP",
)
#: More hops than any chain of ours; the rest of a longer header is the caller's own.
HOPS_MAX = 20

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class ProxyMiddleware:
    """First in line, so that everything behind it sees the caller and not the proxy."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        trusted = _networks(tuple(settings.TRUSTED_PROXIES))
        peer = _address(request.META.get("REMOTE_ADDR", ""))
        if peer is None or not _is_in(peer, trusted):
            for name in FORWARDING:
                request.META.pop(name, None)
        else:
            forwarded = request.META.get("HTTP_X_FORWARDED_FOR", "")
            caller = caller_of(peer, forwarded, trusted=trusted)
            request.META["REMOTE_ADDR"] = str(caller)
        return self._get_response(request)


def caller_of(peer: Address, forwarded: str, *, trusted: Sequence[Network]) -> Address:
    """Return the nearest address of the chain that is not one of our proxies."""
    caller = peer
    hops = [hop.strip() for hop in forwarded.split(",")][-HOPS_MAX:]
    for hop in reversed(hops):
        address = _address(hop)
        if address is None:
            return caller
        caller = address
        if not _is_in(address, trusted):
            return caller
    return caller


def _address(text: str) -> Address | None:
    text = text.strip()
    if text.startswith("["):  # [2001:db8::1]:443
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:  # 192.0.2.1:443
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(
        address.version == network.version and address in network
        for network in networks
    )


@functools.lru_cache(maxsize=8)
def _networks(words: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ip_network(word, strict=False) for word in words)


@checks.register(checks.Tags.security)
def proxies_are_named(**_: object) -> list[checks.CheckMessage]:
    """A wrong network, or TLS that ends at a proxy nobody named, is found at start."""
    try:
        named = _networks(tuple(settings.TRUSTED_PROXIES))
    except ValueError as error:
        return [checks.Error(f"TRUSTED_PROXIES: {error}", id="project.E001")]
    if settings.HTTPS and not named:
        return [
            checks.Error(
                "PUBLIC_URL is https, but TRUSTED_PROXIES names no proxy.",
                hint="Name the address or network of the proxy that ends TLS; without "
                "it every call looks like plain http and is redirected for ever.",
                id="project.E002",
            )
        ]
    return []
