"""The operator API: another system opens accounts, credits payments, issues keys, reads
usage; everything it does is done once, refused by field, and written down.
"""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client

from billing import accounts, keys, ledger, operator_keys, prices
from billing.errors import InvalidKey
from billing.models import Account, OperatorKey, Transfer
from jobs import routing
from tests.factories import make_account, make_job
from tests.jobs.lives import failed, succeeded

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    keys.forget()
    prices.forget()
    routing.forget()


class Shop:
    """The company's own site, calling with an operator's key."""

    def __init__(self, user: Any) -> None:
        self.row, self.key = operator_keys.mint(user, name="shop")
        self.http = Client()

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> Any:
        return self.http.generic(
            method,
            f"/operator/v1/{path}",
            b"" if body is None else json.dumps(body).encode(),
            content_type="application/json",
            headers={"authorization": f"Bearer {self.key}", **(headers or {})},
            **extra,
        )

    def get(self, path: str, **query: Any) -> Any:
        return self.call("GET", path, query_params=query)

    def post(self, path: str, **body: Any) -> Any:
        return self.call("POST", path, body)

    def patch(self, path: str, **body: Any) -> Any:
        return self.call("PATCH", path, body)


@pytest.fixture
def shop(db: None) -> Shop:
    return Shop(get_user_model().objects.create_superuser("olga"))


def refused(answer: Any, status: int, field: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    if field is not None:
        assert [error["field"] for error in problem["errors"]] == [field]
    return problem


# ----------------------------------------------------------------------------- the door


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer zoe_operator_xxxxxxxx",
        "Basic b2xnYTpvbGdh",
        "Bearer zoe_operator_" + "a" * 8 + "_" + "b" * 43 + "_" + "c" * 6,
        "Bearer " + "z" * 5000,
    ],
)
def test_every_bad_key_gets_the_same_answer(shop: Shop, header: str) -> None:
    answer = Client().get("/operator/v1/accounts", headers={"authorization": header})
    assert refused(answer, 401)["detail"] == "A valid operator key is required."
    assert answer["WWW-Authenticate"] == "Bearer"


def test_nul_in_a_path_is_a_path_nobody_serves(shop: Shop) -> None:
    account = make_account("alice").pk
    refused(shop.call("DELETE", f"accounts/{account}/keys/%00"), 404)
    refused(shop.post(f"accounts/{account}/grants/a%00b/take-back"), 404)


@pytest.mark.parametrize("text", ['"\\ud800"', '"a\\u0000"', "NaN", "1e999"])
@pytest.mark.parametrize("field", ["mode", "name"])
def test_what_json_should_not_hold_is_refused_naming_the_field(
    shop: Shop, field: str, text: str
) -> None:
    answer = shop.http.generic(
        "POST",
        f"/operator/v1/accounts/{make_account('alice').pk}/keys",
        f'{{"{field}": {text}}}'.encode(),
        content_type="application/json",
        headers={"authorization": f"Bearer {shop.key}"},
    )
    refused(answer, 422, field)


def test_a_customers_key_is_no_operator_key(shop: Shop) -> None:
    _, key = keys.mint(make_account("alice"), "live")
    answer = Client().get(
        "/operator/v1/accounts", headers={"authorization": f"Bearer {key}"}
    )
    refused(answer, 401)
    answer = Client().get(
        "/v1/balance", headers={"authorization": f"Bearer {shop.key}"}
    )
    assert answer.status_code == 401


def test_a_key_stops_with_its_operator_its_expiry_and_its_revocation(
    shop: Shop,
) -> None:
    assert shop.get("accounts").status_code == 200
    shop.row.user.is_active = False
    shop.row.user.save()
    refused(shop.get("accounts"), 401)
    shop.row.user.is_active = True
    shop.row.user.save()
    OperatorKey.objects.filter(pk=shop.row.pk).update(
        expires_at=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    )
    refused(shop.get("accounts"), 401)
    OperatorKey.objects.filter(pk=shop.row.pk).update(expires_at=None)
    assert shop.get("accounts").status_code == 200
    operator_keys.revoke(shop.row.pk)
    refused(shop.get("accounts"), 401)


def test_a_key_may_do_what_its_operator_may(db: None) -> None:
    clerk = get_user_model().objects.create_user("ben", is_staff=True)
    shop = Shop(clerk)
    problem = refused(shop.get("accounts"), 403)
    assert "billing.view_account" in problem["detail"]


# ------------------------------------------------------------------------------ accounts


def test_an_account_is_opened_read_changed_and_listed(shop: Shop) -> None:
    answer = shop.post("accounts", name="Acme", plan="pro", reference="cust-1")
    assert answer.status_code == 201
    made = answer.json()
    assert (made["name"], made["plan"], made["reference"]) == ("Acme", "pro", "cust-1")
    assert made["live"]["available_credits"] == 0
    assert shop.get(f"accounts/{made['id']}").json() == made
    changed = shop.patch(
        f"accounts/{made['id']}",
        plan="enterprise",
        daily_spend_cap_credits=12.5,
        reason="they grew",
    ).json()
    assert (changed["plan"], changed["daily_spend_cap_credits"]) == ("enterprise", 12.5)
    listed = shop.get("accounts", reference="cust-1").json()
    assert [row["id"] for row in listed["data"]] == [made["id"]]
    told = LogEntry.objects.filter(object_id=made["id"]).latest("id")
    assert told.user.get_username() == "olga"
    assert "they grew" in told.change_message
    assert str(shop.row) in told.change_message


def test_the_same_reference_is_the_same_account(shop: Shop) -> None:
    first = shop.post("accounts", name="Acme", reference="cust-1")
    again = shop.post("accounts", name="Acme", reference="cust-1")
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert Account.objects.count() == 1


def test_accounts_are_listed_by_pages(shop: Shop) -> None:
    made = {shop.post("accounts", name=f"n{n}").json()["id"] for n in range(5)}
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = shop.get("accounts", **query).json()
        seen += [row["id"] for row in page["data"]]
        if not page["has_more"]:
            break
        query["cursor"] = page["next_cursor"]
    assert len(seen) == 5
    assert set(seen) == made


def test_a_disabled_account_is_refused_and_comes_back(shop: Shop) -> None:
    alice = make_account("alice")
    _, key = keys.mint(alice, "live")
    shop.patch(f"accounts/{alice.pk}", is_active=False, reason="unpaid")
    keys.forget()
    with pytest.raises(InvalidKey):
        keys.authenticate(key)
    shop.patch(f"accounts/{alice.pk}", is_active=True)
    assert keys.authenticate(key).account_id == alice.pk


# -------------------------------------------------------------------------------- grants


def test_a_payment_is_credited_once(shop: Shop) -> None:
    alice = make_account("alice")
    body = {"payment_id": "pay_1", "credits": 99.5, "paid_amount": 0.99}
    first = shop.post(f"accounts/{alice.pk}/grants", **body, paid_currency="EUR")
    again = shop.post(f"accounts/{alice.pk}/grants", **body, paid_currency="EUR")
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert first.json()["remaining_credits"] == 99.5
    balance = ledger.balance(account_id=alice.pk, mode="live")
    assert balance.available_millicredits == 99_500
    moved = Transfer.objects.get(kind="grant")
    assert moved.actor == f"olga by {shop.row}"
    assert ledger.check() == []


def test_a_payment_of_another_amount_or_account_is_refused(shop: Shop) -> None:
    alice, bob = make_account("alice"), make_account("bob")
    shop.post(f"accounts/{alice.pk}/grants", payment_id="pay_1", credits=10)
    more = shop.post(f"accounts/{alice.pk}/grants", payment_id="pay_1", credits=11)
    other = shop.post(f"accounts/{bob.pk}/grants", payment_id="pay_1", credits=10)
    refused(more, 409)
    refused(other, 409)
    balance = ledger.balance(account_id=bob.pk, mode="live")
    assert balance.available_millicredits == 0


def test_a_deleted_account_gets_no_new_credits(shop: Shop) -> None:
    alice = make_account("alice")
    grants = f"accounts/{alice.pk}/grants"
    shop.post(grants, payment_id="pay_1", credits=10)
    accounts.anonymise(alice.pk)
    refused(shop.post(grants, payment_id="pay_2", credits=10), 422, "account_id")
    assert shop.post(grants, payment_id="pay_1", credits=10).status_code == 200
    assert shop.post(f"{grants}/pay_1/take-back").status_code == 200


def test_a_payment_that_went_back_becomes_debt_where_it_was_spent(shop: Shop) -> None:
    alice = make_account("alice", plan="pro")
    shop.post(f"accounts/{alice.pk}/grants", payment_id="pay_1", credits=10)
    make_job(alice, seconds=5)
    url = f"accounts/{alice.pk}/grants/pay_1/take-back"
    for _ in range(2):
        answer = shop.post(url, reason="chargeback")
        assert answer.json()["taken_back_at"] is not None
    money = shop.get(f"accounts/{alice.pk}").json()["live"]
    assert money["available_credits"] == 0
    assert money["debt_credits"] == 1
    refused(shop.post(f"accounts/{alice.pk}/grants/pay_2/take-back"), 404)


@pytest.mark.parametrize("payment_id", ["pi/1 ä?#", "2026/11/20", "a/take-back", "/"])
def test_a_payment_is_taken_back_by_any_id_it_was_credited_by(
    shop: Shop, payment_id: str
) -> None:
    alice = make_account("alice")
    grants = f"accounts/{alice.pk}/grants"
    credited = shop.post(grants, payment_id=payment_id, credits=10)
    assert credited.status_code == 201
    answer = shop.post(f"{grants}/{quote(payment_id, safe='')}/take-back")
    assert answer.status_code == 200
    assert answer.json()["payment_id"] == payment_id
    assert answer.json()["taken_back_at"] is not None


# ---------------------------------------------------------------------------------- keys


def test_keys_are_issued_listed_and_revoked(shop: Shop) -> None:
    alice = make_account("alice")
    answer = shop.post(
        f"accounts/{alice.pk}/keys", mode="test", scopes=["jobs:write"], name="site"
    )
    assert answer.status_code == 201
    made = answer.json()
    credential = keys.authenticate(made["key"])
    assert (credential.account_id, credential.mode) == (alice.pk, "test")
    assert credential.scopes == {"jobs:write"}
    [listed] = shop.get(f"accounts/{alice.pk}/keys").json()["data"]
    assert listed["id"] == made["id"]
    assert "key" not in listed
    revoked = shop.call("DELETE", f"accounts/{alice.pk}/keys/{made['id']}").json()
    assert revoked["revoked_at"] is not None
    with pytest.raises(InvalidKey):
        keys.authenticate(made["key"])


def test_a_repeated_issue_makes_one_key(shop: Shop) -> None:
    path = f"accounts/{make_account('alice').pk}/keys"
    body = {"mode": "test", "client_pair": True}

    def issue(once: str, **changes: Any) -> Any:
        return shop.call("POST", path, body | changes, {"Idempotency-Key": once})

    first, again = issue("one"), issue("one")
    assert [first.status_code, again.status_code] == [201, 201]
    assert again["Idempotent-Replayed"] == "true"
    assert again.json() == first.json() | {"key": None, "client_secret": None}
    assert keys.authenticate(first.json()["key"]).mode == "test"
    refused(issue("one", name="other"), 422, "Idempotency-Key")
    refused(issue("ü"), 422, "Idempotency-Key")
    assert issue("two").json()["id"] != first.json()["id"]
    assert len(shop.get(path).json()["data"]) == 2


def test_another_accounts_key_is_not_found(shop: Shop) -> None:
    row, key = keys.mint(make_account("alice"), "live")
    bob = make_account("bob")
    refused(shop.call("DELETE", f"accounts/{bob.pk}/keys/{row.pk}"), 404)
    assert keys.authenticate(key).key_id == row.pk


# --------------------------------------------------------------------------------- usage


def test_usage_counts_jobs_credits_and_costs_by_day_and_model(
    shop: Shop, s3: str
) -> None:
    alice = make_account("alice", plan="pro", credits=100)
    bob = make_account("bob", plan="pro", credits=100)
    succeeded(make_job(alice, seconds=5))
    failed(make_job(alice, seconds=5))
    succeeded(make_job(bob, seconds=5))
    with connection.cursor() as cursor:
        cursor.execute("UPDATE jobs_job SET cost_microdollars = 250000")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    [row] = shop.get(f"accounts/{alice.pk}/usage").json()["data"]
    assert row == {
        "day": today,
        "account_id": str(alice.pk),
        "model": "motion",
        "jobs": 2,
        "succeeded": 1,
        "failed": 1,
        "canceled": 0,
        "video_seconds": 5.0,
        "charged_credits": 1.0,
        "refunded_credits": 0.0,
        "cost_usd": 0.5,
    }
    everybody = shop.get("usage", since=today, until=today).json()["data"]
    assert {row["account_id"] for row in everybody} == {str(alice.pk), str(bob.pk)}
    assert shop.get("usage", mode="test").json()["data"] == []
    assert shop.get("usage", until="2020-01-31").json()["data"] == []


# ------------------------------------------------------------------------------ bad input

BAD_BODIES: list[tuple[str, Any, str]] = [
    ("accounts", {}, "name"),
    ("accounts", {"name": 7}, "name"),
    ("accounts", {"name": "x" * 201}, "name"),
    ("accounts", {"name": "a\x00b"}, "name"),
    ("accounts", {"name": "a", "plan": "gold"}, "plan"),
    ("accounts", {"name": "a", "plann": "pro"}, "plann"),
    ("accounts", [], "body"),
    ("accounts", "text", "body"),
    ("accounts", None, "name"),
    ("A/grants", {"payment_id": "p", "credits": -1}, "credits"),
    ("A/grants", {"payment_id": "p", "credits": 0}, "credits"),
    ("A/grants", {"payment_id": "p", "credits": "10"}, "credits"),
    ("A/grants", {"payment_id": "p", "credits": True}, "credits"),
    ("A/grants", {"payment_id": "p", "credits": 0.0001}, "credits"),
    ("A/grants", {"payment_id": "p", "credits": 1e300}, "credits"),
    ("A/grants", {"payment_id": "", "credits": 1}, "payment_id"),
    ("A/grants", {"payment_id": "p", "credits": 1, "mode": "demo"}, "mode"),
    ("A/grants", {"payment_id": "p", "credits": 1, "expires_at": "soon"}, "expires_at"),
    (
        "A/grants",
        {"payment_id": "p", "credits": 1, "paid_amount": False},
        "paid_amount",
    ),
    (
        "A/grants",
        {"payment_id": "p", "credits": 1, "paid_amount": 10**400},
        "paid_amount",
    ),
    (
        "A/grants",
        {"payment_id": "p", "credits": 1, "expires_at": "2020-01-01T00:00:00Z"},
        "expires_at",
    ),
    (
        "A/grants",
        {"payment_id": "p", "credits": 1, "paid_currency": "euro"},
        "paid_currency",
    ),
    ("A/keys", {"scopes": []}, "scopes"),
    ("A/keys", {"scopes": ["root"]}, "scopes.0"),
    ("A/keys", {"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
    ("A/keys", {"expires_at": "2030-01-01T00:00:00"}, "expires_at"),
]


@pytest.mark.parametrize(("path", "body", "field"), BAD_BODIES)
def test_a_wrong_field_is_named(shop: Shop, path: str, body: Any, field: str) -> None:
    alice = make_account("alice")
    path = path.replace("A/", f"accounts/{alice.pk}/")
    before = (Account.objects.count(), Transfer.objects.count())
    answer = shop.call("POST", path, {} if body is None else body)
    refused(answer, 422, field)
    assert (Account.objects.count(), Transfer.objects.count()) == before


@pytest.mark.parametrize(
    "raw", [b"{", b"\xff\xfe", b'{"a": NaN}', b"[" * 50_000, b'"\\ud800"', b"1" * 9000]
)
def test_what_is_no_json_is_refused(shop: Shop, raw: bytes) -> None:
    answer = shop.http.generic(
        "POST",
        "/operator/v1/accounts",
        raw,
        content_type="application/json",
        headers={"authorization": f"Bearer {shop.key}"},
    )
    assert answer.status_code in (400, 422)
    assert answer["Content-Type"] == "application/problem+json"


def test_other_content_methods_and_paths_are_refused_as_problems(shop: Shop) -> None:
    form = shop.http.post(
        "/operator/v1/accounts",
        {"name": "x"},
        headers={"authorization": f"Bearer {shop.key}"},
    )
    refused(form, 415)
    refused(shop.call("PUT", "accounts"), 405)
    refused(shop.get("nowhere"), 404)
    refused(shop.get(f"accounts/{uuid4()}"), 404)
    refused(shop.get("accounts", limit=0), 422, "limit")
    refused(shop.get("accounts", page=2), 422, "page")
    refused(shop.get("usage", since="2020-01-02", until="2020-01-01"), 422, "since")
    refused(shop.get("usage", since="2018-01-01", until="2020-01-01"), 422, "since")
    refused(shop.get("usage", until="9999-12-31"), 422, "until")


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "grants/a%00b/take-back"), ("DELETE", "keys/a%00b")],
)
def test_an_id_that_cannot_be_is_not_found(shop: Shop, method: str, path: str) -> None:
    alice = make_account("alice")
    refused(shop.call(method, f"accounts/{alice.pk}/{path}", {}), 404)


@pytest.mark.django_db(transaction=True)
def test_one_payment_sent_by_many_at_once_is_credited_once(shop: Shop) -> None:
    alice = make_account("alice")
    statuses: list[int] = []

    def send() -> None:
        try:
            answer = shop.post(
                f"accounts/{alice.pk}/grants", payment_id="pay_1", credits=10
            )
            statuses.append(answer.status_code)
        finally:
            connection.close()

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 7 + [201]
    assert LogEntry.objects.filter(object_id=str(alice.pk)).count() == 1
    balance = ledger.balance(account_id=alice.pk, mode="live")
    assert balance.available_millicredits == 10_000


@pytest.mark.django_db(transaction=True)
def test_one_payment_taken_back_by_many_at_once_is_written_down_once(
    shop: Shop,
) -> None:
    alice = make_account("alice")
    grants = f"accounts/{alice.pk}/grants"
    shop.post(grants, payment_id="pay_1", credits=10)
    LogEntry.objects.all().delete()

    def send() -> None:
        try:
            assert shop.post(f"{grants}/pay_1/take-back").status_code == 200
        finally:
            connection.close()

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert LogEntry.objects.filter(object_id=str(alice.pk)).count() == 1
