"""The rules that a plain SQL session must obey too."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from django.db import Error, connection, transaction

from billing import migrations
from billing.models import Transfer
from tests.billing.factories import Customer, make_customer

pytestmark = pytest.mark.django_db


@pytest.fixture
def spender() -> Customer:
    spender = make_customer("alice", credits=100)
    spender.buy(10, "pay_1")
    spender.hold(20, "video-1")
    spender.capture("video-1", 15)
    # fire the deferred foreign keys now: TRUNCATE would stop at them, not at the trigger
    execute("SET CONSTRAINTS ALL IMMEDIATE")
    return spender


def refusal(sql: str) -> str:
    with pytest.raises(Error) as error, transaction.atomic():
        execute(sql)
    return str(error.value)


def execute(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


@pytest.mark.parametrize(
    "table", ["billing_transfer", "billing_entry", "billing_pricerow"]
)
def test_transfers_entries_and_prices_are_never_changed(
    spender: Customer, table: str
) -> None:
    assert "append-only" in refusal(f"UPDATE {table} SET id = id")
    assert "append-only" in refusal(f"DELETE FROM {table}")
    assert "append-only" in refusal(f"TRUNCATE {table} CASCADE")


@pytest.mark.parametrize(
    "table",
    [
        "billing_wallet",
        "billing_creditgrant",
        "billing_purchase",
        "billing_hold",
        "billing_holdslice",
    ],
)
def test_wallets_grants_and_holds_never_vanish(spender: Customer, table: str) -> None:
    assert "append-only" in refusal(f"DELETE FROM {table}")
    assert "append-only" in refusal(f"TRUNCATE {table} CASCADE")


@pytest.mark.parametrize(
    "legs", ["('available', 1000)", "('available', 1000), ('issued', -999)"]
)
def test_entries_that_do_not_sum_to_zero_are_refused(
    spender: Customer, legs: str
) -> None:
    transfer = Transfer.objects.filter(wallet__account=spender.id).latest("pk")
    message = refusal(
        "INSERT INTO billing_entry (transfer_id, book, amount) "
        f"SELECT {transfer.pk}, * FROM (VALUES {legs}) AS leg"
    )
    assert f"the entries of transfer {transfer.pk} sum to" in message


@pytest.mark.parametrize(
    "change",
    ["state = 'open', captured = 0, closed_at = NULL", "captured = 20", "amount = 15"],
)
def test_a_settled_hold_stays_settled(spender: Customer, change: str) -> None:
    message = refusal(f"UPDATE billing_hold SET {change} WHERE reference = 'video-1'")
    assert "hold video-1 is captured and stays so" in message


@pytest.mark.parametrize("column", ["available", "held", "debt"])
def test_no_wallet_goes_below_zero(spender: Customer, column: str) -> None:
    message = refusal(f"UPDATE billing_wallet SET {column} = -1")
    assert "wallet_never_below_zero" in message


def test_a_movement_cannot_be_written_twice(spender: Customer) -> None:
    columns = (
        "wallet_id, kind, reference, idem, actor, reason, available_after, held_after"
    )
    message = refusal(
        f"INSERT INTO billing_transfer ({columns}) "
        f"SELECT {columns} FROM billing_transfer WHERE idem = 'fin:video-1'"
    )
    assert "a_movement_happens_once" in message


def test_the_rules_can_be_taken_off_and_put_on_again() -> None:
    folder = Path(migrations.__file__ or "").parent
    later = import_module("billing.migrations.0011_purchases_never_vanish")
    name = "0002_ledger_is_append_only"
    execute(later.LET_GO)
    execute((folder / f"{name}.reverse.sql").read_text())
    execute("UPDATE billing_pricerow SET version = version")
    execute((folder / f"{name}.sql").read_text())
    execute(later.KEEP)
    assert "append-only" in refusal("UPDATE billing_pricerow SET version = version")
