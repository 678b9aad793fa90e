"""Slots: how many videos of one account may be in the making at once.

A job holds a slot from ``ready_at`` to its end. All functions here must run while the
account's wallet row is locked, which makes the count exact without any other lock.

A job's ``priority`` is its customer's word, so it orders that account's jobs alone and
is spent here: whoever has a slot stands in one line with all accounts, by ``ready_at``.
"""

from __future__ import annotations

from uuid import UUID

from billing import prepared

_FILL = """
WITH free AS (
    SELECT greatest(0, %(limit)s - count(*)) AS n FROM jobs_job
     WHERE account_id = %(account)s AND mode = %(mode)s
       AND ready_at IS NOT NULL AND status IN ('queued', 'running')
), next AS (
    SELECT id, priority, created_at FROM jobs_job
     WHERE account_id = %(account)s AND mode = %(mode)s
       AND ready_at IS NULL AND status = 'queued'
     ORDER BY priority DESC, created_at
     LIMIT (SELECT n FROM free)
     FOR NO KEY UPDATE
), placed AS (
    SELECT id, row_number() OVER (ORDER BY priority DESC, created_at) AS place FROM next
)
UPDATE jobs_job j
   SET ready_at = statement_timestamp() + placed.place * interval '1 microsecond'
  FROM placed
 WHERE j.id = placed.id
RETURNING j.queue
"""

_IS_FREE = """
SELECT count(*) < %(limit)s FROM jobs_job
 WHERE account_id = %(account)s AND mode = %(mode)s
   AND ready_at IS NOT NULL AND status IN ('queued', 'running')
"""


def is_free(*, account_id: UUID, mode: str, limit: int) -> bool:
    """Return whether one more job may hold a slot now."""
    [(free,)] = prepared.rows(
        _IS_FREE, {"limit": limit, "account": account_id, "mode": mode}
    )
    return bool(free)


def fill(*, account_id: UUID, mode: str, limit: int) -> list[str]:
    """Give free slots to the account's waiting jobs; return the queues to ring."""
    arguments = {"account": account_id, "mode": mode, "limit": limit}
    return [queue for (queue,) in prepared.rows(_FILL, arguments)]
