"""Deleting files for good: when their time is up, when somebody asks, when nobody needs
them. The books and the job's record stay; each deletion leaves a record of its keys.

Every way first deletes in storage and then writes that down, so that a record never
speaks of files that are still there, and what is interrupted is simply done again.
What another job of the family (a remix, another try, another sound) still needs is
kept and goes with the last that names it, or with the sweep when none does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import structlog
from django.conf import settings
from django.db import connection, transaction
from django.db.models import (
    DurationField,
    Exists,
    FloatField,
    Func,
    OuterRef,
    Q,
    Value,
)
from django.db.models.fields.json import KT
from django.db.models.functions import Cast, Coalesce, Least, Now

from jobs import context
from jobs.models import MADE, DeletionRecord, Job
from jobs.states import ACTIVE, Status
from jobs.workfolders import folder_of

if TYPE_CHECKING:
    from inference.storage import Listed

log = structlog.get_logger()
Reason = DeletionRecord.Reason

_PICTURES = ("image", "last_image")
_OUTPUT_KEYS = ("key", "poster_key", "preview_key", "last_frame_key")


def delete_files(
    job: Job, *, reason: str = Reason.REQUESTED, actor: str = ""
) -> list[str]:
    """Remove every file of an ended job from storage; return their keys.

    Safe to repeat: the second time there is nothing left to delete. That somebody asked
    is on record even when there was nothing to delete (`gone`).
    """
    with transaction.atomic():
        # Whoever accepts a job that needs these files waits here (`intake`).
        job = Job.objects.select_for_update(no_key=True).get(pk=job.pk)
        needed = keys_needed_by_others(job)
        keys = [key for key in keys_of(job) if key not in needed]
        context.get().storage.delete(keys)
        marked = Job.objects.filter(pk=job.pk, files_deleted_at__isnull=True).update(
            files_deleted_at=Now(), inputs=_only(job.inputs, needed), master={}
        )
        is_first_wish = (
            reason == Reason.REQUESTED
            and not job.deletions.filter(reason=Reason.REQUESTED).exists()
        )
        if (marked and keys) or is_first_wish:
            _write_down(job, keys if marked else [], reason, actor)
    return keys


def gone() -> Q:
    """Match the jobs that the API which made them no longer knows.

    Deleted on request, or finished and their files deleted since. One that failed stays,
    to say so, when only its leftovers were cleared.
    """
    wishes = DeletionRecord.objects.filter(job=OuterRef("pk"), reason=Reason.REQUESTED)
    ended_without = Q(status=Status.SUCCEEDED) | Q(Exists(wishes))
    return Q(files_deleted_at__isnull=False) & ended_without


def _only(inputs: Mapping[str, Any], needed: set[str]) -> dict[str, Any]:
    # A remix that is not yet prepared finds its pictures through its source's row.
    return {
        name: entry
        for name, entry in inputs.items()
        if entry and entry.get("key") in needed
    }


def delete_blocked(job: Job) -> None:
    """Remove everything that a job refused by the safety rules has left, at once."""
    storage = context.get().storage
    beside = {found.key for found in storage.list(f"{folder_of(job)}/")}
    storage.delete(beside - keys_needed_by_others(job))
    delete_files(job, reason=Reason.UNFINISHED)


def keys_of(job: Job) -> list[str]:
    """Return every storage key the job's row names."""
    made = [job.output, job.master.get(MADE) or {}]
    named: list[Any] = [file.get(name) for file in made for name in _OUTPUT_KEYS]
    named += [entry.get("key") for entry in job.inputs.values() if entry]
    named.append(job.master.get("key"))
    return [key for key in named if key]


#: A job, what it was made from, and so on up; then all that was made from any of these.
_FAMILY: Final = """
WITH RECURSIVE above AS (
    SELECT id, source_id FROM jobs_job WHERE id = %(id)s
    UNION SELECT j.id, j.source_id FROM jobs_job j JOIN above ON j.id = above.source_id
), family AS (
    SELECT id FROM above
    UNION SELECT j.id FROM jobs_job j JOIN family ON j.source_id = family.id
)
SELECT id FROM family WHERE id <> %(id)s
"""


def keys_needed_by_others(job: Job) -> set[str]:
    """Return the keys that jobs it is related to, however far, still need."""
    with connection.cursor() as cursor:
        cursor.execute(_FAMILY, {"id": job.pk})
        ids = [id_ for (id_,) in cursor.fetchall()]
    others = Job.objects.filter(pk__in=ids, files_deleted_at__isnull=True)
    return {key for other in others.select_related("source") for key in _needed(other)}


def _needed(job: Job) -> list[str]:
    """Return the keys its row names and, until it has ended, what it makes use of."""
    source = job.source
    if source is None or job.status not in ACTIVE:
        return keys_of(job)
    if job.kind == "audio":
        used = [source.output.get("key")]
    else:
        used = [(source.inputs.get(name) or {}).get("key") for name in _PICTURES]
    return [*keys_of(job), *(key for key in used if key)]


def _write_down(job: Job, keys: Iterable[str], reason: str, actor: str) -> None:
    DeletionRecord.objects.create(
        job=job,
        account_id=str(job.account_id),
        keys=list(keys),
        reason=reason,
        actor=actor[:150],
    )


# ------------------------------------------------------------------- by the clock


def delete_expired(*, limit: int = 100) -> int:
    """Delete the files whose time is up; return how many jobs that were."""
    due = Job.objects.filter(
        files_expire_at__lt=Now(), files_deleted_at__isnull=True
    ).order_by("files_expire_at")[:limit]
    for job in due:
        delete_files(job, reason=Reason.EXPIRED)
    return len(due)


def delete_unfinished(*, limit: int = 100) -> int:
    """Delete what jobs that failed or were canceled left behind.

    Kept for a while, so that an operator can try them again; never longer than the
    customer's own ``retention_seconds``.
    """
    rows = (
        Job.objects.filter(
            status__in=["failed", "canceled"], files_deleted_at__isnull=True
        )
        .filter(finished_at__lt=Now() - _leftover_life())
        .order_by("finished_at")[:limit]
    )
    for job in rows:
        delete_files(job, reason=Reason.UNFINISHED)
    return len(rows)


def _leftover_life() -> Func:
    """Return, as SQL, how long a job's leftovers are kept: ours or what it asked."""
    ours = Value(float(settings.LEFTOVER_SECONDS))
    asked = Cast(KT("request__retention_seconds"), FloatField())
    return Func(
        Least(ours, Coalesce(asked, ours)),
        template="make_interval(secs => %(expressions)s)",
        output_field=DurationField(),
    )


def delete_masters(*, limit: int = 100) -> int:
    """Delete the nearly lossless clips that finished videos were made from."""
    rows = Job.objects.filter(
        status="succeeded",
        finished_at__lt=Now() - timedelta(seconds=settings.MASTER_SECONDS),
    ).exclude(master={})[:limit]
    for job in rows:
        key = job.master.get("key")
        context.get().storage.delete([key] if key else [])
        with transaction.atomic():
            Job.objects.filter(pk=job.pk).update(master={})
            if key:
                _write_down(job, [key], Reason.WORK, "")
    return len(rows)


def delete_due() -> None:
    """Do everything that is due by the clock."""
    delete_expired()
    delete_unfinished()
    delete_masters()


# ------------------------------------------------------------------------ orphans


class Sweep:
    """Walks the whole bucket, a page at each call, and deletes what no job names.

    Orphans are what late workers uploaded, and attempts that failed after an upload.
    Only keys of the form ``account/job/…`` are ever touched. Files of a job that is not
    in the database are left alone for ``ORPHAN_UNKNOWN_SECONDS``: after a backup was
    restored they may be all that is left of it.
    """

    def __init__(self) -> None:
        self._walk: Iterator[Listed] | None = None
        self._rest_until = 0.0

    def step_in_turn(self) -> None:
        """Look at the next page; after the whole bucket rest for a while."""
        if time.monotonic() >= self._rest_until and not self.step():
            self._rest_until = time.monotonic() + settings.SWEEP_REST_SECONDS

    def step(self, *, limit: int = 1000) -> bool:
        """Look at up to ``limit`` objects; return False when the walk has ended."""
        walk = self._walk or context.get().storage.list()
        self._walk = None  # should storage fail now, the walk begins anew
        page = list(islice(walk, limit))
        if not page:
            return False
        self._walk = walk
        for job_id, files in groupby(page, key=lambda file: job_of(file.key)):
            if job_id is not None:
                _sweep_job(job_id, list(files))
        return True


def sweep_all() -> None:
    """Walk the whole bucket once."""
    sweep = Sweep()
    while sweep.step():
        pass


def job_of(key: str) -> UUID | None:
    """Return the job a key belongs to by its form, or None for other files."""
    account, _, rest = key.partition("/")
    job, slash, _ = rest.partition("/")
    try:
        UUID(account)
        return UUID(job) if slash else None
    except ValueError:
        return None


def _sweep_job(job_id: UUID, files: list[Listed]) -> None:
    job = Job.objects.filter(pk=job_id).first()
    if job is not None and (job.status in ACTIVE or not _ended_long_ago(job)):
        return
    named = {*keys_of(job), *keys_needed_by_others(job)} if job else set()
    if job is not None and job.files_deleted_at is not None:
        named = keys_needed_by_others(job)
    wait = settings.ORPHAN_SECONDS if job else settings.ORPHAN_UNKNOWN_SECONDS
    before = datetime.now(UTC) - timedelta(seconds=wait)
    orphans = [
        file.key
        for file in files
        if file.key not in named and file.modified_at < before
    ]
    if not orphans:
        return
    log.warning("orphans_deleted", job=str(job_id), files=len(orphans))
    context.get().storage.delete(orphans)
    DeletionRecord.objects.create(
        job=job,
        account_id=orphans[0].partition("/")[0],
        keys=orphans,
        reason=Reason.ORPHAN,
    )


def _ended_long_ago(job: Job) -> bool:
    assert job.finished_at is not None
    wait = timedelta(seconds=settings.ORPHAN_SECONDS)
    return job.finished_at + wait < datetime.now(UTC)
