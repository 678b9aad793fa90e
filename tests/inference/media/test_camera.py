"""Which way the camera goes, told by the words, and that its path is always good."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.media.camera import (
    Ground,
    Move,
    Shot,
    View,
    plan_shots,
    read_moves,
    tempo,
)

WIDE = Ground(16 / 9)


def views(
    prompt: str, *, seed: int = 1, frames: int = 80, ground: Ground = WIDE
) -> list[View]:
    (shot,) = plan_shots(prompt, seed=seed, frames=frames, fps=16, ground=ground)
    return [shot.view(i / (frames - 1)) for i in range(frames)]


@pytest.mark.parametrize(
    ("prompt", "moves"),
    [
        ("Zoom in on the cup", [Move.PUSH_IN]),
        ("slow dolly-in, cinematic", [Move.PUSH_IN]),
        ("The camera slowly moves closer to her face", [Move.PUSH_IN]),
        ("zooming out to reveal the valley", [Move.PULL_OUT]),
        ("camera pulls back", [Move.PULL_OUT]),
        ("pan left", [Move.PAN_LEFT]),
        ("the camera pans slowly to the right", [Move.PAN_RIGHT]),
        ("pan from left to right", [Move.PAN_RIGHT]),
        ("pan from right to left", [Move.PAN_LEFT]),
        ("tilt up towards the sky", [Move.TILT_UP]),
        ("the camera tilts down", [Move.TILT_DOWN]),
        ("crane up", [Move.TILT_UP]),
        ("a boat swaying on the water", [Move.SWAY]),
        ("handheld footage", [Move.HANDHELD]),
        ("hand-held, shaky", [Move.HANDHELD]),
        ("camera rolls clockwise", [Move.ROLL_RIGHT]),
        ("rotate counter-clockwise", [Move.ROLL_LEFT]),
        ("rotate counterclockwise", [Move.ROLL_LEFT]),
        ("orbit around the statue", [Move.PARALLAX]),
        ("the camera rolls counter-clockwise", [Move.ROLL_LEFT]),
        ("slow zoom", [Move.PUSH_IN]),
        ("slow zoom out", [Move.PULL_OUT]),
        ("tracking shot left", [Move.PAN_LEFT]),
        ("static camera", [Move.STILL]),
        ("the camera is completely static", [Move.STILL]),
        ("a static/locked-off camera", [Move.STILL]),
        ("locked-off shot of a lake", [Move.STILL]),
        ("The camera stays still", [Move.STILL]),
        ("keep the camera still", [Move.STILL]),
        ("the camera does not move", [Move.STILL]),
        ("the camera doesn\u2019t move", [Move.STILL]),
        ("don't move the camera", [Move.STILL]),
        ("no camera movement", [Move.STILL]),
        ("do not zoom in", [Move.STILL]),
        ("without zooming in", [Move.STILL]),
        ("No zoom out; push in", [Move.PUSH_IN]),
        ("not zooming out, zooming in", [Move.PUSH_IN]),
        ("the camera never stops moving forward", [Move.PUSH_IN]),
        ("no panning left", [Move.STILL]),
        ("static shot, no zoom in", [Move.STILL]),
        ("a still lake, the camera pushes in", [Move.PUSH_IN]),
        ("no zoom, pan left", [Move.PAN_LEFT]),
        ("handheld, without zooming in", [Move.HANDHELD]),
        ("don't pan left but zoom in", [Move.PUSH_IN]),
        ("not only pan left", [Move.PAN_LEFT]),
        ("The wind does not blow. Zoom in", [Move.PUSH_IN]),
        ("镜头不推进", [Move.STILL]),
        ("不要缓缓放大", [Move.STILL]),
        ("镜头不断推进", [Move.PUSH_IN]),
        ("zoom in while panning left, handheld", None),
        ("镜头缓缓推进", [Move.PUSH_IN]),
        ("镜头向左移动", [Move.PAN_LEFT]),
        ("pan left then pan right", [Move.PAN_LEFT]),
    ],
)
def test_the_words_of_a_prompt_choose_the_moves(prompt, moves):
    expected = moves or [Move.PUSH_IN, Move.PAN_LEFT, Move.HANDHELD]
    assert list(read_moves(prompt)) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a cat",
        "a frying pan on the left of the stove",
        "the rolling hills of Tuscany",
        "turn right at the crossing sign",
        "She looks up and smiles",
        "a companion",
        "zoom call with friends",
        "no camera shake",
        "not a static shot",
        "no motion blur",
        "not a 3d look",
        "a woman who does not move",
        "still life of apples",
    ],
)
def test_words_that_only_look_like_moves_choose_none(prompt):
    assert read_moves(prompt) == ()


def test_adverbs_set_the_tempo():
    assert tempo("slowly zoom in") < tempo("zoom in") < tempo("quickly zoom in")
    assert views("slowly zoom in")[-1].zoom < views("zoom in")[-1].zoom
    assert views("zoom in")[-1].zoom < views("dramatic zoom in")[-1].zoom


@pytest.mark.parametrize("prompt", [move.value for move in Move])
@pytest.mark.parametrize("aspect", [16 / 9, 1.0, 9 / 16, 3.0])
@pytest.mark.parametrize("frames", [16, 80, 240])
def test_every_path_starts_whole_stays_inside_and_never_jumps(prompt, aspect, frames):
    ground = Ground(aspect)
    path = views(prompt, frames=frames, ground=ground)
    assert path[0] == View(dolly=path[0].dolly)
    assert any(view != path[0] for view in path)
    for view in path:
        assert view.zoom >= ground.least_zoom(view) - 1e-9
    speeds = [
        (
            math.log(b.zoom / a.zoom),
            b.x - a.x,
            b.y - a.y,
            b.roll - a.roll,
            b.slide - a.slide,
        )
        for a, b in itertools.pairwise(path)
    ]
    seconds = frames / 16
    for before, after in itertools.pairwise(speeds):
        for one, other in zip(before, after, strict=True):
            # What a fifth of the picture per second per frame would be, and less.
            assert abs(other - one) < 0.2 / frames / min(seconds, 1) + 2e-3


def test_spare_picture_beside_the_crop_lets_a_pan_go_without_zooming():
    assert views("pan left", ground=Ground(1.0, spare_x=0.3))[-1].zoom == 1.0
    assert views("pan left", ground=Ground(1.0))[-1].zoom > 1.2


def test_a_quick_hand_shakes_more_than_a_slow_one():
    shakes = [
        max(abs(view.x) for view in views(f"{word} handheld"))
        for word in ("slow", "", "quick")
    ]
    assert shakes[0] < 0.6 * shakes[1] < 0.4 * shakes[2]


def test_the_same_seed_gives_the_same_path_and_another_seed_another():
    assert views("handheld", seed=5) == views("handheld", seed=5)
    assert views("handheld", seed=5) != views("handheld", seed=6)
    unasked = {tuple(plan("", seed).moves) for seed in range(40)}
    assert len(unasked) >= 4


def plan(prompt: str, seed: int) -> Shot:
    return plan_shots(prompt, seed=seed, frames=80, fps=16, ground=WIDE)[0]


@pytest.mark.parametrize(("frames", "shots"), [(3, 1), (80, 2), (160, 3), (161, 3)])
def test_cuts_share_the_clip_among_shots(frames, shots):
    made = plan_shots("pan left", seed=1, frames=frames, fps=16, ground=WIDE, cuts=True)
    assert len(made) == shots
    assert sum(shot.frames for shot in made) == frames
    assert made[0].view(0.0).zoom == 1.0
    for shot in made[1:]:
        assert shot.view(0.0).zoom > 1.3


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    prompt=st.text(max_size=200)
    | st.lists(st.sampled_from([m.value for m in Move]), max_size=5).map(", ".join),
    seed=st.integers(0, 2**31 - 1),
    frames=st.integers(1, 450),
    fps=st.integers(8, 30),
    aspect=st.floats(0.1, 10),
    spare=st.floats(0, 0.3),
    focus=st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)),
    cuts=st.booleans(),
)
def test_no_words_lead_out_of_the_picture(
    prompt, seed, frames, fps, aspect, spare, focus, cuts
):
    ground = Ground(aspect, spare_x=spare)
    shots = plan_shots(
        prompt,
        seed=seed,
        frames=frames,
        fps=fps,
        ground=ground,
        cuts=cuts,
        focus=focus,
    )
    assert sum(shot.frames for shot in shots) == frames
    for shot in shots:
        for index in range(9):
            view = shot.view(index / 8)
            assert ground.least_zoom(view) <= view.zoom + 1e-9
            assert math.isfinite(view.zoom)
