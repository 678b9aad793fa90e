"""From the size a model renders to the size delivered.

A network of the Real-ESRGAN class makes the frame larger where its weights lie in
``weights/upscale`` and this host can afford it; the last step to the exact size, and
the whole way without weights, is a Lanczos resize in the encoder's own conversion.
``Plan.label`` says which, and the job shows it. What cannot be used here (no torch, a
file of another kind) fails no clip: a line in the log names it, once. No torch is
imported until weights are there.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inference.contracts import Frame

log = logging.getLogger(__name__)

FOLDER = "upscale"
Device = Literal["auto", "cuda", "cpu", "off"]

#: On a CPU the network may cost this much per frame, else the resize does it all.
#: 50 GFLOP/s is what two cores gave a 3x3 convolution; 720p by SRVGG would need 44 s.
CPU_SECONDS_PER_FRAME = 2.0
CPU_FLOPS = 50e9


class Network(Protocol):
    """A loaded super-resolution network."""

    name: str
    scale: int
    flops_per_pixel: float
    on_gpu: bool

    def enlarge(self, frame: Frame) -> Frame:
        """Return the frame ``scale`` times as wide and high."""


@dataclass(frozen=True)
class Plan:
    """How one clip is enlarged. ``label`` is "none", "lanczos" or the weights' name."""

    label: str
    network: Network | None = None

    def enlarge(self, frame: Frame) -> Frame:
        return frame if self.network is None else self.network.enlarge(frame)


def plan(
    source: tuple[int, int],
    target: tuple[int, int],
    *,
    weights: Path,
    options: Mapping[str, Any] | None = None,
) -> Plan:
    """Return how to come from ``source`` to ``target`` (width, height).

    ``options``: ``upscale_device`` (auto), ``upscale_weights`` (a file name; else the
    weights whose scale is the smallest that suffices).
    """
    options = options or {}
    if source == target:
        return Plan("none")
    wanted = max(target[0] / source[0], target[1] / source[1])
    device: Device = options.get("upscale_device", "auto")
    if wanted <= 1 or device == "off":
        return Plan("lanczos")
    chosen = _choose(
        weights / FOLDER, wanted, device=device, name=options.get("upscale_weights")
    )
    if chosen is None or not _affordable(chosen, source, device=device):
        return Plan("lanczos")
    return Plan(chosen.name, chosen)


def weight_files(folder: Path) -> list[Path]:
    """Return the weights in ``folder``, by name."""
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.suffix in {".pth", ".safetensors"}
    )


def _choose(
    folder: Path, wanted: float, *, device: Device, name: str | None
) -> Network | None:
    """Return the network to use, the only one that is loaded; None without one."""
    files = [path for path in weight_files(folder) if name in (None, path.name)]
    if not files:
        if name is not None:
            _warn(f"{folder / name} is not there: frames are resized")
        return None
    if importlib.util.find_spec("torch") is None:
        _warn(f"torch is not installed here, {folder} needs it: frames are resized")
        return None
    models = importlib.import_module("inference.media.upscale_models")
    scales = {path: scale for path in files if (scale := models.scale_of(path))}
    if not scales:
        return None
    enough = [path for path, scale in scales.items() if scale >= wanted]
    chosen = (
        min(enough, key=scales.__getitem__)
        if enough
        else max(scales, key=scales.__getitem__)
    )
    network: Network = models.load(chosen, device=device)
    return network


@functools.cache
def _warn(message: str) -> None:
    """Log ``message`` once in a process's life, not once for each clip."""
    log.warning(message)


def _affordable(network: Network, source: tuple[int, int], *, device: Device) -> bool:
    if network.on_gpu or device == "cpu":
        return True
    flops = network.flops_per_pixel * source[0] * source[1]
    return flops / CPU_FLOPS <= CPU_SECONDS_PER_FRAME
