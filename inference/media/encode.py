"""Frames to an H.264 file, one at a time: memory stays flat however long the clip is.

High profile, yuv420p, BT.709 limited range: converted and tagged, so that every player
shows the colours of the frames. The index stands at the front (faststart). The file has
exactly the frames written, each lasting 1/fps.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import av
import numpy as np
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)

from inference.errors import EngineFailed

if TYPE_CHECKING:
    from inference.contracts import Frame

KEYFRAME_SECONDS = 2  # what a seek may cost


@dataclass(frozen=True)
class Effort:
    """x264's knobs for one size of picture.

    Measured with two threads on two cores, fed with a moving photo: up to 1080p
    "veryfast" makes 155 / 53 / 24 frames/s at 480p / 720p / 1080p against 73 for "medium"
    at 480p; a short look-ahead saves 50 MB at 480p and 250 MB at 1080p against 40 frames.
    What is left to encode after the last frame takes 15 / 30 ms at 480p / 720p with 5
    frames of it, 23 / 55 ms with 10; crf 17 then gives the size that 18 gave with 10, and
    0.2 dB less.
    """

    preset: str = "veryfast"
    crf: int = 17
    params: str = "rc-lookahead=5:threads=2"


USUAL = Effort()
#: 4k without B-frames and with one reference: 550 MB against 1.6 GB.
LARGE = Effort(crf=20, params="rc-lookahead=5:threads=2:ref=1:bframes=0")
_LARGE_PIXELS = 1920 * 1088 * 3 // 2


#: What is encoded again later: as near as 4:2:0 comes, cheap to write and to read.
MASTER = Effort("superfast", crf=8, params="rc-lookahead=0:threads=2:bframes=0")


def effort_for(width: int, height: int) -> Effort:
    return LARGE if width * height > _LARGE_PIXELS else USUAL


class Encoder:
    """Writes one video file; as a context manager it leaves no half file behind.

    ``source`` is the frames' (width, height) when it differs from the file's; they are
    then resized by Lanczos on the way.
    """

    def __init__(
        self,
        target: Path,
        *,
        width: int,
        height: int,
        fps: int,
        source: tuple[int, int] | None = None,
        effort: Effort | None = None,
    ) -> None:
        effort = effort or effort_for(width, height)
        self.frames = 0
        self._target = target
        self._size = (width, height)
        wide, high = source or (width, height)
        self._shape = (high, wide, 3)
        self._reformatter = VideoReformatter()
        self._last: tuple[Frame, av.VideoFrame] | None = None
        self._container = av.open(
            str(target), "w", format="mp4", options={"movflags": "+faststart"}
        )
        stream = self._container.add_stream(
            "libx264",
            rate=fps,
            options={
                "preset": effort.preset,
                "crf": str(effort.crf),
                "profile": "high",
                "x264-params": effort.params,
                "g": str(fps * KEYFRAME_SECONDS),
            },
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = self._tick = Fraction(1, fps)
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        self._stream = stream

    def write(self, frame: Frame) -> None:
        """Encode the next frame, RGB.

        Giving the same read-only array again is cheap: it is converted only once.
        """
        self.put(self.convert(frame))

    def convert(self, frame: Frame) -> av.VideoFrame:
        """Return the frame as a picture of the file's size, for `put`.

        The same read-only array gives the same picture.
        """
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise EngineFailed(
                f"frame {self.frames} is {frame.shape} {frame.dtype}, "
                f"not {self._shape} uint8"
            )
        if self._last is None or self._last[0] is not frame or frame.flags.writeable:
            self._last = frame, self._converted(frame)
        return self._last[1]

    def put(self, picture: av.VideoFrame) -> None:
        """Encode the next picture: yuv420p, BT.709, of the file's size."""
        picture.pts = self.frames
        picture.time_base = self._tick
        self._container.mux(self._stream.encode(picture))
        self.frames += 1

    def _converted(self, frame: Frame) -> av.VideoFrame:
        width, height = self._size
        return self._reformatter.reformat(
            av.VideoFrame.from_numpy_buffer(
                np.ascontiguousarray(frame), format="rgb24"
            ),
            width=width,
            height=height,
            format="yuv420p",
            # PyAV would convert by BT.601, up to 27/255 off in a BT.709 player.
            src_colorspace=Colorspace.ITU709,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            dst_color_trc=ColorTrc.BT709,
            dst_color_primaries=ColorPrimaries.BT709,
            interpolation=Interpolation.LANCZOS,
        )

    def close(self) -> None:
        """Write what the encoder still holds, and the index."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abort(self) -> None:
        self._container.close()
        self._target.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()
