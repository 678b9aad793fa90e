"""Opens an account and prints its first API key, alone on the last line."""

from __future__ import annotations

from argparse import ArgumentParser
from decimal import Decimal
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from billing import accounts, keys, ledger
from billing.errors import UnknownPlan
from billing.management import credits_argument
from billing.models import Mode


class Command(BaseCommand):
    help = "Open an account; its API key stands alone on the last line."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--plan", default="free", help="free, pro, enterprise")
        parser.add_argument("--credits", type=credits_argument, default=Decimal(0))
        parser.add_argument("--mode", choices=Mode.values, default=Mode.LIVE.value)

    def handle(self, *args: object, **options: Any) -> None:
        name, mode = options["name"], options["mode"]
        millicredits = int(options["credits"] * 1000)
        try:
            with transaction.atomic():
                account = accounts.open_account(name, plan=options["plan"])
                if millicredits:
                    ledger.grant(
                        account_id=account.pk,
                        mode=mode,
                        reference="opening",
                        amount_millicredits=millicredits,
                        actor="createaccount",
                        reason="opening credits",
                    )
                _, plaintext = keys.mint(account, mode, name="first key")
        except UnknownPlan as error:
            raise CommandError(str(error)) from error
        self.stdout.write(
            f"account {account.pk} {name!r}, plan {options['plan']}, "
            f"{options['credits']:f} {mode} credits. Keep this key, it is shown once:"
        )
        self.stdout.write(plaintext)
