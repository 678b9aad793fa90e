"""Idempotency keys, as Stripe has them, for every creating call.

The answer is stored in the transaction that creates the job, so a key either has a
committed answer or none. The same key and body gets that answer again; another body is
refused; a repetition while the first still runs is told so. Refusals are not stored:
they created nothing and may be tried again. Secrets are not stored either: a repetition
learns what was made, and null in their place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import OperationalError, connection, transaction
from psycopg.errors import LockNotAvailable

from jobs.dialects.base import WireRequest, WireResponse
from jobs.errors import IdempotencyInFlight, IdempotencyMismatch, InvalidRequest
from jobs.models import IdempotencyRecord

KEY_MAX = 255
REPLAYED = "Idempotent-Replayed"


def once(
    *,
    account_id: UUID,
    mode: str,
    key: str | None,
    wire: WireRequest,
    create: Callable[[], WireResponse],
    shown_once: Sequence[str] = (),
) -> WireResponse:
    """Return the answer of ``create``, run at most once per key for 24 hours.

    ``create`` runs inside the transaction that stores its answer, all but the fields
    that are ``shown_once``.
    """
    if key is None:
        return create()
    if not 1 <= len(key) <= KEY_MAX or not key.isprintable() or not key.isascii():
        raise InvalidRequest(
            "Idempotency-Key", f"Must be 1 to {KEY_MAX} printable ASCII characters."
        )
    owner = {"account_id": account_id, "mode": mode, "key": key}
    fingerprint = _fingerprint(wire)
    with transaction.atomic():
        if not _reserve(owner, fingerprint):
            return _replay(IdempotencyRecord.objects.get(**owner), fingerprint)
        answer = create()
        IdempotencyRecord.objects.filter(**owner).update(
            status=answer.status,
            body=_kept(answer.body, shown_once),
            headers=dict(answer.headers),
        )
    return answer


def _reserve(owner: dict[str, Any], fingerprint: str) -> bool:
    """Take the key; False when it has an answer already."""
    try:
        with connection.cursor() as cursor:
            # Waits for a first call that is still running, but not for long.
            cursor.execute(
                "SELECT set_config('lock_timeout', %s, true)",
                [f"{settings.IDEMPOTENCY_LOCK_MS}ms"],
            )
            cursor.execute(
                "INSERT INTO jobs_idempotencyrecord"
                " (account_id, mode, key, fingerprint, status, headers, created_at)"
                " VALUES (%s, %s, %s, %s, 0, '{}', now())"
                " ON CONFLICT (account_id, mode, key) DO UPDATE"
                " SET fingerprint = EXCLUDED.fingerprint, created_at = now()"
                " WHERE jobs_idempotencyrecord.created_at"
                "       < now() - make_interval(secs => %s)",
                [*owner.values(), fingerprint, settings.IDEMPOTENCY_SECONDS],
            )
            taken = bool(cursor.rowcount == 1)
            cursor.execute("SELECT set_config('lock_timeout', '0', true)")
    except OperationalError as error:
        if isinstance(error.__cause__, LockNotAvailable):
            raise IdempotencyInFlight from error
        raise
    return taken


def _kept(body: Any, shown_once: Sequence[str]) -> Any:
    if not shown_once:
        return body
    return {**body, **dict.fromkeys(set(shown_once) & set(body))}


def _replay(record: IdempotencyRecord, fingerprint: str) -> WireResponse:
    if record.fingerprint != fingerprint:
        raise IdempotencyMismatch
    return WireResponse(
        record.status, record.body, {**record.headers, REPLAYED: "true"}
    )


def _fingerprint(wire: WireRequest) -> str:
    """Return the hash of route, body and files; key order of objects does not count."""
    hasher = hashlib.sha256(f"{wire.method} {wire.path}\n".encode())
    hasher.update(json.dumps(wire.body, sort_keys=True).encode())
    for name in sorted(wire.files):
        hasher.update(name.encode() + hashlib.sha256(wire.files[name].data).digest())
    return hasher.hexdigest()
