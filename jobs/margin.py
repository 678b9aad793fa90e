"""Margin: what jobs cost us beside what customers paid for them.

Cost is counted attempt by attempt, for whoever made that attempt: a provider's bill, or
the seconds of work on our own machines times their rate as it was then. Revenue is the
credits taken, less what was given back; it belongs to the last route, which made the
video. Failed and canceled jobs count too: they earn nothing and may have cost something.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Final, Protocol

from django.db import connection

#: One credit is a cent: 10,000 millionths of a dollar.
MICRODOLLARS_PER_MILLICREDIT: Final = 10
#: What a report may be grouped by, with the SQL of each.
GROUPS: Final = {
    "day": "part.day",
    "provider": "part.provider",
    "model": "part.model",
    "provider_account": "coalesce(held.provider || ': ' || held.name, '')",
    "account": "part.account",
    "route": "part.route",
}

# Each job once, for its count and what it earned, and each of its attempts that cost
# something: so every cost is in exactly one group, and the groups add up.
_REPORT = """
WITH ended AS (
    SELECT id, finished_at::date AS day, model, account_id::text AS account,
           coalesce(route ->> 'runner', '') AS provider,
           coalesce(route ->> 'name', '') AS route,
           provider_account_id, status = 'succeeded' AS is_good,
           charged_millicredits - refunded_millicredits AS kept
      FROM jobs_job
     WHERE mode = %(mode)s AND finished_at >= %(since)s
       AND finished_at < %(until)s::date + 1
), part AS (
    SELECT day, model, account, provider, route, provider_account_id, 1 AS jobs,
           is_good::int AS succeeded, CASE WHEN is_good THEN kept ELSE 0 END AS kept,
           0 AS bill, 0 AS machine, 0.0 AS work_seconds
      FROM ended
     UNION ALL
    SELECT ended.day, ended.model, ended.account, tried.provider, tried.route,
           tried.provider_account_id, 0, 0, 0, tried.cost_microdollars,
           round(tried.work_seconds * tried.second_microdollars), tried.work_seconds
      FROM ended JOIN jobs_attempt tried ON tried.job_id = ended.id
     WHERE tried.cost_microdollars > 0 OR tried.work_seconds > 0
)
SELECT {columns}, sum(part.jobs), sum(part.succeeded), sum(part.kept)::bigint,
       sum(part.bill)::bigint, sum(part.machine)::bigint,
       sum(part.work_seconds)::float8
  FROM part LEFT JOIN jobs_provideraccount held ON held.id = part.provider_account_id
 GROUP BY {columns} ORDER BY {columns}
"""


@dataclass(frozen=True)
class Line:
    """One group of a report. Money in millionths of a US dollar."""

    group: tuple[str, ...]
    jobs: int
    succeeded: int
    credits_millicredits: int
    provider_microdollars: int
    machine_microdollars: int
    work_seconds: float

    @property
    def revenue_microdollars(self) -> int:
        return self.credits_millicredits * MICRODOLLARS_PER_MILLICREDIT

    @property
    def cost_microdollars(self) -> int:
        return self.provider_microdollars + self.machine_microdollars

    @property
    def margin_microdollars(self) -> int:
        return self.revenue_microdollars - self.cost_microdollars


def report(
    by: Iterable[str] = ("day", "provider", "model"),
    *,
    since: date,
    until: date,
    mode: str = "live",
) -> list[Line]:
    """Return the ended jobs of these days (both included), grouped as ``by`` says.

    A job counts where its last route is; what other routes' tries cost stands in lines
    of theirs, which may have no jobs. Raises KeyError for a group that ``GROUPS`` does
    not have.
    """
    names = list(by)
    columns = ", ".join(GROUPS[name] for name in names)
    with connection.cursor() as cursor:
        # Only texts of GROUPS go into the statement; values are parameters.
        cursor.execute(
            _REPORT.format(columns=columns),
            {"mode": mode, "since": since, "until": until},
        )
        rows = cursor.fetchall()
    split = len(names)
    return [Line(tuple(map(str, row[:split])), *row[split:]) for row in rows]


def header(by: Iterable[str]) -> list[str]:
    return [
        *by,
        "jobs",
        "succeeded",
        "credits",
        "revenue_usd",
        "provider_usd",
        "machine_usd",
        "cost_usd",
        "margin_usd",
        "work_seconds",
    ]


def rows(lines: Iterable[Line]) -> Iterator[list[str]]:
    """Yield the report's lines as text: credits and dollars with their decimals."""
    for line in lines:
        yield [
            *map(_plain, line.group),
            str(line.jobs),
            str(line.succeeded),
            f"{line.credits_millicredits / 1000:.3f}",
            *(
                f"{amount / 1_000_000:.6f}"
                for amount in (
                    line.revenue_microdollars,
                    line.provider_microdollars,
                    line.machine_microdollars,
                    line.cost_microdollars,
                    line.margin_microdollars,
                )
            ),
            f"{line.work_seconds:.1f}",
        ]


class Writable(Protocol):
    """What a CSV goes to: a file, or an HTTP answer."""

    def write(self, text: str, /) -> object: ...


def write_csv(file: Writable, by: Iterable[str], lines: Iterable[Line]) -> None:
    names = list(by)
    writer = csv.writer(file)
    writer.writerow(header(names))
    writer.writerows(rows(lines))


def _plain(value: str) -> str:
    # A spreadsheet must not take a name for a formula.
    return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
