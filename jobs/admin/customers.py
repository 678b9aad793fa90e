"""Accounts as operators see them, with what needs jobs as well: deleting one."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.contrib import admin

from billing.acting import Act, Deed, Refused
from billing.admin import AccountAdmin
from inference.errors import StorageUnavailable
from jobs import account_deletion
from jobs.models import Job

#: More than a page should make an operator wait for.
JOBS_MAX = 500


def _delete(account: Any, deed: Deed) -> str:
    if account.deleted_at is not None:
        raise Refused("It was deleted before.")
    if Job.objects.filter(account_id=account.pk)[JOBS_MAX:].exists():
        raise Refused(f"It has over {JOBS_MAX} jobs: use manage.py deleteaccount.")
    left = account_deletion.delete_account(account.pk, actor=deed.actor)
    if left:
        return f"keys stopped; {left} jobs are being stopped. Do this again then."
    return "files, words, people and keys are gone; the books are kept."


class CustomerAdmin(AccountAdmin):
    acts = (
        *AccountAdmin.acts,
        Act(
            name="delete_account",
            label="Delete for good",
            explains="Its jobs are canceled, all files, prompts, webhooks, people and "
            "keys are deleted, its name is forgotten and its wallets are frozen. The "
            "ledger and the jobs' numbers stay. There is no way back.",
            run=_delete,
            icon="delete_forever",
            is_dangerous=True,
            permission="billing.delete_account",
            in_bulk=False,
            refusals=(StorageUnavailable,),
            fits=lambda account: account.deleted_at is None,
        ),
    )


account_model = apps.get_model("billing", "Account")
admin.site.unregister(account_model)
admin.site.register(account_model, CustomerAdmin)
