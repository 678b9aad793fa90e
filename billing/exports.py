"""Statements as CSV files: one line per movement, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from billing import ledger

HEADER: Final = (
    "time_utc",
    "kind",
    "reference",
    "available_credits",
    "held_credits",
    "available_after_credits",
    "held_after_credits",
    "actor",
    "reason",
)
#: Spreadsheets run what begins with these as a formula (OWASP, "CSV Injection").
_FORMULA_STARTS: Final = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "\uff1d",
    "\uff0b",
    "\uff0d",
    "\uff20",
)


def statement_csv(
    *, account_id: UUID, mode: str, start: datetime, end: datetime
) -> Iterator[str]:
    """Yield the lines of the account's statement from ``start`` until before ``end``."""
    yield _line(HEADER)
    for movement in ledger.in_period(
        account_id=account_id, mode=mode, start=start, end=end
    ):
        amounts = (
            movement.available_millicredits,
            movement.held_millicredits,
            movement.available_after_millicredits,
            movement.held_after_millicredits,
        )
        yield _line(
            (
                movement.created_at.astimezone(UTC).isoformat(timespec="seconds"),
                movement.kind,
                text_cell(movement.reference),
                *(f"{amount / 1000:.3f}" for amount in amounts),
                text_cell(movement.actor),
                text_cell(movement.reason),
            )
        )


def text_cell(text: str) -> str:
    """Return the text as a spreadsheet shows it, never as a formula."""
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA_STARTS) else text


def _line(values: Iterable[str]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\r\n").writerow(values)
    return file.getvalue()
