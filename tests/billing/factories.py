"""Accounts and credits for tests, each made by one call."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models.functions import Now

from billing import accounts, ledger
from billing.ledger import Balance, Movement
from billing.models import Account, CreditGrant, Hold

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Customer:
    """An account seen through one of its wallets; amounts in whole credits."""

    account: Account
    mode: str = "live"

    @property
    def id(self) -> UUID:
        return self.account.pk

    @property
    def wallet(self) -> dict[str, Any]:
        return {"account_id": self.account.pk, "mode": self.mode}

    def grant(self, credits: float, reference: str = "", **details: Any) -> Any:
        return ledger.grant(
            **self.wallet,
            reference=reference or f"gift-{next(_numbers)}",
            amount_millicredits=round(credits * 1000),
            **details,
        )

    def hold(self, credits: float, reference: str, **details: Any) -> Hold:
        return ledger.hold(
            **self.wallet,
            reference=reference,
            amount_millicredits=round(credits * 1000),
            **details,
        )

    def capture(self, reference: str, credits: float | None = None) -> Hold:
        amount = None if credits is None else round(credits * 1000)
        return ledger.capture(
            **self.wallet, reference=reference, amount_millicredits=amount
        )

    def release(self, reference: str, **details: Any) -> Hold:
        return ledger.release(**self.wallet, reference=reference, **details)

    def refund(self, reference: str, credits: float) -> Hold:
        return ledger.refund(
            **self.wallet,
            reference=reference,
            amount_millicredits=round(credits * 1000),
            actor="olga",
            reason="the video was black",
        )

    def buy(self, credits: float, payment_id: str, **details: Any) -> Any:
        return ledger.purchase(
            **self.wallet,
            payment_id=payment_id,
            amount_millicredits=round(credits * 1000),
            **details,
        )

    def take_back(self, payment_id: str) -> None:
        ledger.take_back(
            **self.wallet, payment_id=payment_id, actor="olga", reason="chargeback"
        )

    @property
    def balance(self) -> Balance:
        return ledger.balance(**self.wallet)

    @property
    def next_expiry(self) -> tuple[int, datetime] | None:
        """What the grant that dies first has left, and when it dies."""
        alive = CreditGrant.objects.filter(
            wallet__account_id=self.id, wallet__mode=self.mode, is_empty=False
        )
        first = alive.filter(expires_at__gt=Now()).order_by("expires_at").first()
        if first is None or first.expires_at is None:
            return None
        return first.remaining, first.expires_at

    @property
    def available(self) -> float:
        return self.balance.available_millicredits / 1000

    @property
    def held(self) -> float:
        return self.balance.held_millicredits / 1000

    @property
    def debt(self) -> float:
        return self.balance.debt_millicredits / 1000

    def statement(self, **page: Any) -> list[Movement]:
        return ledger.statement(**self.wallet, **page)

    def grants(self) -> dict[str, float]:
        """What is left of each grant, by its reference."""
        rows = _select(
            "SELECT g.reference, g.remaining FROM billing_creditgrant g "
            "JOIN billing_wallet w ON w.id = g.wallet_id "
            "WHERE w.account_id = %s AND w.mode = %s ORDER BY g.id",
            [self.id, self.mode],
        )
        return {reference: remaining / 1000 for reference, remaining in rows}

    def let_die(self, reference: str) -> None:
        """Move a grant's expiry into the past: the ledger obeys the database's clock."""
        _execute(
            "UPDATE billing_creditgrant SET expires_at = now() - interval '1 hour' "
            "WHERE reference = %s AND wallet_id IN "
            "(SELECT id FROM billing_wallet WHERE account_id = %s AND mode = %s)",
            [reference, self.id, self.mode],
        )
        _execute(
            "UPDATE billing_wallet SET next_expiry_at = now() - interval '1 hour' "
            "WHERE account_id = %s AND mode = %s",
            [self.id, self.mode],
        )


def make_customer(
    name: str, *, credits: float = 0, plan: str = "free", mode: str = "live"
) -> Customer:
    customer = Customer(accounts.open_account(name, plan=plan), mode)
    if credits:
        customer.grant(credits, "opening")
    return customer


def _select(sql: str, arguments: list[Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, arguments)
        return list(cursor.fetchall())


def _execute(sql: str, arguments: list[Any]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, arguments)
