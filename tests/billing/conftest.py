"""alice has credits, bob has none, mallory belongs to somebody else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from billing import keys, ledger, prices
from tests.billing.factories import Customer, make_customer


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    keys.forget()
    prices.forget()
    yield
    keys.forget()
    prices.forget()


@pytest.fixture
def alice(db: None) -> Iterator[Customer]:
    """100 credits; her books must add up when the test is over."""
    alice = make_customer("alice", credits=100)
    yield alice
    assert ledger.check(account_id=alice.id) == []


@pytest.fixture
def bob(db: None) -> Customer:
    return make_customer("bob")


@pytest.fixture
def mallory(db: None) -> Customer:
    return make_customer("mallory", credits=100)
