"""The credit ledger: the only module that moves credits.

Amounts are milli-credits (1 credit = 1000). Every movement names a reference, and the
database takes each (purpose, reference) of a wallet once, so calling twice is the same
as calling once. A movement is one transfer whose entries sum to zero.

The wallet row is the lock: every function takes it first, then holds. A caller that
locks rows of its own does so after `lock_wallet` and before it settles a hold.
All functions join the caller's transaction, or open one. What is refused with a
LedgerError leaves the books whole, so the caller's transaction may go on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, ParamSpec, TypeVar
from uuid import UUID, uuid4

from django.db import connection, transaction
from django.db.models import F
from django.db.models.functions import Now

from billing import prepared
from billing.audit import Mismatch as Mismatch
from billing.audit import check as check
from billing.errors import (
    AlreadySettled,
    AmountTooLarge,
    BadRequest,
    InsufficientCredits,
    LedgerBroken,
    ReferenceReused,
    SpendCapReached,
    UnknownAccount,
    UnknownHold,
    WalletFrozen,
)
from billing.models import (
    Account,
    CreditGrant,
    Entry,
    Hold,
    Mode,
    Transfer,
    Wallet,
)
from billing.models import Purchase as Purchase
from billing.statements import Balance as Balance
from billing.statements import Movement as Movement
from billing.statements import balance as balance
from billing.statements import in_period as in_period
from billing.statements import movements_of as movements_of
from billing.statements import statement as statement

#: Credits that come back to a grant which has died live at least this long.
REISSUE_FOR: Final = timedelta(days=7)
#: What a new test wallet tops itself up to, in milli-credits.
TEST_REFILL: Final = 1_000_000
#: Refills burn last, so that given credits are seen to be used.
REFILL_PRIORITY: Final = 1000

P = ParamSpec("P")
R = TypeVar("R")


def _in_transaction(function: Callable[P, R]) -> Callable[P, R]:
    # Not `atomic` alone: inside the caller's transaction that would add a savepoint,
    # two more statements for each movement.
    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if connection.in_atomic_block:
            return function(*args, **kwargs)
        with transaction.atomic():
            return function(*args, **kwargs)

    return wrapped


# --- Wallets --------------------------------------------------------------------------


_WALLET_FIELDS: Final = tuple(f.attname for f in Wallet._meta.concrete_fields)
_HOLD_FIELDS: Final = tuple(f.attname for f in Hold._meta.concrete_fields)
_HOLD_COLUMNS: Final = ", ".join(f"h.{name}" for name in _HOLD_FIELDS)

_LOCK: Final = """
SELECT {wallet} FROM billing_wallet WHERE account_id = %(account_id)s AND mode = %(mode)s
FOR NO KEY UPDATE
""".format(wallet=", ".join(_WALLET_FIELDS))


@_in_transaction
def lock_wallet(*, account_id: UUID, mode: str) -> Wallet:
    """Lock the account's wallet of this mode until the transaction ends.

    It comes before every other lock. A missing wallet is made.
    """
    arguments = {"account_id": account_id, "mode": mode}
    rows = prepared.rows(_LOCK, arguments)
    if not rows:
        _make_wallet(account_id, mode)
        rows = prepared.rows(_LOCK, arguments)
    return Wallet.from_db("default", _WALLET_FIELDS, rows[0])


def _make_wallet(account_id: UUID, mode: str) -> None:
    if mode not in Mode.values or not Account.objects.filter(pk=account_id).exists():
        raise UnknownAccount(f"no account {account_id} with a {mode} wallet")
    refill = TEST_REFILL if mode == Mode.TEST else None
    Wallet.objects.bulk_create(
        [Wallet(account_id=account_id, mode=mode, refill_to=refill)],
        ignore_conflicts=True,
    )


@_in_transaction
def freeze(*, account_id: UUID, mode: str, frozen: bool = True) -> None:
    """Refuse new holds in this wallet, or allow them again; open holds still settle."""
    wallet = lock_wallet(account_id=account_id, mode=mode)
    Wallet.objects.filter(pk=wallet.pk).update(frozen=frozen)


def freeze_mismatched(mismatches: Sequence[Mismatch]) -> list[Wallet]:
    """Freeze every wallet that does not add up; return all of them."""
    wrong = {mismatch.wallet_id for mismatch in mismatches}
    wallets = list(Wallet.objects.filter(pk__in=wrong).select_related("account"))
    for wallet in wallets:
        freeze(account_id=wallet.account_id, mode=wallet.mode)
    return wallets


# --- Giving ---------------------------------------------------------------------------


@_in_transaction
def grant(
    *,
    account_id: UUID,
    mode: str,
    reference: str,
    amount_millicredits: int,
    source: str = CreditGrant.Source.PROMOTION,
    priority: int = 100,
    expires_at: datetime | None = None,
    actor: str = "",
    reason: str = "",
) -> CreditGrant:
    """Give credits once per reference; a debt is repaid out of them first."""
    _require_positive(amount_millicredits)
    wallet = lock_wallet(account_id=account_id, mode=mode)
    given = CreditGrant.objects.filter(wallet=wallet, reference=reference).first()
    if given is not None:
        if (given.amount, given.source) != (amount_millicredits, source):
            raise ReferenceReused(f"{reference} already granted {given.amount}")
        return given
    return _give(
        wallet,
        CreditGrant(
            wallet=wallet,
            source=source,
            reference=reference,
            amount=amount_millicredits,
            priority=priority,
            expires_at=expires_at,
        ),
        actor=actor,
        reason=reason,
    )


def _give(
    wallet: Wallet, given: CreditGrant, *, actor: str = "", reason: str = ""
) -> CreditGrant:
    repaid = min(wallet.debt, given.amount)
    given.remaining = given.amount - repaid
    given.repaid = repaid
    given.save(force_insert=True)
    goodwill = given.source == CreditGrant.Source.GOODWILL
    _move(
        wallet_id=wallet.pk,
        kind=Transfer.Kind.GRANT,
        idem=f"grant:{given.reference}",
        reference=given.reference,
        entries={
            Entry.Book.GOODWILL if goodwill else Entry.Book.ISSUED: -given.amount,
            Entry.Book.DEBT: repaid,
            Entry.Book.AVAILABLE: given.remaining,
        },
        next_expiry_at=given.expires_at if given.remaining else None,
        actor=actor,
        reason=reason,
    )
    return given


# Two wallets may be told of one payment in the same instant: a wallet's own lock does
# not make the second wait, and a unique index would only break its transaction.
_LOCK_PAYMENT: Final = """
SELECT pg_advisory_xact_lock(hashtextextended('payment:' || %(payment_id)s, 0))
"""


@_in_transaction
def purchase(
    *,
    account_id: UUID,
    mode: str,
    payment_id: str,
    amount_millicredits: int,
    expires_at: datetime | None = None,
    paid_amount: Decimal | None = None,
    paid_currency: str = "",
    actor: str = "",
    reason: str = "",
) -> CreditGrant:
    """Give what a payment bought, once per payment id over all accounts.

    Raises ReferenceReused when it was credited to another wallet or another amount.
    """
    wallet = lock_wallet(account_id=account_id, mode=mode)
    prepared.rows(_LOCK_PAYMENT, {"payment_id": payment_id})
    paid = (
        Purchase.objects.select_related("grant").filter(payment_id=payment_id).first()
    )
    if paid is not None and paid.grant.wallet_id != wallet.pk:
        raise ReferenceReused(f"payment {payment_id} was credited elsewhere")
    bought = grant(
        account_id=account_id,
        mode=mode,
        reference=f"payment:{payment_id}",
        amount_millicredits=amount_millicredits,
        source=CreditGrant.Source.PURCHASE,
        expires_at=expires_at,
        actor=actor,
        reason=reason,
    )
    if paid is None:
        Purchase.objects.create(
            payment_id=payment_id,
            grant=bought,
            paid_amount=paid_amount,
            paid_currency=paid_currency,
        )
    return bought


# Voids a grant and what was issued again of it, at any remove; returns what was left of
# them all, and what had been written off before.
_VOID: Final = """
WITH RECURSIVE family AS (
    SELECT id, remaining, written_off FROM billing_creditgrant WHERE id = %(grant)s
    UNION ALL
    SELECT g.id, g.remaining, g.written_off
    FROM billing_creditgrant g JOIN family f ON g.reissue_of_id = f.id
    WHERE g.wallet_id = %(wallet)s
), voided AS (
    UPDATE billing_creditgrant g
    SET remaining = 0, written_off = g.written_off + g.remaining,
        voided_at = clock_timestamp()
    FROM family f WHERE f.id = g.id
)
SELECT sum(remaining)::bigint, sum(written_off)::bigint FROM family
"""


@_in_transaction
def take_back(
    *, account_id: UUID, mode: str, payment_id: str, actor: str, reason: str
) -> None:
    """Undo a purchase whose money went back (chargeback); twice is once.

    What is left of its grant goes, and of what was issued again of it. What was spent
    or is held becomes the wallet's debt, repaid at once as far as other credits reach.
    """
    wallet = lock_wallet(account_id=account_id, mode=mode)
    paid = (
        Purchase.objects.select_related("grant")
        .filter(payment_id=payment_id, grant__wallet=wallet)
        .first()
    )
    if paid is None:
        raise BadRequest("payment_id", "no such purchase of this account")
    if paid.taken_back_at is not None:
        return
    bought = paid.grant
    # What is due may no longer pay for anything.
    died = _expire_due(wallet.pk, _clock())
    [(left, written_off)] = prepared.rows(
        _VOID, {"grant": bought.pk, "wallet": wallet.pk}
    )
    # What expired unspent was never of use to the customer, so it is not owed.
    owed = bought.amount - left - written_off
    repaid = _repay(wallet.pk, min(wallet.debt + owed, wallet.available - died - left))
    _move(
        wallet_id=wallet.pk,
        kind=Transfer.Kind.TAKE_BACK,
        idem=f"back:{bought.reference}",
        reference=bought.reference,
        entries={
            Entry.Book.AVAILABLE: -left - repaid,
            Entry.Book.DEBT: repaid - owed,
            Entry.Book.ISSUED: left + owed,
        },
        actor=actor,
        reason=reason,
    )
    Purchase.objects.filter(pk=paid.pk).update(taken_back_at=Now())


_REPAY: Final = """
WITH ordered AS (
    SELECT id, remaining, sum(remaining) OVER burn - remaining AS burnt_before
    FROM billing_creditgrant
    WHERE wallet_id = %(wallet)s AND NOT is_empty
    WINDOW burn AS (ORDER BY priority, expires_at NULLS LAST, id
                    ROWS UNBOUNDED PRECEDING)
), paying AS (
    SELECT id, least(remaining, %(amount)s - burnt_before)::bigint AS amount
    FROM ordered WHERE burnt_before < %(amount)s
), paid AS (
    UPDATE billing_creditgrant g
    SET remaining = g.remaining - paying.amount, repaid = g.repaid + paying.amount
    FROM paying WHERE g.id = paying.id
)
SELECT coalesce(sum(amount), 0)::bigint FROM paying
"""


def _repay(wallet_id: int, amount: int) -> int:
    """Burn ``amount`` for the wallet's debt, as a hold burns, and return it.

    The caller moves it from available to debt. Whatever comes into a wallet goes through
    here or `_give`, so that no wallet owes and can spend at the same time.
    """
    if amount <= 0:
        return 0
    [(paid,)] = prepared.rows(_REPAY, {"wallet": wallet_id, "amount": amount})
    if paid != amount:
        raise LedgerBroken(f"wallet {wallet_id} has fewer granted credits than it says")
    return amount


# --- Holding --------------------------------------------------------------------------

# The clock is read once here and used by every statement of the hold, so that a grant
# counted as alive cannot die between two of them.
_LOCK_FOR_HOLD: Final = """
SELECT w.id, w.available, w.debt, w.frozen, w.refill_to,
       coalesce(w.next_expiry_at <= clock_timestamp(), false) AS has_due,
       clock_timestamp() AS now,
       a.daily_spend_cap_millicredits AS account_cap,
       k.daily_spend_cap_millicredits AS key_cap,
       a.low_balance_threshold_millicredits AS low_mark
FROM billing_wallet w
JOIN billing_account a ON a.id = w.account_id
LEFT JOIN billing_apikey k ON k.id = %(api_key_id)s AND k.account_id = a.id
WHERE w.account_id = %(account_id)s AND w.mode = %(mode)s
FOR NO KEY UPDATE OF w
"""

# A statement of its own after the lock: under READ COMMITTED only a new statement sees
# what the lock's last owner committed.
_TAKE: Final = """
WITH existing AS (
    SELECT {hold} FROM billing_hold h
    WHERE h.wallet_id = %(wallet)s AND h.reference = %(reference)s
), wallet AS (
    SELECT id FROM billing_wallet
    WHERE id = %(wallet)s AND available >= %(amount)s AND NOT frozen
      AND NOT EXISTS (SELECT FROM existing)
), ordered AS (
    SELECT id, remaining, row_number() OVER burn AS seq,
           sum(remaining) OVER burn - remaining AS burnt_before
    FROM billing_creditgrant
    WHERE wallet_id = %(wallet)s AND NOT is_empty
      AND (expires_at IS NULL OR expires_at > %(now)s)
    WINDOW burn AS (ORDER BY priority, expires_at NULLS LAST, id
                    ROWS UNBOUNDED PRECEDING)
), taken AS (
    SELECT ordered.id, seq, least(remaining, %(amount)s - burnt_before)::bigint AS amount
    FROM ordered, wallet WHERE burnt_before < %(amount)s
), burnt AS (
    UPDATE billing_creditgrant g SET remaining = remaining - taken.amount
    FROM taken WHERE g.id = taken.id
), h AS (
    INSERT INTO billing_hold
        (wallet_id, api_key_id, reference, amount, captured, refunded, state)
    SELECT id, %(api_key_id)s, %(reference)s, %(amount)s, 0, 0, 'open' FROM wallet
    RETURNING *
), slices AS (
    INSERT INTO billing_holdslice (hold_id, grant_id, seq, amount, returned, reissued)
    SELECT h.id, taken.id, taken.seq, taken.amount, 0, 0 FROM h, taken
)
SELECT true AS made, (SELECT coalesce(sum(amount), 0) FROM taken) AS taken, {hold} FROM h
UNION ALL
SELECT false, 0, existing.* FROM existing
"""

_SPENT_TODAY: Final = """
SELECT coalesce(sum(h.spent), 0)::bigint,
       coalesce(sum(h.spent) FILTER (WHERE h.api_key_id = %(api_key_id)s), 0)::bigint,
       coalesce(bool_or(h.reference = %(reference)s), false)
FROM (SELECT reference, api_key_id,
             CASE state WHEN 'open' THEN amount ELSE captured - refunded END AS spent
      FROM billing_hold
      WHERE wallet_id = %(wallet)s
        AND created_at >= date_trunc('day', %(now)s::timestamptz, 'UTC')) h
"""

_TAKE_SQL: Final = _TAKE.format(hold=_HOLD_COLUMNS)


@_in_transaction
def hold(
    *,
    account_id: UUID,
    mode: str,
    reference: str,
    amount_millicredits: int,
    api_key_id: str | None = None,
) -> Hold:
    """Set credits aside under ``reference``; zero is fine and takes the lock too.

    Grants burn by priority, then soonest expiry, then age; what is due to expire does
    so first and cannot be spent. The daily caps of the account and of the key count
    what was held today (UTC), less what came back.
    Raises InsufficientCredits, SpendCapReached, WalletFrozen or ReferenceReused.
    """
    if amount_millicredits < 0:
        raise ValueError(f"cannot hold {amount_millicredits} milli-credits")
    wallet = _lock_for_hold(account_id, mode, api_key_id)
    arguments = {
        "wallet": wallet.id,
        "now": wallet.now,
        "api_key_id": api_key_id,
        "reference": reference,
        "amount": amount_millicredits,
    }
    available = wallet.available
    if wallet.has_due:
        available -= _expire_due(wallet.id, wallet.now)
    if wallet.account_cap is not None or wallet.key_cap is not None:
        _check_caps(wallet, arguments)
    if wallet.refill_to is not None and available < amount_millicredits:
        missing = max(wallet.refill_to, amount_millicredits) - available
        _refill(wallet, missing + wallet.debt)
        available = max(wallet.refill_to, amount_millicredits)
    rows = prepared.rows(_TAKE_SQL, arguments)
    if not rows:
        if wallet.frozen:
            raise WalletFrozen
        raise InsufficientCredits(
            required_millicredits=amount_millicredits, available_millicredits=available
        )
    made, taken, *values = rows[0]
    held = Hold.from_db("default", _HOLD_FIELDS, values)
    if not made:
        if held.amount != amount_millicredits:
            raise ReferenceReused(f"{reference} already holds {held.amount}")
        return held
    if taken != amount_millicredits:
        raise LedgerBroken(f"wallet {wallet.id} has fewer granted credits than it says")
    _move(
        wallet_id=wallet.id,
        kind=Transfer.Kind.HOLD,
        idem=f"hold:{reference}",
        reference=reference,
        entries={
            Entry.Book.AVAILABLE: -amount_millicredits,
            Entry.Book.HELD: amount_millicredits,
        },
    )
    left = available - amount_millicredits
    if wallet.low_mark is not None and left < wallet.low_mark <= available:
        held.crossed_low_balance = True
    return held


@dataclass(frozen=True)
class _Locked:
    """What a hold needs to know of the wallet it has just locked."""

    id: int
    available: int
    debt: int
    frozen: bool
    refill_to: int | None
    has_due: bool
    now: datetime
    account_cap: int | None
    key_cap: int | None
    low_mark: int | None


def _lock_for_hold(account_id: UUID, mode: str, api_key_id: str | None) -> _Locked:
    arguments = {"account_id": account_id, "mode": mode, "api_key_id": api_key_id}
    rows = prepared.rows(_LOCK_FOR_HOLD, arguments)
    if not rows:
        _make_wallet(account_id, mode)
        rows = prepared.rows(_LOCK_FOR_HOLD, arguments)
    return _Locked(*rows[0])


def _check_caps(wallet: _Locked, arguments: Mapping[str, Any]) -> None:
    [(by_account, by_key, is_repeat)] = prepared.rows(_SPENT_TODAY, arguments)
    if is_repeat:
        return
    for owner, cap, spent in (
        ("account", wallet.account_cap, by_account),
        ("key", wallet.key_cap, by_key),
    ):
        if cap is not None and spent + arguments["amount"] > cap:
            raise SpendCapReached(
                owner=owner,
                cap_millicredits=cap,
                spent_millicredits=spent,
                required_millicredits=arguments["amount"],
            )


def _refill(wallet: _Locked, amount: int) -> None:
    _give(
        Wallet(id=wallet.id, debt=wallet.debt),
        CreditGrant(
            wallet_id=wallet.id,
            source=CreditGrant.Source.REFILL,
            reference=f"refill:{uuid4()}",
            amount=amount,
            priority=REFILL_PRIORITY,
        ),
    )


# --- Settling -------------------------------------------------------------------------

# Closes the hold (settle) or reopens part of a captured one (refund), and sends `back`
# milli-credits home: to the slices burnt last first, to their grants where these live,
# else to new grants, or nowhere (lost) when what expired is not to be issued again.
# What is of a voided grant is owed for, so it is never lost, and its life goes on.
# The caller has the wallet's lock.
_SEND_HOME: Final = """
WITH h AS (
    UPDATE billing_hold SET {change} WHERE id = %(hold)s AND {expected} RETURNING *
), ordered AS (
    SELECT s.id, s.grant_id, s.amount - s.returned AS inside,
           sum(s.amount - s.returned) OVER home - (s.amount - s.returned) AS sent_before
    FROM billing_holdslice s JOIN h ON h.id = s.hold_id
    WINDOW home AS (ORDER BY s.seq DESC ROWS UNBOUNDED PRECEDING)
), found AS (
    SELECT o.id, o.grant_id, least(o.inside, %(back)s - o.sent_before)::bigint AS amount,
           g.priority, g.expires_at, g.voided_at IS NOT NULL AS voided,
           -- Written off once is dead, wherever the clock has been set since: a second
           -- expiry of one grant would break its idem at each hold.
           coalesce(g.expires_at <= clock_timestamp(), false)
               OR g.voided_at IS NULL AND g.written_off > 0 AS expired
    FROM ordered o JOIN billing_creditgrant g ON g.id = o.grant_id
    WHERE o.sent_before < %(back)s AND o.inside > 0
), sent AS (
    SELECT *, CASE WHEN NOT voided AND NOT expired THEN 'home'
                   WHEN voided OR %(reissue_expired)s THEN 'reissued'
                   ELSE 'lost' END AS fate
    FROM found
), slices AS (
    UPDATE billing_holdslice s
    SET returned = s.returned + sent.amount,
        reissued = s.reissued + CASE sent.fate WHEN 'reissued' THEN sent.amount ELSE 0 END
    FROM sent WHERE s.id = sent.id
), grants AS (
    UPDATE billing_creditgrant g
    SET remaining = g.remaining + sent.home, written_off = g.written_off + sent.lost
    FROM (SELECT grant_id, coalesce(sum(amount) FILTER (WHERE fate = 'home'), 0) AS home,
                 coalesce(sum(amount) FILTER (WHERE fate = 'lost'), 0) AS lost
          FROM sent WHERE fate <> 'reissued' GROUP BY grant_id) sent
    WHERE g.id = sent.grant_id
), reissued AS (
    INSERT INTO billing_creditgrant (wallet_id, source, reference, amount, remaining,
        written_off, repaid, priority, expires_at, reissue_of_id)
    SELECT %(wallet)s, 'reissue', %(idem)s || ':' || sent.id, amount, amount, 0, 0,
           priority,
           CASE WHEN expired THEN clock_timestamp() + %(reissue_for)s ELSE expires_at END,
           grant_id
    FROM sent WHERE fate = 'reissued'
    RETURNING expires_at
)
SELECT {hold},
       (SELECT coalesce(sum(amount), 0) FROM sent)::bigint,
       (SELECT coalesce(sum(amount), 0) FROM sent WHERE fate = 'lost')::bigint,
       (SELECT least((SELECT min(expires_at) FROM sent WHERE fate = 'home'),
                     (SELECT min(expires_at) FROM reissued)))
FROM h
"""

_CLOSE: Final = (
    "state = %(state)s, captured = %(captured)s, closed_at = clock_timestamp()"
)
_STILL_OPEN: Final = "state = 'open' AND amount - %(captured)s = %(back)s"
_SETTLE_SQL: Final = _SEND_HOME.format(
    hold=_HOLD_COLUMNS, change=_CLOSE, expected=_STILL_OPEN
)
# Most work succeeds at its full price, and then nothing goes home.
_CAPTURE_ALL: Final = """
UPDATE billing_hold h SET {change} WHERE id = %(hold)s AND {expected}
RETURNING {hold}, 0, 0, NULL
"""
_CAPTURE_ALL_SQL: Final = _CAPTURE_ALL.format(
    hold=_HOLD_COLUMNS, change=_CLOSE, expected=_STILL_OPEN
)
_REFUND_SQL: Final = _SEND_HOME.format(
    hold=_HOLD_COLUMNS,
    change="refunded = %(back)s",
    expected="state = 'captured' AND refunded = 0 AND captured >= %(back)s",
)


@_in_transaction
def capture(
    *,
    account_id: UUID,
    mode: str,
    reference: str,
    amount_millicredits: int | None = None,
    wallet: Wallet | None = None,
) -> Hold:
    """Earn what is held under ``reference``, or less; the rest goes back at once.

    ``wallet`` is the one `lock_wallet` gave just now, where it came before other locks.
    Raises UnknownHold, AmountTooLarge, or AlreadySettled when it was released or
    captured for another amount.
    """
    wallet = wallet or lock_wallet(account_id=account_id, mode=mode)
    held = _hold_of(wallet, reference)
    amount = held.amount if amount_millicredits is None else amount_millicredits
    if amount < 0:
        raise ValueError(f"cannot capture {amount} milli-credits")
    if amount > held.amount:
        raise AmountTooLarge(f"{reference} holds {held.amount}, not {amount}")
    return _settle(wallet, held, state=Hold.State.CAPTURED, captured=amount)


@_in_transaction
def release(
    *, account_id: UUID, mode: str, reference: str, reissue_expired: bool = True
) -> Hold:
    """Give back everything held under ``reference``.

    What has expired meanwhile is issued again for a while, since it was in our hands; it
    dies when ``reissue_expired`` is false: then the customer kept it held, not we.
    Raises UnknownHold, or AlreadySettled when it was captured.
    """
    wallet = lock_wallet(account_id=account_id, mode=mode)
    held = _hold_of(wallet, reference)
    return _settle(
        wallet,
        held,
        state=Hold.State.RELEASED,
        captured=0,
        reissue_expired=reissue_expired,
    )


def _settle(
    wallet: Wallet,
    held: Hold,
    *,
    state: Hold.State,
    captured: int,
    reissue_expired: bool = True,
) -> Hold:
    if held.state != Hold.State.OPEN:
        if (held.state, held.captured) == (state, captured):
            return held
        raise AlreadySettled(f"{held.reference} is {held.state} ({held.captured})")
    back = held.amount - captured
    settled, lost, next_expiry_at = _send_home(
        _SETTLE_SQL if back else _CAPTURE_ALL_SQL,
        wallet=wallet,
        held=held,
        idem=f"fin:{held.reference}",
        back=back,
        reissue_expired=reissue_expired,
        state=state,
        captured=captured,
    )
    repaid = _repay(wallet.pk, min(wallet.debt, back - lost))
    is_capture = state == Hold.State.CAPTURED
    _move(
        wallet_id=wallet.pk,
        kind=Transfer.Kind.CAPTURE if is_capture else Transfer.Kind.RELEASE,
        idem=f"fin:{held.reference}",
        reference=held.reference,
        entries={
            Entry.Book.HELD: -held.amount,
            Entry.Book.REVENUE: captured,
            Entry.Book.EXPIRED: lost,
            Entry.Book.DEBT: repaid,
            Entry.Book.AVAILABLE: back - lost - repaid,
        },
        next_expiry_at=next_expiry_at,
    )
    return settled


@_in_transaction
def refund(
    *,
    account_id: UUID,
    mode: str,
    reference: str,
    amount_millicredits: int,
    actor: str,
    reason: str,
) -> Hold:
    """Give back a captured charge, whole or in part, once per reference.

    A debt is repaid out of it first.
    Raises UnknownHold, AlreadySettled when it is not captured or was refunded another
    amount, AmountTooLarge when more is asked than was captured.
    """
    _require_positive(amount_millicredits)
    wallet = lock_wallet(account_id=account_id, mode=mode)
    held = _hold_of(wallet, reference)
    if held.state != Hold.State.CAPTURED:
        raise AlreadySettled(f"{reference} is {held.state}, not captured")
    if held.refunded:
        if held.refunded == amount_millicredits:
            return held
        raise AlreadySettled(f"{reference} was refunded {held.refunded} before")
    if amount_millicredits > held.captured:
        raise AmountTooLarge(
            f"{reference} captured {held.captured}, not {amount_millicredits}"
        )
    refunded, _, next_expiry_at = _send_home(
        _REFUND_SQL,
        wallet=wallet,
        held=held,
        idem=f"refund:{reference}",
        back=amount_millicredits,
        reissue_expired=True,
    )
    repaid = _repay(wallet.pk, min(wallet.debt, amount_millicredits))
    _move(
        wallet_id=wallet.pk,
        kind=Transfer.Kind.REFUND,
        idem=f"refund:{reference}",
        reference=reference,
        entries={
            Entry.Book.REVENUE: -amount_millicredits,
            Entry.Book.DEBT: repaid,
            Entry.Book.AVAILABLE: amount_millicredits - repaid,
        },
        next_expiry_at=next_expiry_at,
        reverses_idem=f"fin:{reference}",
        actor=actor,
        reason=reason,
    )
    return refunded


def _send_home(
    sql: str, *, wallet: Wallet, held: Hold, idem: str, back: int, **more: object
) -> tuple[Hold, int, datetime | None]:
    """Return the hold as it is now, what was lost, and when the first of it expires."""
    rows = prepared.rows(
        sql,
        {
            "wallet": wallet.pk,
            "hold": held.pk,
            "idem": idem,
            "back": back,
            "reissue_for": REISSUE_FOR,
            **more,
        },
    )
    if not rows:
        raise LedgerBroken(f"{held.reference} changed without its wallet's lock")
    *values, sent, lost, next_expiry_at = rows[0]
    if sent != back:
        raise LedgerBroken(f"{held.reference} has {sent} in its slices, not {back}")
    return Hold.from_db("default", _HOLD_FIELDS, values), lost, next_expiry_at


# --- Expiring -------------------------------------------------------------------------


@_in_transaction
def expire_due(*, limit: int = 100) -> int:
    """Expire due grants of up to ``limit`` wallets; return the milli-credits that died.

    Wallets somebody else has locked are left for the next round.
    """
    due = (
        Wallet.objects.select_for_update(no_key=True, skip_locked=True)
        .filter(next_expiry_at__lte=Now())
        .order_by("pk")[:limit]
    )
    # One clock for all: the database's, as everywhere in the ledger.
    now = _clock()
    return sum(_expire_due(wallet.pk, now) for wallet in due)


def _expire_due(wallet_id: int, now: datetime) -> int:
    dying = CreditGrant.objects.filter(wallet=wallet_id, is_empty=False)
    died = 0
    for grant_ in dying.filter(expires_at__lte=now).order_by("pk"):
        CreditGrant.objects.filter(pk=grant_.pk).update(
            remaining=0, written_off=F("written_off") + grant_.remaining
        )
        # Nothing returns to a grant that is due, so one expiry each is enough; a second
        # would break the unique idem and fail loudly.
        _move(
            wallet_id=wallet_id,
            kind=Transfer.Kind.EXPIRE,
            idem=f"expire:{grant_.pk}",
            reference=grant_.reference,
            entries={
                Entry.Book.AVAILABLE: -grant_.remaining,
                Entry.Book.EXPIRED: grant_.remaining,
            },
        )
        died += grant_.remaining
    upcoming = (
        dying.filter(expires_at__isnull=False)
        .order_by("expires_at")
        .values_list("expires_at", flat=True)
        .first()
    )
    Wallet.objects.filter(pk=wallet_id).update(next_expiry_at=upcoming)
    return died


# --- Moving ---------------------------------------------------------------------------

_MOVE: Final = """
WITH w AS (
    UPDATE billing_wallet
    SET available = available + %(available)s, held = held + %(held)s,
        debt = debt - %(debt)s,
        next_expiry_at = least(next_expiry_at, %(next_expiry_at)s::timestamptz)
    WHERE id = %(wallet)s AND available + %(available)s >= 0
    RETURNING available, held
), t AS (
    INSERT INTO billing_transfer (wallet_id, kind, reference, idem, reverses_id, actor,
                                  reason, available_after, held_after, created_at)
    SELECT %(wallet)s, %(kind)s, %(reference)s, %(idem)s,
           (SELECT id FROM billing_transfer
            WHERE wallet_id = %(wallet)s AND idem = %(reverses)s),
           %(actor)s, %(reason)s, w.available, w.held, clock_timestamp()
    FROM w RETURNING id
), e AS (
    INSERT INTO billing_entry (transfer_id, book, amount)
    SELECT t.id, leg.book, leg.amount
    FROM t, unnest(%(books)s::varchar[], %(amounts)s::bigint[]) AS leg (book, amount)
)
SELECT id FROM t
"""


def _move(
    *,
    wallet_id: int,
    kind: str,
    idem: str,
    reference: str,
    entries: Mapping[Entry.Book, int],
    next_expiry_at: datetime | None = None,
    reverses_idem: str = "",
    actor: str = "",
    reason: str = "",
) -> None:
    """Write one transfer and change the wallet to match; the wallet is locked."""
    legs = {book.value: amount for book, amount in entries.items() if amount}
    rows = prepared.rows(
        _MOVE,
        {
            "wallet": wallet_id,
            "kind": kind,
            "idem": idem,
            "reference": reference,
            "reverses": reverses_idem,
            "actor": actor,
            "reason": reason,
            "next_expiry_at": next_expiry_at,
            "available": legs.get("available", 0),
            "held": legs.get("held", 0),
            "debt": legs.get("debt", 0),
            "books": list(legs),
            "amounts": list(legs.values()),
        },
    )
    if not rows:
        raise LedgerBroken(f"wallet {wallet_id} cannot cover {kind} {reference}")


# --- Finding --------------------------------------------------------------------------


def find_hold(*, account_id: UUID, mode: str, reference: str) -> Hold | None:
    """Return the hold of this wallet under ``reference``; never another tenant's."""
    return Hold.objects.filter(
        wallet__account_id=account_id, wallet__mode=mode, reference=reference
    ).first()


def open_holds(*, before: datetime | None = None) -> Iterator[tuple[UUID, str, str]]:
    """Yield (account_id, mode, reference) of every open hold, oldest first.

    ``before`` leaves out those made since then.
    """
    found = Hold.objects.filter(state=Hold.State.OPEN).order_by("created_at")
    if before is not None:
        found = found.filter(created_at__lt=before)
    rows = found.values_list("wallet__account_id", "wallet__mode", "reference")
    yield from rows.iterator(chunk_size=1000)


def is_open(*, account_id: UUID, mode: str, reference: str) -> bool:
    held = find_hold(account_id=account_id, mode=mode, reference=reference)
    return held is not None and held.state == Hold.State.OPEN


_USED: Final = """
SELECT coalesce(sum(h.captured - h.refunded), 0)::bigint
FROM billing_hold h JOIN billing_wallet w ON w.id = h.wallet_id
WHERE w.account_id = %(account)s AND w.mode = %(mode)s
  AND h.created_at >= date_trunc('month', now(), 'UTC')
"""


def used_this_month(*, account_id: UUID, mode: str) -> int:
    """Return what was held this calendar month (UTC) and has been charged since."""
    [(used,)] = prepared.rows(_USED, {"account": account_id, "mode": mode})
    return int(used)


def purchase_of(payment_id: str) -> Purchase | None:
    """Return what a payment bought, with its grant and wallet."""
    return (
        Purchase.objects.select_related("grant__wallet")
        .filter(payment_id=payment_id)
        .first()
    )


_FIND: Final = """
SELECT {hold} FROM billing_hold h
WHERE h.wallet_id = %(wallet)s AND h.reference = %(reference)s
"""
_FIND_SQL: Final = _FIND.format(hold=_HOLD_COLUMNS)


def _hold_of(wallet: Wallet, reference: str) -> Hold:
    rows = prepared.rows(_FIND_SQL, {"wallet": wallet.pk, "reference": reference})
    if not rows:
        raise UnknownHold(f"nothing is held under {reference}")
    return Hold.from_db("default", _HOLD_FIELDS, rows[0])


# --- The database ---------------------------------------------------------------------


def _clock() -> datetime:
    now: datetime
    [(now,)] = prepared.rows("SELECT clock_timestamp()", {})
    return now


def _require_positive(amount_millicredits: int) -> None:
    if amount_millicredits <= 0:
        raise ValueError(f"{amount_millicredits} milli-credits is not a gift")
