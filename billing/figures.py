"""Figures of the books for the operator's monitoring; nothing of one customer.

What happened is counted over the last hour and over at most ``NEWEST`` movements, so
that a figure costs the same however long the books have been kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

from django.db import connection

NEWEST = 100_000

_WALLETS = """
SELECT mode, sum(available), sum(held), sum(debt), count(*) FILTER (WHERE frozen)
  FROM billing_wallet GROUP BY mode
"""

_HOLDS = """
SELECT w.mode, count(*), sum(h.amount),
       extract(epoch FROM now() - min(h.created_at))
  FROM billing_hold h JOIN billing_wallet w ON w.id = h.wallet_id
 WHERE h.state = 'open' GROUP BY w.mode
"""

# The ids grow with time, so the newest are a range of the primary key.
_MOVED = """
SELECT w.mode, t.kind, count(DISTINCT t.id), sum(e.amount)
  FROM billing_transfer t
  JOIN billing_entry e ON e.transfer_id = t.id AND e.amount > 0
  JOIN billing_wallet w ON w.id = t.wallet_id
 WHERE t.id > (SELECT coalesce(max(id), 0) FROM billing_transfer) - %s
   AND t.created_at > now() - interval '1 hour'
 GROUP BY w.mode, t.kind
"""


@dataclass(frozen=True)
class WalletFigures:
    mode: str
    available_millicredits: int
    held_millicredits: int
    debt_millicredits: int
    frozen: int


@dataclass(frozen=True)
class HoldFigures:
    mode: str
    count: int
    millicredits: int
    oldest_seconds: float


@dataclass(frozen=True)
class Moved:
    """What one kind of movement came to in the last hour."""

    mode: str
    kind: str
    count: int
    millicredits: int


def wallets() -> list[WalletFigures]:
    return [WalletFigures(*map(_plain, row)) for row in _rows(_WALLETS)]


def open_holds() -> list[HoldFigures]:
    return [HoldFigures(*map(_plain, row)) for row in _rows(_HOLDS)]


def moved() -> list[Moved]:
    return [Moved(*map(_plain, row)) for row in _rows(_MOVED, NEWEST)]


def _rows(sql: str, *arguments: int) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, arguments)
        return list(cursor.fetchall())


def _plain(value: object) -> Any:
    # Sums of bigint come as Decimal.
    return value if isinstance(value, str | int) else float(str(value or 0))


# By day, newest first; the index over created_at is tiny since the books only grow.
_TAKINGS = """
SELECT (date_trunc('day', t.created_at, 'UTC') AT TIME ZONE 'UTC')::date, t.kind,
       count(*), sum(e.amount)::bigint
  FROM billing_transfer t
  JOIN billing_entry e ON e.transfer_id = t.id AND e.book = 'revenue'
  JOIN billing_wallet w ON w.id = t.wallet_id
 WHERE t.created_at >= date_trunc('day', now(), 'UTC') - make_interval(days => %s)
   AND w.mode = 'live' AND t.kind IN ('capture', 'refund')
 GROUP BY 1, 2 ORDER BY 1 DESC
"""


@dataclass(frozen=True)
class Takings:
    """What was earned (capture) or given back (refund, negative) on one day, live."""

    day: date
    kind: str
    count: int
    millicredits: int


def takings(*, days: int) -> list[Takings]:
    """Return what came in and went back today and on the ``days`` before (UTC)."""
    return [Takings(*row) for row in _rows(_TAKINGS, days)]
