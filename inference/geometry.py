"""Frame and pixel arithmetic, shared by prices, plans and engines. Pure, torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Tier = Literal["480p", "720p", "1080p", "4k"]

#: The short side a tier's name stands for, in pixels.
SHORT_SIDE: Mapping[str, int] = MappingProxyType(
    {"480p": 480, "720p": 720, "1080p": 1080, "4k": 2160}
)
#: The 16:9 (480p: Wan's 480×832) area a tier stands for, in pixels.
AREA: Mapping[str, int] = MappingProxyType(
    {"480p": 480 * 832, "720p": 1280 * 720, "1080p": 1920 * 1080, "4k": 3840 * 2160}
)
#: The longest side of an H.264 file: x264 refuses longer ones.
SIDE_MAX = 16_384


@dataclass(frozen=True)
class Size:
    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def vae_frames(frames: int) -> int:
    """Return the smallest 4k + 1 that is at least ``frames`` (the Wan VAE's clip lengths).

    Source: the VAE keeps frame 0 alone and packs the next four per latent.

    >>> [vae_frames(n) for n in (1, 17, 18, 19, 81, 83)]
    [1, 17, 21, 21, 81, 85]
    """
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    return frames + (1 - frames) % 4


def fit_area(aspect: float, *, area: int, multiple: int) -> Size:
    """Return the size nearest to ``aspect`` (width/height) with at most ``area`` pixels.

    Both sides are multiples of ``multiple``, at least one multiple.

    >>> str(fit_area(16 / 9, area=1280 * 720, multiple=16))
    '1280x720'
    """
    width = math.sqrt(area * aspect)
    wide = max(multiple, round(width / multiple) * multiple)
    high = max(multiple, round(width / aspect / multiple) * multiple)
    while wide * high > area and max(wide, high) > multiple:
        if (wide / high > aspect and wide > multiple) or high == multiple:
            wide -= multiple
        else:
            high -= multiple
    return Size(wide, high)


def fit_short_side(aspect: float, *, short_side: int, max_area: int) -> Size:
    """Return an even size whose short side is ``short_side``, keeping ``aspect``.

    Extreme shapes shrink so that the area stays within ``max_area``.

    >>> str(fit_short_side(4 / 3, short_side=720, max_area=10**7))
    '960x720'
    """
    if aspect >= 1:
        width, height = short_side * aspect, float(short_side)
    else:
        width, height = float(short_side), short_side / aspect
    shrink = min(1.0, math.sqrt(max_area / (width * height)))
    return Size(_even(width * shrink), _even(height * shrink))


def _even(side: float) -> int:
    return max(2, round(side / 2) * 2)
