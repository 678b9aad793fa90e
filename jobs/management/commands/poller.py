"""`manage.py poller`: run the poller until TERM or Ctrl-C.

Beside it one thread tells the operator's webhook of incidents: of our two loops this is
the one that talks to the outside. Another looks whether the housekeeper lives.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Any

from django.core.management.base import BaseCommand

from jobs import alarms, poller, watch


class Command(BaseCommand):
    help = "Ask outside providers about the jobs they are making."

    def handle(self, *args: Any, **options: Any) -> None:
        asyncio.run(_main())


async def _main() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    silence = threading.Event()
    for name, work in (("alarms", alarms.run), ("loops", watch.watch_loops)):
        threading.Thread(target=work, args=(silence,), name=name, daemon=True).start()
    await poller.run(stop)
    silence.set()
