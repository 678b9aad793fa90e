"""Every path of the web process; the API's own paths are in `jobs.api.urls`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from django.contrib import admin
from django.http.response import HttpResponseBase
from django.urls import URLPattern, URLResolver, include, path
from django.views.decorators.csrf import csrf_exempt
from django.views.generic import RedirectView

from project import health, metrics


def leads_to(url: str) -> Callable[..., HttpResponseBase]:
    """Return a view for people's browsers; to others it is no door of ours."""
    names = ["get", "head"]
    return csrf_exempt(RedirectView.as_view(url=url, http_method_names=names))


urlpatterns: list[URLPattern | URLResolver] = [
    path("", leads_to("/docs")),
    path("docs/", leads_to("/docs")),
    path("admin", leads_to("/admin/")),
    path("healthz", health.healthz),
    path("readyz", health.readyz),
    path("metrics", metrics.metrics),
    path("admin/", admin.site.urls),
    path("operator/v1/", include("jobs.operator.urls")),
]
if find_spec("jobs.api.urls"):
    urlpatterns.append(path("", include("jobs.api.urls")))
    handler500 = "jobs.api.views.broken"
