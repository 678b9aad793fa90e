"""Decode one picture from stdin into a clean PNG; run alone, inside its own limits.

Called by ``inference.media.images`` with one JSON argument. Exit status 0 means that the
target was written; otherwise the last line of stderr is ``rejected: REASON``, or the
process was stopped by a limit. Imports nothing of ours: it may be taken over by a
hostile file, so it gets no environment and little memory.
"""

from __future__ import annotations

import io
import json
import resource
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

#: EXIF orientation → the name of Pillow's operation that turns the picture upright
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def main() -> int:
    order = json.loads(sys.argv[1])
    memory, seconds = order["memory_bytes"], order["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data = sys.stdin.buffer.read()
    try:
        picture = decode(data, order)
        del data
        picture.save(order["target"], "PNG", compress_level=1)
    except MemoryError:
        return reject("The image needs too much memory to decode.")
    except (OSError, ValueError, SyntaxError, OverflowError) as error:
        return reject(f"The image cannot be decoded: {' '.join(str(error).split())}")
    return 0


def reject(reason: str) -> int:
    sys.stderr.write(f"rejected: {reason[:300]}\n")
    return 3


def decode(data: bytes, order: dict[str, Any]) -> Picture:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the header has been checked against our own limit
    warnings.simplefilter("ignore")
    picture: Picture = Image.open(io.BytesIO(data), formats=(order["format"],))
    if list(picture.size) != list(order["size"]):
        raise ValueError("its header contradicts itself")
    picture.load()
    profile = picture.info.get("icc_profile")
    picture = to_srgb(flatten(picture), profile)
    if (turn := TURNS.get(order["orientation"])) is not None:
        picture = picture.transpose(Image.Transpose[turn])
    picture.info.clear()  # text, EXIF and profile must not travel along
    return picture


def flatten(picture: Picture) -> Picture:
    """Return the picture as 8-bit RGB, L or CMYK, transparency laid over white."""
    from PIL import Image

    if picture.mode.startswith(("I", "F")):
        # 16-bit grey; a plain convert("L") would clip everything above 255 to white.
        return picture.convert("I").point(lambda v: v / 256, "L")
    transparent = picture.has_transparency_data
    if transparent or picture.mode in {"RGBA", "LA", "PA", "RGBa", "La"}:
        if picture.mode != "RGBA":
            picture = picture.convert("RGBA")
        ground = Image.new("RGB", picture.size, (255, 255, 255))
        ground.paste(picture, mask=picture.getchannel("A"))
        return ground
    if picture.mode in {"RGB", "L", "CMYK"}:
        return picture
    return picture.convert("RGB")


def to_srgb(picture: Picture, profile: bytes | None) -> Picture:
    """Return the picture as RGB; a broken or unfitting colour profile is ignored."""
    from PIL import ImageCms

    if profile and b"sRGB IEC61966" not in profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            turned = ImageCms.profileToProfile(
                picture, source, target, outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError, ValueError):
            turned = None
        if turned is not None:
            return turned
    return picture if picture.mode == "RGB" else picture.convert("RGB")


if __name__ == "__main__":
    sys.exit(main())
