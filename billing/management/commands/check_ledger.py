"""Recomputes every balance from its parts and exits 1 when something disagrees."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from billing import ledger


class Command(BaseCommand):
    help = "Recompute every balance from the entries; exit 1 with the rows that differ."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--freeze",
            action="store_true",
            help="freeze the wallets that do not add up: no new holds",
        )

    def handle(self, *args: object, **options: Any) -> None:
        mismatches = ledger.check()
        for mismatch in mismatches:
            self.stdout.write(str(mismatch))
        if not mismatches:
            self.stdout.write("the books add up")
            return
        if options["freeze"]:
            ledger.freeze_mismatched(mismatches)
        raise SystemExit(1)
