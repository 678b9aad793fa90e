"""`manage.py up`: the whole stack in the foreground until Ctrl-C or TERM."""

from __future__ import annotations

import signal
import time
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from jobs import fitness
from project import stack, wiring
from project.supervisor import Stopped, set_death_signal


class Command(BaseCommand):
    help = "Run the whole stack: services, web, workers, poller, housekeeper, Flower."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--stop-with-parent",
            action="store_true",
            help="stop when the process that started this one ends (make uses it)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["stop_with_parent"]:
            set_death_signal(signal.SIGTERM)
        started = time.monotonic()

        def say(line: str) -> None:
            self.stdout.write(f"{time.monotonic() - started:6.1f} s  {line}")
            self.stdout.flush()

        def ready(url: str) -> None:
            self.stdout.write(f"ready  {url}")
            self.stdout.flush()

        try:
            # Said here at once, not by each worker in its log.
            queues = [name for worker in stack.workers() for name in worker.queues]
            fitness.check(queues, wiring.context())
            stack.run(settings.ZOETROPE_HOME, say, on_ready=ready)
        except Stopped as reason:
            say(f"stopped by {reason}")
        except fitness.Unfit as unfit:
            raise CommandError(f"cannot start: {unfit}") from unfit
        except (stack.AlreadyRunning, RuntimeError, TimeoutError) as error:
            raise CommandError(str(error)) from error
