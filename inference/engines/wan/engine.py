"""Wan image-to-video: a picture and words in, frames out, the next job none the wiser.

A recipe in five stages: check, text, image, denoise, decode. Same seed and same
fingerprint give the same latents. Stopping takes effect within half a guided step or one
latent frame of the VAE; whatever happens, the next job sees what a fresh process would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import torch

from inference.engines.wan import (
    attention,
    denoise,
    flops,
    loading,
    lora,
    lora_files,
    pictures,
    text,
    vae,
)
from inference.engines.wan.checks import Liveliness, NotFinite, check_finite
from inference.engines.wan.faults import translated
from inference.engines.wan.memory import Residence, residence_for
from inference.engines.wan.meter import Meter, Work
from inference.engines.wan.model import Model, Tuning
from inference.engines.wan.profiles import (
    CACHE_EVIDENCE,
    PROFILES,
    Distilled,
    Profile,
    Settings,
)
from inference.engines.wan.weights import Sources
from inference.errors import EngineBroken, OutOfMemory
from inference.geometry import vae_frames

if TYPE_CHECKING:
    from PIL import Image

    from inference.contracts import (
        Context,
        Frame,
        OnProgress,
        RenderRequest,
        ShouldStop,
    )


@dataclass(frozen=True)
class _Job:
    """One request, worked out. ``loras`` are per expert, high noise first."""

    request: RenderRequest
    model: Model
    settings: Settings
    frames: int
    working_bytes: int
    picture: Image.Image
    last_picture: Image.Image | None
    loras: tuple[tuple[lora.Weighted, ...], ...]
    distilled: Distilled | None
    cached: bool

    @property
    def guided(self) -> bool:
        return max(self.settings.guidance, self.settings.guidance_low) > 1


class WanEngine:
    """One profile's checkpoints in this process; the device is shared with the others."""

    def __init__(
        self,
        profile: Profile | str,
        context: Context,
        *,
        device: str | None = None,
        residence: Residence | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.profile = PROFILES[profile] if isinstance(profile, str) else profile
        self._context, self._clock = context, clock
        options = context.options
        chosen = device or options.get("wan_device")
        self.device = torch.device(
            chosen or ("cuda" if torch.cuda.is_available() else "cpu")
        )
        self.residence = residence or residence_for(self.device)
        self._tuning = Tuning.of(options, self.device)
        self._texts = text.TextCache()
        self._files = lora_files.LoraFiles(context)
        self._parser = lora.Parser()
        self._models: dict[str, Model] = {}
        self._probed: attention.Probed | None = None
        self._broken: str | None = None
        self._tiled = False
        self._running: tuple[Model] | None = None
        #: the last job, if its memory ran out: known only once its frames are made
        self._tiled_jobs: frozenset[str] = frozenset()
        #: seconds of the last job by stage, for benchmarks and metrics
        self.spent: dict[str, float] = {}

    # Setting up

    def setup(self) -> None:
        """Load the checkpoints; raise WeightsMissing naming the file and where it looked."""
        loading.check_packages()
        sources = Sources.of(self._context)
        folders = [
            (checkpoint, sources.locate(checkpoint))
            for _area, checkpoint in self.profile.checkpoints
        ]
        with translated():
            self._probed = self._probed or attention.probe(self.device)
            for checkpoint, folder in folders:
                if checkpoint.name not in self._models:
                    self._models[checkpoint.name] = Model(
                        self.profile,
                        checkpoint,
                        folder,
                        self.residence,
                        probed=self._probed,
                        tuning=self._tuning,
                    )
            first = self._models[folders[0][0].name]
            first.load_all(working_bytes=0)

    def warm(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Make a first, short clip at each (width, height, frames) so that no customer
        waits for a compiler or an allocator. Raises OutOfMemory for one too large here.
        """
        from inference.engines.wan.host import warm_requests

        for request in warm_requests(self.profile, self._context.workdir, shapes):
            for _frame in self.frames(
                request, on_progress=lambda _: None, should_stop=lambda: False
            ):
                pass

    # Making frames

    def frames(
        self,
        request: RenderRequest,
        *,
        on_progress: OnProgress,
        should_stop: ShouldStop,
    ) -> Iterator[Frame]:
        if self._broken is not None:
            raise EngineBroken(f"this process can make no more videos: {self._broken}")
        if self._running is not None:
            # Its generator was dropped without being closed; it may not touch ours.
            (left,) = self._running
            self._running = None
            self._clean(left, failed=True)
        self._tiled, self.spent = False, {}
        # Check
        job = self._job(request)
        job.model.check_room(job.working_bytes)
        running = self._running = (job.model,)
        meter = Meter(
            self._work(job),
            on_progress=on_progress,
            should_stop=should_stop,
            settle=self._settle,
            clock=self._clock,
        )
        lively = Liveliness(np.asarray(job.picture))
        failed = True
        try:
            # Text, image, denoise
            try:
                latents = self._twice(job, lambda: self._latents(job, meter))
                check_finite(latents)
            except NotFinite as error:
                if request.loras:
                    raise lora_files.together_unusable(request.loras) from error
                raise
            # Decode
            wanted = request.output.frames
            with closing(self._decoded(job, latents, wanted, meter)) as made:
                for frame in made:
                    lively.see(frame)
                    yield frame
            lively.check()
            failed = False
            self._tiled_jobs = frozenset([request.reference] * self._tiled)
        except OutOfMemory as error:
            # It was the second time, with all the memory there is: nobody tries again.
            error.permanent = True
            raise
        except EngineBroken as error:
            self._broken = str(error)
            raise
        finally:
            if self._running is running:
                self._running = None
                self._clean(job.model, failed=failed)

    def fingerprint(self, request: RenderRequest) -> Mapping[str, str]:
        """What besides the request decides the latents.

        Ask after the frames: only then is it known whether the VAE had to go in tiles.
        """
        model = self._model_for(request)
        distilled, cached = self._mode(request)
        chosen = self._loras(request, model, distilled)
        return {
            "engine": "wan",
            "profile": self.profile.name,
            "checkpoint": model.checkpoint.name,
            "revision": model.revision,
            **{f"weights.{name}": value for name, value in model.digests.items()},
            "loras": ";".join(
                ",".join(weighted.key for weighted in expert) for expert in chosen
            ),
            "mode": self.mode_label(request),
            "cache": "first-block" if cached else "none",
            "torch": torch.__version__,
            "diffusers": version("diffusers"),
            "transformers": version("transformers"),
            "attention": self._probed.name if self._probed else "",
            "compiled": str(self._tuning.compiled),
            "device": _device_name(self.device),
            "dtype": str(loading.dtypes(self.device)["transformer"]),
            "vae": self._tuning.vae
            + " tiled" * (request.reference in self._tiled_jobs),
        }

    def mode_label(self, request: RenderRequest) -> str:
        """Return the mode and, for fast ones, the evidence for its cost and quality."""
        distilled, cached = self._mode(request)
        if distilled is not None:
            return f"fast: {distilled.evidence}"
        return f"fast: {CACHE_EVIDENCE}" if cached else "quality"

    # Check

    def _job(self, request: RenderRequest) -> _Job:
        self.profile.check(request)
        model = self._model_for(request)
        distilled, cached = self._mode(request)
        settings = self.profile.settings(request)
        if distilled is not None:
            # It was trained for this many steps without guidance; others are noise.
            settings = Settings(distilled.steps, 1.0, 1.0, distilled.flow_shift)
        frames = vae_frames(max(request.frames, request.output.frames))
        size = (request.width, request.height)
        last = request.last_image
        return _Job(
            request=request,
            model=model,
            settings=settings,
            frames=frames,
            working_bytes=self.profile.working_bytes(*size, frames),
            picture=pictures.load(request.image, *size),
            last_picture=(
                None if last is None else pictures.load(last, *size, field="last_image")
            ),
            loras=self._loras(request, model, distilled),
            distilled=distilled,
            cached=cached,
        )

    def _model_for(self, request: RenderRequest) -> Model:
        checkpoint = self.profile.checkpoint_for(request.width, request.height)
        if checkpoint.name not in self._models:
            self.setup()
        return self._models[checkpoint.name]

    def _mode(self, request: RenderRequest) -> tuple[Distilled | None, bool]:
        """Return the distilled LoRA to use, or whether to use the cache, or neither."""
        if request.quality != "fast":
            return None, False
        distilled = self.profile.distilled
        if distilled is not None:
            folder = self._context.weights / "loras"
            if all((folder / name).is_file() for name in distilled.files):
                return distilled, False
        return None, True

    def _loras(
        self, request: RenderRequest, model: Model, distilled: Distilled | None
    ) -> tuple[tuple[lora.Weighted, ...], ...]:
        """Return the adapters of each expert, parsed and fitting; touch no weight."""
        chosen: list[list[lora.Weighted]] = [[] for _ in self.profile.experts]
        if distilled is not None:
            for expert, name in zip(chosen, distilled.files, strict=True):
                file = lora_files.local(self._context.weights / "loras" / name)
                expert.append(self._fitting(file, name, model, 1.0))
        for asked in request.loras:
            low_path = asked.path_low or asked.path
            low_scale = asked.scale if asked.scale_low is None else asked.scale_low
            pair = ((asked.path, asked.scale), (low_path, low_scale))
            for expert, (path, scale) in zip(chosen, pair, strict=False):
                expert.append(self._fitting(self._files.get(path), path, model, scale))
        return tuple(tuple(expert) for expert in chosen)

    def _fitting(
        self, file: lora_files.LoraFile, name: str, model: Model, scale: float
    ) -> lora.Weighted:
        adapter = self._parser.parse(file, name=name)
        lora.check_fits(adapter, model.skeleton, name=name)
        return lora.Weighted(adapter, scale)

    # Text, image, denoise

    def _latents(self, job: _Job, meter: Meter) -> torch.Tensor:
        request, settings, model = job.request, job.settings, job.model
        pipe = model.pipe
        started = self._clock()
        meter.stage("text")
        prompt = self._embeds(job, request.prompt)
        negative = self._embeds(job, request.negative_prompt) if job.guided else None
        started = self._lap("text", started)

        meter.stage("image")
        self._bring(job, "image")
        start = self._conditions(job, meter)
        started = self._lap("image", started)

        meter.stage("denoise")
        if job.distilled is not None:
            scheduler = denoise.euler(settings.flow_shift)
        else:
            scheduler = denoise.unipc(pipe, settings.flow_shift)
        timesteps = denoise.set_steps(scheduler, settings.steps, self.device)
        scales = (settings.guidance, settings.guidance_low)
        meter.expect(denoise.forwards(denoise.is_high(pipe, timesteps), *scales))
        latents = denoise.denoise(
            pipe,
            scheduler,
            start,
            prompt=prompt,
            negative=negative,
            guidance=settings.guidance,
            guidance_low=settings.guidance_low,
            timesteps=timesteps,
            expert=lambda index: model.expert(
                index,
                loras=job.loras[index],
                cached=job.cached,
                working_bytes=job.working_bytes,
                alone=self._tiled,
            ),
            tick=meter.forward,
        )
        self._lap("denoise", started)
        return latents

    def _embeds(self, job: _Job, prompt: str) -> torch.Tensor:
        encoder = job.model.text_encoder
        kept = self._texts.get(encoder, prompt)
        if kept is not None:
            return kept
        self._bring(job, "text")
        made = text.encode(job.model.pipe, prompt, self.device)
        self._texts.put(encoder, prompt, made)
        return made

    def _conditions(self, job: _Job, meter: Meter) -> denoise.Conditions:
        pipe, request = job.model.pipe, job.request
        # One frame for models that expand timesteps, else the whole clip in fours.
        pieces = 1 if pipe.config.expand_timesteps else (job.frames - 1) // 4 + 1
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            meter.encoded(done / pieces)

        tiling = vae.tiling(pipe.vae) if self._tiled else nullcontext()
        with tiling, vae.watched(pipe.vae.encoder, tick):
            return denoise.conditions(
                pipe,
                job.picture,
                job.last_picture,
                width=request.width,
                height=request.height,
                frames=job.frames,
                # On the CPU: the same seed gives the same noise on every kind of card.
                generator=torch.Generator().manual_seed(request.seed),
                device=self.device,
            )

    def _twice(self, job: _Job, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Run ``make``; after running out of memory once more, with all there is.

        Then every phase has the card to itself, and the VAE goes in tiles.
        """
        try:
            with translated():
                return make()
        except OutOfMemory as error:
            if error.permanent:
                raise
        # Outside the handler: its traceback keeps the failed try's tensors alive.
        self._give_back_memory()
        # The cache of a fast job still holds the failed try's last step.
        self._clean(job.model, failed=True)
        with translated():
            return make()

    # Decode

    def _decoded(
        self, job: _Job, latents: torch.Tensor, wanted: int, meter: Meter
    ) -> Generator[Frame, None, None]:
        """Yield ``wanted`` frames; after running out of memory go on in tiles."""
        meter.stage("decode")
        started, given = self._clock(), 0
        while True:
            chunks = self._chunks(job, latents, meter)
            try:
                skip = given
                for frame in _flat(chunks):
                    if skip:
                        skip -= 1
                        continue
                    given += 1
                    self._lap("decode", started)
                    yield frame
                    started = self._clock()
                    if given == wanted:
                        return
            except OutOfMemory as error:
                if self._tiled or error.permanent:
                    raise
            finally:
                chunks.close()
            self._give_back_memory()

    def _chunks(
        self, job: _Job, latents: torch.Tensor, meter: Meter
    ) -> Generator[list[Frame], None, None]:
        pieces, done = latents.shape[2], 0

        def tick() -> None:
            nonlocal done
            done += 1
            meter.decoded(done / pieces)

        with translated():
            self._bring(job, "decode")
        decode = vae.tiled if self._tiled else vae.stream
        made = decode(job.model.pipe.vae, latents, tick)
        try:
            while True:
                with translated():
                    chunk = next(made, None)
                if chunk is None:
                    return
                yield chunk
        finally:
            made.close()

    # Small things

    def _bring(self, job: _Job, phase: str) -> None:
        job.model.bring(phase, working_bytes=job.working_bytes, alone=self._tiled)

    def _clean(self, model: Model, *, failed: bool) -> None:
        if self._broken is not None:
            return  # nothing on the device can be trusted, and touching it may hang
        try:
            with translated():
                model.clean(failed=failed)
        except EngineBroken as error:
            self._broken = str(error)
            raise

    def _work(self, job: _Job) -> Work:
        request, kind = job.request, self.profile.kind
        size = (request.width, request.height, job.frames)
        forward = flops.SHAPES[kind].forward(*size)
        guided = 2 if job.guided else 1
        encode, decode = flops.vae(kind, *size)
        # The VAE's fp32 convolutions run at about a third of the bf16 rate (TF32 tensor
        # cores have half of it, by NVIDIA's tables; the rest is our guess).
        denoising = forward * guided * job.settings.steps
        return Work(0.01 * denoising, 3 * encode, denoising, 3 * decode)

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _give_back_memory(self) -> None:
        self._tiled = True
        for model in self._models.values():
            model.pipe.vae.clear_cache()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _lap(self, stage: str, started: float) -> float:
        now = self._clock()
        self.spent[stage] = self.spent.get(stage, 0.0) + now - started
        return now


def _flat(chunks: Iterator[list[Frame]]) -> Iterator[Frame]:
    for chunk in chunks:
        yield from chunk


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    name: str = torch.cuda.get_device_name(device)
    return name
