"""Deleting files: when their time is up, or when their owner asks. The books stay."""

from __future__ import annotations

from django.db.models.functions import Now

from jobs import context
from jobs.models import Job


def delete_files(job: Job) -> None:
    """Remove every file of a finished job from storage, then mark it. Safe to repeat."""
    context.get().storage.delete(keys_of(job))
    Job.objects.filter(pk=job.pk, files_deleted_at__isnull=True).update(
        files_deleted_at=Now(), inputs={}, master={}
    )


def keys_of(job: Job) -> list[str]:
    """Return every storage key the job's row names."""
    named = [
        job.output.get(name)
        for name in ("key", "poster_key", "preview_key", "last_frame_key")
    ]
    named += [entry.get("key") for entry in job.inputs.values() if entry]
    named.append(job.master.get("key"))
    return [key for key in named if key]


def delete_expired(*, limit: int = 100) -> int:
    """Delete the files whose time is up; return how many jobs that were."""
    due = Job.objects.filter(
        files_expire_at__lt=Now(), files_deleted_at__isnull=True
    ).order_by("files_expire_at")[:limit]
    for job in due:
        delete_files(job)
    return len(due)
