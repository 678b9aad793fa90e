"""The public models: what each can do, its limits, its defaults and who can make it.

Every request is validated, defaulted and priced against one of these entries, whoever
makes the video in the end. Adding a model is one entry here and its price rows.
Sources: the vendors' pages for names and limits; choices of our own say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

from inference.contracts import AudioMode
from inference.geometry import AREA, SHORT_SIDE, Size, fit_area, fit_short_side

Sizing = Literal["short_side", "area"]


class Feature(StrEnum):
    """An option a model may have; the value is the request field that asks for it."""

    LAST_IMAGE = "last_image"
    NEGATIVE_PROMPT = "negative_prompt"
    FPS = "fps"
    STEPS = "steps"
    GUIDANCE_SCALE = "guidance_scale"
    GUIDANCE_SCALE_2 = "guidance_scale_2"
    FLOW_SHIFT = "flow_shift"
    LORAS = "loras"
    FAST = "quality"
    SHOT_TYPE = "shot_type"
    PREMIUM = "premium"


@dataclass(frozen=True)
class RouteSpec:
    """One way to make a model's videos, as first installed; operators edit the rows.

    ``queue`` names the workers; an engine route also names the engine and its profile,
    a provider route the provider and the model name used there.
    """

    name: str
    kind: Literal["engine", "provider"]
    queue: str
    runner: str
    profile: str = ""
    simulates: bool = False


@dataclass(frozen=True)
class PublicModel:
    """A model as customers see it.

    ``frames_min``/``frames_max`` bound the clip at ``fps`` (or any rate of ``fps_range``);
    ``frame_step`` 2 with an odd minimum means odd counts only, ``seconds_choices`` whole
    lengths; equal bounds leave no choice; a model with a free rate is bound in ``seconds_range`` as well.
    ``steps_range`` and the like are inclusive.
    """

    name: str
    label: str
    fps: int
    frames_min: int
    frames_max: int
    frames_default: int
    tiers: tuple[str, ...]
    tier_default: str
    sizing: Sizing
    routes: tuple[RouteSpec, ...]
    features: frozenset[Feature] = frozenset()
    fps_range: tuple[int, int] | None = None
    seconds_range: tuple[float, float] | None = None
    seconds_choices: tuple[int, ...] = ()
    frame_step: int = 1
    multiple: int = 2
    areas: Mapping[str, int] = field(default_factory=lambda: AREA)
    audio_default: AudioMode = "none"
    prompt_max: int = 2000
    negative_prompt_max: int = 2000
    last_image_required: bool = False
    steps_range: tuple[int, int] = (1, 100)
    guidance_range: tuple[float, float] = (0.0, 20.0)
    flow_shift_range: tuple[float, float] = (0.1, 30.0)
    loras_max: int = 0
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    #: What is otherwise where a tier has weights of its own.
    tier_defaults: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    generated: bool = True
    #: Delivered by enlarging what the highest of ``tiers`` renders.
    upscaled_tiers: tuple[str, ...] = ()
    seconds_of_work: float = 60.0  # first guess for the run deadline and the ETA

    def size_for(self, aspect: float, tier: str) -> Size:
        """Return the delivered size for a picture of this ``aspect`` (width/height)."""
        if self.sizing == "area" and tier in self.tiers:
            return fit_area(aspect, area=self.areas[tier], multiple=self.multiple)
        # 1.5 × the 16:9 area keeps 2:1 panoramas at the full short side.
        return fit_short_side(
            aspect, short_side=SHORT_SIDE[tier], max_area=AREA[tier] * 3 // 2
        )

    def native_tier(self, tier: str) -> str:
        """Return the tier that is rendered when ``tier`` is delivered."""
        return self.tiers[-1] if tier in self.upscaled_tiers else tier

    def defaults_at(self, tier: str) -> dict[str, Any]:
        """Return the defaults of what is rendered when ``tier`` is delivered."""
        return {**self.defaults, **self.tier_defaults.get(self.native_tier(tier), {})}

    def offers(self, feature: Feature) -> bool:
        return feature in self.features


def _own(queue: str, engine: str, profile: str) -> RouteSpec:
    return RouteSpec(queue, "engine", queue, engine, profile)


def _via(provider: str, wire_model: str = "") -> RouteSpec:
    return RouteSpec(provider, "provider", f"provider.{provider}", provider, wire_model)


SIMULATED = RouteSpec("test", "engine", "cpu.test", "rehearsal", simulates=True)

_WAN_KNOBS = frozenset(
    {
        Feature.NEGATIVE_PROMPT,
        Feature.STEPS,
        Feature.GUIDANCE_SCALE,
        Feature.FLOW_SHIFT,
        Feature.LORAS,
        Feature.FAST,
    }
)


def _closed(name: str, label: str, *routes: RouteSpec, **changes: Any) -> PublicModel:
    """Return an entry for a vendor-only Wan model; 24 fps for 2.5, 30 later (our choice)."""
    facts: dict[str, Any] = {
        "fps": 30,
        "tiers": ("720p", "1080p"),
        "tier_default": "1080p",
        "features": frozenset({Feature.NEGATIVE_PROMPT, Feature.SHOT_TYPE}),
        "audio_default": "generate",
        "negative_prompt_max": 500,
        "seconds_of_work": 180.0,
    } | changes
    fps = facts["fps"]
    # Vendors sell 5, 10 or 15 s; any whole second in between is made as the next
    # longer clip and trimmed, so that clients of other services keep their lengths.
    low, high = facts.pop("seconds", (2, 15))
    default = facts.pop("seconds_default", 5)
    return PublicModel(
        name=name,
        label=label,
        frames_min=low * fps,
        frames_max=high * fps,
        frames_default=default * fps,
        sizing="short_side",
        routes=(*routes, SIMULATED),
        **facts,
    )


_480P_BUDGET = MappingProxyType({"480p": 480 * 832, "720p": 720 * 1280})

_MODELS: tuple[PublicModel, ...] = (
    PublicModel(
        name="motion",
        label="Motion: camera moves over the still, on any CPU",
        fps=16,
        fps_range=(8, 30),
        seconds_range=(1, 15),
        frames_min=8,
        frames_max=450,
        frames_default=80,
        tiers=("480p", "720p", "1080p", "4k"),
        tier_default="720p",
        sizing="short_side",
        features=frozenset({Feature.FPS, Feature.SHOT_TYPE}),
        routes=(_own("cpu", "motion", "motion"), SIMULATED),
        generated=False,
        seconds_of_work=10.0,
    ),
    PublicModel(
        name="wan2.1-i2v",
        label="Wan 2.1 image-to-video 14B",
        fps=16,
        frames_min=81,
        frames_max=81,
        frames_default=81,
        tiers=("480p", "720p"),
        upscaled_tiers=("1080p", "4k"),
        tier_default="480p",
        sizing="area",
        areas=_480P_BUDGET,
        multiple=16,
        features=_WAN_KNOBS,
        steps_range=(1, 40),
        guidance_range=(0.0, 10.0),
        flow_shift_range=(1.0, 10.0),
        loras_max=3,
        defaults=MappingProxyType(
            {"steps": 30, "guidance_scale": 5.0, "flow_shift": 5.0}
        ),
        # Wan's own configuration; the 480p checkpoint is one of its own.
        tier_defaults=MappingProxyType({"480p": {"flow_shift": 3.0}}),
        routes=(
            _own("gpu.wan2.1", "wan", "wan2.1-i2v-14b"),
            _via("novita", "wan-i2v"),
            SIMULATED,
        ),
        seconds_of_work=300.0,
    ),
    PublicModel(
        name="wan2.1-flf2v",
        label="Wan 2.1 first-and-last-frame 14B",
        fps=16,
        frames_min=17,
        frames_max=81,
        frames_default=81,
        frame_step=4,
        tiers=("720p",),
        upscaled_tiers=("1080p", "4k"),
        tier_default="720p",
        sizing="area",
        areas=_480P_BUDGET,
        multiple=16,
        features=_WAN_KNOBS | {Feature.LAST_IMAGE},
        last_image_required=True,
        steps_range=(1, 50),
        guidance_range=(0.0, 10.0),
        flow_shift_range=(1.0, 20.0),
        loras_max=3,
        defaults=MappingProxyType(
            {"steps": 40, "guidance_scale": 5.0, "flow_shift": 16.0}
        ),
        routes=(_own("gpu.wan2.1", "wan", "wan2.1-flf2v-14b-720p"), SIMULATED),
        seconds_of_work=700.0,
    ),
    PublicModel(
        name="wan2.2-i2v",
        label="Wan 2.2 image-to-video A14B",
        fps=16,
        frames_min=17,
        frames_max=161,
        frames_default=81,
        frame_step=2,
        tiers=("480p",),
        upscaled_tiers=("720p", "1080p", "4k"),
        tier_default="480p",
        sizing="area",
        areas=_480P_BUDGET,
        multiple=16,
        features=_WAN_KNOBS | {Feature.GUIDANCE_SCALE_2, Feature.LAST_IMAGE},
        steps_range=(1, 50),
        guidance_range=(1.0, 10.0),
        flow_shift_range=(1.0, 20.0),
        loras_max=3,
        defaults=MappingProxyType(
            {"steps": 40, "guidance_scale": 3.5, "flow_shift": 5.0}
        ),
        routes=(
            _own("gpu.wan2.2", "wan", "wan2.2-i2v-a14b"),
            _via("magicoal", "i2v"),
            SIMULATED,
        ),
        seconds_of_work=300.0,
    ),
    PublicModel(
        name="wan2.2-ti2v-5b",
        label="Wan 2.2 image-to-video 5B",
        fps=24,
        frames_min=17,
        frames_max=121,
        frames_default=121,
        tiers=("720p",),
        upscaled_tiers=("1080p", "4k"),
        tier_default="720p",
        sizing="area",
        areas=MappingProxyType({"720p": 704 * 1280}),
        multiple=32,
        features=_WAN_KNOBS - {Feature.FAST},
        steps_range=(1, 60),
        guidance_range=(0.0, 10.0),
        flow_shift_range=(1.0, 20.0),
        loras_max=3,
        defaults=MappingProxyType(
            {"steps": 50, "guidance_scale": 5.0, "flow_shift": 5.0}
        ),
        routes=(_own("gpu.wan2.2-5b", "wan", "wan2.2-ti2v-5b"), SIMULATED),
        seconds_of_work=150.0,
    ),
    PublicModel(
        name="wan-tiny",
        label="Random tiny Wan: the diffusers path without real weights",
        fps=16,
        frames_min=5,
        frames_max=33,
        frames_default=17,
        tiers=("480p",),
        upscaled_tiers=("720p", "1080p", "4k"),
        tier_default="480p",
        sizing="area",
        areas=MappingProxyType({"480p": 64 * 96}),
        multiple=16,
        features=(_WAN_KNOBS | {Feature.GUIDANCE_SCALE_2, Feature.LAST_IMAGE})
        - {Feature.FAST},
        steps_range=(1, 8),
        guidance_range=(0.0, 10.0),
        flow_shift_range=(1.0, 20.0),
        loras_max=3,
        defaults=MappingProxyType(
            {"steps": 2, "guidance_scale": 3.5, "flow_shift": 5.0}
        ),
        routes=(_own("gpu.wan-tiny", "wan", "wan-tiny"), SIMULATED),
        seconds_of_work=15.0,
    ),
    _closed(
        "wan2.5-i2v-preview",
        "Wan 2.5 preview",
        _via("dashscope", "wan2.5-i2v-preview"),
        _via("novita", "wan-2.5-i2v-preview"),
        fps=24,
        tiers=("480p", "720p", "1080p"),
        seconds=(2, 12),
    ),
    _closed(
        "wan2.6-i2v",
        "Wan 2.6",
        _via("dashscope", "wan2.6-i2v"),
        _via("sinancode", "wan2.6-i2v"),
        _via("novita", "wan2.6-i2v"),
    ),
    _closed("wan2.6-i2v-flash", "Wan 2.6 flash", _via("dashscope", "wan2.6-i2v-flash")),
    _closed(
        "wan2.7-i2v",
        "Wan 2.7",
        _via("dashscope", "wan2.7-i2v"),
        _via("novita", "wan2.7-i2v"),
        features=frozenset(
            {Feature.NEGATIVE_PROMPT, Feature.SHOT_TYPE, Feature.LAST_IMAGE}
        ),
        prompt_max=5000,
    ),
    *(
        _closed(
            name,
            label,
            _via("dashscope", name),
            fps=24 if name.startswith("wanx") else 30,
            tiers=tiers,
            tier_default=default,
            seconds=(2, 5),
            audio_default="none",
            features=frozenset({Feature.NEGATIVE_PROMPT} | extra),
            last_image_required=Feature.LAST_IMAGE in extra,
            prompt_max=800,
        )
        for name, label, tiers, default, extra in (
            ("wan2.2-i2v-plus", "Wan 2.2 plus", ("480p", "1080p"), "1080p", set()),
            ("wan2.2-i2v-flash", "Wan 2.2 flash", ("480p", "720p"), "720p", set()),
            ("wanx2.1-i2v-plus", "Wanx 2.1 plus", ("720p",), "720p", set()),
            ("wanx2.1-i2v-turbo", "Wanx 2.1 turbo", ("480p", "720p"), "720p", set()),
            (
                "wanx2.1-kf2v-plus",
                "Wanx 2.1 first-and-last-frame",
                ("720p",),
                "720p",
                {Feature.LAST_IMAGE},
            ),
            (
                "wan2.2-kf2v-flash",
                "Wan 2.2 first-and-last-frame flash",
                ("480p", "720p", "1080p"),
                "720p",
                {Feature.LAST_IMAGE},
            ),
        )
    ),
    _closed(
        "alibaba/wan-2-7-i2v",
        "Wan 2.7 (AI/ML API)",
        _via("aimlapi", "alibaba/wan-2-7-i2v"),
        features=frozenset({Feature.NEGATIVE_PROMPT}),
        seconds_default=10,
    ),
    _closed(
        "alibaba/wan-2-6-i2v",
        "Wan 2.6 (AI/ML API)",
        _via("aimlapi", "alibaba/wan-2-6-i2v"),
    ),
    _closed(
        "alibaba/wan-2-6-image-to-video-flash",
        "Wan 2.6 flash (AI/ML API)",
        _via("aimlapi", "alibaba/wan-2-6-image-to-video-flash"),
        tier_default="720p",
    ),
    _closed(
        "alibaba/wan2.5-i2v-preview",
        "Wan 2.5 preview (AI/ML API)",
        _via("aimlapi", "alibaba/wan2.5-i2v-preview"),
        fps=24,
        tiers=("480p", "720p", "1080p"),
        features=frozenset({Feature.NEGATIVE_PROMPT}),
        seconds=(2, 12),
    ),
    _closed(
        "alibaba/wan2.2-i2v-plus",
        "Wan 2.2 plus (AI/ML API)",
        _via("aimlapi", "alibaba/wan2.2-i2v-plus"),
        tiers=("480p", "1080p"),
        seconds=(2, 5),
        audio_default="none",
        features=frozenset({Feature.NEGATIVE_PROMPT}),
    ),
    PublicModel(
        name="akool-i2v",
        label="Akool image-to-video",
        fps=24,
        frames_min=5 * 24,
        frames_max=10 * 24,
        frames_default=5 * 24,
        seconds_choices=(5, 10),
        tiers=("720p", "1080p", "4k"),
        tier_default="720p",
        sizing="short_side",
        features=frozenset({Feature.NEGATIVE_PROMPT, Feature.PREMIUM}),
        routes=(_via("akool", "image2Video"), SIMULATED),
        seconds_of_work=180.0,
    ),
)

MODELS: Mapping[str, PublicModel] = MappingProxyType({m.name: m for m in _MODELS})

#: Older and vendor-neutral names as first installed; operators edit the rows.
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "sora-2": "wan2.7-i2v",
        "sora-2-pro": "wan2.7-i2v",
        "wan2.5-i2v": "wan2.5-i2v-preview",
    }
)


def models_with(feature: Feature, models: Iterable[PublicModel] = _MODELS) -> list[str]:
    """Return the names of the models that have ``feature``, for a helpful refusal."""
    return [model.name for model in models if model.offers(feature)]
