"""A picture as the model takes it: upright RGB, cropped to the frame's shape."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

from inference.errors import InputRejected


def load(path: Path, width: int, height: int, *, field: str = "image") -> Image.Image:
    """Return the picture at ``path``, filling ``width`` x ``height``, RGB.

    The crop is at most one block: sizes are chosen at the picture's own shape. Other
    modes than RGB would fail deep in a convolution, so transparency goes over white.
    """
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            picture = picture.convert("RGB")
    except (OSError, ValueError) as error:
        raise InputRejected("The picture cannot be read.", field=field) from error
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
