"""Every path of the web process; the API's own paths are in `jobs.api.urls`."""

from __future__ import annotations

from importlib.util import find_spec

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path
from django.views.generic import RedirectView

from project import health, metrics

urlpatterns: list[URLPattern | URLResolver] = [
    path("", RedirectView.as_view(url="/docs")),
    path("docs/", RedirectView.as_view(url="/docs")),
    path("admin", RedirectView.as_view(url="/admin/")),
    path("healthz", health.healthz),
    path("readyz", health.readyz),
    path("metrics", metrics.metrics),
    path("admin/", admin.site.urls),
    path("operator/v1/", include("jobs.operator.urls")),
]
if find_spec("jobs.api.urls"):
    urlpatterns.append(path("", include("jobs.api.urls")))
    handler500 = "jobs.api.views.broken"
