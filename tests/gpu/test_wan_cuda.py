"""What only a CUDA device can show; run with ``pytest -m gpu tests/gpu``.

Weights are tiny and random: these tests are about the device, not about pictures.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

from inference.engines.wan import attention, synthetic, vae
from inference.engines.wan.engine import WanEngine
from inference.engines.wan.lora import Adapter, Merged, Pair, Weighted
from inference.engines.wan.memory import Residence
from inference.engines.wan.residency import Part, Residency
from inference.errors import OutOfMemory
from inference.testing import local_context
from tests.inference.engines.wan.conftest import ask, make_frames

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cuda")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> WanEngine:
    place = tmp_path_factory.mktemp("gpu")
    made = WanEngine("wan-tiny", local_context(place), device="cuda")
    made.setup()
    return made


def clip(engine: WanEngine, **changes: Any) -> Any:
    return np.stack(list(make_frames(engine, ask("2.2", **changes))))


def test_the_first_kernel_that_runs_is_recorded(device: torch.device) -> None:
    probed = attention.probe(device)
    assert probed.name in attention.CUDA_ORDER
    assert all(probed.refused.values())


def test_the_kernels_agree(device: torch.device) -> None:
    states = torch.randn(1, 512, 4, 128, device=device, dtype=torch.bfloat16)
    made = {}
    for name in (attention.probe(device).name, "_native_math"):
        with attention_backend(name):
            made[name] = dispatch_attention_fn(states, states, states, backend=name)
    one, other = made.values()
    assert (one - other).abs().max() < 0.02


def test_the_same_seed_gives_the_same_video(engine: WanEngine) -> None:
    assert np.array_equal(clip(engine), clip(engine))


def test_compiling_changes_little_and_new_shapes_compile_once_more(
    tmp_path: Path, engine: WanEngine
) -> None:
    context = local_context(tmp_path)
    object.__setattr__(context, "options", {"wan_compile": False})
    plain = WanEngine("wan-tiny", context, device="cuda")
    plain.setup()
    one, other = clip(engine).astype(int), clip(plain).astype(int)
    assert np.abs(one - other).mean() < 3
    for size in ((64, 64), (96, 64), (64, 96)):
        assert clip(engine, width=size[0], height=size[1]).shape[2] == size[0]


def test_streamed_frames_are_those_of_the_whole_decode(device: torch.device) -> None:
    model = synthetic.tiny("2.1").vae.to(device)
    latents = torch.randn(1, 16, 5, 8, 12, device=device)
    made = np.stack([f for c in vae.stream(model, latents, lambda: None) for f in c])
    with torch.no_grad():
        whole = model.decode(vae.denormalized(model, latents)).sample
    assert np.array_equal(made, vae._uint8(whole).cpu().numpy())


def test_parts_leave_to_pinned_memory_and_free_the_card(device: torch.device) -> None:
    held = Residence(device, Residency(device_bytes=15, pinned_bytes=100))
    for name in ("a", "b"):
        held.add(Part(name, 10, name), lambda: torch.nn.Linear(2048, 2048))
    (module,) = held.want(["a"])
    before = module.weight.clone()  # type: ignore[operator]  # torch types submodules as tensors
    held.want(["b"])
    assert module.weight.is_pinned()  # type: ignore[operator]  # as above
    held.want(["a"])
    assert module.weight.is_cuda
    assert torch.equal(module.weight, before)  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_lora_comes_out_bit_for_bit(dtype: torch.dtype, device: torch.device) -> None:
    transformer = synthetic.tiny("2.1").transformer.to(device, dtype)
    before = {k: v.clone() for k, v in transformer.state_dict().items()}
    pair = Pair(torch.randn(4, 24), torch.randn(24, 4), 0.5)
    merged = Merged(transformer)
    adapter = Adapter("x", {"blocks.0.attn1.to_q": pair})
    merged.apply([Weighted(adapter, 1.0)])
    after = transformer.state_dict()
    assert not torch.equal(
        before["blocks.0.attn1.to_q.weight"], after["blocks.0.attn1.to_q.weight"]
    )
    merged.restore()
    for key, value in transformer.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_running_out_of_memory_leaves_the_engine_whole(engine: WanEngine) -> None:
    want = clip(engine)
    free, _total = torch.cuda.mem_get_info()
    hog = torch.empty(max(0, free - 64 * 2**20), dtype=torch.uint8, device="cuda")
    with contextlib.suppress(OutOfMemory):  # it may fit after all, perhaps in tiles
        assert clip(engine, width=96, height=64, frames=33).shape[0] == 33
    del hog
    torch.cuda.empty_cache()
    assert np.array_equal(clip(engine), want)
