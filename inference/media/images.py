"""Customers' pictures: what can be told from the header, and a clean PNG from the rest.

``read_header`` looks at magic bytes and header fields only; nothing is decoded, so it is
safe and quick inside a web request. ``clean`` decodes fully in a child process with
limits on memory and time, and writes one upright RGB picture without any metadata.
JPEG, PNG, WebP and BMP are read, whatever the file calls itself.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from inference.errors import InputRejected, PictureSizeRejected

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inference.contracts import Limits

Format = Literal["JPEG", "PNG", "WEBP", "BMP"]
CHILD = Path(__file__).with_name("images_child.py")
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112
#: Segments or chunks looked at: many times what a picture of 10 MB has, and 10 ms.
_PARTS_MAX = 50_000
_START_SECONDS = 10.0  # a loaded machine may take this long to start the child


@dataclass(frozen=True)
class ImageHeader:
    """``width`` and ``height`` as seen upright; ``orientation`` is the EXIF value, 1-8."""

    format: Format
    width: int
    height: int
    has_alpha: bool
    orientation: int = 1

    @property
    def stored_size(self) -> tuple[int, int]:
        """Return (width, height) as the file stores them, before turning upright."""
        if self.orientation >= 5:
            return self.height, self.width
        return self.width, self.height


def read_header(data: bytes, limits: Limits) -> ImageHeader:
    """Return what the header of ``data`` says.

    Raises InputRejected (field ``image``) for another format
    (``image_format_unsupported``), a damaged header (``invalid_image``), a side outside
    the limits or too many pixels (``image_size_invalid``).
    """
    try:
        header = _parse(data)
    except (struct.error, IndexError, ValueError) as error:
        raise _rejected("The image's header is damaged.") from error
    low, high = limits.image_side_min, limits.image_side_max
    if not (low <= header.width <= high and low <= header.height <= high):
        raise PictureSizeRejected(
            f"The image is {header.width}x{header.height} pixels; "
            f"each side must be {low} to {high}.",
            is_too_large=max(header.width, header.height) > high,
        )
    if header.width * header.height > limits.image_pixels:
        raise PictureSizeRejected(
            f"The image is {header.width}x{header.height} pixels; "
            f"at most {limits.image_pixels // 1_000_000} megapixels are allowed.",
            is_too_large=True,
        )
    return header


def clean(data: bytes, target: Path, limits: Limits) -> ImageHeader:
    """Decode ``data`` and write it to ``target`` as a clean PNG.

    Upright, 8-bit RGB (transparency over white, embedded colour profile to sRGB), first
    picture only. Raises InputRejected when it cannot be decoded within the limits.
    """
    if len(data) > limits.image_bytes:
        raise _rejected(
            f"The image has more than {limits.image_bytes // 2**20} MB.",
            code="image_too_large",
        )
    header = read_header(data, limits)
    order = {
        "format": header.format,
        "size": header.stored_size,
        "orientation": header.orientation,
        "target": str(target),
        "memory_bytes": limits.decode_memory_bytes,
        "cpu_seconds": max(1, int(limits.decode_seconds)),
    }
    # The child is run as a plain file: it sees neither our modules nor our environment.
    command = [sys.executable, "-I", str(CHILD), json.dumps(order)]
    try:
        done = subprocess.run(
            command,
            input=data,
            capture_output=True,
            timeout=limits.decode_seconds + _START_SECONDS,
            env={},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _rejected("The image takes too long to decode.") from error
    if done.returncode != 0:
        raise _rejected(_why(done.stderr))
    return header


def _why(stderr: bytes) -> str:
    line = stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
    reason = line.removeprefix("rejected: ")
    if reason != line:
        return reason
    return "The image could not be decoded within the limits of memory and time."


def _rejected(message: str, *, code: str = "invalid_image") -> InputRejected:
    return InputRejected(message, field="image", code=code)


def _parse(data: bytes) -> ImageHeader:
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith(b"BM"):
        return _bmp(data)
    raise _rejected(
        "The image must be a JPEG, PNG, WebP or BMP file.",
        code="image_format_unsupported",
    )


def _upright(
    kind: Format, width: int, height: int, *, has_alpha: bool, orientation: int = 1
) -> ImageHeader:
    if orientation >= 5:
        width, height = height, width
    return ImageHeader(kind, width, height, has_alpha, orientation)


def _png(data: bytes) -> ImageHeader:
    length, name = struct.unpack_from(">I4s", data, 8)
    crc = struct.unpack_from(">I", data, 29)[0]
    if name != b"IHDR" or length != 13 or zlib.crc32(data[12:29]) != crc:
        raise ValueError("PNG without a sound IHDR")
    width, height, _depth, colour = struct.unpack_from(">IIBB", data, 16)
    has_alpha, orientation = colour in {4, 6}, 1
    for kind, start, size in _chunks(data, 33, ">I4s"):
        if kind == b"tRNS":
            has_alpha = True
        elif kind == b"eXIf":
            orientation = _orientation(data[start : start + size])
    return _upright("PNG", width, height, has_alpha=has_alpha, orientation=orientation)


def _chunks(
    data: bytes, position: int, form: Literal[">I4s", "<4sI"]
) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, size) of PNG (">I4s") or RIFF ("<4sI") chunks."""
    for _ in range(_PARTS_MAX):
        if position + 8 > len(data):
            return
        first, second = struct.unpack_from(form, data, position)
        if form == ">I4s":
            size, name, extra = first, second, 4  # a CRC follows
        else:
            name, size, extra = first, second, second % 2  # padded to even
        yield name, position + 8, size
        position += 8 + size + extra
    raise ValueError("too many chunks")


def _jpeg(data: bytes) -> ImageHeader:
    position, orientation = 2, 1
    for _ in range(_PARTS_MAX):
        if data[position] != 0xFF:
            raise ValueError("JPEG marker expected")
        marker = data[position + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        body = position + 4
        if marker == 0xE1 and data[body : body + 6] == b"Exif\0\0":
            orientation = _orientation(data[body + 6 : position + 2 + length])
        elif 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            height, width = struct.unpack_from(">HH", data, body + 1)
            return _upright(
                "JPEG", width, height, has_alpha=False, orientation=orientation
            )
        elif marker in {0xD9, 0xDA} or length < 2:
            raise ValueError("JPEG without a frame header")
        position += 2 + length
    raise ValueError("too many segments")


def _webp(data: bytes) -> ImageHeader:
    name = data[12:16]
    if name == b"VP8 ":
        if data[23:26] != b"\x9d\x01\x2a":
            raise ValueError("WebP without a key frame")
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageHeader("WEBP", width & 0x3FFF, height & 0x3FFF, has_alpha=False)
    if name == b"VP8L":
        if data[20] != 0x2F:
            raise ValueError("lossless WebP without its signature")
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return ImageHeader("WEBP", width, height, has_alpha=bool(bits >> 28 & 1))
    if name != b"VP8X":
        raise ValueError("WebP of an unknown kind")
    width = int.from_bytes(data[24:27], "little") + 1
    height = int.from_bytes(data[27:30], "little") + 1
    if len(data) < 30:
        raise ValueError("WebP cut short")
    orientation = 1
    for kind, start, size in _chunks(data, 12, "<4sI"):
        if kind == b"EXIF":
            exif = data[start : start + size].removeprefix(b"Exif\0\0")
            orientation = _orientation(exif)
    return _upright(
        "WEBP",
        width,
        height,
        has_alpha=bool(data[20] & 0x10),
        orientation=orientation,
    )


def _bmp(data: bytes) -> ImageHeader:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return ImageHeader("BMP", width, height, has_alpha=False)
    if size not in {40, 52, 56, 64, 108, 124}:
        raise ValueError("BMP header of an unknown kind")
    width, height = struct.unpack_from("<ii", data, 18)
    has_alpha = size >= 56 and size != 64 and data[66:70] != bytes(4)
    return ImageHeader("BMP", width, abs(height), has_alpha=has_alpha)


def _orientation(exif: bytes) -> int:
    """Return the orientation an EXIF block gives, 1 when it is absent or damaged."""
    order: Literal["<", ">"] = "<" if exif[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for index in range(min(count, 200)):
            entry = start + 2 + 12 * index
            tag, kind, _count, value = struct.unpack_from(order + "HHIH", exif, entry)
            if tag == _ORIENTATION and kind == 3:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
