"""The pictures beside a video: a poster, a small animated preview, the last frame.

All are taken from the encoder's own pictures as they stream past, so they show what the
file shows, marks included; only the preview's small frames and the last picture are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from av.video.reformatter import (
    ColorRange,
    Colorspace,
    Interpolation,
    VideoReformatter,
)
from PIL import Image

from inference.media import poster

if TYPE_CHECKING:
    from av import VideoFrame

    from inference.contracts import Frame

PREVIEW_SIDE = 320
#: At most that many frames, spread over the clip; 8 a second look alive.
PREVIEW_FRAMES = 20
PREVIEW_FPS = 8
#: Of the last frame, which customers feed into their next clip.
LAST_QUALITY = 95


def rgb(picture: VideoFrame, *, longest: int | None = None) -> Frame:
    """Return a BT.709 limited-range picture as an RGB array, no larger than ``longest``."""
    scale = min(1.0, (longest or 10**6) / max(picture.width, picture.height))
    small = VideoReformatter().reformat(
        picture,
        width=max(1, round(picture.width * scale)),
        height=max(1, round(picture.height * scale)),
        format="rgb24",
        src_colorspace=Colorspace.ITU709,
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        interpolation=Interpolation.AREA if scale < 1 else Interpolation.BICUBIC,
        threads=1,  # starting a thread for each costs more than it saves
    )
    return np.ascontiguousarray(small.to_ndarray())


@dataclass(frozen=True)
class StillFiles:
    poster: Path
    preview: Path
    last: Path


class Stills:
    """Looks at each picture of a clip of ``total`` pictures, then writes the files."""

    def __init__(self, total: int, *, fps: float) -> None:
        self._seconds = total / fps
        count = max(1, min(PREVIEW_FRAMES, total, round(self._seconds * PREVIEW_FPS)))
        spread = np.linspace(0, total, count, endpoint=False)
        self._wanted = {int(index) for index in spread}
        self._small: list[Image.Image] = []
        self._poster: Frame | None = None
        self._last: VideoFrame | None = None
        self._seen = 0

    def see(self, picture: VideoFrame) -> None:
        if self._seen in self._wanted:
            self._small.append(Image.fromarray(rgb(picture, longest=PREVIEW_SIDE)))
        if self._poster is None:
            self._poster = rgb(picture, longest=poster.LONG_SIDE)
        self._last = picture
        self._seen += 1

    def write(self, folder: Path) -> StillFiles:
        """Write the three files into ``folder``. Needs at least one picture seen."""
        if self._poster is None or self._last is None:
            raise ValueError("no picture was seen")
        files = StillFiles(
            folder / "poster.jpg", folder / "preview.webp", folder / "last.jpg"
        )
        poster.write_poster(self._poster, files.poster)
        first, *rest = self._small
        first.save(
            files.preview,
            "WEBP",
            save_all=True,
            append_images=rest,
            duration=round(self._seconds * 1000 / len(self._small)),
            loop=0,
            quality=60,
            method=0,  # 3 ms a frame instead of 12, for a tenth more bytes
        )
        Image.fromarray(rgb(self._last)).save(
            files.last, "JPEG", quality=LAST_QUALITY, subsampling=0
        )
        return files
