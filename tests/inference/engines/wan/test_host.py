"""What this machine says it can serve, and how a worker gets ready."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from inference.__main__ import main
from inference.catalogue import MODELS
from inference.engines.wan import host, text
from inference.engines.wan.engine import WanEngine
from inference.engines.wan.host import Card, report
from inference.engines.wan.profiles import Profile, profile_for
from inference.engines.wan.residency import GB, Residency, fit
from inference.engines.wan.weights import Sources
from inference.errors import OutOfMemory, WeightsMissing
from inference.testing import local_context
from tests.inference.engines.wan.conftest import MakeEngine, ask
from tests.inference.engines.wan.test_jobs import clip

H200 = Card("NVIDIA H200", 141 * GB, is_gpu=True)


def line(lines: list[host.Ready], model: str) -> host.Ready:
    (found,) = (ready for ready in lines if ready.model == model)
    return found


def test_without_a_gpu_only_the_tiny_model_is_served(tmp_path: Path) -> None:
    lines = report(local_context(tmp_path), card=Card("CPU", 8 * GB, is_gpu=False))
    assert line(lines, "wan-tiny").ready
    assert line(lines, "wan2.2-i2v").detail == "no CUDA device"


def test_with_a_gpu_the_missing_file_and_its_source_are_named(tmp_path: Path) -> None:
    ready = line(report(local_context(tmp_path), card=H200), "wan2.2-i2v")
    assert not ready.ready
    assert "Wan2.2-I2V-A14B/model_index.json is missing" in ready.detail
    assert "hub:Wan-AI/Wan2.2-I2V-A14B-Diffusers" in ready.detail


def test_a_card_that_is_too_small_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sources, "find", lambda *_: tmp_path)
    small = Card("RTX 4090", 24 * GB, is_gpu=True)
    lines = report(local_context(tmp_path), card=small)
    assert line(lines, "wan2.2-ti2v-5b").ready
    assert (
        "needs 40.4 GB on the device, 22.0 GB are there"
        in line(lines, "wan2.2-i2v").detail
    )


def test_without_torch_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "torch" else real(name),
    )
    lines = report(local_context(tmp_path))
    assert all("torch is not installed" in ready.detail for ready in lines)


def test_asking_imports_no_torch() -> None:
    code = (
        "import sys; from inference.engines.wan import host, lora_files, weights, "
        "residency; assert 'torch' not in sys.modules; "
        "print(host.queues(['wan2.2-i2v', 'wan2.1-i2v', 'wan2.1-flf2v']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['gpu.wan2.2', 'gpu.wan2.1']"


def test_the_command_lists_the_models_with_their_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--weights", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "wan-tiny" in printed
    assert "ready: CPU" in printed
    assert "not here: no CUDA device" in printed


def test_a_worker_is_warm_before_it_takes_jobs(tmp_path: Path) -> None:
    context = local_context(tmp_path)
    made: list[WanEngine] = []

    def engine_for(profile: Profile) -> WanEngine:
        made.append(WanEngine(profile, context))
        return made[-1]

    host.prewarm(["wan-tiny"], context, engine_for=engine_for)
    assert made[0].spent["denoise"] > 0
    with pytest.raises(ValueError, match="no Wan engine"):
        host.prewarm(["motion"], context, engine_for=engine_for)


class Calculated:
    """Warms what the calculation says a card holds, as an engine on that card would."""

    def __init__(self, profile: Profile, size: int) -> None:
        self.profile, self.size = profile, size
        self.warmed: list[tuple[int, int, int]] = []

    def setup(self) -> None:
        pass

    def warm(self, shapes: list[tuple[int, int, int]]) -> None:
        for shape in shapes:
            found = fit(
                self.profile.part_bytes(),
                working_bytes=self.profile.working_bytes(*shape),
                device_bytes=self.size,
                pinned_bytes=128 * GB,
            )
            if not found.fits:
                raise OutOfMemory(found.reason, permanent=True)
            self.warmed.append(shape)


@pytest.mark.parametrize("size", [48, 80, 141])
@pytest.mark.parametrize(
    "name", ["wan2.1-i2v", "wan2.1-flf2v", "wan2.2-i2v", "wan2.2-ti2v-5b"]
)
def test_a_worker_starts_on_every_card_that_is_called_ready(
    name: str, size: int, tmp_path: Path
) -> None:
    model, profile = MODELS[name], profile_for(name)
    assert profile is not None
    card = Card("card", size * GB, is_gpu=True)
    engine = Calculated(profile, card.size_bytes)

    def start() -> None:
        host.prewarm([name], local_context(tmp_path), engine_for=lambda _: engine)

    if not host.fits(model, profile, card).fits:
        with pytest.raises(OutOfMemory):
            start()
        return
    start()
    sold = [
        tier for tier in model.tiers if host.fits(model, profile, card, tier=tier).fits
    ]
    assert engine.warmed == [
        (*dataclasses.astuple(model.size_for(aspect, tier)), model.frames_default)
        for tier in sold
        for aspect in host.WARM_ASPECTS
    ]


def test_a_tier_that_does_not_fit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sources, "find", lambda *_: tmp_path)
    lines = report(local_context(tmp_path), card=Card("A40", 48 * GB, is_gpu=True))
    assert line(lines, "wan2.1-i2v").ready
    assert line(lines, "wan2.1-i2v").detail.endswith("; too small for 720p")
    assert "too small" not in line(lines, "wan2.2-i2v").detail


def test_a_job_too_large_for_the_card_is_refused_before_any_work(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine("2.1", plan=Residency(device_bytes=50 * 2**20, pinned_bytes=0))
    monkeypatch.setattr(text, "encode", None)
    with pytest.raises(
        OutOfMemory, match=r"on the device, 0\.1 GB are there"
    ) as refused:
        clip(engine, ask("2.1"))
    assert refused.value.permanent


def test_a_worker_without_weights_never_becomes_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    context = local_context(tmp_path)
    with pytest.raises(WeightsMissing, match=r"Wan2\.2-TI2V-5B"):
        host.prewarm(
            ["wan2.2-ti2v-5b"],
            context,
            engine_for=lambda profile: WanEngine(profile, context),
        )


def test_resaving_is_a_command(tmp_path: Path, weights: Path) -> None:
    source, target = weights / "tiny-5b", tmp_path / "half"
    assert main(["resave", str(source), str(target)]) == 0
    assert (target / "model_index.json").exists()
    assert main(["resave", str(source), str(target)]) == 1
