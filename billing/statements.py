"""What the ledger shows: balances and statements. Reads only.

The names are offered by `billing.ledger`, the public door.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db.models import Sum
from django.db.models.functions import Coalesce, Now

from billing.models import CreditGrant, Transfer, Wallet

#: What stands before the reference in `Transfer.idem`; ``fin`` captures or releases.
PURPOSES: Final = ("grant", "hold", "fin", "refund", "back")


@dataclass(frozen=True)
class Balance:
    """What a wallet has now; credits due to expire no longer count as available."""

    available_millicredits: int
    held_millicredits: int
    debt_millicredits: int
    frozen: bool


def balance(*, account_id: UUID, mode: str) -> Balance:
    wallet = Wallet.objects.filter(account_id=account_id, mode=mode).first()
    if wallet is None:
        return Balance(0, 0, 0, frozen=False)
    due = 0
    if wallet.next_expiry_at is not None:
        dead = CreditGrant.objects.filter(
            wallet=wallet, is_empty=False, expires_at__lte=Now()
        )
        due = dead.aggregate(total=Coalesce(Sum("remaining"), 0))["total"]
    return Balance(
        available_millicredits=wallet.available - due,
        held_millicredits=wallet.held,
        debt_millicredits=wallet.debt,
        frozen=wallet.frozen,
    )


@dataclass(frozen=True)
class Movement:
    """One line of a statement; amounts are changes, ``*_after`` balances."""

    id: int
    kind: str
    reference: str
    available_millicredits: int
    held_millicredits: int
    available_after_millicredits: int
    held_after_millicredits: int
    actor: str
    reason: str
    created_at: datetime
    entries: tuple[tuple[str, int], ...]


def statement(
    *, account_id: UUID, mode: str, before: int | None = None, limit: int = 50
) -> list[Movement]:
    """Return up to ``limit`` movements, newest first, older than transfer ``before``."""
    transfers = Transfer.objects.filter(
        wallet__account_id=account_id, wallet__mode=mode
    )
    if before is not None:
        transfers = transfers.filter(pk__lt=before)
    newest = transfers.prefetch_related("entries").order_by("-pk")[:limit]
    return [_movement(transfer) for transfer in newest]


def in_period(
    *, account_id: UUID, mode: str, start: datetime, end: datetime
) -> Iterator[Movement]:
    """Yield the movements from ``start`` until before ``end``, oldest first."""
    transfers = Transfer.objects.filter(
        wallet__account_id=account_id,
        wallet__mode=mode,
        created_at__gte=start,
        created_at__lt=end,
    )
    ordered = transfers.prefetch_related("entries").order_by("pk")
    for transfer in ordered.iterator(chunk_size=500):
        yield _movement(transfer)


def movements_of(*, account_id: UUID, mode: str, reference: str) -> list[Movement]:
    """Return everything that was moved under one reference, oldest first."""
    transfers = Transfer.objects.filter(
        wallet__account_id=account_id,
        wallet__mode=mode,
        # what a reference may have moved, by the index that keeps it from moving twice
        idem__in=[f"{purpose}:{reference}" for purpose in PURPOSES],
    )
    return [
        _movement(transfer)
        for transfer in transfers.prefetch_related("entries").order_by("pk")
    ]


def _movement(transfer: Transfer) -> Movement:
    entries = tuple(
        (entry.book, entry.amount)
        for entry in sorted(transfer.entries.all(), key=lambda entry: entry.pk)
    )
    by_book = dict(entries)
    return Movement(
        id=transfer.pk,
        kind=transfer.kind,
        reference=transfer.reference,
        available_millicredits=by_book.get("available", 0),
        held_millicredits=by_book.get("held", 0),
        available_after_millicredits=transfer.available_after,
        held_after_millicredits=transfer.held_after,
        actor=transfer.actor,
        reason=transfer.reason,
        created_at=transfer.created_at,
        entries=entries,
    )
