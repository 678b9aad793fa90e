"""`manage.py deleteaccount NAME`: delete an account's files, words, people and keys."""

from __future__ import annotations

import getpass
import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from billing import accounts
from billing.errors import BillingError
from jobs.account_deletion import delete_account

POLL_SECONDS = 1.0


class Command(BaseCommand):
    help = "Delete an account's files, words, people and keys for good; keep the books."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("account", help="id, or name if only one has it")
        parser.add_argument("--yes", action="store_true", help="do not ask")
        parser.add_argument(
            "--wait", type=float, default=120.0, help="for running jobs, seconds"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            account = accounts.find_account(options["account"])
        except BillingError as error:
            raise CommandError(str(error)) from error
        if not options["yes"]:
            self.stdout.write(f"{account.name} ({account.pk}) cannot be brought back.")
            if input("Type its name to go on: ") != account.name:
                raise CommandError("nothing was deleted")
        deadline = time.monotonic() + options["wait"]
        actor = f"cli:{getpass.getuser()}"
        while left := delete_account(account.pk, actor=actor):
            if time.monotonic() > deadline:
                raise CommandError(
                    f"{left} jobs are still being stopped; run this again."
                )
            time.sleep(POLL_SECONDS)
        self.stdout.write(f"{account.pk} is deleted; its books are kept.")
