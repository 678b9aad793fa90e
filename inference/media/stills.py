"""The pictures beside a video: a poster, a small animated preview, the last frame.

All are taken from the encoder's own pictures as they stream past, so they show what the
file shows, marks included; of all of them only the last is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
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
    """Looks at each picture of a clip of ``total`` pictures and writes three files.

    Poster and preview are written while the clip goes on, so that little is left to do
    after its last picture; ``close`` writes that one and ends the preview.
    """

    def __init__(self, total: int, *, fps: float, folder: Path) -> None:
        seconds = total / fps
        count = max(1, min(PREVIEW_FRAMES, total, round(seconds * PREVIEW_FPS)))
        spread = np.linspace(0, total, count, endpoint=False)
        self._wanted = {int(index) for index in spread}
        self._files = StillFiles(
            folder / "poster.jpg", folder / "preview.webp", folder / "last.jpg"
        )
        self._preview = _Preview(self._files.preview, Fraction(count) / _exact(seconds))
        self._last: VideoFrame | None = None
        self._seen = 0

    def see(self, picture: VideoFrame) -> None:
        if self._seen in self._wanted:
            self._preview.add(rgb(picture, longest=PREVIEW_SIDE))
        if self._seen == 0:
            poster.write_poster(
                rgb(picture, longest=poster.LONG_SIDE), self._files.poster
            )
        self._last = picture
        self._seen += 1

    def close(self) -> StillFiles:
        """Return the finished files. Needs at least one picture seen."""
        if self._last is None:
            raise ValueError("no picture was seen")
        self._preview.close()
        Image.fromarray(rgb(self._last)).save(
            self._files.last, "JPEG", quality=LAST_QUALITY, subsampling=0
        )
        return self._files


class _Preview:
    """An endless animated WebP, encoded frame by frame."""

    def __init__(self, target: Path, rate: Fraction) -> None:
        self._container = av.open(
            str(target), "w", format="webp", options={"loop": "0"}
        )
        # Level 0 takes 3 ms a frame instead of 12, for a tenth more bytes.
        options = {"quality": "60", "compression_level": "0"}
        stream = self._container.add_stream("libwebp_anim", rate=rate, options=options)
        # The encoder's own step to YUV is WebP's BT.601, which the video's is not.
        stream.pix_fmt = "bgra"
        stream.codec_context.time_base = self._tick = 1 / rate
        self._stream = stream
        self._frames = 0

    def add(self, frame: Frame) -> None:
        if not self._frames:
            self._stream.height, self._stream.width = frame.shape[:2]
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture = picture.reformat(format="bgra")
        picture.pts, picture.time_base = self._frames, self._tick
        self._container.mux(self._stream.encode(picture))
        self._frames += 1

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()


def _exact(seconds: float) -> Fraction:
    return Fraction(seconds).limit_denominator(10_000)
