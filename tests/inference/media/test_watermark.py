from __future__ import annotations

import av
import numpy as np
import pytest

from inference.media.watermark import Watermark

SIZES = [(64, 64), (96, 64), (64, 160), (480, 832), (832, 480), (1280, 720)]
BACKGROUNDS = {
    "white": lambda h, w: np.full((h, w, 3), 255, np.uint8),
    "black": lambda h, w: np.zeros((h, w, 3), np.uint8),
    "grey": lambda h, w: np.full((h, w, 3), 128, np.uint8),
    "noise": lambda h, w: np.random.default_rng(1).integers(
        0, 256, (h, w, 3), dtype=np.uint8
    ),
}


def _changed_box(before, after):
    rows, columns = np.nonzero((before != after).any(axis=2))
    return rows.min(), rows.max(), columns.min(), columns.max()


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize(("width", "height"), [*SIZES, (3840, 2160)])
def test_the_label_is_white_on_dark_whatever_lies_behind(width, height, background):
    frame = BACKGROUNDS[background](height, width)
    marked = Watermark(width, height, visible=True, test=False).apply(frame)

    on_black = Watermark(width, height, visible=True, test=False).apply(
        np.zeros_like(frame)
    )
    letters = (on_black > 200).all(axis=2)
    assert letters.sum() > 20
    # Letters keep their white; the pixels right around them are dark on any ground.
    assert marked[letters].mean() > 215
    ring = np.zeros_like(letters)
    for step_y in (-1, 0, 1):
        for step_x in (-1, 0, 1):
            ring |= np.roll(letters, (step_y, step_x), (0, 1))
    assert marked[ring & ~letters].mean() < 140


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_label_sits_in_the_bottom_right_and_touches_nothing_else(width, height):
    frame = np.full((height, width, 3), 200, np.uint8)
    marked = Watermark(width, height, visible=True, test=False).apply(frame)
    top, bottom, left, right = _changed_box(frame, marked)
    assert right >= width - max(9, width * 0.05)
    assert bottom >= height - max(9, height * 0.05)
    assert width - 1 - right <= max(4, left)
    assert top > height * 0.4
    if min(width, height) >= 480:
        assert left > width * 0.6
        assert top > height * 0.9


def test_a_test_clip_says_so_much_larger_and_in_another_corner():
    frame = np.full((720, 1280, 3), 90, np.uint8)
    marked = Watermark(1280, 720, visible=False, test=True).apply(frame)
    top, bottom, left, right = _changed_box(frame, marked)
    assert top < 60
    assert left < 60
    assert bottom - top > 80
    assert right - left > 250


def test_a_frame_given_is_left_as_it_was_and_marks_do_not_build_up():
    frame = np.full((144, 256, 3), 255, np.uint8)
    mark = Watermark(256, 144, visible=True, test=True)
    first, second = mark.apply(frame), mark.apply(frame)
    assert (frame == 255).all()
    assert (first == second).all()


def test_without_marks_the_same_frame_passes_through():
    frame = np.zeros((64, 64, 3), np.uint8)
    mark = Watermark(64, 64, visible=False, test=False)
    assert not mark
    assert mark.apply(frame) is frame


def test_a_frame_of_another_size_is_refused():
    with pytest.raises(ValueError, match="the marks are for 64x64"):
        Watermark(64, 64, visible=True, test=False).apply(
            np.zeros((64, 80, 3), np.uint8)
        )


@pytest.mark.parametrize(("width", "height"), [*SIZES, (66, 98), (3840, 2160)])
def test_an_encoders_picture_is_marked_as_a_frame_is(width, height):
    frame = BACKGROUNDS["noise"](height, width) // 4 * 3 + 20
    mark = Watermark(width, height, visible=True, test=True)
    picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
        format="yuv420p", src_color_range=2, dst_color_range=1
    )
    grey = picture.to_ndarray()[:height].astype(int)
    wanted = np.array(
        av.VideoFrame.from_ndarray(mark.apply(frame), format="rgb24")
        .reformat(format="yuv420p", src_color_range=2, dst_color_range=1)
        .to_ndarray()[:height],
        int,
    )
    mark.burn_picture(picture)
    found = picture.to_ndarray()[:height].astype(int)
    assert np.abs(found - wanted).max() <= 3
    assert ((found != grey) == (wanted != grey)).mean() > 0.99


def test_the_marks_are_colourless_in_a_picture():
    red = np.zeros((144, 256, 3), np.uint8)
    red[..., 0] = 255
    picture = av.VideoFrame.from_ndarray(red, format="rgb24").reformat(format="yuv420p")
    Watermark(256, 144, visible=True, test=True).burn_picture(picture)
    shown = picture.to_ndarray(format="rgb24").astype(int)
    white = (shown[:60, :120] > 180).all(axis=2)
    assert white.sum() > 100
