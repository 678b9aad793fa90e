"""`manage.py margin`: the margin report as CSV on standard output."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand

from jobs import margin


class Command(BaseCommand):
    help = "Print what jobs cost beside what they earned, as CSV."

    def add_arguments(self, parser: ArgumentParser) -> None:
        today = datetime.now(UTC).date()
        month_ago = today - timedelta(days=30)
        parser.add_argument(
            "--by",
            nargs="+",
            choices=sorted(margin.GROUPS),
            default=["day", "provider", "model"],
        )
        parser.add_argument("--since", type=date.fromisoformat, default=month_ago)
        parser.add_argument("--until", type=date.fromisoformat, default=today)

    def handle(self, *args: Any, **options: Any) -> None:
        by = options["by"]
        lines = margin.report(by, since=options["since"], until=options["until"])
        margin.write_csv(sys.stdout, by, lines)
