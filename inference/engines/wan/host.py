"""What this machine can serve, and why not; and making it ready before it takes a job.

``report`` needs neither torch nor weights: it says what is missing. ``prewarm`` loads,
makes a first clip of each shape and only then returns: a worker that consumes after it
never lets a customer wait for a compiler.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from inference.catalogue import MODELS, PublicModel
from inference.contracts import OutputPlan, RenderRequest
from inference.engines.wan.profiles import Profile, profile_for
from inference.engines.wan.residency import GB, Fit, fit, pinned_budget
from inference.engines.wan.weights import Sources, first_missing
from inference.errors import OutOfMemory
from inference.geometry import vae_frames

if TYPE_CHECKING:
    from inference.contracts import Context

log = logging.getLogger(__name__)

#: A first clip's shapes: landscape, portrait, square.
WARM_ASPECTS = (16 / 9, 9 / 16, 1.0)


@dataclass(frozen=True)
class Ready:
    """Whether this host can make a model's videos; ``detail`` says how or why not."""

    model: str
    profile: str
    ready: bool
    detail: str


@dataclass(frozen=True)
class Card:
    """A device: its name and its bytes. A CPU counts as one with the host's memory."""

    name: str
    size_bytes: int
    is_gpu: bool


def report(context: Context, *, card: Card | None = None) -> list[Ready]:
    """Return one line per public model that has a Wan route of its own."""
    card = card or this_card()
    found = []
    for name, model in MODELS.items():
        profile = profile_for(name)
        if profile is not None:
            reason = _why_not(profile, context, card)
            calculated = fits(model, profile, card)
            if reason is None and not calculated.fits:
                reason = f"{card.name}: {calculated.reason}"
            refused = [
                tier
                for tier in model.tiers
                if not fits(model, profile, card, tier=tier).fits
            ]
            detail = reason or _how(calculated, card, refused)
            found.append(Ready(name, profile.name, reason is None, detail))
    return found


def this_card() -> Card:
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if importlib.util.find_spec("torch") is None:
        return Card("no torch", host, is_gpu=False)
    import torch

    if not torch.cuda.is_available():
        return Card("CPU", host, is_gpu=False)
    name = torch.cuda.get_device_name()
    return Card(name, torch.cuda.mem_get_info()[1], is_gpu=True)


def fits(
    model: PublicModel, profile: Profile, card: Card, *, tier: str | None = None
) -> Fit:
    """Return how a model's default clip lives on ``card``, calculated."""
    size = model.size_for(16 / 9, tier or model.tier_default)
    frames = vae_frames(model.frames_default)
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return fit(
        profile.part_bytes(),
        working_bytes=profile.working_bytes(size.width, size.height, frames),
        device_bytes=card.size_bytes,
        pinned_bytes=pinned_budget(host),
    )


def _why_not(profile: Profile, context: Context, card: Card) -> str | None:
    for package in ("torch", "diffusers", "transformers"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed; install requirements/gpu.in"
    if not card.is_gpu and not profile.tiny:
        return "no CUDA device"
    sources = Sources.of(context)
    for _area, checkpoint in profile.checkpoints:
        if sources.find(checkpoint) is not None:
            continue
        source = sources.table.get(checkpoint.name, checkpoint.source)
        if source.startswith("synthetic:"):
            continue  # made at the first start
        folder = sources.folder(checkpoint) or sources.root / checkpoint.name
        missing = first_missing(folder)
        return f"{missing} is missing (source: {source})"
    return None


def _how(found: Fit, card: Card, refused: Sequence[str]) -> str:
    moved = f", {found.moved_bytes / GB:.1f} GB moved per job" * bool(found.moved_bytes)
    without = f"; too small for {', '.join(refused)}" * bool(refused)
    return (
        f"{card.name}, calculated peak {found.peak_bytes / GB:.1f} GB{moved}{without}"
    )


def queues(models: Iterable[str]) -> list[str]:
    """Return the queues a worker for these public models consumes."""
    names = []
    for model in models:
        for route in MODELS[model].routes:
            if route.runner == "wan" and route.queue not in names:
                names.append(route.queue)
    return names


def prewarm(
    models: Sequence[str],
    context: Context,
    *,
    engine_for: Callable[[Profile], Any],
    warm: bool = True,
) -> None:
    """Load every model's engine and make its first clips; raise if one cannot serve.

    A tier too large for this card is left out, and its jobs are refused, as long as the
    model's default one fits.
    """
    for name in models:
        profile = profile_for(name)
        if profile is None:
            known = ", ".join(n for n in MODELS if profile_for(n) is not None)
            raise ValueError(f"{name!r} has no Wan engine; known: {known}")
        engine = engine_for(profile)
        engine.setup()
        if warm:
            _warm(MODELS[name], engine)


def _warm(model: PublicModel, engine: Any) -> None:
    for tier in model.tiers:
        try:
            engine.warm(warm_shapes(model, tier))
        except OutOfMemory as error:
            if tier == model.tier_default:
                raise
            log.warning("%s in %s is too large here: %s", model.name, tier, error)


def warm_shapes(model: PublicModel, tier: str) -> list[tuple[int, int, int]]:
    """Return the (width, height, frames) that most customers of a tier ask for."""
    frames = vae_frames(model.frames_default)
    sizes = [model.size_for(aspect, tier) for aspect in WARM_ASPECTS]
    return [(size.width, size.height, frames) for size in sizes]


def warm_requests(
    profile: Profile, workdir: Path, shapes: Sequence[tuple[int, int, int]]
) -> list[RenderRequest]:
    """Return requests of two steps that visit every expert at every shape."""
    workdir.mkdir(parents=True, exist_ok=True)
    picture = workdir / f"warm-{os.getpid()}.png"
    Image.linear_gradient("L").convert("RGB").save(picture)
    return [
        RenderRequest(
            reference="warm",
            model=profile.name,
            profile=profile.name,
            image=picture,
            last_image=picture if profile.last_image == "required" else None,
            width=width,
            height=height,
            frames=frames,
            fps=profile.fps,
            seed=0,
            steps=2,
            guidance_scale=1.0,
            output=OutputPlan(width, height, profile.fps, frames),
        )
        for width, height, frames in shapes
    ]
