"""Brings a prepared picture into the form one provider takes.

Input is the clean PNG of the prepare step. A picture is scaled only when a side limit
demands it, becomes JPEG only when the PNG is too heavy, and is padded only when the
provider wants an exact size: the padding is what the finishing crop cuts away again, so
the customer's picture is never cropped here.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageFilter

from inference.errors import InputRejected
from inference.providers.base import Picture, PictureNeed

#: JPEG qualities tried in turn until the picture is light enough.
_QUALITIES = (95, 90, 80, 60)
#: How far a thin picture may be enlarged to reach a provider's shortest side.
_ENLARGE_MAX = 8.0


def fit_picture(
    source: Path | bytes,
    need: PictureNeed,
    canvas: tuple[int, int] | None = None,
) -> Picture:
    """Return ``source`` within the limits of ``need``, at ``canvas`` size if one is given.

    Raises InputRejected when no scaling can satisfy both side limits (a very long strip).
    """
    original = source if isinstance(source, bytes) else source.read_bytes()
    with Image.open(io.BytesIO(original), formats=("PNG",)) as opened:
        image = opened.convert("RGB")
    fitted = _pad(image, canvas) if canvas else _within_sides(image, need)
    if fitted is image and len(original) <= need.size_bytes_max:
        return Picture(original, "image/png")
    return _encode(fitted, need)


def _within_sides(image: Image.Image, need: PictureNeed) -> Image.Image:
    short, long = sorted(image.size)
    scale = min(1.0, need.side_max / long)
    if short * scale < need.side_min:
        scale = need.side_min / short
        if scale > _ENLARGE_MAX or long * scale > need.side_max:
            raise InputRejected(
                f"The picture cannot be brought to sides of {need.side_min} to "
                f"{need.side_max} pixels.",
                field="image",
            )
    if scale == 1.0:
        return image
    wide, high = (
        min(max(round(side * scale), need.side_min), need.side_max)
        for side in image.size
    )
    return image.resize((wide, high), Image.Resampling.LANCZOS)


def _pad(image: Image.Image, canvas: tuple[int, int]) -> Image.Image:
    """Return ``image`` centred on ``canvas`` before a blurred copy of itself."""
    if image.size == canvas:
        return image
    inside = _scaled(image, canvas, cover=False)
    if inside.size == canvas:
        return inside
    # Blur at an eighth of the size: the same look for a fraction of the work.
    small = (max(1, canvas[0] // 8), max(1, canvas[1] // 8))
    backdrop = _scaled(image, small, cover=True)
    left, top = (backdrop.width - small[0]) // 2, (backdrop.height - small[1]) // 2
    backdrop = backdrop.crop((left, top, left + small[0], top + small[1]))
    backdrop = backdrop.filter(ImageFilter.GaussianBlur(6))
    padded = backdrop.resize(canvas, Image.Resampling.BICUBIC)
    padded.paste(
        inside,
        ((canvas[0] - inside.width) // 2, (canvas[1] - inside.height) // 2),
    )
    return padded


def _scaled(image: Image.Image, box: tuple[int, int], *, cover: bool) -> Image.Image:
    """Return ``image`` scaled to lie within ``box``, or to ``cover`` it."""
    scales = (box[0] / image.width, box[1] / image.height)
    scale = max(scales) if cover else min(scales)
    size = (
        max(1, round(image.width * scale)),
        max(1, round(image.height * scale)),
    )
    return image.resize(size, Image.Resampling.LANCZOS)


def _encode(image: Image.Image, need: PictureNeed) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    if buffer.tell() <= need.size_bytes_max:
        return Picture(buffer.getvalue(), "image/png")
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
        if buffer.tell() <= need.size_bytes_max:
            return Picture(buffer.getvalue(), "image/jpeg")
    raise InputRejected("The picture is too large for this model.", field="image")
