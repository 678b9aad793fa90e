"""Of several housekeepers or pollers one works: the one that holds an advisory lock.

The lock belongs to a connection and dies with it, and whoever leads asks for it in each
round. So Postgres knows which of the two loops lives and when it was last heard, and any
process can ask: a loop that died cannot say so itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from django.conf import settings
from django.db import connection

#: One of two 32-bit numbers of each advisory lock; the other is the database's own.
LOCKS: Final[Mapping[str, int]] = {"housekeeper": 7_263_001, "poller": 7_263_002}

_LEAD: Final = """
SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = %(lock)s
                  AND pid = pg_backend_pid() AND granted
                  AND database = (SELECT oid FROM pg_database
                                   WHERE datname = current_database()))
    OR pg_try_advisory_lock(%(lock)s)
"""
# A role that may not see when another's connection was last used counts it as just now.
_SILENCES: Final = """
SELECT loop.name, (
       SELECT min(coalesce(extract(epoch FROM clock_timestamp() - a.state_change), 0))
         FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE l.locktype = 'advisory' AND l.granted AND l.objid = loop.lock
          AND l.database = (SELECT oid FROM pg_database
                             WHERE datname = current_database()))::float8
  FROM unnest(%(names)s::text[], %(locks)s::oid[]) AS loop(name, lock)
"""


def leads(name: str) -> bool:
    """Take or keep the loop's lock for this connection; False while another has it."""
    with connection.cursor() as cursor:
        cursor.execute(_LEAD, {"lock": LOCKS[name]})
        (is_ours,) = cursor.fetchone()
    return bool(is_ours)


def silences() -> dict[str, float | None]:
    """Return for each loop the seconds since it was heard; None: nobody leads."""
    with connection.cursor() as cursor:
        cursor.execute(_SILENCES, {"names": list(LOCKS), "locks": list(LOCKS.values())})
        return dict(cursor.fetchall())


def is_alive(silent_seconds: float | None) -> bool:
    return silent_seconds is not None and silent_seconds <= settings.DEAD_WORKER_SECONDS


def state_of(silent_seconds: float | None) -> str:
    """Return a loop's state in words: ok, silent or not running."""
    if silent_seconds is None:
        return "not running"
    return "ok" if is_alive(silent_seconds) else "silent"
