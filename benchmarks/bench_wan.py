"""Wan: how far a forward and an 81-frame job are from what the hardware allows.

Floor = counted FLOPs / matmul rate measured in the same run. "Stock" is diffusers' own
pipeline on the same weights in the same run. Weights are random: on a GPU full-size
(A14B, 480x832, bf16), on a CPU a small model of the same classes. Nothing is downloaded
and no disk is needed. Aims on a GPU: at least 75 % of the floor per guided step at 480p
(published: stock 44 %, SGLang 70 %, LightX2V 82 %), 1.5 times stock, and less than 2 %
of a job beside the model. With ``--knobs`` every choice that has a knob is timed as well.

    python -m benchmarks.bench_wan [--steps 4] [--repeats 3] [--knobs] [--write DIR]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from torch.utils.flop_counter import FlopCounterMode

from inference.contracts import OutputPlan, RenderRequest
from inference.engines.wan import attention, loading, lora, pictures, synthetic, vae
from inference.engines.wan.engine import WanEngine
from inference.engines.wan.memory import Residence
from inference.engines.wan.model import Model, _pause_compiled, _resume_compiled
from inference.engines.wan.profiles import PROFILES, Checkpoint
from inference.engines.wan.residency import Part, Residency
from inference.media.encode import Encoder
from inference.testing import local_context

PHOTO = Path("tests/photos/astronaut.jpg")
FRAMES = 81
PROMPT = "an astronaut waves at the camera"


@dataclass(frozen=True)
class Scale:
    """The models' dimensions and the clip's."""

    name: str
    transformer: dict[str, Any]
    vae: dict[str, Any]
    width: int
    height: int
    matmul: int


# The text encoder is the tiny one at both scales: it runs once per prompt and its width
# is 0.01 % of a forward.
_A14B = {"in_channels": 36, "out_channels": 16, "text_dim": 32}
FULL = Scale("A14B, random", _A14B, {}, 832, 480, 8192)
SMALL = Scale(
    "small, random",
    _A14B | {"num_attention_heads": 4, "ffn_dim": 1536, "num_layers": 4},
    {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    96,
    64,
    1024,
)


@dataclass(frozen=True)
class Line:
    """One row: seconds measured, seconds of floor, and stock's seconds."""

    what: str
    seconds: float
    floor: float
    stock: float

    def __str__(self) -> str:
        return (
            f"{self.what:34} {self.seconds:9.3f} s   floor {self.floor:9.3f} s   "
            f"{self.floor / self.seconds:5.1%} of the floor   stock {self.stock:9.3f} s "
            f"({self.floor / self.stock:5.1%})   {self.stock / self.seconds:5.2f} x stock"
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench_wan", description=__doc__)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--knobs", action="store_true")
    parser.add_argument("--write", type=Path, help="a folder for the table")
    given = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)  # twice as many on a busy machine are slower
    scale = FULL if device.type == "cuda" else SMALL
    with tempfile.TemporaryDirectory(prefix="bench-wan-") as place:
        bench = Bench(scale, device, Path(place), repeats=given.repeats)
        printed = [*bench.heading(), *bench.run(given.steps)]
        if given.knobs:
            printed += bench.knobs()
    print("\n".join(printed))
    if given.write:
        given.write.mkdir(parents=True, exist_ok=True)
        day = datetime.now(UTC).strftime("%Y-%m-%d")
        name = f"wan-{day}-{bench.card.replace(' ', '-').lower()}.txt"
        (given.write / name).write_text("\n".join(printed) + "\n")
    return 0


class Bench:
    def __init__(
        self, scale: Scale, device: torch.device, place: Path, *, repeats: int
    ) -> None:
        self.scale, self.device, self.repeats = scale, device, repeats
        self.dtype = loading.dtypes(device)["transformer"]
        self.card = "CPU"
        if device.type == "cuda":
            self.card = torch.cuda.get_device_name(device)
        self.engine = self._engine(place)
        self.model: Model = next(iter(self.engine._models.values()))
        self.rate = self._matmul_rate()

    def heading(self) -> list[str]:
        versions = ", ".join(
            f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers")
        )
        return [
            f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC   {self.card}   "
            f"{platform.machine()}, Python {platform.python_version()}, {versions}",
            f"{self.scale.name}: {self.scale.width}x{self.scale.height}, {FRAMES} frames, "
            f"{self.dtype}, attention {self._attention()}, "
            f"compiled {self.engine._tuning.compiled}",
            f"matmul {self.scale.matmul}³ of random numbers: "
            f"{self.rate / 1e12:.3f} TFLOP/s",
        ]

    def run(self, steps: int) -> Iterator[str]:
        forward = self._forward_flops()
        one, stock_one = self._forward(forward)
        yield str(Line("one forward", one, forward / self.rate, stock_one))
        yield str(
            Line("one guided step", 2 * one, 2 * forward / self.rate, 2 * stock_one)
        )
        encode, decode = self._vae_flops()
        floor = (2 * steps * forward + encode + decode) / self.rate
        request = self._request(steps)
        for _warm in range(1 if self.device.type == "cpu" else 2):
            self._own_job(request)
        own, spent = self._own_job(request)
        stock = self._stock_job(request)
        for _turn in range(self.repeats - 1):
            again, stock_again = self._own_job(request), self._stock_job(request)
            own, spent = min((own, spent), again, key=lambda it: it[0])
            stock = min(stock, stock_again)
        yield str(Line(f"a job of {steps} guided steps", own, floor, stock))
        model = sum(spent.values())
        parts = ", ".join(f"{name} {value:.3f} s" for name, value in spent.items())
        yield f"  of it: {parts}; beside the model {own - model:.3f} s"
        yield (
            f"worker beside the model: {(own - model) / own:.2%} of this job; "
            f"{(own - model) / 216:.3%} of a 216 s job (480p, 40 steps, published)"
        )
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device) / 1e9
            yield f"peak memory allocated: {peak:.1f} GB"

    # What is measured

    def _forward(self, flops: float) -> tuple[float, float]:
        inputs = self._inputs()
        model = self.model.expert(0, loras=(), cached=False, working_bytes=0)

        @torch.no_grad()
        def call() -> None:
            model(**inputs, return_dict=False)

        # In turns, and the best of each: what else the machine does then hits both.
        own, stock = [], []
        for _turn in range(self.repeats):
            own.append(self._best(call, turns=1))
            with self._as_stock(model):
                stock.append(self._best(call, turns=1))
        return min(own), min(stock)

    def _own_job(self, request: RenderRequest) -> tuple[float, dict[str, float]]:
        """Return a job's wall time, encoding included, and the model's share of it."""
        target = self.engine._context.workdir / "own.mp4"
        begun = time.perf_counter()
        with self._encoder(target) as encoder:
            for frame in self.engine.frames(
                request, on_progress=lambda _: None, should_stop=lambda: False
            ):
                encoder.write(frame)
        return time.perf_counter() - begun, dict(self.engine.spent)

    def _stock_job(self, request: RenderRequest) -> float:
        """Time the stock pipeline, in memory, and the same encoding after it."""
        self.model.load_all(working_bytes=0)
        own = self.model.pipe
        pipe = WanImageToVideoPipeline(
            tokenizer=own.tokenizer,
            text_encoder=own.text_encoder,
            vae=own.vae,
            scheduler=UniPCMultistepScheduler.from_config(own.scheduler.config),
            transformer=own.transformer,
            transformer_2=own.transformer_2,
            boundary_ratio=own.config.boundary_ratio,
        )
        pipe.set_progress_bar_config(disable=True)
        target = self.engine._context.workdir / "stock.mp4"
        with self._as_stock(own.transformer), self._as_stock(own.transformer_2):
            begun = time.perf_counter()
            made = pipe(
                image=pictures.load(request.image, request.width, request.height),
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                num_frames=request.frames,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance_scale,
                generator=torch.Generator().manual_seed(request.seed),
                width=request.width,
                height=request.height,
            ).frames[0]
            with self._encoder(target) as encoder:
                for frame in np.rint(made * 255).astype(np.uint8):
                    encoder.write(frame)
            return time.perf_counter() - begun

    def _encoder(self, target: Path) -> Encoder:
        width, height = self.scale.width, self.scale.height
        return Encoder(target, width=width, height=height, fps=16)

    def knobs(self) -> Iterator[str]:
        """Time each choice against the others."""
        inputs = self._inputs()
        model = self.model.expert(0, loras=(), cached=False, working_bytes=0)

        @torch.no_grad()
        def call() -> None:
            model(**inputs, return_dict=False)

        order = attention.CUDA_ORDER if self.device.type == "cuda" else ("native",)
        for name in (*order, "_native_flash", "_native_efficient"):
            try:
                attention.probe(self.device, [name])
            except RuntimeError as error:
                yield f"  attention {name}: not here ({str(error)[:80]})"
                continue
            model.set_attention_backend(name)
            _pause_compiled(model)
            eager = self._best(call)
            _resume_compiled(model)
            text = f"  attention {name}: eager {eager:.4f} s"
            if self.engine._tuning.compiled:
                text += f", compiled blocks {self._best(call):.4f} s"
            yield text
        attention.use(model, self._probed())
        yield from self._vae_knobs()
        yield from self._lora_knob(model)

    def _vae_knobs(self) -> Iterator[str]:
        decoder: Any = self.model.pipe.vae
        shape = (1, decoder.config.z_dim, (FRAMES - 1) // 4 + 1)
        latents = torch.randn(
            *shape, self.scale.height // 8, self.scale.width // 8, device=self.device
        )

        def decode() -> None:
            for _chunk in vae.stream(decoder, latents, lambda: None):
                pass

        def tiles() -> None:
            for _chunk in vae.tiled(decoder, latents, lambda: None):
                pass

        yield f"  VAE decode {decoder.dtype}, streamed: {self._best(decode):.3f} s"
        yield f"  VAE decode, tiled: {self._best(tiles):.3f} s"
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False
            yield f"  VAE decode without TF32: {self._best(decode):.3f} s"
            torch.backends.cudnn.allow_tf32 = True
        _lay_out(decoder, torch.channels_last_3d)
        yield f"  VAE decode, channels last: {self._best(decode):.3f} s"
        _lay_out(decoder, torch.contiguous_format)
        if self.device.type == "cuda":
            decoder.to(torch.bfloat16)
            yield f"  VAE decode bf16: {self._best(decode):.3f} s"
            decoder.to(torch.float32)

    def _lora_knob(self, model: Any) -> Iterator[str]:
        pairs = {}
        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear) and ".attn1." in name:
                down = torch.randn(64, layer.in_features)
                up = torch.randn(layer.out_features, 64)
                pairs[name] = lora.Pair(down, up, 0.01)
        merged = lora.merged_in(model)
        begun = time.perf_counter()
        merged.apply([lora.Weighted(lora.Adapter("bench", pairs), 1.0)])
        self._settle()
        middle = time.perf_counter()
        merged.restore()
        self._settle()
        yield (
            f"  rank-64 LoRA over {len(pairs)} layers: merge {middle - begun:.3f} s, "
            f"restore {time.perf_counter() - middle:.3f} s"
        )

    # What it is measured with

    def _engine(self, place: Path) -> WanEngine:
        """Return an engine whose weights are random and made in memory.

        The folder holds a tiny checkpoint with the big models' configurations; the
        residence already knows how the parts come about, so the files are never read.
        """
        folder = place / "weights" / "bench"
        synthetic.save("2.2", folder)
        for name in ("transformer", "transformer_2", "vae"):
            _configure(folder / name, self._config(name))
        checkpoint = Checkpoint("bench", "2.2", "hub:nobody/nothing")
        area = self.scale.width * self.scale.height
        profile = dataclasses.replace(
            PROFILES["wan2.2-i2v-a14b"], checkpoints=((area, checkpoint),)
        )
        plan = Residency(device_bytes=10**15, pinned_bytes=10**15)
        residence = _Preset(self.device, plan)
        engine = WanEngine(
            profile,
            local_context(place, weights=place / "weights"),
            residence=residence,
        )
        residence.makers = {
            "transformer": [
                partial(self._transformer, engine, seed) for seed in (0, 1)
            ],
            "vae": [self._vae],
        }
        engine.setup()
        return engine

    def _config(self, name: str) -> dict[str, Any]:
        return self.scale.vae if name == "vae" else self.scale.transformer

    def _transformer(self, engine: WanEngine, seed: int) -> torch.nn.Module:
        made = synthetic.random_transformer(
            str(self.device), seed=seed, dtype=self.dtype, **self.scale.transformer
        )
        assert engine._probed is not None
        attention.use(made, engine._probed)
        if engine._tuning.compiled:
            made.compile_repeated_blocks(fullgraph=True)
        return made  # type: ignore[no-any-return]  # diffusers is untyped

    def _vae(self) -> torch.nn.Module:
        torch.manual_seed(0)
        made = AutoencoderKLWan(**self.scale.vae).eval()
        return made.requires_grad_(requires_grad=False)  # type: ignore[no-any-return]  # as above

    def _request(self, steps: int) -> RenderRequest:
        size = (self.scale.width, self.scale.height)
        return RenderRequest(
            reference="bench",
            model="wan2.2-i2v",
            profile="bench",
            image=PHOTO,
            width=size[0],
            height=size[1],
            frames=FRAMES,
            fps=16,
            seed=1,
            prompt=PROMPT,
            negative_prompt="blurry",
            steps=steps,
            guidance_scale=3.5,
            output=OutputPlan(*size, 16, FRAMES),
        )

    def _inputs(self, device: str | None = None) -> dict[str, torch.Tensor]:
        """Random numbers, not zeros: a matmul of zeros runs 13 % faster on an H200."""
        where = device or str(self.device)
        high, wide = self.scale.height // 8, self.scale.width // 8
        channels = self.scale.transformer["in_channels"]
        shape = (1, channels, (FRAMES - 1) // 4 + 1, high, wide)
        text = (1, 512, self.scale.transformer["text_dim"])
        return {
            "hidden_states": torch.randn(*shape, device=where, dtype=self.dtype),
            "timestep": torch.full((1,), 500, device=where),
            "encoder_hidden_states": torch.randn(*text, device=where, dtype=self.dtype),
        }

    def _matmul_rate(self) -> float:
        side = self.scale.matmul
        left, right = (
            torch.randn(side, side, device=self.device, dtype=self.dtype)
            for _ in range(2)
        )
        times = [self._best(lambda: torch.matmul(left, right)) for _ in range(5)]
        return 2 * side**3 / min(times)

    def _forward_flops(self) -> float:
        with torch.device("meta"):
            model = WanTransformer3DModel(**self.scale.transformer).to(self.dtype)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**self._inputs("meta"), return_dict=False)
        return float(counter.get_total_flops())

    def _vae_flops(self) -> tuple[float, float]:
        with torch.device("meta"):
            made = AutoencoderKLWan(**self.scale.vae)
            clip = torch.empty(1, 3, FRAMES, self.scale.height, self.scale.width)
            latents = torch.empty(
                1,
                made.config.z_dim,
                (FRAMES - 1) // 4 + 1,
                self.scale.height // 8,
                self.scale.width // 8,
            )
        counted = []
        for call in (partial(made.encode, clip), partial(made.decode, latents)):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                call()
            counted.append(float(counter.get_total_flops()))
        return counted[0], counted[1]

    @contextmanager
    def _as_stock(self, model: Any) -> Iterator[None]:
        """Run ``model`` as diffusers would without us: native attention, nothing compiled."""
        _pause_compiled(model)
        model.set_attention_backend("native")
        try:
            yield
        finally:
            attention.use(model, self._probed())
            _resume_compiled(model)

    def _best(self, call: Callable[[], object], *, turns: int | None = None) -> float:
        """Return the shortest of some turns after a first one that does not count."""
        call()
        self._settle()
        times = []
        for _ in range(turns or self.repeats):
            begun = time.perf_counter()
            call()
            self._settle()
            times.append(time.perf_counter() - begun)
        return min(times)

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _probed(self) -> attention.Probed:
        assert self.engine._probed is not None
        return self.engine._probed

    def _attention(self) -> str:
        return self._probed().name


class _Preset(Residence):
    """Takes the parts it knows from ``makers`` instead of from files, one each."""

    makers: dict[str, list[Callable[[], torch.nn.Module]]]

    def add(self, part: Part, load: Callable[[], torch.nn.Module]) -> None:
        waiting = self.makers.get(part.name.partition(":")[0])
        super().add(part, waiting.pop(0) if waiting else load)


def _lay_out(module: torch.nn.Module, memory_format: torch.memory_format) -> None:
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv3d):
            weight = layer.weight
            weight.data = weight.data.contiguous(memory_format=memory_format)


def _configure(folder: Path, changes: dict[str, Any]) -> None:
    """Give a saved part another configuration; absent keys take the class's defaults."""
    path = folder / "config.json"
    kept = {k: v for k, v in json.loads(path.read_text()).items() if k.startswith("_")}
    path.write_text(json.dumps(kept | changes))


if __name__ == "__main__":
    sys.exit(main())
