"""The visible marks: "AI Generated" bottom right, TEST top left.

A mark is drawn once per clip size, as white letters with a dark outline on a dark plate,
so it reads on white, black and noise alike; each frame then pays only for the pixels
under the plates. RGB arrays and the encoder's yuv420p pictures are marked alike. Frames
are never kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from av import VideoFrame
    from numpy.typing import NDArray

    from inference.contracts import Frame

LABEL = "AI Generated"
#: The label where the frame is too narrow for one legible line.
LABEL_STACKED = "AI\nGenerated"
TEST_LABEL = "TEST"

_LABEL_SHARE = 0.036  # of the short side: 26 px letters at 720p
_TEST_SHARE = 0.15
_SMALLEST_PX = 11  # Pillow's own typeface closes up below this
_PLATE_OPACITY = 150  # of 255; looked at on white, black and noise, 64 px to 4k


@dataclass(frozen=True)
class _Blend:
    """A patch for one plane: ``ink`` is value times alpha, ``keep`` is 256 - alpha.

    Alpha runs to 256, so that the division is a shift and nothing passes 16 bits.
    """

    top: int
    left: int
    ink: NDArray[np.uint16]
    keep: NDArray[np.uint16]

    def onto(self, plane: NDArray[np.uint8]) -> None:
        height, width = self.keep.shape[:2]
        region = plane[self.top : self.top + height, self.left : self.left + width]
        region[:] = (region * self.keep + self.ink) >> 8


@dataclass(frozen=True)
class _Mark:
    """One plate, ready for an RGB frame and for the two kinds of yuv420p plane."""

    rgb: _Blend
    luma: _Blend
    chroma: _Blend


class Watermark:
    """The marks for clips of one size.

    ``visible`` burns "AI Generated" into the bottom right corner, ``test`` burns TEST
    into the top left one. With neither, frames pass through untouched.
    """

    def __init__(self, width: int, height: int, *, visible: bool, test: bool) -> None:
        self.width = width
        self.height = height
        self._marks: list[_Mark] = []
        if visible:
            self._marks.append(self._corner_label())
        if test:
            self._marks.append(self._test_label())

    def __bool__(self) -> bool:
        return bool(self._marks)

    def apply(self, frame: Frame) -> Frame:
        """Return the marked frame; the frame given is left as it was."""
        if not self._marks:
            return frame
        return self.burn(frame.copy())

    def burn(self, frame: Frame) -> Frame:
        """Mark ``frame`` itself, which must be writable and nobody else's; return it."""
        if frame.shape[:2] != (self.height, self.width):
            raise ValueError(
                f"frame is {frame.shape[1]}x{frame.shape[0]}, "
                f"the marks are for {self.width}x{self.height}"
            )
        for mark in self._marks:
            mark.rgb.onto(frame)
        return frame

    def burn_picture(self, picture: VideoFrame) -> None:
        """Mark a yuv420p picture of limited range; it must be nobody else's."""
        if (picture.width, picture.height) != (self.width, self.height):
            raise ValueError(
                f"picture is {picture.width}x{picture.height}, "
                f"the marks are for {self.width}x{self.height}"
            )
        for mark in self._marks:
            for plane, blend in zip(
                picture.planes, (mark.luma, mark.chroma, mark.chroma), strict=True
            ):
                pixels = np.frombuffer(memoryview(plane), np.uint8)
                blend.onto(pixels.reshape(-1, plane.line_size))

    def _corner_label(self) -> _Mark:
        size = max(_SMALLEST_PX, round(min(self.width, self.height) * _LABEL_SHARE))
        text, size = self._fitting(size)
        plate = _plate(text, size)
        margin = min(round(size * 0.6), max(0, self.width - plate.width) // 2)
        return _mark(
            plate,
            left=max(0, self.width - plate.width - margin),
            top=max(0, self.height - plate.height - margin),
            frame_size=(self.width, self.height),
        )

    def _fitting(self, size: int) -> tuple[str, int]:
        if _plate(LABEL, size).width <= self.width:
            return LABEL, size
        while size > 5 and _plate(LABEL_STACKED, size).width > self.width:
            size -= 1
        return LABEL_STACKED, size

    def _test_label(self) -> _Mark:
        size = max(_SMALLEST_PX + 3, round(min(self.width, self.height) * _TEST_SHARE))
        while size > 5 and _plate(TEST_LABEL, size).width > self.width:
            size -= 1
        plate = _plate(TEST_LABEL, size)
        margin = min(round(size * 0.3), max(0, self.width - plate.width) // 2)
        return _mark(
            plate, left=margin, top=margin, frame_size=(self.width, self.height)
        )


def _plate(text: str, size: int) -> Image.Image:
    """Draw ``text`` at ``size`` px on its plate; RGBA, as large as the plate."""
    font = ImageFont.load_default(size)
    stroke = max(1, round(size / 12))
    probe = ImageDraw.Draw(Image.new("RGBA", (1, 1)))
    left, top, right, bottom = probe.multiline_textbbox(
        (0, 0), text, font=font, stroke_width=stroke, align="right", spacing=1
    )
    pad_x, pad_y = max(1, round(size * 0.3)), max(1, round(size * 0.2))
    plate = Image.new(
        "RGBA",
        (int(right - left) + 2 * pad_x, int(bottom - top) + 2 * pad_y),
        (0, 0, 0, 0),
    )
    draw = ImageDraw.Draw(plate)
    draw.rounded_rectangle(
        (0, 0, plate.width - 1, plate.height - 1),
        radius=round(size * 0.25),
        fill=(0, 0, 0, _PLATE_OPACITY),
    )
    letters = Image.new("RGBA", plate.size, (0, 0, 0, 0))
    ImageDraw.Draw(letters).multiline_text(
        (pad_x - left, pad_y - top),
        text,
        font=font,
        fill=(255, 255, 255, 255),
        stroke_width=stroke,
        stroke_fill=(0, 0, 0, 255),
        align="right",
        spacing=1,
    )
    return Image.alpha_composite(plate, letters)


def _mark(
    plate: Image.Image, *, left: int, top: int, frame_size: tuple[int, int]
) -> _Mark:
    # Even edges, so that each 2x2 block of pixels has one chroma sample of its own.
    left, top = left - left % 2, top - top % 2
    width = min(plate.width, frame_size[0] - left)
    height = min(plate.height, frame_size[1] - top)
    pixels = np.zeros((height + height % 2, width + width % 2, 4), np.uint32)
    pixels[:height, :width] = np.asarray(plate.crop((0, 0, width, height)))
    alpha = (pixels[..., 3] * 257 + 128) >> 8
    halved = alpha.reshape(len(alpha) // 2, 2, -1, 2).mean(axis=(1, 3))
    chroma_alpha = np.round(halved).astype(np.uint32)
    level = np.round(16 + pixels[..., 0] * 219 / 255).astype(np.uint32)
    colour_alpha = np.repeat(alpha[:height, :width, None], 3, axis=2)
    return _Mark(
        rgb=_blend(pixels[:height, :width, :3], colour_alpha, top=top, left=left),
        luma=_blend(level[:height, :width], alpha[:height, :width], top=top, left=left),
        chroma=_blend(
            np.full_like(chroma_alpha, 128), chroma_alpha, top=top // 2, left=left // 2
        ),
    )


def _blend(
    value: NDArray[np.uint32], alpha: NDArray[Any], *, top: int, left: int
) -> _Blend:
    keep = 256 - alpha
    ink = value * alpha + 127  # half a step, for rounding
    return _Blend(top, left, ink.astype(np.uint16), keep.astype(np.uint16))
