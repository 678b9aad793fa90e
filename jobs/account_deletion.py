"""Deleting an account: its files, words, people and keys go; the books stay.

What remains are numbers: jobs with their ids, times, sizes and prices, and the ledger
under a name that says nothing. Everything here may be interrupted and done again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.contrib.admin.models import LogEntry
from django.db import transaction

from billing import accounts, keys
from jobs import context, lifecycle, retention
from jobs.models import (
    AccountSecret,
    Attempt,
    DeletionRecord,
    IdempotencyRecord,
    Job,
    WebhookEndpoint,
    WebhookEvent,
    WebhookLane,
)
from jobs.states import ACTIVE, Status

Reason = DeletionRecord.Reason
#: What a scrubbed request keeps its shape with.
_EMPTY: Mapping[str, Any] = {
    "prompt": "",
    "negative_prompt": "",
    "webhook": None,
    "loras": [],
    "metadata": {},
    "echo": {},
}


def delete_account(account_id: UUID, *, actor: str) -> int:
    """Delete what can be deleted now; return how many jobs are still being worked on.

    With none left the account is gone, and only then. Otherwise call it again when they
    have ended: they were canceled, and their workers stop at the next point.
    """
    account = accounts.get_account(account_id)
    accounts.change_account(account_id, is_active=False)
    keys.revoke_all(account_id)
    for job in Job.objects.filter(account_id=account_id, status__in=ACTIVE):
        lifecycle.cancel(job, reason="the account was deleted", actor=actor)
    for job in Job.objects.filter(account_id=account_id).exclude(status__in=ACTIVE):
        if job.files_deleted_at is None:
            retention.delete_files(job, reason=Reason.ACCOUNT, actor=actor)
        _scrub(job)
    left = Job.objects.filter(account_id=account_id, status__in=ACTIVE).count()
    if left:
        return left
    _delete_strays(account_id, actor)
    with transaction.atomic():
        _forget_contacts(account_id)
        accounts.anonymise(account_id)
        LogEntry.objects.filter(
            content_type__app_label="billing",
            content_type__model="account",
            object_id=str(account_id),
        ).update(object_repr=f"deleted {str(account.pk)[:8]}")
    return 0


def _scrub(job: Job) -> None:
    """Take every word and address of the customer's out of an ended job's row."""
    assert Status(job.status).is_terminal
    request = {**job.request, **_EMPTY}
    for name in ("image", "last_image"):
        if request.get(name):
            request[name] = {"url": None, "size": request[name].get("size")}
    request["audio"] = {**request["audio"], "url": None}
    numbers = {
        name: value
        for name, value in job.resolved.items()
        if isinstance(value, int | float)
    }
    Job.objects.filter(pk=job.pk).update(
        request=request, resolved=numbers, fingerprint="", error_detail=""
    )
    Attempt.objects.filter(job=job).update(error_detail="")


def _delete_strays(account_id: UUID, actor: str) -> None:
    """Delete what is stored under the account and named by no job."""
    storage = context.get().storage
    keys_left = [file.key for file in storage.list(f"{account_id}/")]
    if keys_left:
        storage.delete(keys_left)
        DeletionRecord.objects.create(
            account_id=str(account_id),
            keys=keys_left,
            reason=Reason.ACCOUNT,
            actor=actor[:150],
        )


def _forget_contacts(account_id: UUID) -> None:
    WebhookEvent.objects.filter(account_id=account_id).delete()
    endpoints = WebhookEndpoint.objects.filter(account_id=account_id)
    lanes = [f"endpoint:{pk}" for pk in endpoints.values_list("pk", flat=True)]
    WebhookLane.objects.filter(key__in=lanes).delete()
    WebhookLane.objects.filter(key__startswith=f"host:{account_id}:").delete()
    endpoints.delete()
    AccountSecret.objects.filter(account_id=account_id).delete()
    IdempotencyRecord.objects.filter(account_id=account_id).delete()
