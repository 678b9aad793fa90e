"""Is what the model made a video? Not-a-number, a blank screen and a still are not."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from inference.errors import EngineFailed

if TYPE_CHECKING:
    from inference.contracts import Frame

#: Below this spread of values (of 255) a picture is one flat colour.
FLAT = 0.75


class NotFinite(EngineFailed):
    """The model left the range of its numbers."""


def check_finite(latents: torch.Tensor) -> None:
    """Raise before the VAE turns NaN into black and the customer pays for it."""
    if not bool(torch.isfinite(latents).all()):
        raise NotFinite("the latents hold values that are not finite")


class Liveliness:
    """Watches frames go by; ``check`` raises when they were all flat or all the same.

    A flat picture in may give a flat video out. One frame is no video: not judged.
    """

    def __init__(self, picture: Frame) -> None:
        self._flat_in = _spread(picture) < FLAT
        self._seen: set[int] = set()
        self._lively = False
        self._frames = 0

    def see(self, frame: Frame) -> None:
        self._frames += 1
        if len(self._seen) < 2:
            self._seen.add(zlib.crc32(frame.tobytes()))
        if not self._lively:
            self._lively = _spread(frame) >= FLAT

    def check(self) -> None:
        if self._frames < 2 or self._flat_in:
            return
        if not self._lively:
            raise EngineFailed("every frame is one flat colour")
        if len(self._seen) < 2:
            raise EngineFailed("every frame is the same: the video is frozen")


def _spread(frame: Frame) -> float:
    return float(np.std(frame[::4, ::4].astype(np.float32), axis=(0, 1)).max())
