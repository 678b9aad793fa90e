"""`manage.py process NAME`: become one process of the stack's table, by exec.

What `make up` runs as a whole, containers and systemd units run one by one with this:
signals, output and exit code are the process's own.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.checks import Tags
from django.core.management.base import BaseCommand, CommandError

from jobs import fitness, safety
from project import stack, wiring
from project.management.commands.worker_gpu import check


class Command(BaseCommand):
    help = "Run one process of the stack in the place of this one."
    # Those that say why TLS would not work; the rest is for `manage.py prepare`.
    requires_system_checks = [Tags.security]

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", metavar="NAME", help="web, worker-media, flower, …")

    def handle(self, *args: Any, **options: Any) -> None:
        name: str = options["name"]
        table = {
            process.name: process
            for process in stack.processes(
                port=settings.PORT, flower_port=settings.FLOWER_PORT, env={}
            )
        }
        if name == "worker-gpu":
            check(settings.GPU_MODELS)
        if name == "worker-safety":
            check_safety()
        if name not in table:
            raise CommandError(f"{name} is none of {', '.join(table)}")
        process = table[name]
        if process.cwd:
            os.chdir(process.cwd)
        os.execve(process.argv[0], list(process.argv), {**os.environ, **process.env})  # noqa: S606  # it takes our place


def check_safety() -> None:
    """Say what its worker lacks; without weights it is not in the table either."""
    try:
        fitness.check([safety.QUEUE], wiring.context())
    except fitness.Unfit as unfit:
        raise CommandError(f"cannot start: {unfit}") from unfit
