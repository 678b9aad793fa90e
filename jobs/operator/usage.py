"""What accounts used, by the day (UTC) their jobs ended, and what that cost us."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Count, F, FloatField, Q, Sum
from django.db.models.fields.json import KT
from django.db.models.functions import Cast, Coalesce, TruncDate

from jobs.models import Job
from jobs.states import Status


def by_day(
    *, since: date, until: date, mode: str, account_id: UUID | None = None
) -> list[dict[str, Any]]:
    """Return a row per day, account and model, both days counted."""
    ended = Job.objects.filter(
        mode=mode,
        finished_at__gte=datetime.combine(since, time(), UTC),
        finished_at__lt=datetime.combine(until, time(), UTC) + timedelta(days=1),
    )
    if account_id is not None:
        ended = ended.filter(account_id=account_id)
    succeeded = Q(status=Status.SUCCEEDED)
    rows = (
        ended.annotate(day=TruncDate("finished_at", tzinfo=UTC))
        .values("day", "account_id", "model")
        .annotate(
            jobs=Count("id"),
            succeeded=Count("id", filter=succeeded),
            failed=Count("id", filter=Q(status=Status.FAILED)),
            canceled=Count("id", filter=Q(status=Status.CANCELED)),
            video_seconds=Coalesce(
                Sum(Cast(KT("output__seconds"), FloatField()), filter=succeeded), 0.0
            ),
            charged=Coalesce(Sum("charged_millicredits"), 0),
            # What a failed job got back was never charged.
            refunded=Coalesce(Sum("refunded_millicredits", filter=succeeded), 0),
            cost=Coalesce(Sum(F("cost_microdollars")), 0),
        )
        .order_by("-day", "account_id", "model")
    )
    return [
        {
            "day": row["day"],
            "account_id": row["account_id"],
            "model": row["model"],
            "jobs": row["jobs"],
            "succeeded": row["succeeded"],
            "failed": row["failed"],
            "canceled": row["canceled"],
            "video_seconds": row["video_seconds"],
            "charged_credits": row["charged"] / 1000,
            "refunded_credits": row["refunded"] / 1000,
            "cost_usd": row["cost"] / 1_000_000,
        }
        for row in rows
    ]
