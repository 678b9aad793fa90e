"""What this machine says it can serve, and how a worker gets ready."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from inference.__main__ import main
from inference.engines.wan import host
from inference.engines.wan.engine import WanEngine
from inference.engines.wan.host import Card, report
from inference.engines.wan.profiles import Profile
from inference.engines.wan.residency import GB
from inference.engines.wan.weights import Sources
from inference.errors import WeightsMissing
from inference.testing import local_context

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
