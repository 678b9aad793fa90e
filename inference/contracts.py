"""The words in which jobs, engines, providers and media speak to each other.

Plain frozen data and small protocols: no Django, no Celery, no settings. A
``RenderRequest`` is a complete plan; every default in it has been resolved, so
rendering it twice on the same machine gives the same frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from inference.egress import Egress
    from inference.storage import Storage

    #: One picture: (height, width, 3) uint8, RGB, 0-255.
    Frame = NDArray[np.uint8]

AudioMode = Literal["none", "generate", "url"]
ShotType = Literal["single", "multi"]
Quality = Literal["quality", "fast"]
SafetyPolicy = Literal["block", "flag", "off"]


@dataclass(frozen=True)
class Lora:
    """One low-rank adapter; ``scale_low`` is for the low-noise expert where a model has two."""

    path: str
    scale: float = 1.0
    path_low: str | None = None
    scale_low: float | None = None


@dataclass(frozen=True)
class AudioPlan:
    """The sound to put under the clip. ``path`` is a local file once prepared."""

    mode: AudioMode = "none"
    path: Path | None = None
    prompt: str = ""
    seed: int = 0


@dataclass(frozen=True)
class OutputPlan:
    """The file to hand over: exact size, rate and length, marks, sound, provenance.

    ``width`` and ``height`` are even; ``frames`` is exact. ``test_mark`` burns the word
    TEST into simulated results. ``model`` and ``reference`` go into the C2PA manifest.
    """

    width: int
    height: int
    fps: int
    frames: int
    watermark: bool = False
    test_mark: bool = False
    audio: AudioPlan = AudioPlan()
    model: str = ""
    reference: str = ""
    generated: bool = True  # a trained model made it; False: the still was animated

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


@dataclass(frozen=True)
class RenderRequest:
    """Everything an engine needs for one clip.

    ``image`` and ``last_image`` are local PNG files: upright, RGB, no metadata.
    ``width``/``height`` are what the engine renders; ``output`` is what is delivered, and
    may be larger (super-resolution) or hold fewer frames (the tail is trimmed).
    ``running_seconds`` says how long ago its job began, over all its tries.
    ``guidance_scale_2`` is the low-noise expert's. ``extra`` passes engine-only options.
    """

    reference: str
    model: str
    profile: str
    image: Path
    width: int
    height: int
    frames: int
    fps: int
    seed: int
    output: OutputPlan
    last_image: Path | None = None
    prompt: str = ""
    negative_prompt: str = ""
    steps: int | None = None
    guidance_scale: float | None = None
    guidance_scale_2: float | None = None
    flow_shift: float | None = None
    loras: tuple[Lora, ...] = ()
    shot_type: ShotType = "single"
    quality: Quality = "quality"
    running_seconds: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def replace(self, **changes: Any) -> RenderRequest:
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Progress:
    """How far a step is. ``fraction`` is 0..1 and never falls within one attempt."""

    fraction: float
    stage: str
    eta_seconds: float | None = None


OnProgress = Callable[[Progress], None]
ShouldStop = Callable[[], bool]


class Engine(Protocol):
    """Makes frames. One object per process; ``setup`` runs once, ``frames`` per clip."""

    def setup(self) -> None:
        """Load what is needed; raise WeightsMissing naming the file and where it looked."""

    def frames(
        self,
        request: RenderRequest,
        *,
        on_progress: OnProgress,
        should_stop: ShouldStop,
    ) -> Iterator[Frame]:
        """Yield exactly ``request.output.frames`` frames of ``request.width`` × ``height``.

        Raises Stopped soon after ``should_stop`` answers true, NotYet instead of waiting,
        and RenderError otherwise; the next call after any must behave as in a fresh process.
        """

    def fingerprint(self, request: RenderRequest) -> Mapping[str, str]:
        """What besides the seed decides the frames: weights, versions, backend, device."""


@dataclass(frozen=True)
class Artifact:
    """A finished, verified file in storage, with what was measured on it."""

    key: str
    size_bytes: int
    sha256: str
    width: int
    height: int
    fps: float
    frames: int
    seconds: float
    has_audio: bool
    poster_key: str | None = None
    preview_key: str | None = None
    last_frame_key: str | None = None
    notes: Mapping[str, Any] = field(
        default_factory=dict
    )  # upscaler, audio, provenance…


@dataclass(frozen=True)
class Limits:
    """Caps on what a customer's input may cost; bytes, pixels and seconds."""

    image_bytes: int = 10 * 1024 * 1024
    image_pixels: int = 25_000_000
    image_side_min: int = 64
    image_side_max: int = 8192
    audio_bytes: int = 15 * 1024 * 1024
    audio_seconds_min: float = 3.0
    audio_seconds_max: float = 30.0
    video_bytes: int = 500 * 1024 * 1024
    decode_seconds: float = 20.0
    decode_memory_bytes: int = 512 * 1024 * 1024


@dataclass(frozen=True)
class Context:
    """What a step may use of the outside world; built in one place per process.

    ``weights`` is the folder of model weights. ``options`` are operator choices handed
    to plug-ins (safety weights, expansion endpoint, signing certificate…).
    """

    storage: Storage
    egress: Egress
    workdir: Path
    weights: Path
    limits: Limits = Limits()
    options: Mapping[str, Any] = field(default_factory=dict)
