"""The documentation pages: an index, a guide, the API page, one page per dialect.

Everything is served by ourselves and nothing runs inline, so the pages hold to a strict
content policy. The OpenAPI document is made once per process.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.safestring import mark_safe
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import OpenApiYamlRenderer
from drf_spectacular.views import SpectacularSwaggerSplitView
from markdown_it import MarkdownIt
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from jobs.dialects import DIALECTS, load_dialect, pages

POLICY = "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'"
#: Swagger UI sets style attributes, and its examples call this server.
API_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'"
)
GUIDE = Path(__file__).with_name("guide.md")
#: What finishing adds, for who has the repository; its lines are run in tests.
COOKBOOK = settings.BASE_DIR / "docs" / "cookbook.md"


@cache
def document() -> dict[str, Any]:
    """Return the whole OpenAPI document."""
    found: dict[str, Any] = SchemaGenerator().get_schema(request=None, public=True)
    found["servers"] = [{"url": settings.PUBLIC_URL}]
    return found


class Yaml(OpenApiYamlRenderer):
    media_type = "application/yaml"


class Schema(APIView):
    """`GET /schema`: JSON, or YAML by Accept or by ``?format=yaml``."""

    renderer_classes = [JSONRenderer, Yaml]
    schema = None

    def get(self, request: Request) -> Response:
        return Response(document(), headers={"Cache-Control": "max-age=300"})


class ApiPage(SpectacularSwaggerSplitView):
    """`GET /docs/api`: the OpenAPI document in Swagger UI, from our own host."""

    schema = None
    url = "/schema"
    title = "Zoetrope API"

    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        response: Response = super().get(request, *args, **kwargs)
        response["Content-Security-Policy"] = API_POLICY
        return response


def index(request: HttpRequest) -> HttpResponse:
    """`GET /docs`."""
    dialects = [load_dialect(name) for name in DIALECTS if name != "native"]
    rows = [
        {"name": dialect.name, "title": dialect.title, "paths": dialect.prefixes}
        for dialect in dialects
    ]
    return _page(request, "docs/index.html", title="Documentation", dialects=rows)


def dialect_page(request: HttpRequest, name: str) -> HttpResponse:
    """`GET /docs/<dialect>`, `/docs/guide` and `/docs/cookbook`."""
    found = _html(name)
    if found is None:
        raise Http404
    title, text = found
    return _page(request, "docs/page.html", title=title, text=text)


def _html(name: str) -> tuple[str, str] | None:
    is_dialect = name in DIALECTS and name != "native"
    return _written(name) if is_dialect or name in ("guide", "cookbook") else None


@cache  # of the pages there are, never of what a stranger typed
def _written(name: str) -> tuple[str, str]:
    if name == "guide":
        title, source = "Guide", GUIDE.read_text("utf-8")
    elif name == "cookbook":
        title, source = "Cookbook", COOKBOOK.read_text("utf-8")
    else:
        title, source = load_dialect(name).title, pages.page(name)
    writer = MarkdownIt("commonmark", {"html": False}).enable("table")
    # Our own text; HTML in it would be shown, not obeyed.
    return title, mark_safe(writer.render(source))  # noqa: S308


def _page(request: HttpRequest, template: str, **words: Any) -> HttpResponse:
    base_url = f"{request.scheme}://{request.get_host()}"
    response = render(request, template, {"base_url": base_url, **words})
    response["Content-Security-Policy"] = POLICY
    return response
