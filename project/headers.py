"""A content security policy for the operators' pages.

What a customer wrote is escaped there; should that ever fail, the browser still runs no
script of theirs and sends nothing elsewhere. Unfold's Alpine.js needs `unsafe-eval`, and
its colours are inline styles; inline scripts it has none.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase

PREFIX = "/admin/"


class AdminPolicy:
    """Middleware: adds the policy to each answer under `/admin/`."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self._get_response(request)
        if request.path.startswith(PREFIX):
            response.headers.setdefault("Content-Security-Policy", policy())
        return response


def policy() -> str:
    """Return the policy: everything from here, pictures and videos from storage too."""
    place = urlsplit(settings.S3_PUBLIC_ENDPOINT_URL)
    storage = f"{place.scheme}://{place.netloc}"
    rules = {
        "default-src": "'self'",
        "script-src": "'self' 'unsafe-eval'",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": f"'self' data: {storage}",
        "media-src": f"'self' {storage}",
        "object-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())
