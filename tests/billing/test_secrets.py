"""Secrets at rest: unreadable without SECRETS_KEY, readable through a rotation."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection

from billing import secrets
from billing.errors import SecretUnreadable
from billing.models import ApiKey
from tests.factories import make_account, make_key


def test_what_was_encrypted_is_read_again() -> None:
    token = secrets.encrypt("whsec_ü")
    assert "whsec" not in token
    assert secrets.decrypt(token) == "whsec_ü"


def test_the_same_secret_never_looks_the_same() -> None:
    assert secrets.encrypt("s") != secrets.encrypt("s")


def test_a_rotation_reads_old_secrets_and_writes_new_ones(settings: Any) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    settings.SECRETS_KEY = old
    token = secrets.encrypt("secret")
    settings.SECRETS_KEY = f"{new}, {old}"
    assert secrets.decrypt(token) == "secret"
    rotated = secrets.rotate(token)
    settings.SECRETS_KEY = new
    assert secrets.decrypt(rotated) == "secret"
    with pytest.raises(SecretUnreadable):
        secrets.decrypt(token)


@pytest.mark.parametrize("token", ["", "plain text", "fernet:", "fernet:gAAAA", "ü"])
def test_what_is_not_ours_is_refused(token: str) -> None:
    with pytest.raises(SecretUnreadable):
        secrets.decrypt(token)
    with pytest.raises(SecretUnreadable):
        secrets.rotate(token)


def test_a_key_that_is_none_stops_us(settings: Any) -> None:
    settings.SECRETS_KEY = "too short"
    with pytest.raises(ImproperlyConfigured, match="SECRETS_KEY"):
        secrets.encrypt("secret")


def test_a_field_is_encrypted_on_its_way_to_the_database() -> None:
    field = secrets.EncryptedField()
    stored = field.get_prep_value("whsec_1")
    assert "whsec_1" not in stored
    assert field.get_prep_value(field.from_db_value(stored, None, None)) == stored
    assert field.get_prep_value("") == ""
    assert field.get_prep_value(None) is None
    assert field.from_db_value("", None, None) == ""


@pytest.mark.django_db
def test_a_row_whose_secret_does_not_open_is_listed_and_saved_as_it_is() -> None:
    good, bad = (make_key_row(name) for name in ("good", "bad"))
    ApiKey.objects.filter(pk=bad.pk).update(name="kept")
    spoil(bad)
    rows = {row.pk: row for row in ApiKey.objects.all()}
    assert rows[good.pk].client_secret == "plain"
    row = rows[bad.pk]
    with pytest.raises(SecretUnreadable):
        str(row.client_secret)
    row.save()
    assert stored(bad) == "fernet:spoiled"
    row.client_secret = "anew"
    row.save()
    assert ApiKey.objects.get(pk=bad.pk).client_secret == "anew"


@pytest.mark.django_db
def test_the_command_encrypts_every_secret_with_the_first_key(settings: Any) -> None:
    row = make_key_row("shop")
    new = Fernet.generate_key().decode()
    settings.SECRETS_KEY = f"{new}, {settings.SECRETS_KEY}"
    call_command("rotate_secrets", stdout=StringIO())
    settings.SECRETS_KEY = new
    assert ApiKey.objects.get(pk=row.pk).client_secret == "plain"


def make_key_row(name: str) -> ApiKey:
    make_key(make_account(name))
    row = ApiKey.objects.get(account__name=name)
    row.client_secret = "plain"
    row.save(update_fields=["client_secret"])
    return row


def spoil(row: ApiKey) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE billing_apikey SET client_secret = 'fernet:spoiled' WHERE id = %s",
            [row.pk],
        )


def stored(row: ApiKey) -> str:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT client_secret FROM billing_apikey WHERE id = %s", [row.pk]
        )
        return str(cursor.fetchone()[0])
