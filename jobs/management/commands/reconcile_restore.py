"""`manage.py reconcile_restore`: after restoring a backup, find and repair what differs."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from datetime import datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from jobs import restoring

NOTICE = """\
Also true after a restore, and only you can know which:
- operators' passwords and rights, and customers' former webhook secrets, are those of
  then: change again what was changed since;
- prices, routes and plans are those of then;
- webhooks sent since then may be sent again (receivers know them by webhook-id)."""


def moment(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is no ISO 8601 time") from error
    if time.tzinfo is None:
        raise ArgumentTypeError("the time needs its zone, such as 2030-01-31T04:00Z")
    return time


class Command(BaseCommand):
    help = "Find what a restored database no longer agrees with; --repair what is safe."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--since",
            type=moment,
            required=True,
            help="the moment the backup shows, with its zone",
        )
        parser.add_argument(
            "--payments",
            type=Path,
            help="CSV of payments since then: payment_id, account_id, credits",
        )
        parser.add_argument("--repair", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        path = options["payments"]
        try:
            payments = restoring.read_payments(path) if path else []
        except restoring.UnreadableList as error:
            raise CommandError(str(error)) from error
        open_findings = 0
        for finding in restoring.findings(since=options["since"], payments=payments):
            outcome = ""
            if options["repair"]:
                outcome = restoring.repair(finding)
            elif finding.repair is not None:
                outcome = "--repair would"
            open_findings += outcome != "repaired"
            self.stdout.write(f"{finding} [{outcome or 'needs a person'}]")
        self.stdout.write(NOTICE)
        if open_findings:
            raise SystemExit(1)
