"""The verifier: recomputes every figure of the books from its parts. Reads only.

The names are offered by `billing.ledger`, the public door.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from django.db import connection, transaction

from billing.models import Wallet


@dataclass(frozen=True)
class Mismatch:
    """Two figures that must be equal and are not."""

    wallet_id: int
    what: str
    expected: int
    found: int

    def __str__(self) -> str:
        return (
            f"wallet {self.wallet_id}: {self.what}: "
            f"expected {self.expected}, found {self.found}"
        )


_COLUMN: Final = re.compile(r"\{([a-z_.]+)\}")
_OF_WALLETS: Final = "(%(wallets)s::bigint[] IS NULL OR {} = ANY (%(wallets)s))"

# Each query returns (wallet, expected, found) for what does not add up. "Expected" is
# what the append-only entries say, or for a hold what its slices say.
_CHECKS: Final = {
    "a transfer's entries sum to zero": """
        SELECT t.wallet_id, 0, sum(e.amount)
        FROM billing_transfer t JOIN billing_entry e ON e.transfer_id = t.id
        WHERE {t.wallet_id} GROUP BY t.id HAVING sum(e.amount) <> 0""",
    "available equals the sum of its entries": """
        SELECT w.id, coalesce(b.total, 0), w.available FROM billing_wallet w
        LEFT JOIN (SELECT t.wallet_id, sum(e.amount) AS total FROM billing_entry e
                   JOIN billing_transfer t ON t.id = e.transfer_id
                   WHERE e.book = 'available' AND {t.wallet_id} GROUP BY 1) b
               ON b.wallet_id = w.id
        WHERE {w.id} AND w.available <> coalesce(b.total, 0)""",
    "held equals the sum of its entries": """
        SELECT w.id, coalesce(b.total, 0), w.held FROM billing_wallet w
        LEFT JOIN (SELECT t.wallet_id, sum(e.amount) AS total FROM billing_entry e
                   JOIN billing_transfer t ON t.id = e.transfer_id
                   WHERE e.book = 'held' AND {t.wallet_id} GROUP BY 1) b
               ON b.wallet_id = w.id
        WHERE {w.id} AND w.held <> coalesce(b.total, 0)""",
    "debt equals the sum of its entries": """
        SELECT w.id, -coalesce(b.total, 0), w.debt FROM billing_wallet w
        LEFT JOIN (SELECT t.wallet_id, sum(e.amount) AS total FROM billing_entry e
                   JOIN billing_transfer t ON t.id = e.transfer_id
                   WHERE e.book = 'debt' AND {t.wallet_id} GROUP BY 1) b
               ON b.wallet_id = w.id
        WHERE {w.id} AND w.debt <> -coalesce(b.total, 0)""",
    "available equals what is left of the grants": """
        SELECT w.id, coalesce(g.total, 0), w.available FROM billing_wallet w
        LEFT JOIN (SELECT wallet_id, sum(remaining) AS total FROM billing_creditgrant
                   WHERE {wallet_id} GROUP BY 1) g ON g.wallet_id = w.id
        WHERE {w.id} AND w.available <> coalesce(g.total, 0)""",
    "held equals the open holds": """
        SELECT w.id, coalesce(h.total, 0), w.held FROM billing_wallet w
        LEFT JOIN (SELECT wallet_id, sum(amount) AS total FROM billing_hold
                   WHERE state = 'open' AND {wallet_id} GROUP BY 1) h
               ON h.wallet_id = w.id
        WHERE {w.id} AND w.held <> coalesce(h.total, 0)""",
    "a hold equals its slices": """
        SELECT h.wallet_id, coalesce(sum(s.amount), 0), h.amount FROM billing_hold h
        LEFT JOIN billing_holdslice s ON s.hold_id = h.id
        WHERE {h.wallet_id} GROUP BY h.id
        HAVING h.amount <> coalesce(sum(s.amount), 0)""",
    "what a hold kept equals what its slices kept": """
        SELECT h.wallet_id, coalesce(sum(s.amount - s.returned), 0),
               CASE h.state WHEN 'open' THEN h.amount ELSE h.captured - h.refunded END
        FROM billing_hold h LEFT JOIN billing_holdslice s ON s.hold_id = h.id
        WHERE {h.wallet_id} GROUP BY h.id
        HAVING coalesce(sum(s.amount - s.returned), 0) <>
               CASE h.state WHEN 'open' THEN h.amount ELSE h.captured - h.refunded END
        """,
    "a grant's remainder equals its amount less its slices": """
        SELECT g.wallet_id,
               g.amount - g.written_off - g.repaid - coalesce(sum(s.kept), 0),
               g.remaining
        FROM billing_creditgrant g
        LEFT JOIN (SELECT grant_id, amount - (returned - reissued) AS kept
                   FROM billing_holdslice) s ON s.grant_id = g.id
        WHERE {g.wallet_id} GROUP BY g.id
        HAVING g.remaining <>
               g.amount - g.written_off - g.repaid - coalesce(sum(s.kept), 0)""",
    "a dead grant's reissues equal what its slices sent": """
        SELECT g.wallet_id, coalesce(s.total, 0), coalesce(r.total, 0)
        FROM billing_creditgrant g
        LEFT JOIN (SELECT grant_id, sum(reissued) AS total FROM billing_holdslice
                   GROUP BY 1) s ON s.grant_id = g.id
        LEFT JOIN (SELECT reissue_of_id, sum(amount) AS total FROM billing_creditgrant
                   GROUP BY 1) r ON r.reissue_of_id = g.id
        WHERE {g.wallet_id} AND coalesce(s.total, 0) <> coalesce(r.total, 0)""",
    "revenue equals what the holds captured and kept": """
        SELECT w.id, coalesce(b.total, 0), coalesce(h.total, 0) FROM billing_wallet w
        LEFT JOIN (SELECT t.wallet_id, sum(e.amount) AS total FROM billing_entry e
                   JOIN billing_transfer t ON t.id = e.transfer_id
                   WHERE e.book = 'revenue' AND {t.wallet_id} GROUP BY 1) b
               ON b.wallet_id = w.id
        LEFT JOIN (SELECT wallet_id, sum(captured - refunded) AS total
                   FROM billing_hold WHERE {wallet_id} GROUP BY 1) h
               ON h.wallet_id = w.id
        WHERE {w.id} AND coalesce(b.total, 0) <> coalesce(h.total, 0)""",
    "a settled hold was settled by one movement, its own": """
        SELECT h.wallet_id, 1, count(t.id) FROM billing_hold h
        LEFT JOIN billing_transfer t ON t.wallet_id = h.wallet_id
              AND t.idem = 'fin:' || h.reference
              AND t.kind = CASE h.state WHEN 'captured' THEN 'capture'
                                        ELSE 'release' END
        WHERE h.state <> 'open' AND {h.wallet_id}
        GROUP BY h.id HAVING count(t.id) <> 1""",
    "a balance on a statement equals the sum so far": """
        SELECT wallet_id, running, available_after FROM (
            SELECT t.id, t.wallet_id, t.available_after,
                   sum(coalesce(e.moved, 0)) OVER (PARTITION BY t.wallet_id
                       ORDER BY t.id) AS running
            FROM billing_transfer t
            LEFT JOIN (SELECT transfer_id, sum(amount) AS moved FROM billing_entry
                       WHERE book = 'available' GROUP BY 1) e ON e.transfer_id = t.id
            WHERE {t.wallet_id}) line
        WHERE running <> available_after""",
    "what the grants lost equals what expired, was repaid or taken back": """
        SELECT w.id, coalesce(b.total, 0) - w.debt, coalesce(g.total, 0)
        FROM billing_wallet w
        LEFT JOIN (SELECT t.wallet_id, sum(e.amount) AS total FROM billing_entry e
                   JOIN billing_transfer t ON t.id = e.transfer_id
                   WHERE (e.book = 'expired' OR t.kind = 'take_back'
                                            AND e.book = 'issued') AND {t.wallet_id}
                   GROUP BY 1) b ON b.wallet_id = w.id
        LEFT JOIN (SELECT wallet_id, sum(written_off + repaid) AS total
                   FROM billing_creditgrant WHERE {wallet_id} GROUP BY 1) g
               ON g.wallet_id = w.id
        WHERE {w.id} AND coalesce(b.total, 0) - w.debt <> coalesce(g.total, 0)""",
    "a wallet that owes has nothing to spend": """
        SELECT w.id, 0, w.available FROM billing_wallet w
        WHERE {w.id} AND w.debt > 0 AND w.available > 0""",
    "a wallet knows of its next expiry": """
        SELECT w.id, 1, 0 FROM billing_wallet w
        WHERE {w.id} AND EXISTS (
            SELECT FROM billing_creditgrant g
            WHERE g.wallet_id = w.id AND g.remaining > 0
              AND g.expires_at < coalesce(w.next_expiry_at, 'infinity'))""",
}


def check(*, account_id: UUID | None = None) -> list[Mismatch]:
    """Recompute every figure of the books from its parts; return what disagrees.

    Reads one snapshot, so it may run beside live traffic; inside a transaction of the
    caller's it sees what that sees.
    """
    if connection.in_atomic_block:
        return _check(account_id)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return _check(account_id)


def _check(account_id: UUID | None) -> list[Mismatch]:
    wallets = None
    if account_id is not None:
        of_account = Wallet.objects.filter(account_id=account_id)
        wallets = list(of_account.values_list("pk", flat=True))
    found = []
    for what, sql in _CHECKS.items():
        with connection.cursor() as cursor:
            cursor.execute(_scoped(sql), {"wallets": wallets})
            found += [
                Mismatch(int(wallet), what, int(expected), int(actual))
                for wallet, expected, actual in cursor.fetchall()
            ]
    return found


def _scoped(sql: str) -> str:
    """Put the choice of wallets where ``{column}`` stands in the query."""
    return _COLUMN.sub(lambda column: _OF_WALLETS.format(column[1]), sql)
