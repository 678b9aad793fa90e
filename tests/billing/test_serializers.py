"""Keys, balance and ledger as the native API shows them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing import keys, serializers
from billing.errors import (
    BadRequest,
    InvalidKey,
    MissingScope,
    UnknownKey,
)
from billing.keys import Credential
from tests.billing.factories import Customer

pytestmark = pytest.mark.django_db


def credential(customer: Customer, *scopes: str, mode: str = "") -> Credential:
    _, plaintext = keys.mint(
        customer.account, mode or customer.mode, scopes or keys.SCOPES
    )
    return keys.authenticate(plaintext)


def test_a_key_made_over_the_api_works_and_is_shown_once(bob: Customer) -> None:
    admin = credential(bob)
    made = serializers.create_key(admin, {"name": "ci", "scopes": ["jobs:read"]})
    assert keys.authenticate(made["key"]).scopes == {"jobs:read"}
    assert made["prefix"] == f"zoe_live_{made['id']}"
    listed = serializers.list_keys(admin)["data"]
    assert listed[0]["id"] == made["id"]
    assert made["key"] not in repr(listed)
    serializers.revoke_key(admin, made["id"])
    with pytest.raises(InvalidKey):
        keys.authenticate(made["key"])
    [shown] = [
        key for key in serializers.list_keys(admin)["data"] if key["id"] == made["id"]
    ]
    assert shown["revoked_at"] is not None


def test_a_key_may_have_an_end_and_a_daily_cap(bob: Customer) -> None:
    made = serializers.create_key(
        credential(bob),
        {
            "mode": "test",
            "expires_at": "2999-01-31T12:00:00+02:00",
            "daily_spend_cap_credits": 2.5,
        },
    )
    assert made["mode"] == "test"
    assert made["expires_at"] == "2999-01-31T10:00:00.000Z"
    assert made["daily_spend_cap_credits"] == 2.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "production"),
        ("mode", 1),
        ("scopes", "admin"),
        ("scopes", []),
        ("scopes", ["root"]),
        ("scopes", [1]),
        ("name", 5),
        ("name", "x" * 101),
        ("name", "a\x00b"),
        ("name", "\ud800"),
        ("expires_at", 5),
        ("expires_at", "tomorrow"),
        ("expires_at", "2999-01-31T12:00:00"),
        ("expires_at", "2020-01-31T12:00:00Z"),
        ("expires_at", "0001-01-01T00:00:00+23:59"),
        ("daily_spend_cap_credits", "5"),
        ("daily_spend_cap_credits", True),
        ("daily_spend_cap_credits", -1),
        ("daily_spend_cap_credits", float("nan")),
        ("daily_spend_cap_credits", 1e300),
        ("account", "somebody else's"),
    ],
)
def test_a_wrong_field_is_named(bob: Customer, field: str, value: object) -> None:
    admin = credential(bob)
    with pytest.raises(BadRequest) as refusal:
        serializers.create_key(admin, {field: value})
    assert refusal.value.field == field
    assert len(serializers.list_keys(admin)["data"]) == 1


def test_without_the_admin_scope_keys_are_out_of_reach(bob: Customer) -> None:
    plain = credential(bob, "jobs:write", "jobs:read", "billing:read")
    acts: list[Callable[[], Any]] = [
        lambda: serializers.list_keys(plain),
        lambda: serializers.create_key(plain, {}),
        lambda: serializers.revoke_key(plain, plain.key_id),
    ]
    for act in acts:
        with pytest.raises(MissingScope):
            act()


def test_a_test_key_cannot_make_or_revoke_live_keys(bob: Customer) -> None:
    live, rehearsing = credential(bob), credential(bob, mode="test")
    with pytest.raises(MissingScope):
        serializers.create_key(rehearsing, {"mode": "live"})
    with pytest.raises(MissingScope):
        serializers.revoke_key(rehearsing, live.key_id)
    assert serializers.create_key(rehearsing, {})["mode"] == "test"


def test_mallory_sees_and_revokes_none_of_bobs_keys(
    bob: Customer, mallory: Customer
) -> None:
    admin, other = credential(bob), credential(mallory)
    with pytest.raises(UnknownKey):
        serializers.revoke_key(other, admin.key_id)
    listed = serializers.list_keys(other)["data"]
    assert [key["id"] for key in listed] == [other.key_id]


def test_the_ledger_is_read_page_by_page(alice: Customer) -> None:
    for number in range(5):
        alice.hold(1, f"video-{number}")
    reader = credential(alice, "billing:read")
    query, seen = {"limit": "2"}, []
    while True:
        page = serializers.list_ledger(reader, query)
        seen += [line["reference"] for line in page["data"]]
        if not page["has_more"]:
            break
        query["cursor"] = page["next_cursor"]
    assert seen == [f"video-{n}" for n in (4, 3, 2, 1, 0)] + ["opening"]
    assert page["next_cursor"] is None
    line = serializers.list_ledger(reader, {})["data"][0]
    assert line["kind"] == "hold"
    assert (line["available_credits"], line["held_credits"]) == (-1, 1)
    assert (line["available_after_credits"], line["held_after_credits"]) == (95, 5)


def test_reading_the_ledger_needs_its_scope(alice: Customer) -> None:
    worker = credential(alice, "jobs:write", "jobs:read")
    with pytest.raises(MissingScope):
        serializers.list_ledger(worker, {})


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "", "1e3", "9" * 5000, "٣"])
def test_a_wrong_limit_is_named(bob: Customer, limit: str) -> None:
    with pytest.raises(BadRequest, match="limit"):
        serializers.list_ledger(credential(bob), {"limit": limit})


@given(cursor=st.text())
def test_any_cursor_is_ours_or_refused(cursor: str) -> None:
    with contextlib.suppress(BadRequest):
        assert isinstance(serializers._cursor(cursor), int)
