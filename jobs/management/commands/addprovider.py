"""`manage.py addprovider NAME`: enter an account at an outside provider.

Its credentials come as one JSON object on standard input, so that they stand in no
command line and no shell history. An account of the same name is replaced.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from inference import registry
from inference.catalogue import MODELS
from jobs import outside
from jobs.models import ProviderAccount, Route


class Command(BaseCommand):
    help = "Enter a provider's account; reads its credentials as JSON from stdin."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("provider", choices=sorted(registry.PROVIDERS))
        parser.add_argument("--name", default="main")
        parser.add_argument("--base-url", help="default: the provider's own")
        parser.add_argument("--weight", type=int, default=100)
        parser.add_argument("--concurrent-jobs", type=int, help="at most so many")
        parser.add_argument(
            "--setting",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="an option of its adapter; the value is JSON, or else text",
        )
        parser.add_argument(
            "--off",
            action="store_true",
            help="only switch the account off; it is left as it is, stdin unread",
        )
        parser.add_argument(
            "--route",
            metavar="MODEL=WIRE_MODEL",
            help="also let this provider make a public model, by its own name for it",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["off"]:
            switch_off(options["provider"], options["name"])
            return
        adapter = outside.adapter(options["provider"])
        try:
            credentials = json.load(sys.stdin)
        except json.JSONDecodeError as error:
            raise CommandError(f"the credentials are no JSON: {error}") from error
        if not isinstance(credentials, dict):
            raise CommandError("the credentials must be one JSON object")
        try:
            kept = adapter.credentials(credentials)
        except ValueError as error:
            raise CommandError(f"the credentials: {error}") from error
        given = dict(map(setting, options["setting"]))
        if problem := adapter.settings_problem(given):
            raise CommandError(f"--setting: {problem}")
        row, _ = ProviderAccount.objects.update_or_create(
            provider=options["provider"],
            name=options["name"],
            defaults={
                "base_url": options["base_url"] or adapter.default_base_url,
                "credentials": json.dumps(kept),
                "settings": given,
                "weight": options["weight"],
                "concurrent_jobs": options["concurrent_jobs"],
                "is_enabled": True,
            },
        )
        outside.back_in_order(row.pk, by="addprovider")
        row.refresh_from_db()
        if options["route"]:
            add_route(options["provider"], *options["route"].partition("=")[::2])
        self.stdout.write(f"{row} at {row.base_url}: {', '.join(sorted(kept))}")
        if reason := outside.why_not(row):
            self.stderr.write(f"it takes no job yet: {reason}")


def switch_off(provider: str, name: str) -> None:
    found = ProviderAccount.objects.filter(provider=provider, name=name)
    if not found.update(is_enabled=False):
        raise CommandError(f"there is no account {name!r} at {provider}")


def setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def add_route(provider: str, model: str, wire_model: str) -> None:
    if model not in MODELS or not wire_model:
        raise CommandError("--route takes PUBLIC_MODEL=WIRE_MODEL")
    Route.objects.update_or_create(
        model=model,
        name=provider,
        defaults={
            "kind": Route.Kind.PROVIDER,
            "queue": f"provider.{provider}",
            "runner": provider,
            "profile": wire_model,
        },
    )
