"""Keys to the operator API: mint, recognise, revoke.

A key reads `zoe_operator_<8>_<43>_<6>`, built and stored as customers' keys are. It acts
in the name of one operator and stops with that person. It is looked up at each call: the
operator API is called seldom, and a revoked key must stop at once.
"""

from __future__ import annotations

import hmac
import re
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from django.db.models.functions import Now

from billing.errors import BadRequest, InvalidKey, UnknownKey
from billing.keys import base62, checksum, digest_of
from billing.models import OperatorKey as OperatorKey

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser

_SHAPE: Final = re.compile(
    r"zoe_operator_(?P<id>[0-9A-Za-z]{8})_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}"
)


def mint(
    user: AbstractBaseUser, *, name: str, expires_at: datetime | None = None
) -> tuple[OperatorKey, str]:
    """Make a key; return its row and the key itself, which nobody can show again."""
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise BadRequest("expires_at", "must lie in the future")
    key_id = base62(secrets.randbelow(62**8), 8)
    secret = base62(int.from_bytes(secrets.token_bytes(32)), 43)
    unchecked = f"zoe_operator_{key_id}_{secret}"
    key = OperatorKey(
        id=key_id,
        user_id=user.pk,
        name=name,
        digest=digest_of(unchecked),
        expires_at=expires_at,
    )
    key.save(force_insert=True)
    return key, f"{unchecked}_{checksum(unchecked)}"


def authenticate(presented: str) -> OperatorKey:
    """Return the key's row with its user, or raise InvalidKey, whatever was wrong."""
    shape = _SHAPE.fullmatch(presented)
    unchecked = presented[:-7]
    if shape is None or not hmac.compare_digest(checksum(unchecked), presented[-6:]):
        raise InvalidKey
    digest = digest_of(unchecked)
    key = OperatorKey.objects.select_related("user").filter(pk=shape["id"]).first()
    stored = bytes(key.digest) if key is not None else bytes(len(digest))
    is_same = hmac.compare_digest(stored, digest)
    if key is None or not (is_same and _is_usable(key)):
        raise InvalidKey
    return key


def _is_usable(key: OperatorKey) -> bool:
    return (
        key.user.is_active
        and key.user.is_staff
        and key.revoked_at is None
        and (key.expires_at is None or key.expires_at > datetime.now(UTC))
    )


def revoke(key_id: str) -> OperatorKey:
    """Stop a key for good; twice is once. Raises UnknownKey."""
    OperatorKey.objects.filter(pk=key_id, revoked_at__isnull=True).update(
        revoked_at=Now()
    )
    key = OperatorKey.objects.filter(pk=key_id).first()
    if key is None:
        raise UnknownKey(f"no operator key {key_id}")
    return key


def revoked(since: datetime | None = None) -> list[str]:
    """Return the ids of all revoked keys, or of those revoked since then."""
    stopped = OperatorKey.objects.filter(revoked_at__isnull=False)
    if since is not None:
        stopped = stopped.filter(revoked_at__gte=since)
    return list(stopped.values_list("pk", flat=True))


def is_live(key_id: str) -> bool:
    return OperatorKey.objects.filter(pk=key_id, revoked_at__isnull=True).exists()
