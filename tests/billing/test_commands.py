"""The commands an operator types."""

from __future__ import annotations

from io import StringIO

import pytest
from django.contrib.auth import authenticate, get_user_model
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import RequestFactory

from billing import keys, ledger
from billing.errors import WalletFrozen
from billing.models import Account
from tests.billing.factories import Customer

pytestmark = pytest.mark.django_db


def run(*arguments: str) -> list[str]:
    out = StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue().splitlines()


def test_createaccount_prints_a_working_key_alone_on_the_last_line() -> None:
    *_, last = run("createaccount", "Acme Ltd")
    credential = keys.authenticate(last)
    account = Account.objects.get(pk=credential.account_id)
    assert (account.name, account.plan_id, credential.mode) == (
        "Acme Ltd",
        "free",
        "live",
    )
    assert credential.scopes == set(keys.SCOPES)
    assert Customer(account).available == 0


def test_createaccount_grants_and_chooses_plan_and_mode() -> None:
    *_, last = run(
        "createaccount", "Acme", "--plan=pro", "--credits=12.5", "--mode=test"
    )
    credential = keys.authenticate(last)
    assert (credential.mode, credential.plan.max_running) == ("test", 5)
    acme = Customer(Account.objects.get(pk=credential.account_id), "test")
    assert acme.available == 12.5
    assert Customer(acme.account).available == 0


def test_createaccount_with_an_unknown_plan_makes_nothing() -> None:
    with pytest.raises(CommandError, match="free, pro, enterprise"):
        run("createaccount", "Acme", "--plan=gold")
    assert not Account.objects.exists()


@pytest.mark.parametrize("credits", ["-1", "x", "nan", "1e99", "0.0001"])
def test_createaccount_refuses_credits_that_are_none(credits: str) -> None:
    with pytest.raises(CommandError):
        run("createaccount", "Acme", f"--credits={credits}")


def test_grant_gives_once_for_a_reference(bob: Customer) -> None:
    for _ in range(2):
        said = run("grant", "bob", "25.5", "--reference=inv-7", "--reason=invoice 7")
        assert said == ["bob has 25.5 live credits available"]
    [movement] = bob.statement()
    assert movement.reason == "invoice 7"
    assert movement.actor.startswith("cli:")


def test_grant_needs_one_account(bob: Customer) -> None:
    with pytest.raises(CommandError, match="no account"):
        run("grant", "nobody", "1")
    Account.objects.create(name="bob", plan_id="free")
    with pytest.raises(CommandError, match="several accounts"):
        run("grant", "bob", "1")
    run("grant", str(bob.id), "1", "--days=30")
    assert bob.next_expiry is not None


@pytest.mark.parametrize("days", ["0", "-1", "1.5", "99999", "0000000000001000000"])
def test_grant_needs_a_lifetime_that_can_be(bob: Customer, days: str) -> None:
    with pytest.raises(CommandError, match="3650 days"):
        run("grant", "bob", "1", f"--days={days}")
    assert bob.available == 0


def test_check_ledger_says_when_the_books_add_up(alice: Customer) -> None:
    assert run("check_ledger") == ["the books add up"]


def test_check_ledger_names_what_does_not_add_up_and_fails(bob: Customer) -> None:
    bob.grant(100)
    bob.hold(10, "video-1")
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE billing_wallet SET available = available + 5 "
            "WHERE account_id = %s AND mode = 'live'",
            [bob.id],
        )
    out = StringIO()
    with pytest.raises(SystemExit) as end:
        call_command("check_ledger", "--freeze", stdout=out)
    assert end.value.code == 1
    assert "available equals the sum of its entries: expected 90000, found 90005" in (
        out.getvalue()
    )
    with pytest.raises(WalletFrozen):
        bob.hold(1, "video-2")


BROKEN = {
    "held equals the sum of its entries": "UPDATE billing_wallet SET held = 11000 "
    "WHERE held = 10000",
    "a hold equals its slices": "UPDATE billing_holdslice SET amount = 9000 "
    "WHERE amount = 10000",
    "held equals the open holds": "UPDATE billing_hold SET amount = 9000 "
    "WHERE reference = 'video-1'",
    "what a hold kept equals what its slices kept": "UPDATE billing_holdslice "
    "SET returned = 500 WHERE amount = 10000",
    "a grant's remainder equals its amount less its slices": "UPDATE "
    "billing_creditgrant SET amount = amount + 1 WHERE reference = 'gift'",
    "available equals what is left of the grants": "UPDATE billing_creditgrant "
    "SET remaining = remaining - 1 WHERE reference = 'gift'",
    "a dead grant's reissues equal what its slices sent": "UPDATE billing_holdslice "
    "SET returned = 1, reissued = 1 WHERE amount = 10000",
    "revenue equals what the holds captured and kept": "UPDATE billing_hold "
    "SET refunded = 1 WHERE reference = 'video-2'",
    "debt equals the sum of its entries": "UPDATE billing_wallet SET debt = 1 "
    "WHERE held = 10000",
    # only a superuser who switches the triggers off gets this far
    "a transfer's entries sum to zero": "SET LOCAL session_replication_role = replica; "
    "DELETE FROM billing_entry WHERE book = 'revenue'; "
    "SET LOCAL session_replication_role = origin",
    "a settled hold was settled by one movement, its own": "SET LOCAL "
    "session_replication_role = replica; UPDATE billing_transfer SET kind = 'release' "
    "WHERE idem = 'fin:video-2'; SET LOCAL session_replication_role = origin",
    "a balance on a statement equals the sum so far": "SET LOCAL "
    "session_replication_role = replica; UPDATE billing_transfer "
    "SET available_after = 0 WHERE idem = 'hold:video-1'; "
    "SET LOCAL session_replication_role = origin",
    "what the grants lost equals what expired, was repaid or taken back": "UPDATE "
    "billing_creditgrant SET written_off = 1, amount = amount + 1 "
    "WHERE reference = 'gift'",
    "a wallet that owes has nothing to spend": "UPDATE billing_wallet SET debt = 1 "
    "WHERE held = 10000",
    "a wallet knows of its next expiry": "UPDATE billing_creditgrant "
    "SET expires_at = now() WHERE reference = 'gift'",
}


@pytest.mark.parametrize("what", BROKEN)
def test_the_verifier_finds_every_kind_of_damage(bob: Customer, what: str) -> None:
    bob.grant(100, "gift")
    bob.hold(10, "video-1")
    bob.hold(20, "video-2")
    bob.capture("video-2")
    assert ledger.check(account_id=bob.id) == []
    with connection.cursor() as cursor:
        cursor.execute(BROKEN[what])
    assert what in {mismatch.what for mismatch in ledger.check(account_id=bob.id)}


def test_createoperator_prints_a_password_that_opens_the_admin() -> None:
    *_, password = run("createoperator", "olga")
    request = RequestFactory().post("/admin/login/")
    user = authenticate(request, username="olga", password=password)
    assert user is not None
    assert user.is_active
    assert get_user_model().objects.get(username="olga").is_superuser
    with pytest.raises(CommandError, match="already"):
        run("createoperator", "olga")


def test_rotate_secrets_runs() -> None:
    run("rotate_secrets")
