"""Fake providers: real HTTP servers that speak each vendor's true wire format.

``with start("novita") as fake`` runs one in this process; ``python -m tests.fakes novita``
runs one by itself. They share no code with the adapters or the dialects, so that each
side is checked against the documents and not against the other.
"""

from __future__ import annotations

import importlib
from typing import Any

from tests.fakes.service import FakeService

__all__ = ["FAKES", "FakeService", "start"]

FAKES = (
    "magicoal",
    "aimlapi",
    "sinancode",
    "novita",
    "akool",
    "dashscope",
    "openai_videos",
)


def start(name: str, **options: Any) -> FakeService:
    """Return a started fake of provider ``name``; ``stop`` it, or use it in ``with``."""
    fake: FakeService = importlib.import_module(f"tests.fakes.{name}").Fake(**options)
    return fake.start()
