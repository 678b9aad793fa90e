"""The stock pipeline as the oracle, bit for bit, for every kind of checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline

from inference.contracts import RenderRequest
from inference.engines.wan import denoise, pictures, vae
from inference.engines.wan.engine import WanEngine
from tests.inference.engines.wan.conftest import KINDS, ask, make_frames

Engines = Callable[[str], WanEngine]
Stock = Callable[[str], WanImageToVideoPipeline]


def stock_says(
    pipe: WanImageToVideoPipeline, request: RenderRequest, **changes: Any
) -> Any:
    size = (request.width, request.height)
    last = request.last_image
    pipe.scheduler = UniPCMultistepScheduler.from_config(
        pipe.scheduler.config, flow_shift=changes.pop("flow_shift", 5.0)
    )
    call: dict[str, Any] = {
        "image": pictures.load(request.image, *size),
        "last_image": None if last is None else pictures.load(last, *size),
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "width": request.width,
        "height": request.height,
        "num_frames": request.frames,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "generator": torch.Generator().manual_seed(request.seed),
        "output_type": "np",
    }
    return pipe(**(call | changes)).frames


def as_bytes(video: Any) -> Any:
    return np.rint(video[0] * 255).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_frames_are_those_of_the_stock_pipeline(
    kind: str, engines: Engines, stock: Stock
) -> None:
    request = ask(kind, steps=3)
    shift = engines(kind).profile.flow_shift
    made = np.stack(list(make_frames(engines(kind), request)))
    want = as_bytes(stock_says(stock(kind), request, flow_shift=shift))
    assert np.array_equal(made, want)


@pytest.mark.parametrize("kind", KINDS)
def test_the_latents_are_those_of_the_stock_pipeline(
    kind: str, engines: Engines, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    whole = denoise.denoise

    def spy(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(whole(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(denoise, "denoise", spy)
    request = ask(kind, steps=4)
    for _frame in make_frames(engines(kind), request):
        pass
    shift = engines(kind).profile.flow_shift
    want = stock_says(stock(kind), request, flow_shift=shift, output_type="latent")
    assert torch.equal(seen[0], want)


def test_an_a14b_clip_ends_on_the_last_image_as_stock_does(
    engines: Engines, stock: Stock
) -> None:
    last = ask("flf").last_image
    request = ask("2.2", last_image=last)
    made = np.stack(list(make_frames(engines("2.2"), request)))
    assert np.array_equal(made, as_bytes(stock_says(stock("2.2"), request)))
    without = np.stack(list(make_frames(engines("2.2"), ask("2.2"))))
    assert not np.array_equal(made, without)


@pytest.mark.parametrize(
    ("high", "low", "forwards"),
    [(3.5, 3.5, 8), (1.0, 1.0, 4), (3.5, 1.0, 6), (1.0, 3.5, 6)],
)
def test_each_stage_pays_for_guidance_only_where_it_is_asked_for(
    high: float, low: float, forwards: int, engines: Engines
) -> None:
    engine = engines("2.2")
    (model,) = engine._models.values()
    counted = 0

    def count(*_: object) -> None:
        nonlocal counted
        counted += 1

    request = ask("2.2", steps=4, guidance_scale=high, guidance_scale_2=low)
    hooks = [
        getattr(model.pipe, name).register_forward_hook(count)
        for name in ("transformer", "transformer_2")
    ]
    try:
        for _frame in make_frames(engine, request):
            pass
    finally:
        for hook in hooks:
            hook.remove()
    assert counted == forwards


def test_guidance_in_the_low_stage_changes_the_video(engines: Engines) -> None:
    plain = ask("2.2", steps=4, guidance_scale=1.0, guidance_scale_2=1.0)
    one, other = (
        np.stack(list(make_frames(engines("2.2"), request)))
        for request in (plain, plain.replace(guidance_scale_2=9.0))
    )
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(("shift", "high"), [(1.0, 3), (3.0, 6), (5.0, 8), (10.0, 11)])
def test_flow_shift_moves_work_to_the_high_noise_expert(
    shift: float, high: int, stock: Stock
) -> None:
    scheduler = denoise.unipc(stock("2.2"), shift)
    timesteps = denoise.set_steps(scheduler, 20, torch.device("cpu"))
    assert sum(denoise.is_high(stock("2.2"), timesteps)) == high


def test_four_distilled_steps_are_the_ones_they_were_trained_on(stock: Stock) -> None:
    timesteps = denoise.set_steps(denoise.euler(5.0), 4, torch.device("cpu"))
    assert [int(t) for t in timesteps] == [1000, 937, 833, 625]
    assert denoise.is_high(stock("2.2"), timesteps) == [True, True, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_cover_the_clip_as_stocks_tiling_does(kind: str, stock: Stock) -> None:
    pipe = stock(kind)
    config = pipe.vae.config
    side = 320 // config.scale_factor_spatial
    numbers = torch.Generator().manual_seed(1)
    latents = torch.randn(1, config.z_dim, 2, side, side, generator=numbers)
    calls = 0

    def tick() -> None:
        nonlocal calls
        calls += 1

    made = np.stack([f for chunk in vae.tiled(pipe.vae, latents, tick) for f in chunk])
    with torch.no_grad(), vae.tiling(pipe.vae):
        want = pipe.vae.decode(vae.denormalized(pipe.vae, latents)).sample
    assert made.shape == (5, 320, 320, 3)
    assert np.array_equal(made, vae._uint8(want).numpy())
    assert calls == 2 * 4  # two latent frames of four tiles
    assert not pipe.vae.use_tiling


def test_the_next_chunk_is_under_way_before_the_last_one_is_handed_over(
    stock: Stock,
) -> None:
    pipe = stock("2.2")
    order: list[str] = []
    latents = torch.zeros(1, 16, 3, 4, 4)
    chunks = vae.stream(pipe.vae, latents, lambda: order.append("decoded"))
    order.extend(f"{len(chunk)} frames" for chunk in chunks)
    assert order == [
        "decoded", "decoded", "1 frames", "decoded", "4 frames", "4 frames",
    ]  # fmt: skip
