"""One frame as a JPEG, for lists and players that have not started yet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from inference.contracts import Frame

LONG_SIDE = 1280
QUALITY = 85  # 40-150 kB at 720p


def write_poster(frame: Frame, target: Path) -> None:
    image = Image.fromarray(frame)
    image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    image.save(target, "JPEG", quality=QUALITY)
