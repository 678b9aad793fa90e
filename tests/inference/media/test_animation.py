"""What the frames show: the picture first, the move that was asked for, nothing else."""

from __future__ import annotations

import functools
import io
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.media.animation import animate, find_subject, guess_depth
from inference.media.frames import load_fitted
from tests.conftest import PHOTOS
from tests.inference.media.measure import half_shifts, psnr, shift

WIDTH, HEIGHT = 300, 200
ALL = ("astronaut", "chelsea", "coffee", "rocket")


def photo_path(name: str) -> Path:
    return PHOTOS / f"{name}.jpg"


@functools.lru_cache(maxsize=4)
def frames_of(
    prompt: str,
    *,
    name: str = "coffee",
    frames: int = 64,
    seed: int = 1,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    cuts: bool = False,
) -> list[np.ndarray]:
    return list(
        animate(
            photo_path(name),
            width=size[0],
            height=size[1],
            frames=frames,
            fps=16,
            prompt=prompt,
            seed=seed,
            cuts=cuts,
        )
    )


@pytest.mark.parametrize("frames", [1, 2, 17, 80])
@pytest.mark.parametrize("size", [(480, 320), (318, 566), (400, 400)])
def test_there_are_exactly_as_many_frames_of_exactly_that_size(frames, size):
    made = frames_of("zoom in", frames=frames, size=size)
    assert len(made) == frames
    for frame in made:
        assert frame.shape == (size[1], size[0], 3)
        assert frame.dtype == np.uint8


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("prompt", ["zoom in", "roll left", "orbit"])
def test_the_first_frame_is_the_fitted_picture(name, prompt):
    first = frames_of(prompt, name=name, frames=2)[0]
    assert psnr(first, load_fitted(photo_path(name), WIDTH, HEIGHT)) >= 39


def mid(prompt: str, **more: object) -> tuple[np.ndarray, np.ndarray]:
    """Two frames half a second apart, where moves are at full speed."""
    made = frames_of(prompt, **more)
    return made[36], made[44]


@pytest.mark.parametrize(
    ("prompt", "axis", "sign"),
    [
        ("pan left", 0, 1),  # the camera goes left, so the picture goes right
        ("pan right", 0, -1),
        ("tilt up", 1, 1),
        ("tilt down", 1, -1),
    ],
)
@pytest.mark.parametrize("name", ["astronaut", "rocket"])
def test_pans_and_tilts_go_the_way_they_are_called(prompt, axis, sign, name):
    moved = shift(*mid(prompt, name=name))
    assert moved[axis] * sign > 1.5
    assert abs(moved[1 - axis]) < abs(moved[axis]) / 3


@pytest.mark.parametrize(("prompt", "sign"), [("push in", 1), ("pull out", -1)])
@pytest.mark.parametrize("name", ["coffee", "chelsea"])
def test_pushing_in_spreads_the_picture_and_pulling_out_gathers_it(prompt, sign, name):
    halves = half_shifts(*mid(prompt, name=name))
    assert halves["left"][0] * sign < -0.4
    assert halves["right"][0] * sign > 0.4
    assert halves["top"][1] * sign < -0.3
    assert halves["bottom"][1] * sign > 0.3


@pytest.mark.parametrize(("prompt", "sign"), [("roll right", 1), ("roll left", -1)])
def test_rolling_turns_the_picture_the_other_way(prompt, sign):
    halves = half_shifts(*mid(prompt))
    # The camera turns clockwise: the picture's top goes left, its right side goes up.
    assert halves["top"][0] * sign < -0.4
    assert halves["bottom"][0] * sign > 0.4
    assert halves["left"][1] * sign > 0.4
    assert halves["right"][1] * sign < -0.4


def test_swaying_goes_there_and_back():
    made = frames_of("the boat is swaying", frames=112)
    steps = [shift(a, b)[0] for a, b in zip(made[30::6], made[36::6], strict=False)]
    assert max(steps) > 0.5
    assert min(steps) < -0.5


def test_a_hand_held_camera_trembles_without_pattern():
    made = frames_of("handheld", frames=96)
    steps = np.array(
        [shift(a, b) for a, b in zip(made[32::2], made[34::2], strict=False)]
    )
    turns = np.sum(np.diff(np.sign(steps), axis=0) != 0, axis=0)
    assert (turns >= 3).all()
    assert np.abs(steps).max() < 6


def test_parallax_moves_the_near_more_than_the_far():
    made = frames_of("parallax", name="astronaut", size=(400, 400))
    near = shift(made[2][200:360, 100:300], made[20][200:360, 100:300])
    far = shift(made[2][0:110, 250:400], made[20][0:110, 250:400])
    assert abs(near[0] - far[0]) > 1.0


def test_several_moves_run_at_once():
    before, after = mid("zoom in and pan right")
    assert shift(before, after)[0] < -2
    halves = half_shifts(before, after)
    assert halves["right"][0] - halves["left"][0] > 1


@pytest.mark.parametrize(
    "prompt",
    ["push in", "pull out", "pan left", "tilt up", "sway", "handheld", "roll left", ""],
)
def test_neighbouring_frames_never_jump(prompt):
    made = frames_of(prompt, name="coffee", frames=80)
    steps = np.array([shift(a, b) for a, b in itertools.pairwise(made)])
    assert np.abs(steps).max() < 3.5  # pixels a frame, of 300
    assert np.abs(np.diff(steps, axis=0)).max() < 1.0


def test_motion_is_smoother_than_whole_pixels():
    made = frames_of("slow pan left, tripod", frames=80)
    steps = [shift(a, b)[0] for a, b in itertools.pairwise(made[30:61])]
    assert 0.1 < float(np.mean(steps)) < 2.0
    assert float(np.std(steps)) < 0.15


@pytest.mark.parametrize(
    "prompt", ["push in", "pull out", "pan left", "tilt down", "roll left", "parallax"]
)
def test_no_frame_shows_anything_but_the_picture(prompt, tmp_path):
    # All the picture is bright, so an edge of the frame that is dark came from beyond.
    bright = np.random.default_rng(2).integers(200, 256, (300, 500, 3), np.uint8)
    path = tmp_path / "bright.png"
    Image.fromarray(bright).save(path)
    for frame in animate(
        path, width=320, height=180, frames=40, fps=16, prompt=prompt, seed=3
    ):
        edges = (frame[0], frame[-1], frame[:, 0], frame[:, -1])
        assert min(int(edge.min()) for edge in edges) > 150


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("astronaut", [(0.34, 0.08), (0.56, 0.08), (0.36, 0.36), (0.54, 0.36)]),
        ("chelsea", [(0.31, 0.35), (0.45, 0.35), (0.65, 0.45), (0.76, 0.45)]),
        ("coffee", [(0.32, 0.3), (0.65, 0.3), (0.5, 0.15), (0.5, 0.5)]),
    ],
    ids=["her face", "both its eyes", "the cup"],
)
def test_a_closer_shot_shows_what_the_picture_is_of(name, seen):
    with Image.open(photo_path(name)) as picture:
        offset = find_subject(picture, (0, 0, *picture.size))
    half = 0.5 / 1.75
    x, y = (0.5 + min(max(one, half - 0.5), 0.5 - half) for one in offset)
    for point in seen:
        assert abs(point[0] - x) < half, (point, offset)
        assert abs(point[1] - y) < half, (point, offset)


@pytest.mark.parametrize(("frames", "cuts_at"), [(80, [40]), (120, [40, 80])])
def test_several_shots_are_cut_not_blended(frames, cuts_at):
    made = frames_of("pan left", frames=frames, cuts=True)
    change = [
        float(np.abs(a.astype(int) - b).mean()) for a, b in itertools.pairwise(made)
    ]
    around = [
        max(change[max(i - 2, 0) : i] + change[i + 1 : i + 3])
        for i in range(len(change))
    ]
    found = [i + 1 for i, value in enumerate(change) if value > 3 * around[i]]
    assert found == cuts_at


def test_the_same_request_gives_the_same_frames():
    for prompt in ("", "handheld", "parallax"):
        one = frames_of(prompt, seed=7, frames=12)
        frames_of.cache_clear()
        other = frames_of(prompt, seed=7, frames=12)
        assert all((a == b).all() for a, b in zip(one, other, strict=True))


def test_the_seed_chooses_what_the_words_leave_open():
    ends = {frames_of("", seed=seed, frames=9)[-1].tobytes() for seed in range(12)}
    assert len(ends) >= 4


@pytest.mark.parametrize("size", [(64, 64), (8192, 64), (64, 2000), (65, 91)])
def test_pictures_of_any_shape_are_animated(size, tmp_path):
    path = tmp_path / "odd.png"
    Image.effect_noise(size, 50).convert("RGB").save(path)
    made = list(
        animate(
            path,
            width=128,
            height=96,
            frames=5,
            fps=8,
            prompt="orbit, pan left",
            seed=1,
        )
    )
    assert len(made) == 5


def test_the_depth_guess_is_smooth_and_nearer_below(photo):
    depth = guess_depth(Image.open(io.BytesIO(photo)))
    assert depth.min() == 0
    assert depth.max() == 1
    assert depth[-20:].mean() > depth[:20].mean()
    assert np.abs(np.diff(depth, axis=0)).max() < 0.08
    assert np.abs(np.diff(depth, axis=1)).max() < 0.08


MEASURED = """
import sys
from pathlib import Path
from inference.media.animation import animate
from inference.media.encode import Encoder
frames = animate(Path(sys.argv[1]), width=1920, height=1080, frames=161, fps=16,
                 prompt="orbit, pan left", seed=1)
with Encoder(Path(sys.argv[2]), width=1920, height=1080, fps=16) as encoder:
    for frame in frames:
        encoder.write(frame)
# Not getrusage: its figure begins with the parent's.
status = Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
"""


@pytest.mark.timeout(180)
def test_a_long_1080p_clip_takes_less_than_400_megabytes(tmp_path):
    large = tmp_path / "large.png"
    with Image.open(photo_path("rocket")) as image:
        image.resize((4000, 2669)).save(large, compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(large), str(tmp_path / "out.mp4")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(PHOTOS.parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 400
