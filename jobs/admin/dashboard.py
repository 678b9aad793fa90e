"""The first page: is it working, what waits, what failed, what came in."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from typing import Any

from django.db.models import Count, Q
from django.db.models.functions import Now, TruncHour
from django.http import HttpRequest
from django.utils import timezone
from django.utils.timesince import timesince

from billing import figures as money
from jobs import figures, leading
from jobs.admin.making import health_of
from jobs.models import Incident, Job, ProviderAccount, Worker
from jobs.states import Status

DAYS = 6


def context(request: HttpRequest, given: dict[str, Any]) -> dict[str, Any]:
    """Return ``given`` with what the first page shows (Unfold's DASHBOARD_CALLBACK)."""
    if not request.user.has_perm("jobs.view_job"):
        return given
    queues = _queues()
    active = figures.active()
    hours = _hours()
    return given | {
        "board": {
            "running": sum(r.jobs for r in active if r.status == Status.RUNNING),
            "queued": sum(r.jobs for r in active if r.status == Status.QUEUED),
            "without_slot": sum(r.without_slot for r in active),
            "oldest": max((queue["oldest"] for queue in queues), default=0),
            "queues": queues,
            "hours": hours,
            "succeeded": sum(hour["good"] for hour in hours),
            "failed": sum(hour["bad"] for hour in hours),
            "failures": _failures(),
            "days": _days(),
            "holds": _holds(),
            "providers": [
                (row, health_of(row)) for row in ProviderAccount.objects.all()[:50]
            ],
            "loops": [
                (name, silent, leading.state_of(silent))
                for name, silent in leading.silences().items()
            ],
            "workers": _workers(),
            "incidents": list(
                Incident.objects.filter(resolved_at__isnull=True).order_by("-seen_at")[
                    :10
                ]
            ),
            "webhooks": figures.webhooks(),
        }
    }


def _queues() -> list[dict[str, Any]]:
    working: dict[str, int] = dict(
        Job.objects.filter(lease_until__isnull=False)
        .exclude(queue="")
        .values_list("queue")
        .annotate(jobs=Count("id"))
    )
    served: dict[str, int] = defaultdict(int)
    for worker in Worker.objects.filter(seen_at__gt=Now() - timedelta(minutes=1)):
        for queue in worker.queues:
            served[queue] += 1
    waiting = {row.queue: row for row in figures.queues()}
    return [
        {
            "name": name,
            "ready": waiting[name].ready if name in waiting else 0,
            "oldest": float(waiting[name].oldest_seconds) if name in waiting else 0.0,
            "working": working.get(name, 0),
            "workers": served.get(name, 0),
        }
        for name in sorted({*waiting, *working, *served})
    ]


def _hours() -> list[dict[str, Any]]:
    """Return the last 24 hours, oldest first: how many ended well and badly."""
    rows = (
        Job.objects.filter(finished_at__gt=Now() - timedelta(hours=23), mode="live")
        .annotate(hour=TruncHour("finished_at"))
        .values("hour")
        .annotate(
            good=Count("id", filter=Q(status=Status.SUCCEEDED)),
            bad=Count("id", filter=Q(status=Status.FAILED)),
        )
    )
    found = {row["hour"]: row for row in rows}
    most = max((row["good"] + row["bad"] for row in rows), default=0) or 1
    now = timezone.now().replace(minute=0, second=0, microsecond=0)
    hours = []
    for ago in range(23, -1, -1):
        hour = now - timedelta(hours=ago)
        row = found.get(hour, {"good": 0, "bad": 0})
        hours.append(
            {
                "hour": hour,
                "good": row["good"],
                "bad": row["bad"],
                "good_percent": round(100 * row["good"] / most, 1),
                "bad_percent": round(100 * row["bad"] / most, 1),
            }
        )
    return hours


def _failures() -> list[dict[str, Any]]:
    rows = list(
        Job.objects.filter(
            finished_at__gt=Now() - timedelta(days=1), status=Status.FAILED
        )
        .values("error_code")
        .annotate(
            jobs=Count("id"),
            live=Count("id", filter=Q(mode="live")),
            accounts=Count("account_id", distinct=True),
        )
        .order_by("-jobs")[:8]
    )
    most = max((row["jobs"] for row in rows), default=1)
    return [{**row, "percent": round(100 * row["jobs"] / most)} for row in rows]


def _days() -> list[dict[str, Any]]:
    """Return today and the days before, newest first, in credits."""
    found: dict[Any, dict[str, Any]] = {}
    for row in money.takings(days=DAYS):
        day = found.setdefault(row.day, {"captures": 0, "revenue": 0.0, "refunds": 0.0})
        if row.kind == "capture":
            day["captures"] = row.count
            day["revenue"] = row.millicredits / 1000
        else:
            day["refunds"] = -row.millicredits / 1000
    today = timezone.now().date()
    empty = {"captures": 0, "revenue": 0.0, "refunds": 0.0}
    return [
        {"day": day, **found.get(day, empty)}
        for day in (today - timedelta(days=ago) for ago in range(DAYS + 1))
    ]


def _holds() -> list[dict[str, Any]]:
    now = timezone.now()
    return [
        {
            "mode": row.mode,
            "count": row.count,
            "credits": row.millicredits / 1000,
            "oldest": timesince(now - timedelta(seconds=row.oldest_seconds), now),
        }
        for row in money.open_holds()
    ]


def _workers() -> list[dict[str, Any]]:
    now = timezone.now()
    return [
        {
            "row": worker,
            "doing": [
                {**task, "percent": f"{task.get('progress', 0):.0%}"}
                for task in worker.doing
            ],
            "silent": (now - worker.seen_at).total_seconds(),
            "is_dead": now - worker.seen_at > timedelta(minutes=1),
        }
        for worker in Worker.objects.all()[:100]
    ]
