"""The books under real parallel work: many connections, one Postgres.

State machines are sequential; these are not. Each thread has its own connection and
draws movements with repeated ids, doubled settlements and rollbacks.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import pytest
from django.db import OperationalError, connection, transaction

from billing import ledger
from billing.errors import (
    AlreadySettled,
    InsufficientCredits,
    LedgerError,
    UnknownHold,
)
from billing.models import Account, Hold
from tests.billing.factories import Customer, make_customer

pytestmark = pytest.mark.django_db(transaction=True)
T = TypeVar("T")


def in_threads(count: int, act: Callable[[int], T]) -> list[T]:
    """Call ``act(0..count-1)`` at once, each on a connection of its own."""
    start = threading.Barrier(min(count, 50))

    def run(number: int) -> T:
        try:
            if number < start.parties:
                start.wait(20)
            return act(number)
        finally:
            connection.close()

    with ThreadPoolExecutor(min(count, 50)) as pool:
        return list(pool.map(run, range(count)))


def outcome(act: Callable[[], Any]) -> str:
    try:
        act()
    except LedgerError as error:
        return type(error).__name__
    return "done"


@pytest.fixture
def customers() -> Iterator[list[Customer]]:
    made = [make_customer(name, credits=100) for name in ("alice", "bob", "mallory")]
    yield made
    assert ledger.check() == []


def test_a_hundred_at_once_with_money_for_one(customers: list[Customer]) -> None:
    alice = customers[0]
    results = Counter(
        in_threads(100, lambda n: outcome(lambda: alice.hold(60, f"video-{n}")))
    )
    assert results == {"done": 1, "InsufficientCredits": 99}
    assert (alice.available, alice.held) == (40, 60)


def test_fifty_at_once_under_one_reference_hold_once(customers: list[Customer]) -> None:
    alice = customers[0]
    holds = in_threads(50, lambda _: alice.hold(1, "video-1"))
    assert len({hold.pk for hold in holds}) == 1
    assert alice.held == 1


def test_a_daily_cap_holds_against_a_race(customers: list[Customer]) -> None:
    alice = customers[0]
    Account.objects.filter(pk=alice.id).update(daily_spend_cap_millicredits=10_000)
    results = Counter(
        in_threads(30, lambda n: outcome(lambda: alice.hold(3, f"video-{n}")))
    )
    assert results == {"done": 3, "SpendCapReached": 27}


def test_capture_and_release_at_once_settle_once(customers: list[Customer]) -> None:
    alice = customers[0]
    for number in range(25):
        alice.hold(1, f"video-{number}")

    def settle(number: int) -> str:
        act = alice.capture if number % 2 else alice.release
        return outcome(lambda: act(f"video-{number // 2}"))

    assert Counter(in_threads(50, settle)) == {"done": 25, "AlreadySettled": 25}
    assert alice.held == 0


def test_the_first_hold_of_a_new_test_wallet_may_come_twice() -> None:
    account = Account.objects.create(name="new", plan_id="free")
    rehearsing = Customer(account, "test")
    in_threads(10, lambda n: rehearsing.hold(1, f"video-{n}"))
    assert rehearsing.held == 10
    assert ledger.check() == []


def test_one_payment_told_for_many_accounts_at_once_is_credited_once() -> None:
    customers = [make_customer(f"payer {n}") for n in range(12)]

    def pay(payment_id: str, number: int) -> str:
        return outcome(
            lambda: ledger.purchase(
                **customers[number].wallet,
                payment_id=payment_id,
                amount_millicredits=10_000,
            )
        )

    for payment in range(5):
        results = Counter(in_threads(12, partial(pay, f"pay_{payment}")))
        assert results == {"done": 1, "ReferenceReused": 11}
    assert sum(customer.available for customer in customers) == 50
    assert ledger.check() == []


def test_a_chargeback_among_cancels_leaves_nothing_to_spend() -> None:
    bob = make_customer("bob")
    for round_ in range(5):
        bob.buy(100, f"pay_{round_}")
        for number in range(20):
            bob.hold(5, f"{round_}-{number}")

        def act(number: int, round_: int = round_) -> str:
            if number == 20:
                bob.take_back(f"pay_{round_}")
                return "taken back"
            if number > 20:
                return outcome(lambda: bob.hold(5, f"{round_}-{number}"))
            bob.release(f"{round_}-{number}")
            return "released"

        results = Counter(in_threads(40, act))
        assert bob.available == 0
        assert bob.debt == bob.held == 5 * results["done"]
        for account_id, mode, reference in list(ledger.open_holds()):
            ledger.release(account_id=account_id, mode=mode, reference=reference)
        assert (bob.available, bob.held, bob.debt) == (0, 0, 0)
    assert ledger.check() == []


def test_credits_kept_held_over_their_end_die_once_beside_the_housekeeper() -> None:
    bob = make_customer("bob")
    bob.grant(100, "promotion", expires_at=_in(3600))
    for number in range(20):
        bob.hold(4, f"video-{number}")
    bob.let_die("promotion")

    def act(number: int) -> None:
        if number % 3:
            ledger.expire_due()
        bob.release(f"video-{number}", reissue_expired=False)

    in_threads(20, act)
    ledger.expire_due()  # it leaves a wallet that is in use for its next round
    assert (bob.available, bob.held) == (0, 0)
    assert sum(bob.grants().values()) == 0
    assert ledger.check() == []


class Rollback(Exception):
    """Thrown on purpose, to undo what a transaction did."""


#: Of each thread; an idle machine makes several times as many.
MOVES_MIN = 250


class Chaos:
    """One thread's random walk over the ledger."""

    def __init__(self, customers: list[Customer], seed: int, until: float) -> None:
        self.customers = customers
        self.random = random.Random(seed)
        self.until = until
        self.done: Counter[str] = Counter()

    def run(self) -> Counter[str]:
        moves = [self.grant, self.hold, self.hold, self.capture, self.release]
        moves += [self.refund, self.expire, self.several, self.purchase]
        moves += [self.take_back]
        # On a busy machine time alone would leave too few moves to meet everything.
        while time.monotonic() < self.until or self.done.total() < MOVES_MIN:
            move = self.random.choice(moves)
            try:
                with transaction.atomic():
                    move()
                    if self.random.random() < 0.1:
                        raise Rollback
            except (Rollback, LedgerError, OperationalError) as error:
                self.done[type(error).__name__] += 1
                if isinstance(error, OperationalError):
                    raise
            else:
                self.done[move.__name__] += 1
        return self.done

    def someone(self) -> Customer:
        return self.random.choice(self.customers)

    def reference(self) -> str:
        # few ids, so that threads meet on the same ones
        return f"video-{self.random.randrange(150)}"

    def hold(self) -> None:
        reference = self.reference()
        # the amount belongs to the reference, as a retried request's would
        self.someone().hold(int(reference[6:]) % 7, reference)

    def grant(self) -> None:
        number = self.random.randrange(10_000)
        lives = self.random.choice([None, 0.0, 0.05, 0.5, 60.0])
        expires_at = lives if lives is None else _in(lives)
        # The last customer is given nothing more, so that somebody surely runs dry.
        ledger.grant(
            **self.random.choice(self.customers[:-1]).wallet,
            reference=f"gift-{number}",
            amount_millicredits=1000 + number,
            expires_at=expires_at,
            priority=number % 3,
        )

    def capture(self) -> None:
        part = self.random.choice([None, None, 1])
        self.someone().capture(self.reference(), part)

    def release(self) -> None:
        self.someone().release(
            self.reference(), reissue_expired=self.random.random() < 0.5
        )

    def refund(self) -> None:
        self.someone().refund(self.reference(), self.random.choice([0.5, 1, 2]))

    def payment(self) -> tuple[Customer, str]:
        number = self.random.randrange(len(self.customers) - 1)
        return self.customers[number], f"pay-{number}-{self.random.randrange(100)}"

    def purchase(self) -> None:
        customer, payment_id = self.payment()
        lives = self.random.choice([None, 0.05, 0.5])
        expires_at = lives if lives is None else _in(lives)
        customer.buy(9, payment_id, expires_at=expires_at)

    def take_back(self) -> None:
        customer, payment_id = self.payment()
        if ledger.purchase_of(payment_id) is not None:
            customer.take_back(payment_id)

    def expire(self) -> None:
        ledger.expire_due()

    def several(self) -> None:
        """A job's end and the next one's start, in one transaction."""
        customer = self.someone()
        ledger.lock_wallet(**customer.wallet)
        customer.hold(1, f"pair-{self.random.randrange(10**9)}")
        customer.capture(self.reference())


def _in(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.mark.timeout(60)
def test_twelve_threads_of_random_work_leave_the_books_whole(
    customers: list[Customer],
) -> None:
    until = time.monotonic() + 10
    counts = sum(
        in_threads(12, lambda n: Chaos(customers, seed=n, until=until).run()),
        Counter[str](),
    )
    # every kind of move must really have happened, refused and rolled back too
    for kind in (
        "grant",
        "hold",
        "capture",
        "release",
        "refund",
        "several",
        "take_back",
    ):
        assert counts[kind] > 0, counts
    for refusal in (AlreadySettled, InsufficientCredits, UnknownHold, Rollback):
        assert counts[refusal.__name__] > 0, counts
    assert counts["LedgerBroken"] == 0, counts
    settled = Hold.objects.exclude(state="open")
    assert settled.count() > 20
    # the fixture checks the books
