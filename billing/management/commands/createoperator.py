"""Makes an admin user and prints a one-time password, once."""

from __future__ import annotations

import secrets
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from billing.passwords import make_one_time


class Command(BaseCommand):
    help = "Make an admin user; the password is printed once, alone on the last line."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name")

    def handle(self, *args: object, **options: Any) -> None:
        users = get_user_model()
        if users.objects.filter(username=options["name"]).exists():
            raise CommandError(f"there is an operator {options['name']!r} already")
        password = secrets.token_urlsafe(18)
        with transaction.atomic():
            user = users.objects.create_superuser(
                username=options["name"], password=password
            )
            make_one_time(user)
        self.stdout.write(
            "Sign in at /admin/ with this one-time password; you choose your own there:"
        )
        self.stdout.write(password)
