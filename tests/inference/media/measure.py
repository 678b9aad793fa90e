"""Measuring how pictures move: sub-pixel shifts by phase correlation, likeness by PSNR."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def psnr(one: Pixels, other: Pixels) -> float:
    error = float(np.mean((one.astype(float) - other.astype(float)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def shift(before: Pixels, after: Pixels) -> tuple[float, float]:
    """Return how far (right, down) the content moved from ``before`` to ``after``."""
    height, width = before.shape[:2]
    window = np.outer(np.hanning(height), np.hanning(width))
    spectra = [
        np.fft.rfft2((grey - grey.mean()) * window)
        for grey in (before.mean(axis=2), after.mean(axis=2))
    ]
    cross = spectra[1] * spectra[0].conj()
    # Low frequencies only: they survive resampling and codec noise.
    magnitude = np.abs(cross)
    surface = np.fft.irfft2(cross / np.maximum(magnitude, 1e-9) * _low(cross.shape))
    surface = np.asarray(surface)
    top, left = np.unravel_index(int(surface.argmax()), surface.shape)
    return (
        _peak(surface[top, :], int(left)),
        _peak(surface[:, left], int(top)),
    )


def _low(shape: tuple[int, ...]) -> NDArray[np.float64]:
    rows = np.minimum(np.arange(shape[0]), shape[0] - np.arange(shape[0])) / shape[0]
    columns = np.arange(shape[1]) / (2 * (shape[1] - 1))
    return np.asarray(np.exp(-(rows[:, None] ** 2 + columns[None, :] ** 2) / 0.02))


def _peak(line: NDArray[np.float64], place: int) -> float:
    size = len(line)
    left, middle, right = (float(line[(place + d) % size]) for d in (-1, 0, 1))
    bend = left - 2 * middle + right
    exact = place + (0.5 * (left - right) / bend if bend else 0.0)
    return exact - size if exact > size / 2 else exact


def half_shifts(before: Pixels, after: Pixels) -> dict[str, tuple[float, float]]:
    """Return the shifts of the four halves: left, right, top, bottom."""
    height, width = before.shape[:2]
    middle, centre = height // 2, width // 2
    return {
        "left": shift(before[:, :centre], after[:, :centre]),
        "right": shift(before[:, centre:], after[:, centre:]),
        "top": shift(before[:middle], after[:middle]),
        "bottom": shift(before[middle:], after[middle:]),
    }
