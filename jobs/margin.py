"""Margin: what jobs cost us beside what customers paid for them.

Cost is a provider's bill, attempt by attempt, or the seconds of work on our own machines
times their route's rate. Revenue is the credits taken, less what was given back. Failed
and canceled jobs count too: they earn nothing and may have cost something.
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
    "day": "job.finished_at::date",
    "provider": "coalesce(job.route ->> 'runner', '')",
    "model": "job.model",
    "account": "job.account_id::text",
    "route": "coalesce(job.route ->> 'name', '')",
}

_REPORT = """
SELECT {columns}, count(*), count(*) FILTER (WHERE job.status = 'succeeded'),
       coalesce(sum(CASE WHEN job.status = 'succeeded'
                    THEN job.charged_millicredits - job.refunded_millicredits
                    ELSE 0 END), 0)::bigint,
       coalesce(sum(job.cost_microdollars), 0)::bigint,
       coalesce(sum(job.work_seconds * rate.gpu_second_microdollars), 0)::bigint,
       coalesce(sum(job.work_seconds), 0)::float8
  FROM jobs_job job
  LEFT JOIN jobs_route rate ON rate.id = (job.route ->> 'id')::bigint
 WHERE job.mode = %(mode)s AND job.finished_at >= %(since)s
   AND job.finished_at < %(until)s::date + 1
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

    Raises KeyError for a group that ``GROUPS`` does not have.
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
