"""Makes a key to the operator API and prints it, once."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError

from billing import operator_keys


class Command(BaseCommand):
    help = "Make a key to /operator/v1; it stands alone on the last line, this once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("operator", help="the user in whose name it acts")
        parser.add_argument("--name", required=True, help="what it is for")

    def handle(self, *args: object, **options: Any) -> None:
        users = get_user_model().objects.filter(username=options["operator"])
        if (user := users.first()) is None:
            raise CommandError(f"there is no operator {options['operator']!r}")
        row, plaintext = operator_keys.mint(user, name=options["name"])
        self.stdout.write(f"{row} acts for {user}. Keep this key, it is shown once:")
        self.stdout.write(plaintext)
