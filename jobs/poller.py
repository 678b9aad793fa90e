"""The poller: asks outside providers about the jobs they are making."""

from __future__ import annotations

import asyncio


async def run(stop: asyncio.Event) -> None:
    """Poll what is due until ``stop`` is set."""
    await stop.wait()
