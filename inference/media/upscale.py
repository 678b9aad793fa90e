"""From the size a model renders to the size delivered.

A network of the Real-ESRGAN class makes the frame larger where its weights lie in
``weights/upscale`` and this host can afford it; the last step to the exact size, and
the whole way without weights, is a Lanczos resize in the encoder's own conversion.
``Plan.label`` says which, and the job shows it. No torch is imported until weights are.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inference.contracts import Frame

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
    files = [path for path in weight_files(folder) if name in (None, path.name)]
    if not files:
        return None
    models = importlib.import_module("inference.media.upscale_models")
    networks: list[Network] = [models.load(path, device=device) for path in files]
    enough = [network for network in networks if network.scale >= wanted]
    if enough:
        return min(enough, key=lambda network: network.scale)
    return max(networks, key=lambda network: network.scale)


def _affordable(network: Network, source: tuple[int, int], *, device: Device) -> bool:
    if network.on_gpu or device == "cpu":
        return True
    flops = network.flops_per_pixel * source[0] * source[1]
    return flops / CPU_FLOPS <= CPU_SECONDS_PER_FRAME
