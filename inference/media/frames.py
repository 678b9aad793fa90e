"""Pictures as arrays: fitting a still to the clip's shape, and frames back from a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import Image

if TYPE_CHECKING:
    from inference.contracts import Frame

Box = tuple[float, float, float, float]


def cover_box(source: tuple[int, int], width: int, height: int) -> Box:
    """Return (left, top, right, bottom) of the largest centred part of that shape.

    >>> cover_box((400, 300), 100, 100)
    (50.0, 0.0, 350.0, 300.0)
    """
    wide, high = source
    scale = min(wide / width, high / height)
    left, top = (wide - width * scale) / 2, (high - height * scale) / 2
    left, top = max(left, 0.0), max(top, 0.0)  # rounding may have gone below
    return left, top, min(left + width * scale, wide), min(top + height * scale, high)


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return the picture cropped around its centre and resized to exactly fill the size."""
    box = cover_box(image.size, width, height)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def load_fitted(path: Path, width: int, height: int) -> Frame:
    """Return the prepared picture at ``path`` as a frame of that size."""
    with Image.open(path) as image:
        return np.array(fit(image.convert("RGB"), width, height))


def read_frames(path: Path) -> Iterator[Frame]:
    """Yield the frames of the video at ``path`` as RGB, one at a time.

    Untagged files count as BT.709 limited range, as players take them from 720p on.
    """
    reformatter = VideoReformatter()
    # Named, so that FFmpeg does not guess: a playlist opens other files.
    with av.open(str(path), "r", format="mp4") as container:
        stream = container.streams.video[0]
        matrix = stream.codec_context.colorspace
        reach = stream.codec_context.color_range
        for frame in container.decode(stream):
            picture = reformatter.reformat(
                frame,
                format="rgb24",
                src_colorspace=Colorspace.ITU601
                if matrix in {Colorspace.ITU601, Colorspace.SMPTE170M}
                else Colorspace.ITU709,
                src_color_range=ColorRange.JPEG
                if reach == ColorRange.JPEG
                else ColorRange.MPEG,
                dst_color_range=ColorRange.JPEG,
            )
            yield picture.to_ndarray().astype(np.uint8, copy=False)


def read_pictures(path: Path) -> Iterator[av.VideoFrame]:
    """Yield the pictures of the video at ``path`` as the decoder gives them."""
    with av.open(str(path), "r", format="mp4") as container:
        yield from container.decode(container.streams.video[0])
