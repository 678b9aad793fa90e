"""Real-ESRGAN's two networks in their published key layout, read from a file.

``SRVGG`` (realesr-general-x4v3, realesr-animevideov3) and ``RRDB`` (RealESRGAN_x4plus,
_x2plus, 4x-class ESRGANs); widths, depths and scale are read off the weights. Frames go
through in overlapping tiles, so memory does not grow with the picture.
Source: github.com/xinntao/Real-ESRGAN (srvgg_arch.py) and BasicSR (rrdbnet_arch.py).
"""

from __future__ import annotations

import functools
import logging
import pickle
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from inference.errors import WeightsMissing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inference.contracts import Frame

log = logging.getLogger(__name__)

#: Tile side and overlap in source pixels. The overlap covers what one pixel of the
#: deepest SRVGG (34 3x3 convolutions) can see; RRDB sees further, but faintly.
TILE = 512
OVERLAP = 36


class SRVGG(nn.Module):
    """All convolutions at the source's size, one pixel shuffle at the end."""

    def __init__(self, *, features: int, depth: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        layers: list[nn.Module] = [nn.Conv2d(3, features, 3, padding=1)]
        layers.append(nn.PReLU(features))
        for _ in range(depth):
            layers.append(nn.Conv2d(features, features, 3, padding=1))
            layers.append(nn.PReLU(features))
        layers.append(nn.Conv2d(features, 3 * scale**2, 3, padding=1))
        self.body = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, 3, height, width), RGB, 0..1."""
        out = x
        for layer in self.body:
            out = layer(out)
        base = functional.interpolate(x, scale_factor=self.scale, mode="nearest")
        return functional.pixel_shuffle(out, self.scale) + base


class DenseBlock(nn.Module):
    def __init__(self, features: int, grow: int) -> None:
        super().__init__()
        for index in range(5):
            last = index == 4
            layer = nn.Conv2d(
                features + index * grow, features if last else grow, 3, padding=1
            )
            self.add_module(f"conv{index + 1}", layer)

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for index in range(1, 5):
            out = self.get_submodule(f"conv{index}")(torch.cat(seen, dim=1))
            seen.append(functional.leaky_relu(out, 0.2))
        last: Tensor = self.get_submodule("conv5")(torch.cat(seen, dim=1))
        return last * 0.2 + x


class Residual(nn.Module):
    def __init__(self, features: int, grow: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(features, grow)
        self.rdb2 = DenseBlock(features, grow)
        self.rdb3 = DenseBlock(features, grow)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return out * 0.2 + x


class RRDB(nn.Module):
    """ESRGAN's generator: always four times up, from a pixel-unshuffled source at scale 2."""

    def __init__(self, *, features: int, grow: int, blocks: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.unshuffle = 4 // scale
        self.conv_first = nn.Conv2d(3 * self.unshuffle**2, features, 3, padding=1)
        self.body = nn.Sequential(*(Residual(features, grow) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up2 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_hr = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, 3, height, width), RGB, 0..1, sides divisible by ``unshuffle``."""
        first = self.conv_first(functional.pixel_unshuffle(x, self.unshuffle))
        out = first + self.conv_body(self.body(first))
        for layer in (self.conv_up1, self.conv_up2):
            out = functional.interpolate(out, scale_factor=2, mode="nearest")
            out = functional.leaky_relu(layer(out), 0.2)
        last: Tensor = self.conv_last(functional.leaky_relu(self.conv_hr(out), 0.2))
        return last


class Network:
    """A network on its device, fed with frames."""

    def __init__(
        self,
        name: str,
        module: SRVGG | RRDB,
        *,
        device: torch.device,
        tile: int = TILE,
        overlap: int = OVERLAP,
    ) -> None:
        self.name = name
        self.scale = module.scale
        self.on_gpu = device.type == "cuda"
        self.flops_per_pixel = _flops_per_pixel(module)
        self.device = device
        self.dtype = torch.float16 if self.on_gpu else torch.float32
        self.tile = tile
        self.overlap = overlap
        self._step = module.unshuffle if isinstance(module, RRDB) else 1
        self._module = (
            module.to(device, self.dtype).eval().requires_grad_(requires_grad=False)
        )

    @torch.inference_mode()
    def enlarge(self, frame: Frame) -> Frame:
        """frame: (height, width, 3) uint8. Returns it ``scale`` times as large."""
        source = torch.tensor(
            frame, device=self.device
        )  # a copy: frames may be read-only
        source = source.permute(2, 0, 1)[None].to(self.dtype) / 255
        high, wide = source.shape[-2:]
        out = torch.empty((high * self.scale, wide * self.scale, 3), dtype=torch.uint8)
        for top in range(0, high, self.tile):
            for left in range(0, wide, self.tile):
                self._tile(source, out, top=top, left=left)
        return out.numpy()

    def _tile(self, source: Tensor, out: Tensor, *, top: int, left: int) -> None:
        high, wide = source.shape[-2:]
        bottom, right = min(top + self.tile, high), min(left + self.tile, wide)
        up, before = max(0, top - self.overlap), max(0, left - self.overlap)
        part = source[
            ...,
            up : min(high, bottom + self.overlap),
            before : min(wide, right + self.overlap),
        ]
        spare = [-side % self._step for side in part.shape[-2:]]
        if any(spare):
            part = functional.pad(part, (0, spare[1], 0, spare[0]), mode="replicate")
        made = self._module(part)[0]
        s = self.scale
        made = made[
            :,
            (top - up) * s : (bottom - up) * s,
            (left - before) * s : (right - before) * s,
        ]
        pixels = made.float().clamp(0, 1).mul(255).round().to(torch.uint8)
        out[top * s : bottom * s, left * s : right * s] = pixels.permute(1, 2, 0).cpu()


#: What torch and safetensors say of files that are none of theirs, damaged or odd.
_UNREADABLE = (
    *(OSError, EOFError, pickle.UnpicklingError, struct.error, SafetensorError),
    *(RuntimeError, LookupError, ValueError, TypeError, AttributeError),
)


@functools.lru_cache(maxsize=32)
def scale_of(path: Path) -> int | None:
    """Return how many times ``path``'s network enlarges; None, logged, without one."""
    try:
        return _network_in(path).scale
    except WeightsMissing as missing:
        log.warning("left out for enlarging: %s", missing)
        return None


@functools.lru_cache(maxsize=4)
def load(path: Path, *, device: str = "auto") -> Network:
    """Return the network whose weights are in ``path``; kept for the process's life.

    Raises WeightsMissing when the file holds neither architecture.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Network(path.stem, _network_in(path), device=torch.device(device))


def _network_in(path: Path) -> SRVGG | RRDB:
    """Return the file's network, on the CPU."""
    try:
        state = _read(path)
        with torch.device("meta"):
            module = build(state)
        if module is not None:
            module.load_state_dict(state, strict=True, assign=True)
            return module
    except _UNREADABLE as error:
        raise WeightsMissing(f"{path} cannot be read: {error}") from error
    raise WeightsMissing(f"{path} holds neither SRVGG nor RRDB weights")


def build(state: Mapping[str, Tensor]) -> SRVGG | RRDB | None:
    """Return an empty network of the shape ``state`` was saved from; None if unknown."""
    if "conv_first.weight" in state and "body.0.rdb1.conv1.weight" in state:
        features, channels = state["conv_first.weight"].shape[:2]
        scale = {3: 4, 12: 2, 48: 1}.get(channels)
        if scale is None:
            return None
        return RRDB(
            features=features,
            grow=state["body.0.rdb1.conv1.weight"].shape[0],
            blocks=1 + max(_numbers(state, r"body\.(\d+)\.rdb1\.conv1\.weight")),
            scale=scale,
        )
    if "body.0.weight" in state and "body.1.weight" in state:
        last = max(_numbers(state, r"body\.(\d+)\.weight"))
        return SRVGG(
            features=state["body.0.weight"].shape[0],
            depth=(last - 2) // 2,
            scale=round((state[f"body.{last}.weight"].shape[0] / 3) ** 0.5),
        )
    return None


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("params_ema", "params"):
        if wrapper in state:
            return dict(state[wrapper])
    return dict(state)


def _numbers(state: Mapping[str, Tensor], pattern: str) -> list[int]:
    found = (re.fullmatch(pattern, key) for key in state)
    return [int(match[1]) for match in found if match]


def _flops_per_pixel(module: SRVGG | RRDB) -> float:
    """Return floating point operations per source pixel, counting convolutions."""
    total = 0.0
    # Every RRDB layer works at a quarter or a half of the 4x grid it ends on.
    areas = {"conv_up1": 4.0, "conv_up2": 16.0, "conv_hr": 16.0, "conv_last": 16.0}
    shrink = 1 / module.unshuffle**2 if isinstance(module, RRDB) else 1.0
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            area = areas.get(name, 1.0) if isinstance(module, RRDB) else 1.0
            total += 2 * layer.weight.numel() * area * shrink
    return total
