"""Tiny random checkpoints of every kind, made once, and engines on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import torch
from diffusers import WanImageToVideoPipeline

from inference.contracts import Context, OutputPlan, Progress, RenderRequest
from inference.egress import Egress
from inference.engines.wan import synthetic
from inference.engines.wan.engine import WanEngine
from inference.engines.wan.memory import Residence
from inference.engines.wan.profiles import PROFILES, Checkpoint, Profile
from inference.engines.wan.residency import Residency
from tests.conftest import PHOTOS

if TYPE_CHECKING:
    from inference.contracts import Frame

# Two threads on a loaded two-core machine take 2-10 times longer than one.
torch.set_num_threads(1)

KINDS = ("2.1", "flf", "2.2", "5b")
_REAL = {
    "2.1": "wan2.1-i2v-14b",
    "flf": "wan2.1-flf2v-14b-720p",
    "2.2": "wan2.2-i2v-a14b",
    "5b": "wan2.2-ti2v-5b",
}


class NoStorage:
    """Fails the test that reaches for storage without asking for it."""


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    for kind in KINDS:
        synthetic.save(kind, root / f"tiny-{kind}")
    return root


def profile(kind: str, **changes: Any) -> Profile:
    """The real profile of a kind with a tiny checkpoint behind it."""
    checkpoint = Checkpoint(
        f"tiny-{kind}", PROFILES[_REAL[kind]].kind, "hub:nobody/nothing"
    )
    real = PROFILES[_REAL[kind]]
    area = real.area_max
    return dataclasses.replace(
        real, checkpoints=((area, checkpoint),), tiny=True, **changes
    )


class MakeEngine(Protocol):
    def __call__(
        self, kind: str, *, plan: Residency | None = ..., **options: Any
    ) -> WanEngine: ...


@pytest.fixture(scope="session")
def make_engine(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeEngine:
    """Builds an engine of its own, set up, as a fresh process would."""

    def make(kind: str, *, plan: Residency | None = None, **options: Any) -> WanEngine:
        plan = plan or Residency(device_bytes=2**40, pinned_bytes=2**40)
        storage: Any = options.pop("storage", NoStorage())
        engine = WanEngine(
            options.pop("profile", None) or profile(kind),
            Context(
                storage=storage,
                egress=options.pop("egress", Egress()),
                workdir=tmp_path_factory.mktemp("work"),
                weights=options.pop("weights", weights),
                options=options,
            ),
            residence=Residence(torch.device("cpu"), plan),
        )
        engine.setup()
        return engine

    return make


@pytest.fixture(scope="module")
def engines(make_engine: MakeEngine) -> Callable[[str], WanEngine]:
    """One engine per kind, shared by a module's tests: each must leave it clean."""
    made: dict[str, WanEngine] = {}

    def get(kind: str) -> WanEngine:
        if kind not in made:
            made[kind] = make_engine(kind)
        return made[kind]

    return get


@pytest.fixture(scope="module")
def stock(weights: Path) -> Callable[[str], WanImageToVideoPipeline]:
    """The oracle: diffusers' own pipeline on the same folder."""
    made: dict[str, WanImageToVideoPipeline] = {}

    def get(kind: str) -> WanImageToVideoPipeline:
        if kind not in made:
            pipe = WanImageToVideoPipeline.from_pretrained(
                weights / f"tiny-{kind}",
                dtype={"default": torch.float32, "vae": torch.float32},
            )
            pipe.set_progress_bar_config(disable=True)
            made[kind] = pipe
        return made[kind]

    return get


def ask(kind: str, **changes: Any) -> RenderRequest:
    """A short request that suits the kind."""
    width = changes.pop("width", 64)
    height = changes.pop("height", 32)
    frames = changes.pop("frames", 9)
    photo = PHOTOS / "astronaut.jpg"
    values: dict[str, Any] = {
        "reference": "job_1",
        "model": "wan",
        "profile": "wan",
        "image": photo,
        "last_image": PHOTOS / "chelsea.jpg" if kind == "flf" else None,
        "width": width,
        "height": height,
        "frames": frames,
        "fps": 16,
        "seed": 7,
        "prompt": "the astronaut waves",
        "negative_prompt": "blurry",
        "steps": 2,
        "guidance_scale": 3.5,
        "output": OutputPlan(width, height, 16, frames),
    }
    return RenderRequest(**(values | changes))


def make_frames(
    engine: WanEngine,
    request: RenderRequest,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    told: list[Progress] | None = None,
) -> Iterator[Frame]:
    return engine.frames(
        request,
        on_progress=lambda p: None if told is None else told.append(p),
        should_stop=should_stop,
    )
