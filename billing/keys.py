"""API keys: mint, recognise, list, revoke.

A key reads `zoe_live_<8>_<43>_<6>`: mode, id, 256-bit secret and a CRC-32 of all before
it, in base62. Only an HMAC-SHA256 under API_KEY_PEPPER is stored. A malformed key is
refused without asking the database; every other failure does the same work and raises
the same InvalidKey. Good keys are remembered for a few seconds, so a revoked key or a
disabled account stops within CACHE_SECONDS, everywhere.

A key may have a client pair as well: an id of 16 and a secret of 32 characters, the last
six a checksum, for clients that know nothing longer. The secret is then as good as the
key, with the same rights, limits and end.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Case, F, QuerySet, When
from django.db.models.functions import Now

from billing import touches
from billing.errors import (
    BadRequest,
    InvalidKey,
    MissingScope,
    UnknownAccount,
    UnknownKey,
)
from billing.models import Account, ApiKey, Mode
from billing.plans import PlanTerms, terms_of

SCOPES: Final = ("jobs:write", "jobs:read", "billing:read", "admin")
#: Names other services use for the same right.
SCOPE_ALIASES: Final = {
    "magicoal:generate": "jobs:write",
    "magicoal:read": "jobs:read",
}
#: How long a good key is believed without asking the database.
CACHE_SECONDS: Final = 3.0
CACHE_SIZE: Final = 10_000
#: Live keys of one account and mode: enough to rotate, too few to fill the table.
MAX_KEYS: Final = 100

_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SHAPE: Final = re.compile(
    r"zoe_(?P<mode>live|test)_(?P<id>[0-9A-Za-z]{8})_[0-9A-Za-z]{43}"
    r"_(?P<check>[0-9A-Za-z]{6})"
)


#: 155 bits in 26 characters, and their checksum: what fits an AES-256 key.
_CLIENT_SECRET: Final = re.compile(r"[0-9A-Za-z]{26}(?P<check>[0-9A-Za-z]{6})")


@dataclass(frozen=True)
class Credential:
    """Who is asking: a good key, its account and what the plan allows."""

    account_id: UUID
    key_id: str
    mode: str
    scopes: frozenset[str]
    plan: PlanTerms
    expires_at: datetime | None
    requests_per_minute: int | None
    daily_spend_cap_millicredits: int | None
    account_daily_spend_cap_millicredits: int | None

    def require(self, scope: str) -> None:
        """Raise MissingScope unless the key may do ``scope`` (or its alias)."""
        if SCOPE_ALIASES.get(scope, scope) not in self.scopes:
            raise MissingScope(scope)


# --- Making and recognising -----------------------------------------------------------


def mint(
    account: Account,
    mode: str,
    scopes: Iterable[str] = SCOPES,
    expires_at: datetime | None = None,
    *,
    name: str = "",
    daily_spend_cap_millicredits: int | None = None,
) -> tuple[ApiKey, str]:
    """Make a key; return its row and the key itself, which nobody can show again."""
    if mode not in Mode.values:
        raise BadRequest("mode", f"must be one of {', '.join(Mode.values)}")
    key_id = base62(secrets.randbelow(62**8), 8)
    secret = base62(int.from_bytes(secrets.token_bytes(32)), 43)
    unchecked = f"zoe_{mode}_{key_id}_{secret}"
    key = ApiKey(
        id=key_id,
        account=account,
        mode=mode,
        name=name,
        digest=digest_of(unchecked),
        scopes=list(canonical_scopes(scopes)),
        expires_at=expires_at,
        daily_spend_cap_millicredits=daily_spend_cap_millicredits,
    )
    key.save(force_insert=True)
    key.refresh_from_db(fields=["created_at"])
    return key, f"{unchecked}_{checksum(unchecked)}"


def canonical_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """Return the scopes by our own names, in a fixed order; refuse unknown ones."""
    wanted = {SCOPE_ALIASES.get(scope, scope) for scope in scopes}
    unknown = sorted(wanted - set(SCOPES))
    if unknown:
        raise BadRequest("scopes", f"unknown scope {unknown[0]}; known: {SCOPES}")
    if not wanted:
        raise BadRequest("scopes", "a key needs at least one scope")
    return tuple(scope for scope in SCOPES if scope in wanted)


def is_well_formed(presented: str) -> bool:
    """Say by its form and checksum alone whether this may be one of our keys."""
    shape = _SHAPE.fullmatch(presented) or _CLIENT_SECRET.fullmatch(presented)
    return shape is not None and hmac.compare_digest(
        checksum(_unchecked(presented)), shape["check"]
    )


def _unchecked(presented: str) -> str:
    return presented[:-6].removesuffix("_")


def authenticate(presented: str) -> Credential:
    """Return who the key belongs to, or raise InvalidKey."""
    # fullmatch also bounds the length, so nothing large is ever hashed
    if not is_well_formed(presented):
        raise InvalidKey
    digest = digest_of(_unchecked(presented))
    credential = _remembered(digest)
    if credential is None:
        credential = _look_up(presented, digest)
        _remember(digest, credential)
    touches.note(credential.key_id)
    return credential


def on_behalf_of(account_id: UUID, mode: str) -> Credential:
    """Return what lets an operator act for the account, without a key of its own.

    Raises UnknownAccount.
    """
    account = Account.objects.select_related("plan").filter(pk=account_id).first()
    if account is None:
        raise UnknownAccount(f"no account {account_id}")
    return Credential(
        account_id=account.pk,
        key_id="",
        mode=mode,
        scopes=frozenset(SCOPES),
        plan=terms_of(account.plan, is_trusted=account.is_trusted),
        expires_at=None,
        requests_per_minute=None,
        daily_spend_cap_millicredits=None,
        account_daily_spend_cap_millicredits=account.daily_spend_cap_millicredits,
    )


def _look_up(presented: str, digest: bytes) -> Credential:
    known = ApiKey.objects.select_related("account", "account__plan").defer(
        "client_secret"  # what is not decrypted cannot fail
    )
    if presented.startswith("zoe_"):
        key = known.filter(pk=presented.split("_")[2]).first()
        stored = bytes(key.digest) if key is not None else bytes(len(digest))
    else:
        key = known.filter(client_digest=digest).first()
        stored = digest
    is_same = hmac.compare_digest(stored, digest)
    if key is None or not (is_same and _is_usable(key)):
        raise InvalidKey
    return Credential(
        account_id=key.account_id,
        key_id=key.pk,
        mode=key.mode,
        scopes=frozenset(key.scopes),
        plan=terms_of(key.account.plan, is_trusted=key.account.is_trusted),
        expires_at=key.expires_at,
        requests_per_minute=key.requests_per_minute,
        daily_spend_cap_millicredits=key.daily_spend_cap_millicredits,
        account_daily_spend_cap_millicredits=key.account.daily_spend_cap_millicredits,
    )


def _is_usable(key: ApiKey) -> bool:
    return (
        key.account.is_active
        and key.revoked_at is None
        and (key.expires_at is None or key.expires_at > datetime.now(UTC))
    )


def digest_of(unchecked: str) -> bytes:
    """Return what is stored of a key: an HMAC of all before its checksum."""
    pepper = settings.API_KEY_PEPPER.encode()
    return hmac.digest(pepper, unchecked.encode(), hashlib.sha256)


def checksum(unchecked: str) -> str:
    """Return the last part of a key, which finds mistyped ones without a question."""
    return base62(zlib.crc32(unchecked.encode()), 6)


def base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))


# --- Client pairs ---------------------------------------------------------------------


def give_pair(key: ApiKey) -> None:
    """Give a key its client pair; ``key`` has id and secret, to be shown this once."""
    unchecked = base62(secrets.randbelow(62**26), 26)
    key.client_id = base62(secrets.randbelow(62**16), 16)
    key.client_secret = unchecked + checksum(unchecked)
    key.client_digest = digest_of(unchecked)
    key.save(update_fields=["client_id", "client_secret", "client_digest"])


def is_client_id(key_id: str, presented: str) -> bool:
    """Say whether this is the id that goes with the key: its own, or its pair's."""
    pair = ApiKey.objects.filter(pk=key_id).values_list("client_id", flat=True).first()
    return any(
        hmac.compare_digest(one.encode(), presented.encode())
        for one in (key_id, pair)
        if one
    )


def pair_for(account_id: UUID, mode: str, *, key_id: str) -> tuple[str, str] | None:
    """Return the id and secret to seal with what is for the account; None without any.

    Of several pairs one that still works, then the given key's own, then the newest.
    """
    found = (
        ApiKey.objects.filter(account_id=account_id, mode=mode, client_id__isnull=False)
        .exclude(client_secret="")
        .order_by(
            F("revoked_at").asc(nulls_first=True),
            Case(When(pk=key_id, then=0), default=1),
            "-created_at",
        )
        .first()
    )
    if found is None or found.client_id is None:
        return None
    return found.client_id, found.client_secret


# --- Remembering good keys ------------------------------------------------------------

# digest -> (monotonic deadline, credential); the plain key is never kept
_good: OrderedDict[bytes, tuple[float, Credential]] = OrderedDict()
_good_lock = threading.Lock()


def _remembered(digest: bytes) -> Credential | None:
    with _good_lock:
        deadline, credential = _good.get(digest, (0.0, None))
    if credential is None or time.monotonic() >= deadline:
        return None
    if credential.expires_at and credential.expires_at <= datetime.now(UTC):
        return None
    return credential


def _remember(digest: bytes, credential: Credential) -> None:
    with _good_lock:
        _good[digest] = (time.monotonic() + CACHE_SECONDS, credential)
        _good.move_to_end(digest)
        while len(_good) > CACHE_SIZE:
            _good.popitem(last=False)


def forget() -> None:
    """Drop every remembered key of this process."""
    with _good_lock:
        _good.clear()


# --- An account's keys ----------------------------------------------------------------


def keys_of(account_id: UUID) -> QuerySet[ApiKey]:
    """Return the account's keys, newest first, revoked and expired ones included."""
    mine = ApiKey.objects.filter(account_id=account_id).defer("client_secret")
    return mine.order_by("-created_at", "pk")


@transaction.atomic
def create_key(
    *,
    account_id: UUID,
    mode: str,
    scopes: Iterable[str],
    name: str = "",
    expires_at: datetime | None = None,
    daily_spend_cap_millicredits: int | None = None,
    with_pair: bool = False,
) -> tuple[ApiKey, str]:
    """Make another key of the account; several may live at once, for rotation."""
    account = Account.objects.select_for_update(no_key=True).get(pk=account_id)
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise BadRequest("expires_at", "must lie in the future")
    unrevoked = ApiKey.objects.filter(
        account=account, mode=mode, revoked_at__isnull=True
    )
    if unrevoked.exclude(expires_at__lte=Now()).count() >= MAX_KEYS:
        raise BadRequest(
            "mode", f"the account has {MAX_KEYS} working {mode} keys; revoke one first"
        )
    key, plaintext = mint(
        account,
        mode,
        scopes,
        expires_at,
        name=name,
        daily_spend_cap_millicredits=daily_spend_cap_millicredits,
    )
    if with_pair:
        give_pair(key)
    return key, plaintext


def revoke_all(account_id: UUID) -> int:
    """Stop every key of the account for good; return how many still worked."""
    stopped = ApiKey.objects.filter(
        account_id=account_id, revoked_at__isnull=True
    ).update(revoked_at=Now())
    forget()
    return stopped


def revoke(*, account_id: UUID, key_id: str) -> ApiKey:
    """Stop a key of this account for good; twice is once. Raises UnknownKey."""
    mine = ApiKey.objects.filter(account_id=account_id, pk=key_id)
    mine.filter(revoked_at__isnull=True).update(revoked_at=Now())
    key = mine.first()
    if key is None:
        raise UnknownKey(f"no API key {key_id}")
    # Other processes follow within CACHE_SECONDS; this one at once.
    forget()
    return key


def revoked(since: datetime | None = None) -> list[str]:
    """Return the ids of all revoked keys, or of those revoked since then."""
    stopped = ApiKey.objects.filter(revoked_at__isnull=False)
    if since is not None:
        stopped = stopped.filter(revoked_at__gte=since)
    return list(stopped.values_list("pk", flat=True))


def account_of_live(key_id: str) -> UUID | None:
    """Return whose key this is, or None where it is revoked or unknown."""
    live = ApiKey.objects.filter(pk=key_id, revoked_at__isnull=True)
    return live.values_list("account_id", flat=True).first()
