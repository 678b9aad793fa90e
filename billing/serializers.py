"""The JSON of keys and ledger on the native API, read and written.

Credits on the wire are numbers with up to three decimals; times are ISO 8601 in UTC.
Reading raises BadRequest naming the field.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from billing import keys, ledger
from billing.errors import BadRequest, MissingScope
from billing.keys import Credential
from billing.ledger import Movement
from billing.models import ApiKey, Mode

KEY_FIELDS: Final = frozenset(
    {
        "mode",
        "scopes",
        "name",
        "expires_at",
        "daily_spend_cap_credits",
        "client_pair",
    }
)
DEFAULT_SCOPES: Final = ("jobs:write", "jobs:read", "billing:read")
PAGE_MAX: Final = 100
PAGE_DEFAULT: Final = 50


def credits_of(millicredits: int) -> float:
    return millicredits / 1000


# --- Keys -----------------------------------------------------------------------------


def list_keys(credential: Credential) -> dict[str, Any]:
    """`GET /v1/keys`: the account's keys, without their secrets."""
    credential.require("admin")
    return {"data": [key_data(key) for key in keys.keys_of(credential.account_id)]}


def create_key(credential: Credential, body: Mapping[str, Any]) -> dict[str, Any]:
    """`POST /v1/keys`: the new key, which is shown this once."""
    credential.require("admin")
    unknown = sorted(set(body) - KEY_FIELDS)
    if unknown:
        raise BadRequest(unknown[0], f"unknown field; known: {sorted(KEY_FIELDS)}")
    mode = body.get("mode", credential.mode)
    if mode not in Mode.values:
        raise BadRequest("mode", f"must be one of {', '.join(Mode.values)}")
    _require_mode(credential, mode)
    key, plaintext = keys.create_key(
        account_id=credential.account_id,
        mode=mode,
        scopes=_scopes(body.get("scopes", list(DEFAULT_SCOPES))),
        name=_name(body.get("name", "")),
        expires_at=_time("expires_at", body.get("expires_at")),
        daily_spend_cap_millicredits=_millicredits(
            "daily_spend_cap_credits", body.get("daily_spend_cap_credits")
        ),
        with_pair=_flag("client_pair", body.get("client_pair", False)),
    )
    return new_key_data(key, plaintext)


def revoke_key(credential: Credential, key_id: str) -> dict[str, Any]:
    """`DELETE /v1/keys/{id}`: the key stops within seconds; raises UnknownKey."""
    credential.require("admin")
    for key in keys.keys_of(credential.account_id):
        if key.pk == key_id:
            _require_mode(credential, key.mode)
    revoked = keys.revoke(account_id=credential.account_id, key_id=key_id)
    return key_data(revoked)


def _require_mode(credential: Credential, mode: str) -> None:
    """A test key, which people leave about, must not reach live ones."""
    if credential.mode == Mode.TEST and mode == Mode.LIVE:
        raise MissingScope("admin (live)")


def new_key_data(key: ApiKey, plaintext: str) -> dict[str, Any]:
    """Return a key just made, with what is shown this once."""
    return {
        **key_data(key),
        "key": plaintext,
        "client_secret": key.client_secret or None,
    }


def key_data(key: ApiKey) -> dict[str, Any]:
    cap = key.daily_spend_cap_millicredits
    return {
        "id": key.pk,
        "object": "api_key",
        "name": key.name,
        "mode": key.mode,
        "prefix": str(key),
        "client_id": key.client_id,
        "scopes": list(key.scopes),
        "daily_spend_cap_credits": None if cap is None else credits_of(cap),
        "created_at": _stamp(key.created_at),
        "expires_at": _stamp(key.expires_at),
        "revoked_at": _stamp(key.revoked_at),
        "last_used_at": _stamp(key.last_used_at),
    }


# --- Ledger ---------------------------------------------------------------------------


def list_ledger(credential: Credential, query: Mapping[str, str]) -> dict[str, Any]:
    """`GET /v1/ledger?limit=&cursor=`: the movements of this key's wallet, newest first."""
    credential.require("billing:read")
    limit = _limit(query.get("limit"))
    found = ledger.statement(
        account_id=credential.account_id,
        mode=credential.mode,
        before=_cursor(query.get("cursor")),
        limit=limit + 1,
    )
    page, has_more = found[:limit], len(found) > limit
    return {
        "object": "list",
        "data": [movement_data(movement) for movement in page],
        "has_more": has_more,
        "next_cursor": _cursor_after(page[-1]) if has_more else None,
    }


def movement_data(movement: Movement) -> dict[str, Any]:
    return {
        "id": str(movement.id),
        "object": "movement",
        "kind": movement.kind,
        "reference": movement.reference,
        "available_credits": credits_of(movement.available_millicredits),
        "held_credits": credits_of(movement.held_millicredits),
        "available_after_credits": credits_of(movement.available_after_millicredits),
        "held_after_credits": credits_of(movement.held_after_millicredits),
        "reason": movement.reason,
        "created_at": _stamp(movement.created_at),
    }


# --- Fields ---------------------------------------------------------------------------


def _scopes(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise BadRequest("scopes", "must be a list of strings")
    return keys.canonical_scopes(value)


def _name(value: object) -> str:
    if not isinstance(value, str) or len(value) > 100 or not value.isprintable():
        raise BadRequest("name", "must be at most 100 printable characters")
    return value


def _flag(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(field, "must be true or false")
    return value


def _time(field: str, value: object) -> datetime | None:
    if value is None:
        return None
    reason = "must be an ISO 8601 time with its zone, such as 2030-01-31T00:00:00Z"
    if not isinstance(value, str) or len(value) > 40:
        raise BadRequest(field, reason)
    try:
        time = datetime.fromisoformat(value)
        if time.tzinfo is None:
            raise BadRequest(field, reason)
        return time.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise BadRequest(field, reason) from error


def _millicredits(field: str, value: object) -> int | None:
    if value is None:
        return None
    # bool is an int to Python, not to the customer
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(field, "must be a number of credits")
    if not 0 <= value <= 10**12:
        raise BadRequest(field, "must be 0 or more")
    return round(value * 1000)


def _limit(value: str | None) -> int:
    if value is None:
        return PAGE_DEFAULT
    if not (value.isascii() and value.isdigit() and len(value) <= 4):
        raise BadRequest("limit", f"must be a whole number from 1 to {PAGE_MAX}")
    limit = int(value)
    if not 1 <= limit <= PAGE_MAX:
        raise BadRequest("limit", f"must be a whole number from 1 to {PAGE_MAX}")
    return limit


def _cursor(value: str | None) -> int | None:
    if value is None:
        return None
    try:
        number = base64.urlsafe_b64decode(value.encode("ascii")).decode("ascii")
    except (ValueError, binascii.Error) as error:
        raise BadRequest("cursor", "is not one of ours") from error
    if not (number.isdigit() and len(number) <= 18):
        raise BadRequest("cursor", "is not one of ours")
    return int(number)


def _cursor_after(movement: Movement) -> str:
    return base64.urlsafe_b64encode(str(movement.id).encode()).decode()


def _stamp(time: datetime | None) -> str | None:
    if time is None:
        return None
    return (
        time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
