"""Who can make videos here: engines and outside providers, loaded when first needed.

A plug-in is one file and one line of a table.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from inference.contracts import Context, Engine
from inference.errors import Unsupported
from inference.providers.base import Provider


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
        "remote": Runner("A GPU server", "inference.engines.remote:RemoteEngine"),
    }
)

#: An adapter's class takes no arguments and keeps no state.
PROVIDERS: Final[Mapping[str, Runner]] = MappingProxyType(
    {
        "magicoal": Runner(
            "coals.ai MagiCoal", "inference.providers.magicoal:MagiCoal"
        ),
        "aimlapi": Runner("AI/ML API", "inference.providers.aimlapi:AimlApi"),
        "sinancode": Runner("Sinancode", "inference.providers.sinancode:Sinancode"),
        "novita": Runner("Novita AI", "inference.providers.novita:Novita"),
        "akool": Runner("Akool", "inference.providers.akool:Akool"),
        "dashscope": Runner(
            "Alibaba DashScope", "inference.providers.dashscope:DashScope"
        ),
        "openai_videos": Runner(
            "OpenAI Videos compatible", "inference.providers.openai_videos:OpenAIVideos"
        ),
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


def prewarm(models: Iterable[str], context: Context) -> None:
    """Make this process ready for the GPU ``models`` before it takes a job.

    Raises WeightsMissing and its kin when it cannot serve them.
    """
    load("inference.engines.wan.host:prewarm")(
        models,
        context,
        engine_for=lambda profile: engine("wan", profile.name, context),
    )


@functools.cache
def provider(key: str) -> Provider:
    """Return the adapter of provider ``key``; raise Unsupported for an unknown one."""
    if key not in PROVIDERS:
        raise Unsupported(f"There is no provider '{key}' here.", field="model")
    adapter: Provider = load(PROVIDERS[key].path)()
    return adapter
