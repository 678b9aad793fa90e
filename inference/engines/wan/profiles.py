"""What each Wan checkpoint is, needs and can do: the engine's only table of facts.

A ``Profile`` is what a route names; it resolves to one ``Checkpoint`` (a folder of
weights) by the size asked for. Defaults are Wan's own, not the conversion script's
(which writes flow_shift 3.0 for every image-to-video model). Pure, torch-free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from inference.catalogue import MODELS
from inference.engines.wan import flops
from inference.errors import Unsupported

if TYPE_CHECKING:
    from inference.contracts import Lora, RenderRequest

Kind = Literal["2.1", "flf", "2.2", "5b"]
LastImage = Literal["never", "optional", "required"]
GB = 10**9


@dataclass(frozen=True)
class Checkpoint:
    """One folder of weights in diffusers layout.

    ``name`` is the folder's name; ``source`` is where it comes from when the folder is
    not there and the operator has said nothing: a hub id, or random weights made here.
    ``flow_shift`` is its own; None: the profile's.
    """

    name: str
    kind: Kind
    source: str
    flow_shift: float | None = None


@dataclass(frozen=True)
class Distilled:
    """A 4-step LoRA that stands in for 40 steps with guidance, if its files are there.

    ``files`` are names under ``<weights>/loras``: one per expert, high noise first.
    """

    files: tuple[str, ...]
    evidence: str
    steps: int = 4
    flow_shift: float = 5.0


@dataclass(frozen=True)
class Settings:
    """The sampling numbers of one job, all resolved."""

    steps: int
    guidance: float
    guidance_low: float
    flow_shift: float


@dataclass(frozen=True)
class Profile:
    """What a route promises.

    ``checkpoints`` go from the smallest budget of pixels to the largest.
    ``guidance_low`` is the low-noise expert's; None: same as ``guidance``.
    """

    name: str
    family: str
    checkpoints: tuple[tuple[int, Checkpoint], ...]
    steps: int
    guidance: float
    flow_shift: float
    fps: int = 16
    guidance_low: float | None = None
    last_image: LastImage = "never"
    frames_max: int = 161
    distilled: Distilled | None = None
    tiny: bool = False

    @property
    def kind(self) -> Kind:
        return self.checkpoints[0][1].kind

    @property
    def multiple(self) -> int:
        return 32 if self.kind == "5b" else 16

    @property
    def area_max(self) -> int:
        return self.checkpoints[-1][0]

    @property
    def experts(self) -> tuple[str, ...]:
        """The transformers' part names, high noise first."""
        both = ("transformer", "transformer_2")
        return both if self.kind == "2.2" else both[:1]

    def checkpoint_for(self, width: int, height: int) -> Checkpoint:
        for area, checkpoint in self.checkpoints:
            if width * height <= area:
                return checkpoint
        return self.checkpoints[-1][1]

    def settings(self, request: RenderRequest) -> Settings:
        guidance = _or(request.guidance_scale, self.guidance)
        default_low = self.guidance_low
        if request.guidance_scale is not None or default_low is None:
            default_low = guidance
        checkpoint = self.checkpoint_for(request.width, request.height)
        shift = _or(checkpoint.flow_shift, self.flow_shift)
        return Settings(
            steps=request.steps or self.steps,
            guidance=guidance,
            guidance_low=_or(request.guidance_scale_2, default_low),
            flow_shift=_or(request.flow_shift, shift),
        )

    def check(self, request: RenderRequest) -> None:
        """Raise Unsupported, naming the field, for what this checkpoint cannot do."""
        wide, high = request.width, request.height
        if wide % self.multiple or high % self.multiple:
            raise _no("size", f"makes sides that are multiples of {self.multiple}")
        if wide * high > self.area_max:
            raise _no("size", f"makes at most {self.area_max} pixels per frame")
        wanted = request.output.frames
        if not 1 <= wanted <= self.frames_max:
            raise _no("frames", f"makes 1 to {self.frames_max} frames")
        if request.guidance_scale_2 is not None and self.kind != "2.2":
            raise _no("guidance_scale_2", "has one transformer, so one guidance scale")
        self.check_loras(request.loras)
        self._check_last_image(request)

    def check_loras(self, loras: Iterable[Lora]) -> None:
        """Raise Unsupported for a pair of LoRAs where there is one transformer."""
        for lora in loras:
            if self.kind != "2.2" and (lora.path_low or lora.scale_low is not None):
                raise _no("loras", "has one transformer: a LoRA pair does not fit it")

    def _check_last_image(self, request: RenderRequest) -> None:
        if request.last_image is None:
            if self.last_image == "required":
                raise _no("last_image", "needs a last image")
            return
        if self.last_image == "never":
            raise _no("last_image", "cannot end on a given image")
        # Any other length is trimmed at the tail, which would cut the given last frame.
        if request.output.frames % 4 != 1:
            raise _no("frames", "needs 4k + 1 frames to end on a given image")

    def working_bytes(self, width: int, height: int, frames: int) -> int:
        """Return the device memory a job needs beside its weights, calculated.

        A line through Wan2.2's published single-GPU peaks, less one 28.6 GB expert:
        12 GB at 480p x 81 frames (32,760 tokens), 31 GB at 720p x 81 (75,600).
        """
        if self.tiny:
            return 64 * 2**20
        tokens = flops.SHAPES[self.kind].tokens(width, height, frames)
        return int(max(2.0, 31 + (tokens - 75_600) * 19 / 42_840) * GB)

    def part_bytes(self) -> Mapping[str, int]:
        """Return each part's size on the device (bf16, VAE and CLIP fp32), calculated."""
        transformer = {"2.1": 32.8, "flf": 32.8, "2.2": 28.6, "5b": 10.0}[self.kind]
        sizes = {"text_encoder": 11.4, "vae": 2.8 if self.kind == "5b" else 0.5}
        sizes |= dict.fromkeys(self.experts, transformer)
        if self.kind in {"2.1", "flf"}:
            sizes["image_encoder"] = 2.5
        if self.tiny:
            return dict.fromkeys(sizes, 2**20)
        return {name: int(size * GB) for name, size in sizes.items()}


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _no(field: str, what: str) -> Unsupported:
    return Unsupported(f"This model {what}.", field=field)


_480P, _720P, _5B = 480 * 832, 720 * 1280, 704 * 1280

# Published, not re-measured here (LightX2V's README of 2025-12-01, one H200): 480p in
# 14 s against 216 s for 40 steps. Users report less motion and slow motion
# (huggingface.co/lightx2v/Wan2.2-Lightning, discussions 5 and 20).
_DISTILLED = (
    "4-step distilled LoRA; published by LightX2V: 14 s against 216 s for 480p on one "
    "H200; users report less motion"
)
#: The label of the fast mode where no distilled LoRA is installed.
CACHE_EVIDENCE = (
    "first-block cache; published for a related cache (TeaCache, LightX2V): 107 s "
    "against 191 s for 480p on one H200; changes the picture"
)


def _hub(
    name: str, kind: Kind, hub_id: str, *, flow_shift: float | None = None
) -> Checkpoint:
    return Checkpoint(name, kind, f"hub:{hub_id}", flow_shift)


_PROFILES = (
    Profile(
        name="wan2.1-i2v-14b",
        family="wan2.1",
        checkpoints=(
            (
                _480P,
                _hub(
                    "Wan2.1-I2V-14B-480P",
                    "2.1",
                    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
                    flow_shift=3.0,
                ),
            ),
            (
                _720P,
                _hub(
                    "Wan2.1-I2V-14B-720P", "2.1", "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers"
                ),
            ),
        ),
        steps=40,
        guidance=5.0,
        flow_shift=5.0,
        frames_max=81,
        distilled=Distilled(("wan2.1-i2v-14b-4step.safetensors",), _DISTILLED),
    ),
    Profile(
        name="wan2.1-flf2v-14b-720p",
        family="wan2.1",
        checkpoints=(
            (
                _720P,
                _hub(
                    "Wan2.1-FLF2V-14B-720P",
                    "flf",
                    "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers",
                ),
            ),
        ),
        steps=40,
        guidance=5.0,
        flow_shift=16.0,
        frames_max=81,
        last_image="required",
    ),
    Profile(
        name="wan2.2-i2v-a14b",
        family="wan2.2",
        checkpoints=(
            (
                _720P,
                _hub("Wan2.2-I2V-A14B", "2.2", "Wan-AI/Wan2.2-I2V-A14B-Diffusers"),
            ),
        ),
        steps=40,
        guidance=3.5,
        guidance_low=3.5,
        flow_shift=5.0,
        last_image="optional",
        distilled=Distilled(
            (
                "wan2.2-i2v-a14b-4step-high.safetensors",
                "wan2.2-i2v-a14b-4step-low.safetensors",
            ),
            _DISTILLED,
        ),
    ),
    Profile(
        name="wan2.2-ti2v-5b",
        family="wan2.2-5b",
        checkpoints=(
            (_5B, _hub("Wan2.2-TI2V-5B", "5b", "Wan-AI/Wan2.2-TI2V-5B-Diffusers")),
        ),
        steps=50,
        guidance=5.0,
        flow_shift=5.0,
        fps=24,
        frames_max=121,
    ),
    Profile(
        name="wan-tiny",
        family="wan-tiny",
        checkpoints=((256 * 256, Checkpoint("wan-tiny", "2.2", "synthetic:2.2")),),
        steps=2,
        guidance=3.5,
        guidance_low=3.5,
        flow_shift=5.0,
        last_image="optional",
        tiny=True,
    ),
)

PROFILES: Mapping[str, Profile] = MappingProxyType({p.name: p for p in _PROFILES})


def profile_for(model: str) -> Profile | None:
    """Return the profile a public model's own route names, None without such a route."""
    for route in MODELS[model].routes:
        if route.runner == "wan":
            return PROFILES[route.profile]
    return None
