"""A job as its owner may see it: ``JobView``s built from rows, with fresh signed URLs."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from django.core import signing
from django.db import connection
from django.db.models import Avg, F
from django.db.models.functions import Now

from jobs import webhooks
from jobs.dialects.base import EffectView, Failure, JobView
from jobs.models import Effect, Job
from jobs.requests import JobRequest
from jobs.states import Status

if TYPE_CHECKING:
    from inference.storage import Storage
    from jobs.dialects import base
    from jobs.dialects.base import Dialect

#: How long a measured average of recent jobs is used for ETAs.
ETA_CACHE_SECONDS = 30.0
PERMANENT_SALT = "zoetrope.permanent"

_averages: dict[tuple[str, str, bool], tuple[float, float | None]] = {}


def view(
    job: Job,
    *,
    dialect: Dialect,
    storage: Storage,
    base_url: str,
    with_position: bool = False,
) -> JobView:
    """Return the job's view; ``with_position`` also counts who is before it."""
    request = JobRequest.load(job.request)
    status = Status(job.status)
    is_open = status in (Status.QUEUED, Status.RUNNING)
    position = _position(job) if with_position and status is Status.QUEUED else None
    held = job.quoted_millicredits if is_open else 0
    shown = JobView(
        id=job.public_id if dialect.visible == "own" else str(job.id),
        native_id=str(job.id),
        status=status.value,
        step=job.step,
        stage=job.stage,
        progress=job.progress,
        kind="audio" if job.kind == "audio" else "video",
        request=request,
        resolved={"seed": request.seed, **job.resolved},
        simulated=bool(job.route.get("simulates")),
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        queue_position=position,
        eta_seconds=_eta(job, position) if is_open else None,
        expires_at=job.files_expire_at,
        files_deleted=job.files_deleted_at is not None,
        quoted_millicredits=job.quoted_millicredits,
        held_millicredits=held,
        charged_millicredits=job.charged_millicredits - _returned(job),
        refunded_millicredits=job.refunded_millicredits,
        error=_failure(job),
        source_id=_source_id(job, dialect),
        account_id=str(job.account_id),
        account_number=account_number(job.account_id),
        api_key_id=job.api_key_id,
        output=job.output,
        **_urls(job, dialect=dialect, storage=storage, base_url=base_url),
    )
    hook = request.webhook
    if (
        job.error_code == webhooks.TEST_CODE
        and hook is not None
        and hook.test_status is not None
        and hook.format == dialect.name
    ):
        # Elsewhere it is what it was: a job that ended at once and made nothing.
        return _rehearsed(shown, hook.test_status, base_url)
    return shown


def _rehearsed(shown: JobView, status: str, base_url: str) -> JobView:
    """Return what a test of a webhook shows: the fields of a real job, and no real file."""
    shown = replace(shown, status=cast("base.Status", status), error=None)
    if status == Status.SUCCEEDED:
        address = f"{base_url}/files/{webhooks.TEST_CODE}/video.mp4"
        return replace(shown, video_url=address)
    words = "This is a test of your webhook."
    return replace(shown, error=Failure(webhooks.TEST_CODE, words, retryable=False))


def views(
    jobs: Sequence[Job], *, dialect: Dialect, storage: Storage, base_url: str
) -> list[JobView]:
    return [
        view(job, dialect=dialect, storage=storage, base_url=base_url) for job in jobs
    ]


def effect(row: Effect, *, storage: Storage, url_seconds: int, plan: str) -> EffectView:
    """Return the effect as a customer of ``plan`` sees it, with fresh links."""
    template = row.current

    def link(key: str) -> str | None:
        return storage.presign(key, seconds=url_seconds) if key else None

    return EffectView(
        id=row.code,
        code=row.code,
        name=row.name,
        version=template.version,
        description=row.description,
        logo_url=link(row.logo_key or template.poster_key),
        preview_url=link(template.preview_key),
        models=tuple(row.for_models),
        created_at=row.created_at,
        available=not row.plans or plan in row.plans,
    )


def account_number(account_id: UUID) -> int:
    """Return a stable number for dialects whose accounts are numbers."""
    return zlib.crc32(account_id.bytes) % 900_000 + 100_000


def permanent_path(job: Job, kind: str) -> str:
    """Return the unguessable path that redirects to a fresh link to the file.

    It is the same whenever it is asked for: no time is signed into it.
    """
    token = signing.Signer(salt=PERMANENT_SALT).sign_object(f"{job.pk}:{kind}")
    suffix = "mp4" if kind == "video" else "jpg"
    return f"/files/{token}/{kind}.{suffix}"


def _returned(job: Job) -> int:
    # After a capture, only an operator's refund gives credits back.
    return job.refunded_millicredits if job.status == Status.SUCCEEDED else 0


def _failure(job: Job) -> Failure | None:
    if not job.error_code or job.status not in (Status.FAILED, Status.CANCELED):
        return None
    return Failure(job.error_code, job.error_message, job.error_retryable)


def _source_id(job: Job, dialect: Dialect) -> str | None:
    if job.source is None:
        return None
    return job.source.public_id if dialect.visible == "own" else str(job.source_id)


def _urls(
    job: Job, *, dialect: Dialect, storage: Storage, base_url: str
) -> Mapping[str, Any]:
    if job.status != Status.SUCCEEDED or job.files_deleted_at is not None:
        return {}
    life = dialect.url_seconds
    links: dict[str, Any] = {
        name: storage.presign(key, seconds=life, filename=filename)
        for name, key, filename in (
            ("video_url", job.output.get("key"), f"{job.public_id}.mp4"),
            ("poster_url", job.output.get("poster_key"), None),
            ("preview_url", job.output.get("preview_key"), None),
            ("last_frame_url", job.output.get("last_frame_key"), None),
        )
        if key
    }
    return links | {
        "urls_expire_at": datetime.now(UTC) + timedelta(seconds=life),
        "permanent_video_url": base_url + permanent_path(job, "video"),
        "permanent_poster_url": base_url + permanent_path(job, "poster"),
    }


# By hand, since every poll of a waiting job asks it, and building the query took longer
# than answering it.
_AHEAD = """
SELECT count(*) FROM (
    SELECT FROM jobs_job
     WHERE status = 'queued' AND route ->> 'queue' = %(queue)s AND id <> %(id)s
       AND (CASE WHEN %(ready_at)s::timestamptz IS NULL
                 THEN ready_at IS NOT NULL
                      OR (account_id = %(account)s AND mode = %(mode)s
                          AND (priority > %(priority)s
                               OR (priority = %(priority)s
                                   AND created_at < %(created_at)s)))
                 ELSE ready_at < %(ready_at)s
            END)
     LIMIT %(most)s) AS ahead
"""
#: Nobody waits for the exact number beyond; counting them would cost every poll.
POSITION_MAX = 10_000


def _position(job: Job) -> int:
    """Return how many jobs start before this one (of all accounts), plus one.

    A job without a slot has everything ready before it, and those of its own account
    that get a slot first.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            _AHEAD,
            {
                "queue": job.route.get("queue"),
                "id": job.pk,
                "ready_at": job.ready_at,
                "account": job.account_id,
                "mode": job.mode,
                "created_at": job.created_at,
                "priority": job.priority,
                "most": POSITION_MAX,
            },
        )
        (ahead,) = cursor.fetchone()
    return int(ahead) + 1


def _eta(job: Job, position: int | None) -> float | None:
    usual = _usual_seconds(job) or job.eta_seconds
    if job.status == Status.RUNNING:
        return job.eta_seconds if job.progress else usual
    if usual is None:
        return None
    return round(usual * (position or 1), 1)


def _usual_seconds(job: Job) -> float | None:
    """Return what recent jobs of this model took from start to end."""
    key = (job.model, job.kind, bool(job.route.get("simulates")))
    known = _averages.get(key)
    if known is not None and time.monotonic() < known[0]:
        return known[1]
    recent = Job.objects.filter(
        model=job.model,
        kind=job.kind,
        mode=job.mode,
        status=Status.SUCCEEDED,
        finished_at__gt=Now() - timedelta(hours=1),
    )
    took = recent.aggregate(took=Avg(F("finished_at") - F("started_at")))["took"]
    seconds = took.total_seconds() if took is not None else None
    _averages[key] = (time.monotonic() + ETA_CACHE_SECONDS, seconds)
    return seconds
