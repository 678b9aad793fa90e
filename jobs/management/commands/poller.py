"""`manage.py poller`: run the poller until TERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from django.core.management.base import BaseCommand

from jobs import poller


class Command(BaseCommand):
    help = "Ask outside providers about the jobs they are making."

    def handle(self, *args: Any, **options: Any) -> None:
        asyncio.run(_main())


async def _main() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await poller.run(stop)
