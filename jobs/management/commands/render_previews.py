"""`manage.py render_previews`: previews of the effects, rendered by our own engine."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from inference.errors import RenderError
from jobs import effects, previews
from jobs.models import Effect


class Command(BaseCommand):
    help = "Render the previews of effects that have none (or of all, with --again)."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("codes", nargs="*", help="effects; none: every enabled one")
        parser.add_argument("--photo", type=Path, default=previews.PHOTO)
        parser.add_argument("--seconds", type=float, default=previews.SECONDS)
        parser.add_argument("--again", action="store_true", help="also those that have")

    def handle(self, *args: Any, **options: Any) -> None:
        rows = effects.listed()
        if options["codes"]:
            # Also those that are off: they are looked at before customers see them.
            rows = Effect.objects.filter(pk__in=options["codes"])
            known = set(rows.values_list("pk", flat=True))
            if unknown := set(options["codes"]) - known:
                raise CommandError(f"no such effect: {', '.join(sorted(unknown))}")
        try:
            still = options["photo"].read_bytes()
        except OSError as error:
            raise CommandError(str(error)) from error
        for effect in rows:
            template = effect.current
            if template.preview_key and not options["again"]:
                self.stdout.write(f"{template}: has one")
                continue
            try:
                previews.render(template, still, seconds=options["seconds"])
            except RenderError as error:
                raise CommandError(f"{template}: {error}") from error
            self.stdout.write(f"{template}: rendered")
