"""`manage.py housekeeper`: run the housekeeper until TERM or Ctrl-C."""

from __future__ import annotations

import signal
import threading
from typing import Any

from django.core.management.base import BaseCommand

from jobs import housekeeper


class Command(BaseCommand):
    help = "Ring bells, reap silent workers, end overdue jobs, delete by retention."

    def handle(self, *args: Any, **options: Any) -> None:
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        housekeeper.run(stop)
