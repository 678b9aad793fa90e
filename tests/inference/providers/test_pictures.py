from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.errors import InputRejected
from inference.providers.base import Picture, PictureNeed
from inference.providers.pictures import fit_picture
from tests.inference.providers.samples import make_png

PHOTO = Path(__file__).parents[2] / "photos" / "chelsea.jpg"


def photo_png(size: tuple[int, int]) -> bytes:
    target = io.BytesIO()
    Image.open(PHOTO).convert("RGB").resize(size).save(target, "PNG")
    return target.getvalue()


def opened(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(picture.data)).convert("RGB")


def test_a_picture_within_limits_is_sent_as_it_is(tmp_path):
    original = photo_png((640, 480))
    path = tmp_path / "in.png"
    path.write_bytes(original)
    need = PictureNeed("inline", side_min=360, side_max=2000)
    assert fit_picture(path, need) == Picture(original, "image/png")


@pytest.mark.parametrize(
    ("given", "sent"),
    [((4000, 3000), (2000, 1500)), ((300, 300), (360, 360)), ((240, 480), (360, 720))],
)
def test_sides_are_brought_within_the_limits_and_the_shape_is_kept(given, sent):
    need = PictureNeed("inline", side_min=360, side_max=2000)
    assert opened(fit_picture(make_png(given), need)).size == sent


@pytest.mark.parametrize("size", [(4000, 300), (20, 20)])
def test_a_strip_or_a_stamp_is_refused(size):
    need = PictureNeed("inline", side_min=360, side_max=2000)
    with pytest.raises(InputRejected) as refused:
        fit_picture(make_png(size), need)
    assert refused.value.field == "image"


def test_a_heavy_picture_becomes_a_light_jpeg():
    noise = np.random.default_rng(1).integers(0, 256, (600, 600, 3), np.uint8)
    target = io.BytesIO()
    Image.fromarray(noise).save(target, "PNG")
    picture = fit_picture(
        target.getvalue(), PictureNeed("inline", size_bytes_max=400_000)
    )
    assert picture.media_type == "image/jpeg"
    assert len(picture.data) <= 400_000


def test_padding_keeps_the_whole_picture_so_that_the_crop_gives_it_back():
    original = photo_png((960, 720))
    padded = opened(fit_picture(original, PictureNeed("upload"), (1280, 720)))
    assert padded.size == (1280, 720)
    middle = np.asarray(padded.crop((160, 0, 1120, 720)), np.int16)
    wanted = np.asarray(Image.open(io.BytesIO(original)), np.int16)
    assert np.abs(middle - wanted).max() == 0


def test_a_picture_of_the_exact_size_is_not_touched():
    original = photo_png((1280, 720))
    assert fit_picture(original, PictureNeed("upload"), (1280, 720)).data == original
