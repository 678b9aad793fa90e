"""Accounts: opening one with its two wallets, and finding it again."""

from __future__ import annotations

from uuid import UUID

from django.db import transaction

from billing.errors import UnknownAccount
from billing.ledger import TEST_REFILL
from billing.models import Account, Mode, Wallet
from billing.plans import PlanTerms, find_plan, terms_of


@transaction.atomic
def open_account(name: str, *, plan: str = "free") -> Account:
    """Make an account on ``plan`` with an empty live and a self-filling test wallet."""
    account = Account.objects.create(name=name, plan=find_plan(plan))
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


def terms_of_account(account_id: UUID) -> PlanTerms:
    """Return the plan's limits as they stand now, for work that outlives a request."""
    return terms_of(Account.objects.select_related("plan").get(pk=account_id).plan)
