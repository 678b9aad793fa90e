"""Passwords that were made for somebody, who must choose their own at the first sign-in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from billing.models import OneTimePassword

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser, AnonymousUser


def has_one_time_password(user: AbstractBaseUser | AnonymousUser) -> bool:
    if user.pk is None:
        return False
    return OneTimePassword.objects.filter(user_id=user.pk).exists()


def make_one_time(user: AbstractBaseUser) -> None:
    """Have the user change the password that was just set for them."""
    OneTimePassword.objects.get_or_create(user_id=user.pk)


def keep_own_password(user: AbstractBaseUser | AnonymousUser) -> None:
    """Note that the user has chosen the password."""
    if user.pk is not None:
        OneTimePassword.objects.filter(user_id=user.pk).delete()
