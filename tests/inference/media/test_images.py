"""What customers may send as a picture, what becomes of it, and what is refused."""

from __future__ import annotations

import dataclasses
import io
import resource
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from inference.contracts import Limits
from inference.errors import InputRejected, PictureSizeRejected
from inference.media import images
from inference.media.images import clean, read_header

LIMITS = Limits()
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


def gradient(width: int = 120, height: int = 80, mode: str = "RGB") -> Image.Image:
    """A picture whose four corners differ: red grows right, green grows down."""
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    pixels = np.stack([x, y, np.full_like(x, 60)], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def cleaned(data: bytes, folder: Path, limits: Limits = LIMITS) -> Image.Image:
    target = folder / "clean.png"
    clean(data, target, limits)
    with Image.open(target) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        assert set(image.info) <= {"dpi"}
        return image.copy()


def colour_at(image: Image.Image, x: int, y: int) -> tuple[int, int, int]:
    colour = image.getpixel((x, y))
    assert isinstance(colour, tuple)
    return colour[0], colour[1], colour[2]


def chunk(name: bytes, body: bytes) -> bytes:
    crc = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)


def png(
    width: int, height: int, *extra: bytes, depth: int = 8, colour: int = 2
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = zlib.compress(b"\0" * min((width * 3 + 1) * height, 10_000))
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *extra,
            chunk(b"IDAT", rows),
            chunk(b"IEND", b""),
        ]
    )


# ------------------------------------------------------------------ the header


@pytest.mark.parametrize("kind", FORMATS)
def test_the_header_names_format_and_size(kind):
    header = read_header(encoded(gradient(), kind), LIMITS)
    assert (header.format, header.width, header.height) == (kind, 120, 80)
    assert not header.has_alpha


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})],
)
def test_the_header_tells_of_transparency(kind, options):
    image = gradient(mode="RGBA")
    image.putalpha(100)
    assert read_header(encoded(image, kind, **options), LIMITS).has_alpha


def test_a_png_palette_with_a_transparent_colour_has_alpha():
    image = gradient().quantize(16)
    assert read_header(encoded(image, "PNG", transparency=3), LIMITS).has_alpha
    assert not read_header(encoded(image, "PNG"), LIMITS).has_alpha


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_as_their_exif_says(kind, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(gradient(), kind, exif=exif)
    header = read_header(data, LIMITS)
    expected = gradient()
    if orientation > 1:
        turn = {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_270,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90,
        }[orientation]
        expected = expected.transpose(turn)
    assert (header.width, header.height) == expected.size
    got = np.asarray(cleaned(data, tmp_path), int)
    assert got.shape[:2] == expected.size[::-1]
    assert np.abs(got - np.asarray(expected, int)).mean() < 6


@pytest.mark.parametrize(
    "crowd",
    [
        b"\xff\xd8" + b"\xff" * 10_000_000,
        b"\xff\xd8\xff" + b"\xd0\xff" * 5_000_000,
        b"\xff\xd8" + b"\xff\xe0\x00\x02" * 2_500_000,
        encoded(gradient(), "PNG")[:33] + (bytes(4) + b"abcd" + bytes(4)) * 800_000,
        b"RIFF0000WEBPVP8X\n" + bytes(13) + (b"abcd" + bytes(4)) * 1_250_000,
    ],
    ids=["fill bytes", "restarts", "segments", "PNG chunks", "WebP chunks"],
)
def test_a_header_of_countless_parts_is_refused_at_once(crowd):
    began = time.process_time()
    with pytest.raises(InputRejected, match="damaged"):
        read_header(crowd, LIMITS)
    assert time.process_time() - began < 0.1  # all of them: 0.15 to 0.6 s


@pytest.mark.parametrize(
    "exif", [b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" * 3]
)
def test_a_damaged_exif_block_is_ignored(exif):
    data = encoded(gradient(), "JPEG", exif=b"Exif\0\0" + exif)
    assert read_header(data, LIMITS).orientation == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\0" * 1000,
        b"<!doctype html><html><body>404</body></html>",
        b"GIF89a" + bytes(100),
        b"%PDF-1.7 ",
        b"8BPS\0\x01" + bytes(40),
        b"\0\0\x01\0\x01\0" + bytes(40),
        b"\0\0\0\x1cftypheic" + bytes(40),
        b"\0\0\0\x1cftypavif" + bytes(40),
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"SIMPLE  =                    T",
        b"II*\0\x08\0\0\0",
        b"MM\0*\0\0\0\x08",
        b"RIFF\x04\0\0\0WAVE",
        b"PK\x03\x04" + bytes(40),
    ],
)
def test_other_formats_are_refused_whatever_they_call_themselves(data):
    with pytest.raises(InputRejected, match="JPEG, PNG, WebP or BMP") as refused:
        read_header(data, LIMITS)
    assert refused.value.field == "image"
    assert refused.value.code == "image_format_unsupported"
    assert refused.value.permanent


@pytest.mark.parametrize("kind", FORMATS)
def test_a_header_cut_short_anywhere_is_refused_and_never_breaks(kind):
    data = encoded(gradient(), kind)
    for length in range(min(len(data), 200)):
        try:
            read_header(data[:length], LIMITS)
        except InputRejected:
            continue


@pytest.mark.parametrize("kind", FORMATS)
def test_a_header_with_any_byte_changed_never_breaks(kind):
    data = encoded(gradient(), kind)
    for place in range(4, min(len(data), 120)):
        for value in (0, 0xFF, data[place] ^ 0x80):
            broken = data[:place] + bytes([value]) + data[place + 1 :]
            try:
                read_header(broken, LIMITS)
            except InputRejected:
                continue


def test_sides_from_64_to_8192_pixels_are_taken():
    assert read_header(png(64, 8192), LIMITS).height == 8192
    for width, height in ((63, 100), (100, 63), (8193, 64), (1, 1), (64, 100_000)):
        with pytest.raises(PictureSizeRejected, match="64 to 8192") as refused:
            read_header(png(width, height), LIMITS)
        assert refused.value.code == "image_size_invalid"
        assert refused.value.is_too_large == (max(width, height) > 8192)


def test_more_than_25_megapixels_are_refused():
    assert read_header(png(5000, 5000), LIMITS).width == 5000
    with pytest.raises(PictureSizeRejected, match="25 megapixels") as refused:
        read_header(png(5000, 5001), LIMITS)
    assert refused.value.is_too_large


@pytest.mark.parametrize("size", [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (1, 10**9)])
def test_a_pixel_bomb_is_refused_from_its_header(size):
    bomb = png(*size)
    began = time.process_time()
    with pytest.raises(InputRejected):
        read_header(bomb, LIMITS)
    assert time.process_time() - began < 0.05


# ----------------------------------------------------------------- the cleaning


def test_a_photo_comes_out_as_it_went_in(photo, tmp_path):
    got = np.asarray(cleaned(photo, tmp_path), int)
    with Image.open(io.BytesIO(photo)) as image:
        assert np.abs(got - np.asarray(image, int)).max() == 0


def test_transparency_is_laid_over_white(tmp_path):
    image = Image.new("RGBA", (100, 100), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 50, 100))
    for kind in ("PNG", "WEBP"):
        got = cleaned(encoded(image, kind, lossless=True), tmp_path)
        assert got.getpixel((80, 50)) == (255, 255, 255)
        assert got.getpixel((20, 50)) == (0, 0, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_png_mode_becomes_rgb(mode, tmp_path):
    if mode == "I;16":
        deep = np.linspace(0, 65535, 120, dtype=np.uint16)[None, :].repeat(80, 0)
        image = Image.fromarray(deep)
    else:
        image = gradient(mode=mode)
    got = np.asarray(cleaned(encoded(image, "PNG"), tmp_path), int)
    assert got.shape == (80, 120, 3)
    if mode == "I;16":
        assert abs(got[40, 60, 0] - 128) <= 2
        assert got[40, 119, 0] == 255


def test_a_16_bit_colour_png_keeps_its_colours(tmp_path):
    row = b"\0" + struct.pack(">HHH", 0xFFFF, 0x8000, 0) * 70
    body = zlib.compress(row * 70)
    header = struct.pack(">IIBBBBB", 70, 70, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body)
    got = cleaned(data + chunk(b"IEND", b""), tmp_path)
    assert got.getpixel((30, 30)) == (255, 128, 0)


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (100, 100), (0, 255, 255, 0))
    red, green, blue = colour_at(cleaned(encoded(image, "JPEG"), tmp_path), 50, 50)
    assert red > 200
    assert green < 90
    assert blue < 90


def test_a_colour_profile_that_does_not_fit_is_ignored(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    image = gradient()
    for profile in (lab.tobytes(), b"nonsense" * 30):
        got = cleaned(encoded(image, "PNG", icc_profile=profile), tmp_path)
        assert got.getpixel((60, 40)) == image.getpixel((60, 40))


def test_a_foreign_colour_profile_is_turned_into_srgb(tmp_path):
    linear = linear_light_profile()
    image = Image.new("RGB", (100, 100), (55, 55, 55))  # 21.6 % of the light
    got = colour_at(
        cleaned(encoded(image, "PNG", icc_profile=linear), tmp_path), 50, 50
    )
    assert all(abs(level - 128) <= 3 for level in got)


def linear_light_profile() -> bytes:
    """SRGB's profile with its three tone curves replaced by straight ones."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = bytearray(srgb)
    (count,) = struct.unpack_from(">I", profile, 128)
    for index in range(count):
        name, start, _size = struct.unpack_from(">4sII", profile, 132 + 12 * index)
        if name in {b"rTRC", b"gTRC", b"bTRC"}:
            assert bytes(profile[start : start + 4]) == b"para"
            kind = struct.unpack_from(">H", profile, start + 8)[0]
            assert kind == 3
            # Y = X ** 1 everywhere
            values = (1.0, 1.0, 0.0, 1.0, 0.0)
            fixed = [round(value * 65536) for value in values]
            struct.pack_into(">5i", profile, start + 12, *fixed)
    return bytes(profile)


def test_only_the_first_picture_of_an_animation_is_used(tmp_path):
    first = Image.new("RGB", (100, 100), (255, 0, 0))
    others = [Image.new("RGB", (100, 100), (0, 0, i % 256)) for i in range(1, 300)]
    for kind in ("PNG", "WEBP"):
        data = encoded(first, kind, save_all=True, append_images=others)
        red, green, blue = colour_at(cleaned(data, tmp_path), 50, 50)
        assert red > 240
        assert max(green, blue) < 15


def test_nothing_but_the_picture_survives(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "SECRET place"
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    html = b"<script>SECRET</script>"
    data = encoded(gradient(), "JPEG", exif=exif, comment=html)
    data += b"PK\x03\x04SECRET zip behind the picture"
    cleaned(data, tmp_path)
    assert b"SECRET" not in (tmp_path / "clean.png").read_bytes()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_cut_short_is_refused(kind, tmp_path):
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 256, (200, 200, 3), np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(InputRejected) as refused:
        clean(data[: len(data) // 2], tmp_path / "clean.png", LIMITS)
    assert refused.value.field == "image"
    assert "decode" in str(refused.value)


def test_a_picture_that_contradicts_its_header_is_refused(tmp_path):
    data = bytearray(encoded(gradient(), "WEBP", lossless=True))
    bits = struct.unpack_from("<I", data, 21)[0]
    with_container = (
        b"RIFF"
        + struct.pack("<I", len(data) + 18 - 8)
        + b"WEBPVP8X"
        + struct.pack("<IB3x", 10, 0)
        + (999).to_bytes(3, "little")
        + (999).to_bytes(3, "little")
        + bytes(data[12:])
    )
    assert bits
    with pytest.raises(InputRejected):
        clean(with_container, tmp_path / "clean.png", LIMITS)


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_a_compressed_text_bomb_stays_within_the_limits(name, tmp_path):
    bomb = chunk(name, b"x\0\0" + zlib.compress(b"\0" * 200_000_000, 9))
    data = bytearray(encoded(gradient(), "PNG"))
    data[33:33] = bomb
    started = time.perf_counter()
    with pytest.raises(InputRejected):
        clean(bytes(data), tmp_path / "clean.png", LIMITS)
    assert time.perf_counter() - started < 10


def test_a_picture_that_needs_too_much_memory_is_refused(tmp_path):
    small = dataclasses.replace(LIMITS, decode_memory_bytes=100 * 2**20)
    big = encoded(Image.new("RGB", (5000, 5000)), "PNG")
    with pytest.raises(InputRejected, match="memory"):
        clean(big, tmp_path / "clean.png", small)


def test_a_picture_that_takes_too_long_is_refused(tmp_path, monkeypatch):
    slow = tmp_path / "slow.py"
    slow.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(images, "CHILD", slow)
    monkeypatch.setattr(images, "_START_SECONDS", 0.2)
    hasty = dataclasses.replace(LIMITS, decode_seconds=0.1)
    with pytest.raises(InputRejected, match="too long"):
        clean(encoded(gradient(), "PNG"), tmp_path / "clean.png", hasty)


def test_25_megapixels_are_decoded_within_512_megabytes(tmp_path):
    image = Image.new("RGBA", (5000, 5000), (10, 200, 30, 128))
    data = encoded(image, "PNG", compress_level=1)
    assert clean(data, tmp_path / "clean.png", LIMITS).width == 5000


def test_bytes_over_the_limit_are_refused_before_decoding(tmp_path):
    tight = dataclasses.replace(LIMITS, image_bytes=100)
    with pytest.raises(InputRejected, match="more than"):
        clean(encoded(gradient(), "PNG"), tmp_path / "clean.png", tight)


def test_the_decoder_sees_neither_our_environment_nor_our_code(tmp_path, monkeypatch):
    spy = tmp_path / "spy.py"
    spy.write_text(
        "import os, sys\n"
        "names = [n for n in os.environ if n != 'LC_CTYPE']\n"
        "found = names or [m for m in sys.modules if m.startswith('inference')]\n"
        "sys.stderr.write(f'rejected: {found}')\nsys.exit(3)\n"
    )
    monkeypatch.setenv("SECRET_KEY", "x")
    monkeypatch.setattr(images, "CHILD", spy)
    with pytest.raises(InputRejected, match=r"^\[\]$"):
        clean(encoded(gradient(), "PNG"), tmp_path / "clean.png", LIMITS)


def test_reading_headers_leaves_memory_flat():
    data: list[Callable[[], bytes]] = [lambda: png(50_000, 50_000), lambda: png(99, 99)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for make in data * 200:
        try:
            read_header(make(), LIMITS)
        except InputRejected:
            continue
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 8 * 1024
