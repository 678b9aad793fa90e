"""Worked accounting stories: who has how many credits after what."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction

from billing import keys, ledger
from billing.errors import (
    AlreadySettled,
    AmountTooLarge,
    InsufficientCredits,
    ReferenceReused,
    SpendCapReached,
    UnknownAccount,
    UnknownHold,
    WalletFrozen,
)
from billing.models import Account, CreditGrant, HoldSlice, Transfer
from tests.billing.factories import Customer, make_customer

pytestmark = pytest.mark.django_db
TOMORROW = datetime.now(UTC) + timedelta(days=1)
NEXT_YEAR = datetime.now(UTC) + timedelta(days=365)


def test_a_video_that_succeeds_costs_what_was_held(alice: Customer) -> None:
    alice.hold(20, "video-1")
    assert (alice.available, alice.held) == (80, 20)
    alice.capture("video-1")
    assert (alice.available, alice.held) == (80, 0)


def test_a_video_that_fails_costs_nothing(alice: Customer) -> None:
    alice.hold(20, "video-1")
    alice.release("video-1")
    assert (alice.available, alice.held) == (100, 0)


def test_a_shorter_video_gives_the_rest_back_at_once(alice: Customer) -> None:
    alice.hold(50, "video-1")
    alice.capture("video-1", 30.125)
    assert (alice.available, alice.held) == (69.875, 0)


def test_an_operator_refunds_a_bad_video(alice: Customer) -> None:
    alice.hold(50, "video-1")
    alice.capture("video-1")
    alice.refund("video-1", 20)
    assert alice.available == 70
    refund, capture, *_ = alice.statement()
    assert (refund.kind, refund.actor, refund.reason) == (
        "refund",
        "olga",
        "the video was black",
    )
    assert (capture.kind, capture.available_after_millicredits) == ("capture", 50_000)


def test_a_refund_reverses_exactly_its_capture(alice: Customer) -> None:
    alice.hold(50, "video-1")
    alice.capture("video-1")
    alice.refund("video-1", 50)
    refund = Transfer.objects.get(kind="refund", wallet__account=alice.id)
    assert refund.reverses is not None
    assert refund.reverses.kind == "capture"
    assert refund.reverses.reference == "video-1"


def test_bob_without_credits_is_told_what_he_lacks(bob: Customer) -> None:
    with pytest.raises(InsufficientCredits) as refusal:
        bob.hold(20, "video-1")
    assert refusal.value.required_millicredits == 20_000
    assert refusal.value.available_millicredits == 0
    assert bob.statement() == []


def test_a_refusal_leaves_the_callers_transaction_usable(bob: Customer) -> None:
    with transaction.atomic():
        with pytest.raises(InsufficientCredits):
            bob.hold(20, "video-1")
        bob.grant(20)
        bob.hold(20, "video-2")
    assert (bob.available, bob.held) == (0, 20)


def test_something_free_is_held_captured_and_released_too(bob: Customer) -> None:
    bob.hold(0, "video-1")
    bob.capture("video-1")
    bob.hold(0, "video-2")
    bob.release("video-2")
    assert [line.kind for line in bob.statement()] == [
        "release",
        "hold",
        "capture",
        "hold",
    ]
    assert ledger.check(account_id=bob.id) == []


def test_every_movement_twice_is_the_same_as_once(alice: Customer) -> None:
    for _ in range(2):
        alice.grant(10, "birthday")
        alice.hold(30, "video-1")
        alice.capture("video-1", 25)
        alice.refund("video-1", 5)
        alice.hold(7, "video-2")
        alice.release("video-2")
    assert (alice.available, alice.held) == (90, 0)
    assert len(alice.statement()) == 7


@pytest.mark.parametrize(
    ("again", "error"),
    [
        (lambda alice: alice.grant(11, "birthday"), ReferenceReused),
        (lambda alice: alice.hold(31, "video-1"), ReferenceReused),
        (lambda alice: alice.capture("video-1", 24), AlreadySettled),
        (lambda alice: alice.release("video-1"), AlreadySettled),
        (lambda alice: alice.capture("video-2"), AlreadySettled),
        (lambda alice: alice.refund("video-2", 1), AlreadySettled),
        (lambda alice: alice.refund("video-1", 4), AlreadySettled),
        (lambda alice: alice.capture("video-3"), UnknownHold),
        (lambda alice: alice.release("video-3"), UnknownHold),
    ],
)
def test_the_same_reference_for_something_else_is_refused(
    alice: Customer, again: Any, error: type[Exception]
) -> None:
    alice.grant(10, "birthday")
    alice.hold(30, "video-1")
    alice.capture("video-1", 25)
    alice.refund("video-1", 5)
    alice.hold(7, "video-2")
    alice.release("video-2")
    before = alice.statement()
    with pytest.raises(error):
        again(alice)
    assert alice.statement() == before


def test_nobody_captures_or_refunds_more_than_there_is(alice: Customer) -> None:
    alice.hold(30, "video-1")
    with pytest.raises(AmountTooLarge):
        alice.capture("video-1", 30.001)
    alice.capture("video-1", 20)
    with pytest.raises(AmountTooLarge):
        alice.refund("video-1", 20.001)


@pytest.mark.parametrize("credits", [-1, -0.001])
def test_negative_amounts_are_a_programming_error(
    alice: Customer, credits: float
) -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        alice.hold(credits, "video-1")
    with pytest.raises(ValueError, match="not a gift"):
        alice.grant(credits)


def test_mallory_cannot_settle_what_alice_holds(
    alice: Customer, mallory: Customer
) -> None:
    alice.hold(20, "video-1")
    with pytest.raises(UnknownHold):
        mallory.release("video-1")
    assert (
        ledger.find_hold(account_id=mallory.id, mode="live", reference="video-1")
        is None
    )
    assert alice.held == 20


def test_the_same_reference_lives_in_every_wallet(
    alice: Customer, mallory: Customer
) -> None:
    alice.hold(20, "video-1")
    mallory.hold(30, "video-1")
    alice.release("video-1")
    assert (alice.held, mallory.held) == (0, 30)


def test_an_unknown_account_has_no_wallet() -> None:
    stranger = Customer(Account(name="nobody"))
    with pytest.raises(UnknownAccount):
        stranger.hold(1, "video-1")


# --- Grants ---------------------------------------------------------------------------


def test_credits_burn_by_priority_then_expiry_then_age(bob: Customer) -> None:
    bob.grant(10, "lasting")
    bob.grant(10, "dies-next-year", expires_at=NEXT_YEAR)
    bob.grant(10, "dies-tomorrow", expires_at=TOMORROW)
    bob.grant(10, "first-of-all", priority=1)
    bob.grant(10, "lasting-too")
    spent: list[str] = []
    for number in range(5):
        bob.hold(10, f"video-{number}")
        spent += [
            name
            for name, left in bob.grants().items()
            if not left and name not in spent
        ]
    assert spent == [
        "first-of-all",
        "dies-tomorrow",
        "dies-next-year",
        "lasting",
        "lasting-too",
    ]


def test_what_comes_back_returns_to_the_grant_burnt_last(bob: Customer) -> None:
    bob.grant(10, "dies-tomorrow", expires_at=TOMORROW)
    bob.grant(10, "lasting")
    bob.hold(15, "video-1")
    assert bob.grants() == {"dies-tomorrow": 0, "lasting": 5}
    bob.capture("video-1", 8)
    assert bob.grants() == {"dies-tomorrow": 2, "lasting": 10}
    bob.refund("video-1", 3)
    assert bob.grants() == {"dies-tomorrow": 5, "lasting": 10}


def test_expired_credits_cannot_be_spent(bob: Customer) -> None:
    bob.grant(10, "promotion", expires_at=TOMORROW)
    bob.grant(5, "lasting")
    bob.let_die("promotion")
    assert bob.available == 5
    with pytest.raises(InsufficientCredits) as refusal:
        bob.hold(6, "video-1")
    assert refusal.value.available_millicredits == 5000
    bob.hold(5, "video-2")
    assert bob.grants() == {"promotion": 0, "lasting": 0}
    assert ledger.check(account_id=bob.id) == []


def test_credits_released_into_a_dead_grant_live_a_week_more(bob: Customer) -> None:
    bob.grant(10, "promotion", expires_at=TOMORROW)
    bob.hold(8, "video-1")
    bob.let_die("promotion")
    bob.release("video-1")
    assert bob.available == 8
    expiry = bob.next_expiry
    assert expiry is not None
    amount, expires_at = expiry
    assert amount == 8000
    assert timedelta(days=6, hours=23) < expires_at - datetime.now(UTC)
    bob.hold(8, "video-2")
    bob.capture("video-2")
    assert (bob.available, bob.held) == (0, 0)
    assert ledger.check(account_id=bob.id) == []


def test_a_reissued_grant_that_dies_too_is_reissued_again(bob: Customer) -> None:
    bob.grant(10, "promotion", expires_at=TOMORROW)
    for number in range(3):
        bob.hold(10, f"video-{number}")
        bob.let_die(list(bob.grants())[-1])
        bob.release(f"video-{number}")
        assert bob.available == 10
    assert ledger.check(account_id=bob.id) == []


def test_nothing_returns_to_a_dead_grant_though_the_clock_was_set_back(
    bob: Customer,
) -> None:
    bob.grant(10, "promotion", expires_at=TOMORROW)
    bob.hold(4, "video-1")
    bob.let_die("promotion")
    ledger.expire_due()
    CreditGrant.objects.filter(reference="promotion").update(expires_at=TOMORROW)
    bob.release("video-1")
    assert bob.grants() == {"promotion": 0, f"fin:video-1:{slice_of('video-1')}": 4}
    bob.let_die("promotion")
    bob.hold(4, "video-2")
    assert ledger.check(account_id=bob.id) == []


def slice_of(reference: str) -> int:
    return HoldSlice.objects.get(hold__reference=reference).pk


def test_credits_that_expired_while_the_customer_kept_them_held_stay_dead(
    bob: Customer,
) -> None:
    bob.grant(10, "promotion", expires_at=TOMORROW)
    bob.grant(5, "lasting")
    bob.hold(12, "video-1")
    bob.let_die("promotion")
    for _ in range(2):
        bob.release("video-1", reissue_expired=False)
        assert (bob.available, bob.held) == (5, 0)
    release, *_ = bob.statement()
    assert dict(release.entries) == {
        "held": -12_000,
        "expired": 10_000,
        "available": 2000,
    }
    assert bob.grants() == {"promotion": 0, "lasting": 5}
    assert ledger.check(account_id=bob.id) == []


def test_a_reissue_that_the_customer_kept_held_stays_dead(bob: Customer) -> None:
    bob.grant(10, "promotion", expires_at=TOMORROW)
    bob.hold(10, "video-1")
    bob.let_die("promotion")
    bob.release("video-1")
    bob.hold(10, "video-2")
    bob.let_die(list(bob.grants())[-1])
    bob.release("video-2", reissue_expired=False)
    assert (bob.available, bob.held) == (0, 0)
    assert ledger.check(account_id=bob.id) == []


def test_the_housekeeper_expires_what_is_due(bob: Customer, alice: Customer) -> None:
    bob.grant(10, "promotion", expires_at=TOMORROW)
    alice.grant(10, "promotion", expires_at=TOMORROW)
    bob.let_die("promotion")
    assert ledger.expire_due() == 10_000
    assert ledger.expire_due() == 0
    assert [line.kind for line in bob.statement()] == ["expire", "grant"]
    assert alice.available == 110
    assert ledger.check(account_id=bob.id) == []


def test_the_worked_example_of_the_readme(bob: Customer) -> None:
    def standing() -> tuple[float, ...]:
        return (bob.available, bob.held, *bob.grants().values())

    bob.buy(100, "pay_1")
    bob.grant(20, "spring", expires_at=TOMORROW)
    assert standing() == (120, 0, 100, 20)
    bob.hold(50, "v1")
    assert standing() == (70, 50, 70, 0)
    bob.capture("v1", 40)
    assert standing() == (80, 0, 80, 0)
    bob.hold(30, "v2")
    assert standing() == (50, 30, 50, 0)
    bob.release("v2")
    assert standing() == (80, 0, 80, 0)
    bob.refund("v1", 30)
    assert standing() == (110, 0, 100, 10)


# --- Payments -------------------------------------------------------------------------


def test_a_payment_is_credited_once(bob: Customer, alice: Customer) -> None:
    bob.buy(50, "pay_1")
    bob.buy(50, "pay_1")
    assert bob.available == 50
    with pytest.raises(ReferenceReused):
        alice.buy(50, "pay_1")
    with pytest.raises(ReferenceReused):
        bob.buy(60, "pay_1")


def test_a_charged_back_payment_takes_what_is_left_and_leaves_a_debt(
    bob: Customer,
) -> None:
    bob.buy(50, "pay_1")
    bob.hold(20, "video-1")
    bob.capture("video-1")
    bob.take_back("pay_1")
    bob.take_back("pay_1")
    assert bob.available == 0
    assert bob.balance.debt_millicredits == 20_000
    bob.buy(50, "pay_2")
    assert bob.available == 30
    assert bob.balance.debt_millicredits == 0
    assert ledger.check(account_id=bob.id) == []


def test_a_taken_back_payment_that_had_repaid_a_debt_is_owed_whole(
    bob: Customer,
) -> None:
    bob.buy(50, "pay_1")
    bob.hold(50, "video-1")
    bob.capture("video-1")
    bob.take_back("pay_1")
    bob.buy(60, "pay_2")
    bob.take_back("pay_2")
    assert bob.balance.debt_millicredits == 50_000
    assert ledger.check(account_id=bob.id) == []


def test_held_credits_that_come_back_after_a_chargeback_repay_the_debt(
    bob: Customer,
) -> None:
    bob.buy(100, "pay_1")
    bob.hold(60, "video-1")
    bob.hold(40, "video-2")
    bob.take_back("pay_1")
    assert (bob.available, bob.held, bob.debt) == (0, 100, 100)
    bob.release("video-1")
    assert (bob.available, bob.held, bob.debt) == (0, 40, 40)
    bob.capture("video-2", 15)
    assert (bob.available, bob.held, bob.debt) == (0, 0, 15)
    with pytest.raises(InsufficientCredits):
        bob.hold(0.001, "video-3")
    assert ledger.check(account_id=bob.id) == []


def test_a_refund_after_a_chargeback_repays_the_debt_first(bob: Customer) -> None:
    bob.buy(50, "pay_1")
    bob.hold(50, "video-1")
    bob.capture("video-1")
    bob.take_back("pay_1")
    bob.grant(20)
    bob.refund("video-1", 40)
    assert (bob.available, bob.debt) == (10, 0)
    assert ledger.check(account_id=bob.id) == []


def test_a_chargeback_is_paid_from_other_credits_too(bob: Customer) -> None:
    bob.buy(50, "pay_1")
    bob.hold(50, "video-1")
    bob.capture("video-1")
    bob.grant(30, "soon-dead", expires_at=TOMORROW)
    bob.grant(30, "lasting")
    bob.let_die("soon-dead")
    bob.take_back("pay_1")
    assert (bob.available, bob.debt) == (0, 20)
    assert {line.kind for line in bob.statement()[:2]} == {"take_back", "expire"}
    assert ledger.check(account_id=bob.id) == []


def test_credits_issued_again_go_with_the_payment_they_came_from(bob: Customer) -> None:
    bob.buy(100, "pay_1", expires_at=TOMORROW)
    bob.grant(10, "lasting", priority=1000)
    bob.hold(100, "video-1")
    bob.let_die("payment:pay_1")
    bob.release("video-1")
    bob.hold(30, "video-2")
    bob.take_back("pay_1")
    # 70 of them are gone, 30 are held: owed, as far as the other credits do not reach
    assert (bob.available, bob.held, bob.debt) == (0, 30, 20)
    bob.release("video-2")
    assert (bob.available, bob.held, bob.debt) == (10, 0, 0)
    assert ledger.check(account_id=bob.id) == []


def test_credits_issued_again_that_died_unspent_are_not_owed(bob: Customer) -> None:
    bob.buy(100, "pay_1", expires_at=TOMORROW)
    bob.hold(100, "video-1")
    bob.let_die("payment:pay_1")
    bob.release("video-1")
    bob.let_die(list(bob.grants())[-1])
    bob.take_back("pay_1")
    assert (bob.available, bob.debt) == (0, 0)
    assert ledger.check(account_id=bob.id) == []


def test_what_was_paid_for_a_second_time_comes_back_and_keeps_its_life(
    bob: Customer,
) -> None:
    bob.buy(100, "pay_1")
    bob.hold(100, "video-1")
    bob.take_back("pay_1")
    bob.buy(100, "pay_2")
    assert (bob.available, bob.held, bob.debt) == (0, 100, 0)
    bob.release("video-1", reissue_expired=False)
    assert (bob.available, bob.held, bob.debt) == (100, 0, 0)
    assert bob.next_expiry is None
    assert ledger.check(account_id=bob.id) == []


def test_a_test_wallet_that_owes_fills_itself_beyond_its_debt() -> None:
    bob = make_customer("bob", mode="test")
    bob.buy(50, "pay_1")
    bob.hold(50, "video-1")
    bob.capture("video-1")
    bob.take_back("pay_1")
    bob.hold(400, "video-2")
    assert (bob.available, bob.held, bob.debt) == (600, 400, 0)
    assert ledger.check(account_id=bob.id) == []


# --- Caps, freezing, test wallets -----------------------------------------------------


def test_the_accounts_daily_cap_counts_what_was_held_less_what_came_back(
    alice: Customer,
) -> None:
    Account.objects.filter(pk=alice.id).update(daily_spend_cap_millicredits=50_000)
    alice.hold(30, "video-1")
    with pytest.raises(SpendCapReached) as refusal:
        alice.hold(21, "video-2")
    assert (refusal.value.owner, refusal.value.spent_millicredits) == (
        "account",
        30_000,
    )
    alice.hold(20, "video-3")
    alice.hold(20, "video-3")  # again is not more
    alice.release("video-3")
    alice.capture("video-1", 25)
    alice.refund("video-1", 5)
    alice.hold(30, "video-4")
    with pytest.raises(SpendCapReached):
        alice.hold(0.001, "video-5")


def test_yesterdays_spending_does_not_count_today(alice: Customer) -> None:
    Account.objects.filter(pk=alice.id).update(daily_spend_cap_millicredits=50_000)
    alice.hold(50, "video-1")
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE billing_hold SET created_at = created_at - interval '1 day' "
            "WHERE reference = 'video-1'"
        )
    alice.hold(50, "video-2")
    assert alice.held == 100


def test_a_keys_daily_cap_binds_that_key_alone(alice: Customer) -> None:
    capped, _ = keys.mint(alice.account, "live", daily_spend_cap_millicredits=10_000)
    free, _ = keys.mint(alice.account, "live")
    alice.hold(30, "video-1", api_key_id=free.pk)
    alice.hold(10, "video-2", api_key_id=capped.pk)
    with pytest.raises(SpendCapReached) as refusal:
        alice.hold(1, "video-3", api_key_id=capped.pk)
    assert refusal.value.owner == "key"
    alice.hold(30, "video-4", api_key_id=free.pk)


def test_a_frozen_wallet_refuses_new_holds_and_settles_open_ones(
    alice: Customer,
) -> None:
    alice.hold(20, "video-1")
    ledger.freeze(**alice.wallet)
    with pytest.raises(WalletFrozen):
        alice.hold(1, "video-2")
    assert alice.hold(20, "video-1").state == "open"
    alice.capture("video-1")
    ledger.freeze(**alice.wallet, frozen=False)
    alice.hold(80, "video-3")


def test_a_test_wallet_never_runs_dry_and_its_books_add_up() -> None:
    bob = make_customer("bob", mode="test")
    for number in range(12):
        bob.hold(300, f"video-{number}")
        bob.capture(f"video-{number}")
    bob.hold(5000, "a-big-one")
    assert {line.kind for line in bob.statement()} == {"grant", "hold", "capture"}
    assert ledger.check(account_id=bob.id) == []


def test_a_test_wallet_touches_no_live_credits(alice: Customer) -> None:
    rehearsing = Customer(alice.account, "test")
    rehearsing.hold(40, "video-1")
    assert (alice.available, alice.held) == (100, 0)


def test_the_hold_that_crosses_the_low_mark_says_so(alice: Customer) -> None:
    Account.objects.filter(pk=alice.id).update(
        low_balance_threshold_millicredits=50_000
    )
    assert not alice.hold(50, "video-1").crossed_low_balance
    assert alice.hold(1, "video-2").crossed_low_balance
    assert not alice.hold(1, "video-3").crossed_low_balance


def test_a_statement_reads_backwards_page_by_page(alice: Customer) -> None:
    for number in range(5):
        alice.hold(1, f"video-{number}")
    first = alice.statement(limit=4)
    rest = alice.statement(limit=4, before=first[-1].id)
    assert [line.reference for line in first + rest] == [
        "video-4",
        "video-3",
        "video-2",
        "video-1",
        "video-0",
        "opening",
    ]
    assert first[0].available_after_millicredits == 95_000


def test_a_hold_takes_three_statements_and_settling_four(
    alice: Customer, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(3):
        alice.hold(1, "video-1")
    with django_assert_num_queries(4):
        alice.capture("video-1")
