"""The API's paths, made from the dialects' tables."""

from __future__ import annotations

import re

from django.urls import URLPattern, path, re_path

from jobs import segments
from jobs.api import docs
from jobs.api.callbacks import callback
from jobs.api.files import permanent
from jobs.api.views import Endpoint, unknown
from jobs.dialects import DIALECTS, load_dialect
from jobs.dialects.base import Route

segments.register()
_PARAM = re.compile(r"\{(\w+)\}")


def _converter(found: re.Match[str]) -> str:
    # Some vendors' model names hold a slash; ids never do.
    kind = "segments" if found[1] == "name" else "segment"
    return f"<{kind}:{found[1]}>"


def _patterns() -> list[URLPattern]:
    found: list[URLPattern] = []
    for name in DIALECTS:
        by_path: dict[str, dict[str, Route]] = {}
        for route in load_dialect(name).routes:
            by_path.setdefault(route.path, {})[route.method] = route
        for template, routes in by_path.items():
            pattern = _PARAM.sub(_converter, template.lstrip("/"))
            found.append(path(pattern, Endpoint(name, routes)))
    return found


urlpatterns: list[URLPattern] = [
    *_patterns(),
    path("files/<str:token>/<str:name>", permanent),
    path("schema", docs.Schema.as_view(), name="schema"),
    path("docs", docs.index),
    path("docs/api", docs.ApiPage.as_view()),
    path("docs/<str:name>", docs.dialect_page),
    path("callbacks/<str:provider>/<str:token>", callback),
    # Last: whatever no other path serves.
    re_path(r"", unknown),
]
