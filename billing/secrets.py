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
from django.db.models.query_utils import DeferredAttribute

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


class _Sealed(str):
    """A token as it lies in the database."""

    __slots__ = ()


class _Opening(DeferredAttribute):
    """Opens a secret where it is read, so that its row can be had if it does not open."""

    def __get__(self, instance: Any, cls: Any = None) -> Any:
        value = super().__get__(instance, cls)
        return decrypt(value) if isinstance(value, _Sealed) else value

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self.field.attname] = value


class EncryptedField(_TextField):
    """Text that is encrypted in the database and plain in Python; empty stays empty.

    Reading the attribute raises SecretUnreadable where no key opens it; its row can be
    listed, and saved with what it holds. It cannot be looked up by value. Show it
    write-only.
    """

    descriptor_class = _Opening

    def from_db_value(
        self, value: str | None, expression: object, connection: object
    ) -> str | None:
        return _Sealed(value) if value else value

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        return model_instance.__dict__[self.attname]

    def get_prep_value(self, value: Any) -> Any:
        if isinstance(value, _Sealed):
            return str(value)
        plain = super().get_prep_value(value)
        return encrypt(plain) if plain else plain
