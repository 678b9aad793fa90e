"""The operator's pages: all open, the ledger cannot be edited, prices only grow."""

from __future__ import annotations

from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.test import Client
from django.urls import include, path

from billing import keys, prices
from billing.models import ApiKey, PriceRow, Wallet
from tests.billing.factories import Customer

urlpatterns = [
    path("admin/", admin.site.urls),
    path("i18n/", include("django.conf.urls.i18n")),
]
pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]

REGISTERED = [
    model
    for model in apps.get_app_config("billing").get_models()
    if admin.site.is_registered(model)
]
BOOKS = ["wallet", "creditgrant", "transfer", "entry", "hold", "purchase"]


@pytest.fixture
def olga(client: Client) -> Client:
    """An operator with every right."""
    client.force_login(
        get_user_model().objects.create_superuser("olga"),
        backend="django.contrib.auth.backends.ModelBackend",
    )
    return client


@pytest.fixture
def busy(alice: Customer) -> Customer:
    keys.mint(alice.account, "live")
    alice.hold(20, "video-1")
    alice.capture("video-1", 15)
    return alice


@pytest.mark.parametrize("model", REGISTERED, ids=lambda model: model._meta.model_name)
def test_every_list_and_page_opens(olga: Client, busy: Customer, model: Any) -> None:
    name = model._meta.model_name
    assert olga.get(f"/admin/billing/{name}/?q=a").status_code == 200
    listed = olga.get(f"/admin/billing/{name}/")
    assert listed.status_code == 200
    row = model.objects.first()
    if row is not None:
        page = olga.get(f"/admin/billing/{name}/{row.pk}/change/")
        assert page.status_code == 200


@pytest.mark.parametrize("name", BOOKS)
def test_nobody_can_edit_the_books(olga: Client, busy: Customer, name: str) -> None:
    model = apps.get_model("billing", name)
    row = model.objects.first()
    assert olga.get(f"/admin/billing/{name}/add/").status_code == 403
    if row is None:
        return
    before = model.objects.filter(pk=row.pk).values().get()
    url = f"/admin/billing/{name}/{row.pk}"
    assert olga.post(f"{url}/change/", {"available": 1}).status_code == 403
    assert olga.post(f"{url}/delete/", {"post": "yes"}).status_code == 403
    assert model.objects.filter(pk=row.pk).values().get() == before


def test_a_keys_page_shows_no_digest(olga: Client, busy: Customer) -> None:
    key = ApiKey.objects.get(account=busy.id)
    page = olga.get(f"/admin/billing/apikey/{key.pk}/change/").content.decode()
    assert key.pk in page
    assert bytes(key.digest).hex() not in page
    assert "digest" not in page


def test_an_account_made_in_the_admin_has_both_wallets(olga: Client) -> None:
    answer = olga.post(
        "/admin/billing/account/add/",
        {
            "name": "Acme",
            "plan": "pro",
            "is_active": "on",
            "reason": "a new customer",
            "wallets-TOTAL_FORMS": 0,
            "wallets-INITIAL_FORMS": 0,
            "members-TOTAL_FORMS": 0,
            "members-INITIAL_FORMS": 0,
        },
    )
    assert answer.status_code == 302
    made = Wallet.objects.filter(account__name="Acme")
    assert {wallet.mode for wallet in made} == {"live", "test"}


def test_editing_a_price_publishes_a_new_version(olga: Client) -> None:
    row = PriceRow.objects.get(model="wan2.1-i2v", resolution="480p")
    answer = olga.post(
        f"/admin/billing/pricerow/{row.pk}/change/",
        {
            "resolution": "480p",
            "seconds": "",
            "options": "{}",
            "unit": "job",
            "unit_size": 1,
            "amount_millicredits": 21_000,
            "reason": "GPUs cost more",
            "effective_from_0": row.effective_from.date().isoformat(),
            "effective_from_1": row.effective_from.time().isoformat(),
        },
    )
    assert answer.status_code == 302
    prices.forget()
    usage = prices.Usage("wan2.1-i2v", resolution="480p", frames=81)
    quoted = prices.quote_now(usage)
    assert (quoted.amount_millicredits, quoted.price_version) == (21_000, 2)
    row.refresh_from_db()
    assert row.amount_millicredits == 20_000


def test_a_price_for_a_case_of_its_own_is_added(olga: Client) -> None:
    answer = olga.post(
        "/admin/billing/pricerow/add/",
        {
            "model": "motion",
            "operation": "video",
            "resolution": "",
            "seconds": "3",
            "options": "{}",
            "unit": "second",
            "unit_size": 1,
            "prorata": "on",
            "amount_millicredits": 2000,
            "reason": "three seconds are special",
            "effective_from_0": "2026-01-01",
            "effective_from_1": "00:00:00",
        },
    )
    assert answer.status_code == 302
    prices.forget()
    usage = prices.Usage("motion", seconds=3)
    assert prices.quote_now(usage).amount_millicredits == 6000
