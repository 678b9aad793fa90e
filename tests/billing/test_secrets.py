"""Secrets at rest: unreadable without SECRETS_KEY, readable through a rotation."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured

from billing import secrets
from billing.errors import SecretUnreadable


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
    assert field.from_db_value(stored, None, None) == "whsec_1"
    assert field.get_prep_value("") == ""
    assert field.get_prep_value(None) is None
    assert field.from_db_value("", None, None) == ""
