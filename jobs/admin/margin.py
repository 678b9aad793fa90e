"""The margin page: what videos cost us beside what they earned, and the same as CSV."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from jobs import margin

DAYS = 30


def page(request: HttpRequest, *, given: dict[str, Any]) -> HttpResponse:
    """Show the report, or send it with ``format=csv``; ``given`` is the site's context.

    ``by`` names what to group by (several), ``since`` and ``until`` are days.
    """
    if not request.user.has_perm("jobs.view_job"):
        raise PermissionDenied
    today = datetime.now(UTC).date()
    since = _day(request.GET.get("since"), today - timedelta(days=DAYS))
    until = _day(request.GET.get("until"), today)
    by = [name for name in request.GET.getlist("by") if name in margin.GROUPS]
    by = by or ["provider", "model"]
    lines = margin.report(by, since=since, until=until)
    if request.GET.get("format") == "csv":
        answer = HttpResponse(content_type="text/csv; charset=utf-8")
        name = f"margin-{since}-{until}.csv"
        answer["Content-Disposition"] = f'attachment; filename="{name}"'
        margin.write_csv(answer, by, lines)
        return answer
    context = {
        **given,
        "title": "Margin",
        "groups": [(name, name in by) for name in margin.GROUPS],
        "since": since,
        "until": until,
        "header": margin.header(by),
        "rows": list(margin.rows(lines)),
        "query": request.GET.urlencode(),
    }
    return TemplateResponse(request, "admin/jobs/margin.html", context)


def _day(text: str | None, usual: date) -> date:
    try:
        return date.fromisoformat(text or "")
    except ValueError:
        return usual
