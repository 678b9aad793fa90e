"""Gives an account credits."""

from __future__ import annotations

import getpass
from argparse import ArgumentParser
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from django.core.management.base import BaseCommand, CommandError

from billing import accounts, ledger
from billing.errors import BillingError
from billing.management import credits_argument, days_argument
from billing.models import CreditGrant, Mode


class Command(BaseCommand):
    help = "Give an account credits; the same --reference gives them once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("account", help="id, or name if only one has it")
        parser.add_argument("credits", type=credits_argument)
        parser.add_argument("--mode", choices=Mode.values, default=Mode.LIVE.value)
        parser.add_argument("--reference", help="for example a payment's id")
        parser.add_argument(
            "--days", type=days_argument, help="until the credits expire"
        )
        parser.add_argument("--reason", default="")
        parser.add_argument(
            "--source",
            choices=[CreditGrant.Source.PROMOTION, CreditGrant.Source.GOODWILL],
            default=CreditGrant.Source.PROMOTION.value,
        )

    def handle(self, *args: object, **options: Any) -> None:
        if not options["credits"]:
            raise CommandError("0 credits is not a gift")
        days = options["days"]
        try:
            account = accounts.find_account(options["account"])
            ledger.grant(
                account_id=account.pk,
                mode=options["mode"],
                reference=options["reference"] or f"by-hand:{uuid4()}",
                amount_millicredits=int(options["credits"] * 1000),
                source=options["source"],
                expires_at=days and datetime.now(UTC) + timedelta(days=days),
                actor=f"cli:{getpass.getuser()}",
                reason=options["reason"],
            )
        except BillingError as error:
            raise CommandError(str(error)) from error
        balance = ledger.balance(account_id=account.pk, mode=options["mode"])
        self.stdout.write(
            f"{account.name} has {balance.available_millicredits / 1000:g} "
            f"{options['mode']} credits available"
        )
