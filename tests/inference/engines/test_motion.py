"""The engine contract, kept by `motion`, and by `rehearsal` with its rehearsed troubles."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from inference import registry
from inference.catalogue import MODELS
from inference.contracts import Context, OutputPlan, RenderRequest
from inference.engines import rehearsal
from inference.engines.rehearsal import read_script
from inference.errors import (
    ContentBlocked,
    NotYet,
    RenderError,
    Stopped,
    Unsupported,
)
from inference.media.frames import load_fitted
from inference.testing import Watcher, local_context
from tests.conftest import PHOTOS
from tests.inference.media.measure import psnr

if TYPE_CHECKING:
    from inference.contracts import Frame


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return local_context(tmp_path)


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


def request_for(
    prompt: str = "zoom in",
    *,
    width: int = 160,
    height: int = 96,
    frames: int = 20,
    fps: int = 16,
    **more: object,
) -> RenderRequest:
    return RenderRequest(
        reference="test",
        model="motion",
        profile="motion",
        image=PHOTOS / "coffee.jpg",
        width=width,
        height=height,
        frames=frames,
        fps=fps,
        seed=1,
        prompt=prompt,
        output=OutputPlan(width=width, height=height, fps=fps, frames=frames),
    ).replace(**more)


def rendered(
    key: str, request: RenderRequest, context: Context, watcher: Watcher
) -> list[Frame]:
    return list(
        registry.engine(key, request.profile, context).frames(
            request, on_progress=watcher.on_progress, should_stop=watcher.should_stop
        )
    )


BOTH = pytest.mark.parametrize("key", ["motion", "rehearsal"])


@BOTH
@pytest.mark.parametrize("frames", [1, 7, 20])
def test_exactly_the_planned_frames_come(key, frames, context, watcher):
    made = rendered(key, request_for(frames=frames), context, watcher)
    assert len(made) == frames
    assert {frame.shape for frame in made} == {(96, 160, 3)}
    assert {frame.dtype for frame in made} == {np.dtype(np.uint8)}


@BOTH
def test_progress_rises_to_one_and_tells_the_time_left(key, context, watcher):
    rendered(key, request_for(), context, watcher)
    fractions = [progress.fraction for progress in watcher.seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert watcher.seen[-1].eta_seconds == 0.0


@BOTH
def test_it_stops_soon_after_being_asked_and_works_again(key, context):
    stopping = Watcher(stop_at=0.3)
    with pytest.raises(Stopped):
        rendered(key, request_for(), context, stopping)
    assert stopping.seen[-1].fraction < 0.5
    assert len(rendered(key, request_for(), context, Watcher())) == 20


@BOTH
def test_the_same_request_gives_the_same_frames(key, context, watcher):
    for prompt in ("handheld", "", "parallax"):
        one = rendered(key, request_for(prompt), context, watcher)
        other = rendered(key, request_for(prompt), context, watcher)
        assert all((a == b).all() for a, b in zip(one, other, strict=True))


@BOTH
def test_several_shots_are_visible(key, context, watcher):
    single, multi = (
        rendered(key, request_for(frames=40, shot_type=kind), context, watcher)
        for kind in ("single", "multi")
    )
    cut = np.abs(multi[20].astype(int) - multi[19]).mean()
    assert cut > 4 * np.abs(single[20].astype(int) - single[19]).mean()


@BOTH
def test_the_fingerprint_names_the_engine(key, context):
    made = registry.engine(key, "", context).fingerprint(request_for())
    assert made["engine"].startswith(key)


# --------------------------------------------------------------------- rehearsal


def test_a_code_in_the_prompt_fails_the_job_with_it(context, watcher):
    with pytest.raises(RenderError) as failed:
        rendered(
            "rehearsal", request_for("x [[test:fail=out_of_memory]]"), context, watcher
        )
    assert failed.value.code == "out_of_memory"
    assert failed.value.permanent
    assert "out_of_memory" in failed.value.public


def test_blocked_in_the_prompt_is_refused_as_unsafe(context, watcher):
    with pytest.raises(ContentBlocked):
        rendered("rehearsal", request_for("[[test:blocked]]"), context, watcher)


def test_a_delay_in_the_prompt_asks_to_come_back_when_it_is_over(context, watcher):
    request = request_for("[[test:delay=60]]")
    with pytest.raises(NotYet) as early:
        rendered("rehearsal", request, context, watcher)
    assert early.value.retry_after_seconds == 60
    with pytest.raises(NotYet) as early:
        rendered("rehearsal", request.replace(running_seconds=59.5), context, watcher)
    assert early.value.retry_after_seconds == 0.5
    over = request.replace(running_seconds=60.0)
    assert len(rendered("rehearsal", over, context, watcher)) == 20


def test_the_motion_engine_knows_no_tokens(context, watcher):
    made = rendered("motion", request_for("[[test:fail=x]]"), context, watcher)
    assert len(made) == 20


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("pan left", ("pan left", None, False, 0.0)),
        ("[[test:fail=a_b-c.1]] pan", ("pan", "a_b-c.1", False, 0.0)),
        ("[[ test : delay = 2.5 ]]", ("", None, False, 2.5)),
        ("[[test:delay=1e9]]", ("", None, False, 3600.0)),
        ("[[test:delay=nan]]", ("", None, False, 0.0)),
        ("[[test:delay=-4]]", ("", None, False, 0.0)),
        ("[[test:delay=soon]]", ("", None, False, 0.0)),
        ("[[test:fail=]]", ("[[test:fail=]]", None, False, 0.0)),
        ("[[test:blocked]][[test:unknown]]", ("", None, True, 0.0)),
        ("[test:blocked]", ("[test:blocked]", None, False, 0.0)),
    ],
)
def test_how_tokens_are_read(prompt, expected):
    script = read_script(prompt)
    assert (
        script.prompt,
        script.fail_code,
        script.is_blocked,
        script.delay_seconds,
    ) == expected


def test_a_large_clip_is_drawn_small_and_delivered_large(context, watcher, monkeypatch):
    monkeypatch.setattr(rehearsal, "DRAWN_PIXELS", 160 * 96)
    monkeypatch.setattr(rehearsal, "FRESH_PIXELS", 10 * 640 * 384)
    request = request_for(width=640, height=384, frames=33)
    made = rendered("rehearsal", request, context, watcher)
    assert len(made) == 33
    assert {frame.shape for frame in made} == {(384, 640, 3)}
    assert len({id(frame) for frame in made}) == 9  # each shown up to four times
    assert not any(frame.flags.writeable for frame in made)


def test_the_last_picture_is_reached(context, watcher, tmp_path):
    last = PHOTOS / "rocket.jpg"
    made = rendered("rehearsal", request_for(last_image=last), context, watcher)
    assert psnr(made[0], load_fitted(PHOTOS / "coffee.jpg", 160, 96)) > 30
    assert (made[-1] == load_fitted(last, 160, 96)).all()


@pytest.mark.timeout(120)
def test_a_long_1080p_rehearsal_takes_seconds(context, watcher):
    request = request_for("pan left", width=1920, height=1080, frames=450, fps=30)
    started = time.process_time()
    count = sum(
        1
        for _ in registry.engine("rehearsal", "", context).frames(
            request, on_progress=watcher.on_progress, should_stop=watcher.should_stop
        )
    )
    assert count == 450
    assert time.process_time() - started < 15


# ---------------------------------------------------------------------- registry


def test_an_engine_is_made_once_per_process_and_profile(context):
    one = registry.engine("motion", "motion", context)
    assert registry.engine("motion", "motion", context) is one
    assert registry.engine("motion", "other", context) is not one


def test_an_unknown_engine_is_refused_by_name(context):
    with pytest.raises(Unsupported, match="nonesuch"):
        registry.engine("nonesuch", "", context)


def test_every_engine_of_the_catalogue_is_in_the_table():
    used = {
        route.runner
        for model in MODELS.values()
        for route in model.routes
        if route.kind == "engine"
    }
    assert used <= set(registry.RUNNERS)
    assert all(runner.label for runner in registry.RUNNERS.values())


def test_a_setup_that_failed_is_tried_again(context, monkeypatch):
    tries: list[int] = []

    class Late:
        def __init__(self, profile: str, context: Context) -> None:
            pass

        def setup(self) -> None:
            tries.append(1)
            if len(tries) == 1:
                raise RenderError("not yet")

    monkeypatch.setattr(registry, "load", lambda path: Late)
    with pytest.raises(RenderError):
        registry.engine("motion", "late", context)
    registry.engine("motion", "late", context)
    registry.engine("motion", "late", context)
    assert len(tries) == 2
    registry._ready.pop(("motion", "late"))


def test_a_noisy_picture_is_drawn_to_its_very_edge(context, watcher, tmp_path):
    path = tmp_path / "white.png"
    Image.new("RGB", (333, 200), (255, 255, 255)).save(path)
    made = rendered("motion", request_for("roll left", image=path), context, watcher)
    assert all(frame.min() == 255 for frame in made)
