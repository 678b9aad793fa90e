"""What was stopped for good, kept in storage: a restored database does not know it.

Without this, an old backup brings revoked keys, deleted customers and disabled accounts
back. Beside the files there is one empty object for each of them, written by the
housekeeper within seconds and never deleted; ``restoring`` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, cast, get_args

from billing import accounts, keys, operator_keys
from jobs import context

Kind = Literal["key", "operator-key", "account-deleted", "account-disabled"]
FOLDER: Final = "stopped"
#: A revocation shows its time before its transaction shows it.
OVERLAP: Final = timedelta(minutes=10)


@dataclass(frozen=True)
class Stop:
    """One fact; ``at`` is when storage got it."""

    kind: Kind
    subject: str
    at: datetime


class Writer:
    """Writes what was stopped since it last looked; at first, whatever is missing."""

    def __init__(self) -> None:
        self._known: set[tuple[str, str]] | None = None
        self._since: datetime | None = None

    def look(self) -> None:
        """Bring storage up to date. Should it fail, the next look does it."""
        began = datetime.now(UTC)
        if self._known is None:
            self._known = {(stop.kind, stop.subject) for stop in written()}
        disabled = {str(account_id) for account_id in accounts.disabled()}
        # Enabled again: the next time it is disabled is news.
        self._known -= {
            (kind, subject)
            for kind, subject in self._known
            if kind == "account-disabled" and subject not in disabled
        }
        found: list[tuple[Kind, str]] = [
            *(("key", key) for key in keys.revoked(self._since)),
            *(("operator-key", key) for key in operator_keys.revoked(self._since)),
            *(("account-deleted", str(pk)) for pk in accounts.deleted(self._since)),
            *(("account-disabled", pk) for pk in disabled),
        ]
        for kind, subject in found:
            if (kind, subject) not in self._known:
                _write(kind, subject, began)
                self._known.add((kind, subject))
        self._since = began - OVERLAP


def _write(kind: Kind, subject: str, at: datetime) -> None:
    name = f"{FOLDER}/{kind}/{subject}"
    if kind == "account-disabled":
        # Not for good: each time counts.
        name += f"/{at:%Y%m%dT%H%M%S.%fZ}"
    context.get().storage.put_bytes(name, b"", content_type="text/plain")


def written() -> Iterator[Stop]:
    """Yield everything that storage knows to be stopped."""
    for file in context.get().storage.list(f"{FOLDER}/"):
        kind, _, rest = file.key.removeprefix(f"{FOLDER}/").partition("/")
        if kind in get_args(Kind):
            subject = rest.partition("/")[0]
            yield Stop(cast("Kind", kind), subject, file.modified_at)
