"""Which host names are answered: ALLOWED_HOSTS, and for probes any.

A load balancer or Kubernetes asks for health by address, as Prometheus may for figures;
their answers name no host. Every other call by a name that is none of ours is refused,
an API's in that API's own shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponseBase

from jobs.api.views import foreign_host
from project import health, metrics

View = Callable[[HttpRequest], HttpResponseBase]

PROBES: Final[Mapping[str, View]] = MappingProxyType(
    {
        "/healthz": health.healthz,
        "/readyz": health.readyz,
        "/metrics": metrics.metrics,
    }
)


class HostMiddleware:
    """Before everything of Django's that asks for the host, and fails on a foreign one."""

    def __init__(self, get_response: View) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        try:
            request.get_host()
        except DisallowedHost:
            return PROBES.get(request.path, foreign_host)(request)
        return self._get_response(request)
