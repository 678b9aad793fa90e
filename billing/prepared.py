"""Hot SQL, sent in a way that lets Postgres keep it prepared.

Django's own cursor puts the values into the text, which is then planned anew each time:
on tables with many indexes that takes longer than the statement itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from django.conf import settings
from django.db import connection
from django.db.backends.utils import CursorDebugWrapper, CursorWrapper
from psycopg import Cursor

#: A statement seen this often on a connection stays prepared there. Planning was most of
#: the work: Postgres spent 0.9 ms on a hold with prepared statements, 2.4 ms without.
PREPARE_AFTER: Final = 5


def rows(sql: str, arguments: Mapping[str, Any]) -> Sequence[tuple[Any, ...]]:
    """Run the statement in the current transaction; return its rows, if it gives any.

    Not for one that needs a partial index chosen by its arguments: a prepared plan may
    not know them.
    """
    connection.ensure_connection()
    database = connection.connection
    if settings.DATABASE_PREPARE and database.prepare_threshold is None:
        database.prepare_threshold = PREPARE_AFTER
    wrap = CursorDebugWrapper if connection.queries_logged else CursorWrapper
    with wrap(Cursor(database), connection) as cursor:
        cursor.execute(sql, arguments)
        found: Sequence[tuple[Any, ...]] = (
            cursor.fetchall() if cursor.description else []
        )
    return found
