"""The file a player gets: exact, in the right colours, playable from its first byte."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from inference.errors import EngineFailed
from inference.media.encode import LARGE, MASTER, USUAL, Encoder, effort_for
from inference.media.frames import cover_box, load_fitted, read_frames
from inference.media.probe import UnusableVideo, probe
from tests.conftest import PHOTOS
from tests.inference.media.measure import psnr

if TYPE_CHECKING:
    from inference.contracts import Frame

COLOURS = [
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 255),
    (0, 0, 0),
    (128, 64, 200),
    (20, 200, 180),
]


def solid(colour: tuple[int, int, int]) -> Frame:
    width, height = 96, 64
    return np.full((height, width, 3), colour, np.uint8)


def encoded(path: Path, frames: list[Frame], *, fps: int = 16) -> Path:
    height, width = frames[0].shape[:2]
    with Encoder(path, width=width, height=height, fps=fps) as encoder:
        for frame in frames:
            encoder.write(frame)
    return path


@pytest.mark.parametrize("count", [1, 2, 17, 50])
@pytest.mark.parametrize("fps", [8, 16, 24, 30])
def test_length_rate_and_size_are_exact(count, fps, tmp_path):
    path = encoded(tmp_path / "a.mp4", [solid((9, 9, 9))] * count, fps=fps)
    facts = probe(path, depth="all")
    assert (facts.frames, facts.fps, facts.width, facts.height) == (count, fps, 96, 64)
    assert facts.seconds == pytest.approx(count / fps, abs=1e-4)


def test_the_stream_is_high_profile_420_bt709_and_starts_at_once(tmp_path):
    facts = probe(encoded(tmp_path / "a.mp4", [solid((9, 9, 9))] * 5))
    assert (facts.codec, facts.profile, facts.pixel_format) == (
        "h264",
        "High",
        "yuv420p",
    )
    assert facts.is_bt709
    assert facts.is_limited_range
    assert facts.is_faststart
    assert not facts.has_audio


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_survive_within_two_of_255(colour, tmp_path):
    (frame,) = read_frames(encoded(tmp_path / "a.mp4", [solid(colour)]))
    # Of the whole: x264 may be further off in single blocks.
    assert np.abs(frame.mean(axis=(0, 1)) - colour).max() <= 2


def test_another_reader_sees_the_same_colours(tmp_path):
    """An ffmpeg of its own, told nothing, must read the tags and agree."""
    from imageio_ffmpeg import get_ffmpeg_exe

    path = encoded(tmp_path / "a.mp4", [solid(colour) for colour in COLOURS])
    raw = subprocess.run(
        [
            *(get_ffmpeg_exe(), "-v", "error", "-i", str(path)),
            *("-f", "rawvideo", "-pix_fmt", "rgb24", "-"),
        ],
        capture_output=True,
        check=True,
    ).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(len(COLOURS), 64, 96, 3)
    for frame, colour in zip(frames, COLOURS, strict=True):
        assert np.abs(frame.astype(int) - solid(colour)).max() <= 4


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_a_photo_s_first_frame_has_35_decibels_and_more(name, tmp_path):
    picture = load_fitted(PHOTOS / f"{name}.jpg", 854, 480)
    path = encoded(tmp_path / "a.mp4", [picture] * 12)
    first = next(iter(read_frames(path)))
    assert psnr(first, picture) >= 38


def test_frames_of_another_size_are_resized_on_the_way(tmp_path, photo):
    small = load_fitted(PHOTOS / "coffee.jpg", 480, 320)
    path = tmp_path / "a.mp4"
    with Encoder(path, width=960, height=640, fps=16, source=(480, 320)) as encoder:
        encoder.write(small)
    assert (probe(path).width, probe(path).height) == (960, 640)
    large = load_fitted(PHOTOS / "coffee.jpg", 960, 640)
    assert psnr(next(iter(read_frames(path))), large) > 28


def test_a_buffer_that_is_filled_again_is_read_again(tmp_path):
    buffer = solid((0, 0, 0))
    with Encoder(tmp_path / "a.mp4", width=96, height=64, fps=16) as encoder:
        for level in (0, 100, 200):
            buffer[:] = level
            encoder.write(buffer)
    levels = [frame.mean() for frame in read_frames(tmp_path / "a.mp4")]
    assert levels == pytest.approx([0, 100, 200], abs=4)


def test_the_master_keeps_nearly_everything(tmp_path):
    picture = load_fitted(PHOTOS / "astronaut.jpg", 480, 480)
    path = tmp_path / "a.mp4"
    with Encoder(path, width=480, height=480, fps=16, effort=MASTER) as encoder:
        for _ in range(4):
            encoder.write(picture)
    for frame in read_frames(path):
        assert psnr(frame, picture) > 40  # halving the colour's resolution costs most


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((64, 97, 3), np.uint8),
        np.zeros((64, 96, 4), np.uint8),
        np.zeros((64, 96, 3), np.float32),
    ],
)
def test_a_frame_that_does_not_fit_is_refused(frame, tmp_path):
    with (
        pytest.raises(EngineFailed),
        Encoder(tmp_path / "a.mp4", width=96, height=64, fps=16) as encoder,
    ):
        encoder.write(frame)


def test_a_failed_encode_leaves_no_file(tmp_path):
    path = tmp_path / "a.mp4"
    with (
        contextlib.suppress(ZeroDivisionError),
        Encoder(path, width=96, height=64, fps=16) as encoder,
    ):
        for _ in range(40):
            encoder.write(solid((1, 2, 3)))
        assert path.exists()
        raise ZeroDivisionError
    assert not path.exists()


def test_only_4k_is_encoded_with_less_effort():
    assert effort_for(1920, 1080) is USUAL
    assert effort_for(1440, 1920) is USUAL
    assert effort_for(3840, 2160) is LARGE


# ---------------------------------------------------------------------- the probe


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"\0" * 5000, b"\0\0\0\x18ftypmp42"]
)
def test_what_is_no_video_is_called_so(content, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(UnusableVideo) as broken:
        probe(path)
    assert not broken.value.permanent


def test_a_video_cut_short_is_found_by_decoding(tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(20)]
    path = encoded(tmp_path / "a.mp4", noise)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UnusableVideo):
        probe(path, depth="all")


def test_frames_come_back_one_by_one_in_order(tmp_path):
    frames = [solid((level, level, level)) for level in range(0, 250, 10)]
    path = encoded(tmp_path / "a.mp4", frames)
    means = [frame.mean() for frame in read_frames(path)]
    assert len(means) == 25
    assert all(a < b for a, b in itertools.pairwise(means))


@pytest.mark.parametrize("source", [(400, 300), (300, 400), (64, 8192), (333, 77)])
@pytest.mark.parametrize("target", [(854, 480), (480, 854), (2, 2), (1920, 1080)])
def test_the_fitted_part_is_inside_centred_and_of_the_right_shape(source, target):
    left, top, right, bottom = cover_box(source, *target)
    assert 0 <= left < right <= source[0]
    assert 0 <= top < bottom <= source[1]
    assert left == pytest.approx(source[0] - right, abs=1e-6)
    assert top == pytest.approx(source[1] - bottom, abs=1e-6)
    aspect = (right - left) / (bottom - top)
    assert aspect == pytest.approx(target[0] / target[1], rel=1e-6)
