"""Any sequence of movements leaves the wallet as a plain dict would say it is."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from billing import ledger
from billing.errors import (
    AlreadySettled,
    AmountTooLarge,
    BadRequest,
    InsufficientCredits,
    ReferenceReused,
    UnknownHold,
)
from billing.models import CreditGrant, HoldSlice
from tests.billing.factories import make_customer

REFERENCES = st.sampled_from(["v1", "v2", "v3", "v4"])
AMOUNTS = st.integers(0, 5000)
PAYMENTS = st.sampled_from(["p1", "p2"])
_numbers = itertools.count(1)


class Books(RuleBasedStateMachine):
    """The model: what the customer has less what they owe, and each hold as [amount,
    state, captured, refunded].
    """

    def __init__(self) -> None:
        super().__init__()
        self.customer = make_customer(f"customer-{next(_numbers)}")
        self.worth = 0
        self.holds: dict[str, list[Any]] = {}
        self.gifts: dict[str, int] = {}
        self.dead: set[str] = set()
        self.paid: dict[str, int] = {}
        self.taken_back: set[str] = set()
        #: What died unspent, by the grant it came from in the first place.
        self.wasted: Counter[str] = Counter()

    @rule(gift=st.sampled_from(["g1", "g2", "g3"]), amount=st.integers(1, 5000))
    def grant(self, gift: str, amount: int) -> None:
        if self.gifts.get(gift, amount) != amount:
            with pytest.raises(ReferenceReused):
                self._grant(gift, amount)
            return
        self._grant(gift, amount)
        if gift not in self.gifts:
            self.gifts[gift] = amount
            self.worth += amount

    def _grant(self, gift: str, amount: int) -> None:
        ledger.grant(**self.customer.wallet, reference=gift, amount_millicredits=amount)

    @rule(reference=REFERENCES, amount=AMOUNTS)
    def hold(self, reference: str, amount: int) -> None:
        known = self.holds.get(reference)
        expected: type[Exception] | None = None
        if known is not None:
            expected = None if known[0] == amount else ReferenceReused
        elif amount > max(self.worth, 0):
            expected = InsufficientCredits
        self._expect(expected, "hold", reference, amount_millicredits=amount)
        if known is None and expected is None:
            self.worth -= amount
            self.holds[reference] = [amount, "open", 0, 0]

    @rule(reference=REFERENCES, amount=AMOUNTS)
    def capture(self, reference: str, amount: int) -> None:
        known = self.holds.get(reference)
        expected: type[Exception] | None = None
        if known is None:
            expected = UnknownHold
        elif amount > known[0]:
            expected = AmountTooLarge
        elif known[1] == "released" or (known[1] == "captured" and known[2] != amount):
            expected = AlreadySettled
        self._expect(expected, "capture", reference, amount_millicredits=amount)
        if known is not None and expected is None and known[1] == "open":
            self.worth += known[0] - amount
            known[1:3] = ["captured", amount]

    @rule(reference=REFERENCES)
    def release(self, reference: str) -> None:
        known = self.holds.get(reference)
        expected: type[Exception] | None = None
        if known is None:
            expected = UnknownHold
        elif known[1] == "captured":
            expected = AlreadySettled
        self._expect(expected, "release", reference)
        if known is not None and known[1] == "open":
            self.worth += known[0]
            known[1] = "released"

    @rule(reference=REFERENCES, amount=st.integers(1, 5000))
    def refund(self, reference: str, amount: int) -> None:
        known = self.holds.get(reference)
        expected: type[Exception] | None = None
        if known is None:
            expected = UnknownHold
        elif known[1] != "captured" or known[3] not in (0, amount):
            expected = AlreadySettled
        elif amount > known[2]:
            expected = AmountTooLarge
        self._expect(
            expected,
            "refund",
            reference,
            amount_millicredits=amount,
            actor="olga",
            reason="black",
        )
        if known is not None and expected is None and not known[3]:
            self.worth += amount
            known[3] = amount

    @rule(payment=PAYMENTS, amount=st.integers(1, 5000))
    def purchase(self, payment: str, amount: int) -> None:
        if self.paid.get(payment, amount) != amount:
            with pytest.raises(ReferenceReused):
                self._purchase(payment, amount)
            return
        self._purchase(payment, amount)
        if payment not in self.paid:
            self.paid[payment] = amount
            self.worth += amount

    def _purchase(self, payment: str, amount: int) -> None:
        payment_id = f"{payment} of {self.customer.id}"
        self.customer.buy(amount / 1000, payment_id)

    @rule(payment=PAYMENTS)
    def take_back(self, payment: str) -> None:
        payment_id = f"{payment} of {self.customer.id}"
        if payment not in self.paid:
            with pytest.raises(BadRequest):
                self.customer.take_back(payment_id)
            return
        self.customer.take_back(payment_id)
        if payment not in self.taken_back:
            self.taken_back.add(payment)
            wasted = self.wasted[f"payment:{payment_id}"]
            self.worth -= self.paid[payment] - wasted

    @rule(reference=REFERENCES)
    def cancel(self, reference: str) -> None:
        """A release by the customer's own doing: what has expired stays dead."""
        known = self.holds.get(reference)
        if known is None or known[1] != "open":
            return
        slices = HoldSlice.objects.select_related("grant").filter(
            hold__reference=reference, hold__wallet__account=self.customer.id
        )
        self.worth += known[0]
        for slice_ in slices:
            is_dead = slice_.grant.reference in self.dead
            if is_dead and slice_.grant.voided_at is None:
                self.wasted[_origin(slice_.grant)] += slice_.amount
                self.worth -= slice_.amount
        self.customer.release(reference, reissue_expired=False)
        known[1] = "released"

    @rule()
    def the_oldest_living_grant_dies(self) -> None:
        for gift, left in self.customer.grants().items():
            if gift not in self.dead:
                self.customer.let_die(gift)
                self.dead.add(gift)
                grant = CreditGrant.objects.get(
                    reference=gift, wallet__account=self.customer.id
                )
                self.wasted[_origin(grant)] += round(left * 1000)
                self.worth -= round(left * 1000)
                return

    def _expect(
        self, error: type[Exception] | None, move: str, reference: str, **details: Any
    ) -> None:
        act = getattr(ledger, move)
        if error is None:
            act(**self.customer.wallet, reference=reference, **details)
            return
        with pytest.raises(error):
            act(**self.customer.wallet, reference=reference, **details)

    @invariant()
    def the_wallet_is_as_the_model_says(self) -> None:
        balance = self.customer.balance
        held = sum(hold[0] for hold in self.holds.values() if hold[1] == "open")
        assert balance.available_millicredits == max(self.worth, 0)
        assert balance.debt_millicredits == max(-self.worth, 0)
        assert balance.held_millicredits == held

    def teardown(self) -> None:
        assert ledger.check(account_id=self.customer.id) == []


def _origin(grant: CreditGrant) -> str:
    return _origin(grant.reissue_of) if grant.reissue_of else grant.reference


@pytest.mark.django_db
@pytest.mark.timeout(120)
def test_any_sequence_of_movements_matches_the_model() -> None:
    run_state_machine_as_test(
        Books,
        settings=settings(
            max_examples=40, stateful_step_count=30, deadline=None, derandomize=True
        ),
    )
