"""Secrets the platform itself must use again, encrypted at rest with SECRETS_KEY.

SECRETS_KEY is one Fernet key, or several with commas between: the first encrypts, all
decrypt. To rotate, put a new one in front, run `manage.py rotate_secrets`, drop the old.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import models

from billing.errors import SecretUnreadable

if TYPE_CHECKING:
    _TextField = models.TextField[str, str]
else:
    _TextField = models.TextField

#: In front of every token, so that plain text in the column is noticed.
PREFIX: Final = "fernet:"


def encrypt(plaintext: str) -> str:
    return PREFIX + _fernet(settings.SECRETS_KEY).encrypt(plaintext.encode()).decode()


def decrypt(token: str) -> str:
    """Return the plain text, or raise SecretUnreadable."""
    try:
        return _fernet(settings.SECRETS_KEY).decrypt(_bare(token)).decode()
    except InvalidToken as error:
        raise SecretUnreadable("no key in SECRETS_KEY opens this secret") from error


def rotate(token: str) -> str:
    """Return the same secret, encrypted anew with the first key."""
    try:
        return PREFIX + _fernet(settings.SECRETS_KEY).rotate(_bare(token)).decode()
    except InvalidToken as error:
        raise SecretUnreadable("no key in SECRETS_KEY opens this secret") from error


def _bare(token: str) -> bytes:
    if not token.startswith(PREFIX):
        raise SecretUnreadable("this is not an encrypted secret")
    return token.removeprefix(PREFIX).encode()


@functools.lru_cache(maxsize=8)
def _fernet(keys: str) -> MultiFernet:
    try:
        return MultiFernet([Fernet(key.strip()) for key in keys.split(",")])
    except ValueError as error:
        raise ImproperlyConfigured(
            "SECRETS_KEY must be 32 bytes in URL-safe base64, or several with commas"
        ) from error


class EncryptedField(_TextField):
    """Text that is encrypted in the database and plain in Python; empty stays empty.

    It cannot be looked up by value. Show it write-only.
    """

    def from_db_value(
        self, value: str | None, expression: object, connection: object
    ) -> str | None:
        return decrypt(value) if value else value

    def get_prep_value(self, value: Any) -> Any:
        plain = super().get_prep_value(value)
        return encrypt(plain) if plain else plain
