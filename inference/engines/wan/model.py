"""One checkpoint, opened: its pipeline without weights, and its parts in a residence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig, WanTransformer3DModel

from inference.engines.wan import attention, loading, weights
from inference.engines.wan.attention import Probed
from inference.engines.wan.lora import Weighted, merged_in
from inference.engines.wan.memory import Residence
from inference.engines.wan.profiles import Checkpoint, Profile
from inference.engines.wan.residency import Part, TooSmall, phases
from inference.errors import OutOfMemory, WeightsMissing

# 0.2 skipped 24 of 64 attention calls on a tiny model; the share on real weights is not
# measured here.
CACHE_THRESHOLD = 0.2


@dataclass(frozen=True)
class Tuning:
    """Choices of speed against sameness, from ``Context.options`` (``wan_…``).

    ``compiled``: blocks compiled on CUDA; a CPU compiles longer than a tiny clip takes.
    ``vae_channels_last``: convolutions in NDHWC; on a CPU the decode took 1.4 s against
    4.6 s and 1.9 s against 3.3 s (loaded machine, small VAE); no GPU figure, so off.
    ``vae_half``: bf16 instead of fp32 with TF32; a choice of quality that nobody has
    compared on real weights here, so off. ``make bench BENCH=wan`` times all three.
    """

    compiled: bool = False
    vae_channels_last: bool = False
    vae_half: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any], device: torch.device) -> Tuning:
        return cls(
            compiled=options.get("wan_compile", device.type == "cuda"),
            vae_channels_last=options.get("wan_vae_channels_last", False),
            vae_half=options.get("wan_vae_half", False),
        )

    @property
    def vae(self) -> str:
        """How the VAE runs, for the fingerprint."""
        dtype = "bf16" if self.vae_half else "fp32"
        return f"{dtype}{' channels-last' * self.vae_channels_last}"


class Model:
    def __init__(
        self,
        profile: Profile,
        checkpoint: Checkpoint,
        folder: Path,
        residence: Residence,
        *,
        probed: Probed,
        tuning: Tuning,
    ) -> None:
        self.profile, self.checkpoint, self.folder = profile, checkpoint, folder
        self._residence, self._probed, self._tuning = residence, probed, tuning
        self.pipe: Any = loading.shell(folder)
        self._dtypes = loading.dtypes(residence.device)
        if tuning.vae_half:
            self._dtypes["vae"] = torch.bfloat16
        expected = profile.part_bytes()
        there = [n for n in weights.components(folder) if n in loading.MODULES]
        if set(there) != set(expected):
            raise WeightsMissing(
                f"{folder} holds {', '.join(sorted(there))}; a {profile.kind} checkpoint "
                f"has {', '.join(sorted(expected))}"
            )
        sizes = {name: expected[name] for name in there}
        self.digests = {name: weights.digest(folder / name) for name in sizes}
        self.revision = weights.revision(folder)
        self._sizes = sizes
        for name, size_bytes in sizes.items():
            # Same bytes, same name: checkpoints share their text encoder and VAE.
            shared = name not in profile.experts
            family = self._key(name) if shared else profile.family
            residence.add(
                Part(self._key(name), size_bytes, family), partial(self._load, name)
            )
        residence.before_leaving(_restore)
        with torch.device("meta"):
            #: the transformer without weights: what a LoRA must fit
            self.skeleton = WanTransformer3DModel.from_config(
                WanTransformer3DModel.load_config(
                    folder / "transformer", local_files_only=True
                )
            )

    @property
    def text_encoder(self) -> str:
        return self.digests["text_encoder"]

    def check_room(self, working_bytes: int) -> None:
        """Raise OutOfMemory, permanent, unless each phase fits on the device alone."""
        there = self._residence.plan.device_bytes
        for phase in phases(self._sizes, working_bytes=working_bytes):
            needed = phase.working_bytes + sum(self._sizes[n] for n in phase.parts)
            if needed > there:
                reason = f"{phase.name}: {TooSmall(needed, there)}"
                raise OutOfMemory(reason, permanent=True)

    def bring(self, phase: str, *, working_bytes: int, alone: bool = False) -> None:
        """Put the parts a phase needs on the device and into the pipeline.

        ``alone`` sends every other part away first, whosever it is.
        """
        order = phases(self._sizes, working_bytes=working_bytes)
        (place,) = (i for i, it in enumerate(order) if it.name == phase)
        later = [self._key(n) for after in order[place + 1 :] for n in after.parts]
        names = order[place].parts
        modules = self._residence.want(
            [self._key(name) for name in names],
            working_bytes=order[place].working_bytes,
            later=later,
            alone=alone,
        )
        for name, module in zip(names, modules, strict=True):
            if getattr(self.pipe, name) is not module:
                self.pipe.register_modules(**{name: module})

    def load_all(self, *, working_bytes: int) -> None:
        """Read every part once, in the order a job needs them."""
        for phase in phases(self._sizes, working_bytes=working_bytes):
            self.bring(phase.name, working_bytes=phase.working_bytes)

    def expert(
        self,
        index: int,
        *,
        loras: Sequence[Weighted],
        cached: bool,
        working_bytes: int,
        alone: bool = False,
    ) -> WanTransformer3DModel:
        """Return one transformer, on the device, with exactly these LoRAs in it."""
        name = self.profile.experts[index]
        self.bring(name, working_bytes=working_bytes, alone=alone)
        module = getattr(self.pipe, name)
        merged_in(module).apply(loras)
        if cached and not module.is_cache_enabled:
            # The cache decides by value, which a full graph cannot hold.
            _pause_compiled(module)
            module.enable_cache(FirstBlockCacheConfig(threshold=CACHE_THRESHOLD))
        return module

    def clean(self, *, failed: bool) -> None:
        """Leave nothing of a job behind; after a failure no LoRA either."""
        # An exception skips stock's own clean-up: with a cache hook the next job's video
        # would be wrong.
        self.pipe.maybe_free_model_hooks()
        self.pipe.vae.disable_tiling()
        self.pipe.vae.clear_cache()
        for name in self.profile.experts:
            module = getattr(self.pipe, name)
            if module is None:
                continue
            if module.is_cache_enabled:
                module.disable_cache()
                _resume_compiled(module)
            if failed:
                merged_in(module).restore()
        if failed and self._residence.device.type == "cuda":
            torch.cuda.empty_cache()

    def _key(self, name: str) -> str:
        return f"{name.removesuffix('_2')}:{self.digests[name]}"

    def _load(self, name: str) -> torch.nn.Module:
        module: Any = loading.load_part(self.folder, name, self._dtypes[name])
        if name in self.profile.experts:
            attention.use(module, self._probed)
            if self._tuning.compiled:
                module.compile_repeated_blocks(fullgraph=True)
        if name == "vae" and self._tuning.vae_channels_last:
            _lay_out_last(module)
        return module


def _lay_out_last(vae: torch.nn.Module) -> None:
    for layer in vae.modules():
        if isinstance(layer, torch.nn.Conv3d):
            weight = layer.weight
            weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)


def _restore(module: torch.nn.Module) -> None:
    if isinstance(module, WanTransformer3DModel):
        merged_in(module).restore()


def _pause_compiled(module: WanTransformer3DModel) -> None:
    for block in module.blocks:
        block._paused_call = block._compiled_call_impl
        block._compiled_call_impl = None


def _resume_compiled(module: WanTransformer3DModel) -> None:
    for block in module.blocks:
        block._compiled_call_impl = block._paused_call
        del block._paused_call
