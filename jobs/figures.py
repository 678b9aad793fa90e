"""Figures of jobs, steps, workers, webhooks and providers for the operator's monitoring.

Each is one statement over an index or over the newest rows, so that asking costs the
same however many jobs there ever were. What happened is counted over the last hour.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.db import connection

from jobs import outside
from jobs.models import ProviderAccount

#: Attempts looked at for durations: more than an hour's on a large installation.
NEWEST = 50_000

_QUEUES = """
SELECT queue, count(*) AS ready,
       coalesce(extract(epoch FROM now() - min(greatest(ready_at, run_after))), 0)
           AS oldest_seconds
  FROM jobs_job
 WHERE status IN ('queued', 'running') AND lease_until IS NULL
   AND ready_at IS NOT NULL AND queue <> ''
   AND (run_after IS NULL OR run_after <= now())
 GROUP BY queue
"""

_ACTIVE = """
SELECT step, status, mode, count(*) AS jobs,
       count(*) FILTER (WHERE lease_until IS NOT NULL) AS claimed,
       count(*) FILTER (WHERE ready_at IS NULL) AS without_slot
  FROM jobs_job WHERE status IN ('queued', 'running')
 GROUP BY step, status, mode
"""

_ENDED = """
SELECT status, mode, model, error_code AS code, count(*) AS jobs
  FROM jobs_job WHERE finished_at > now() - interval '1 hour'
 GROUP BY status, mode, model, error_code
"""

_STEPS = """
SELECT step, route, count(*) AS attempts,
       sum(extract(epoch FROM ended_at - started_at)) AS seconds,
       percentile_cont(ARRAY[0.5, 0.9, 0.99]) WITHIN GROUP
           (ORDER BY extract(epoch FROM ended_at - started_at)) AS quantiles
  FROM jobs_attempt
 WHERE id > (SELECT coalesce(max(id), 0) FROM jobs_attempt) - %(newest)s
   AND ended_at > now() - interval '1 hour' AND outcome = 'ok'
 GROUP BY step, route
"""

_ATTEMPTS = """
SELECT step, outcome, error_code AS code, count(*) AS attempts
  FROM jobs_attempt
 WHERE id > (SELECT coalesce(max(id), 0) FROM jobs_attempt) - %(newest)s
   AND ended_at > now() - interval '1 hour'
 GROUP BY step, outcome, error_code
"""

# What waits for an address that fails is that customer's affair, not our lag.
_WEBHOOKS = """
SELECT count(*) AS pending,
       coalesce(extract(epoch FROM statement_timestamp() - min(next_at)), 0) AS lag_seconds,
       (SELECT count(*) FROM jobs_webhooklane WHERE open_until > statement_timestamp()) AS lanes_open
  FROM jobs_webhookdelivery d
 WHERE state = 'pending' AND next_at <= statement_timestamp()
   AND (claimed_until IS NULL OR claimed_until < statement_timestamp())
   AND NOT EXISTS (SELECT FROM jobs_webhooklane l WHERE l.key = d.lane)
"""

_WAITING_RETRIES = """
SELECT count(*) AS waiting FROM jobs_webhookdelivery
 WHERE state = 'pending' AND next_at > statement_timestamp()
"""

_WORKERS = """
SELECT name, queues, doing,
       extract(epoch FROM now() - seen_at) AS silent_seconds
  FROM jobs_worker WHERE seen_at > now() - interval '1 day'
"""

_PROVIDERS = """
SELECT a.id, a.provider, a.name,
       (a.open_until IS NULL OR a.open_until <= now()) AS is_usable,
       a.failures_in_row,
       coalesce(a.poll_interval_seconds, 0) AS poll_seconds,
       extract(epoch FROM now() - a.last_ok_at) AS since_ok_seconds,
       (SELECT count(*) FROM jobs_job j
         WHERE j.provider_account_id = a.id AND j.status IN ('queued', 'running'))
           AS jobs
  FROM jobs_provideraccount a
"""

_INCIDENTS = """
SELECT kind, count(*) AS incidents FROM jobs_incident
 WHERE resolved_at IS NULL GROUP BY kind
"""


@dataclass(frozen=True)
class Row:
    """One line of an answer, its columns as attributes."""

    values: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.values[name]
        except KeyError as error:
            raise AttributeError(name) from error


def queues() -> list[Row]:
    """Return for each queue how many jobs could be claimed, and since when."""
    return list(_rows(_QUEUES))


def active() -> list[Row]:
    return list(_rows(_ACTIVE))


def ended() -> list[Row]:
    return list(_rows(_ENDED))


def step_durations() -> list[Row]:
    """Return seconds and quantiles (0.5, 0.9, 0.99) of steps that went well."""
    return list(_rows(_STEPS, newest=NEWEST))


def attempts() -> list[Row]:
    return list(_rows(_ATTEMPTS, newest=NEWEST))


def webhooks() -> Row:
    """Return what is due and not sent: how many, and how late the first is."""
    return next(_rows(_WEBHOOKS))


def webhook_retries() -> int:
    return int(next(_rows(_WAITING_RETRIES)).waiting)


def workers() -> list[Row]:
    """Return each worker of the last day; ``queues`` and ``doing`` as lists."""
    found = list(_rows(_WORKERS))
    for row in found:
        row.values.update({n: json.loads(row.values[n]) for n in ("queues", "doing")})
    return found


def providers() -> list[Row]:
    accounts = ProviderAccount.objects.all()
    able = {account.pk for account in accounts if not outside.why_not(account)}
    rows = list(_rows(_PROVIDERS))
    return [
        Row({**row.values, "is_usable": row.is_usable and row.id in able})
        for row in rows
    ]


def incidents() -> list[Row]:
    return list(_rows(_INCIDENTS))


def _rows(sql: str, **arguments: Any) -> Iterator[Row]:
    with connection.cursor() as cursor:
        cursor.execute(sql, arguments)
        names = [column.name for column in cursor.description]
        found = cursor.fetchall()
    for row in found:
        yield Row(dict(zip(names, row, strict=True)))
