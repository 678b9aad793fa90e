"""Accounts: opening one with its two wallets, and finding it again."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.models.functions import Now

from billing import keys, ledger
from billing.errors import UnknownAccount
from billing.ledger import TEST_REFILL
from billing.models import Account as Account
from billing.models import ApiKey, Member, Mode, Wallet
from billing.plans import PlanTerms, find_plan, terms_of


@transaction.atomic
def open_account(
    name: str, *, plan: str = "free", reference: str | None = None
) -> Account:
    """Make an account on ``plan`` with an empty live and a self-filling test wallet.

    ``reference`` is the operator's own name for it; no two accounts have the same.
    """
    account = Account.objects.create(
        name=name, plan=find_plan(plan), reference=reference
    )
    open_wallets(account)
    return account


def open_wallets(account: Account) -> None:
    Wallet.objects.bulk_create(
        [
            Wallet(account=account, mode=Mode.LIVE),
            Wallet(account=account, mode=Mode.TEST, refill_to=TEST_REFILL),
        ],
        ignore_conflicts=True,
    )


def find_account(name_or_id: str) -> Account:
    """Return the account with this id, or with this name if only one has it."""
    try:
        found = list(Account.objects.filter(pk=UUID(name_or_id)))
    except ValueError:
        found = list(Account.objects.filter(name=name_or_id)[:2])
    if len(found) != 1:
        several = "several accounts are" if found else "no account is"
        raise UnknownAccount(f"{several} called {name_or_id!r}")
    return found[0]


def get_account(account_id: UUID) -> Account:
    """Return the account with its plan, or raise UnknownAccount."""
    account = Account.objects.select_related("plan").filter(pk=account_id).first()
    if account is None:
        raise UnknownAccount(f"no account {account_id}")
    return account


def list_accounts(
    *, reference: str | None = None, after: UUID | None = None, limit: int = 50
) -> list[Account]:
    """Return accounts in the order of their ids, from the one behind ``after`` on."""
    found = Account.objects.select_related("plan").order_by("pk")
    if reference is not None:
        found = found.filter(reference=reference)
    if after is not None:
        found = found.filter(pk__gt=after)
    return list(found[:limit])


@transaction.atomic
def change_account(account_id: UUID, **changes: Any) -> Account:
    """Change the given fields; ``plan`` is a plan's code. Raises UnknownAccount."""
    account = Account.objects.select_for_update(no_key=True).filter(pk=account_id)
    if (row := account.first()) is None:
        raise UnknownAccount(f"no account {account_id}")
    if "plan" in changes:
        changes["plan"] = find_plan(changes["plan"])
    for name, value in changes.items():
        setattr(row, name, value)
    row.save(update_fields=list(changes))
    # Keys carry their account's plan; other processes follow within seconds.
    transaction.on_commit(keys.forget)
    return get_account(account_id)


@transaction.atomic
def anonymise(account_id: UUID) -> None:
    """Forget whose account it was: its name, its people, its keys. The books stay.

    Users who belonged to nothing else go too. The wallets are frozen, so that nothing
    is spent in the name of nobody.
    """
    keys.revoke_all(account_id)
    people = [m.user_id for m in Member.objects.filter(account_id=account_id)]
    Member.objects.filter(account_id=account_id).delete()
    get_user_model().objects.filter(
        pk__in=people, memberships__isnull=True, is_staff=False
    ).delete()
    for mode in Mode.values:
        ledger.freeze(account_id=account_id, mode=mode)
    Account.objects.filter(pk=account_id).update(
        name=f"deleted {str(account_id)[:8]}",
        reference=None,
        is_active=False,
        deleted_at=Now(),
    )
    ApiKey.objects.filter(account_id=account_id).update(name="", client_secret="")


def terms_of_account(account_id: UUID) -> PlanTerms:
    """Return the plan's limits as they stand now, for work that outlives a request."""
    account = Account.objects.select_related("plan").get(pk=account_id)
    return terms_of(account.plan, is_trusted=account.is_trusted)


def deleted(since: datetime | None = None) -> list[UUID]:
    """Return the ids of all deleted accounts, or of those deleted since then."""
    gone = Account.objects.filter(deleted_at__isnull=False)
    if since is not None:
        gone = gone.filter(deleted_at__gte=since)
    return list(gone.values_list("pk", flat=True))


def disabled() -> list[UUID]:
    """Return the ids of accounts that are disabled and not deleted."""
    off = Account.objects.filter(is_active=False, deleted_at__isnull=True)
    return list(off.values_list("pk", flat=True))
