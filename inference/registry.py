"""Who can make videos here: the table of engines, each loaded when first needed.

A plug-in is one file and one line of this table. Providers have a table of their own.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from inference.contracts import Context, Engine
from inference.errors import Unsupported


@dataclass(frozen=True)
class Runner:
    """``path`` is ``module:Class``; the class is called with (profile, context)."""

    label: str
    path: str


RUNNERS: Final[Mapping[str, Runner]] = MappingProxyType(
    {
        "motion": Runner(
            "Camera moves over the still", "inference.engines.motion:MotionEngine"
        ),
        "rehearsal": Runner(
            "Simulation for test keys", "inference.engines.rehearsal:RehearsalEngine"
        ),
        "wan": Runner("Wan on diffusers", "inference.engines.wan.engine:WanEngine"),
    }
)

_lock = threading.Lock()
_ready: dict[tuple[str, str], Engine] = {}


def load(path: str) -> Any:
    """Return what ``module:Name`` stands for."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def engine(key: str, profile: str, context: Context) -> Engine:
    """Return this process's engine for ``profile``, set up on first use.

    Raises Unsupported for an unknown key and whatever ``setup`` raises; a failed set-up
    is tried again on the next call.
    """
    if key not in RUNNERS:
        raise Unsupported(f"There is no engine '{key}' here.", field="model")
    with _lock:
        if (made := _ready.get((key, profile))) is None:
            made = load(RUNNERS[key].path)(profile, context)
            made.setup()
            _ready[key, profile] = made
        return made
