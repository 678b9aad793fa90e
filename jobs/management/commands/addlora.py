"""`manage.py addlora NAME FILE`: let customers ask for a LoRA by that name."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from inference.errors import RenderError
from jobs import context, ours


class Command(BaseCommand):
    help = "Check and store a safetensors LoRA under a name for customers."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name")
        parser.add_argument("file", type=Path)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            row = ours.register(options["name"], options["file"], context.get().storage)
        except (RenderError, OSError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{row.name} {row.sha256}")
