"""The canonical job request: every option any dialect can express, checked and defaulted.

``JobRequest.build`` is the only way to make one. It fills each absent option from the
model's entry in the catalogue, so the same values are priced, rendered, sent to a
provider and shown back; only a random seed is drawn later, when the job is accepted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from inference.catalogue import Feature, PublicModel, models_with
from inference.contracts import AudioMode, Lora, Quality, ShotType
from inference.geometry import SIDE_MAX, Size
from jobs.errors import InvalidRequest, UnsupportedOption

SEED_MAX = 2_147_483_647
ASPECT_RATIOS = ("16:9", "9:16", "1:1", "4:3", "3:4")


@dataclass(frozen=True)
class Picture:
    """Where a picture comes from: bytes that came with the request, or a URL to fetch."""

    url: str | None = None
    data: bytes | None = field(default=None, repr=False)
    #: (width, height) read from the header of ``data``, upright
    size: tuple[int, int] | None = None
    #: JPEG, PNG, WEBP or BMP, known for bytes only
    format: str | None = None
    has_alpha: bool = False

    def stored(self) -> dict[str, Any]:
        """Return what the job row keeps: never the bytes."""
        if self.data is not None:
            digest = hashlib.sha256(self.data).hexdigest()
            return {"sha256": digest, "size": list(self.size or ())}
        return {"url": self.url}


@dataclass(frozen=True)
class PictureRules:
    """What one API demands of a picture beyond our own limits.

    Checked at submit for pictures that came as bytes, at prepare for fetched ones.
    """

    side_min: int = 1
    side_max: int = 1_000_000
    max_bytes: int | None = None
    #: JPEG, PNG, WEBP, BMP; empty for all we read
    formats: tuple[str, ...] = ()
    #: formats that may not have an alpha channel
    opaque_formats: tuple[str, ...] = ()

    def broken_by(
        self, *, width: int, height: int, size_bytes: int, format: str, has_alpha: bool
    ) -> tuple[str, str] | None:
        """Return the stable code and the public sentence of the first rule broken."""
        if self.max_bytes is not None and size_bytes > self.max_bytes:
            megabytes = f"{self.max_bytes / 2**20:g}"
            return "image_too_large", f"The image may have at most {megabytes} MB."
        if self.formats and format not in self.formats:
            known = ", ".join(self.formats)
            return "image_format_unsupported", f"The image must be one of {known}."
        if min(width, height) < self.side_min or max(width, height) > self.side_max:
            return "image_size_invalid", (
                f"Each side of the image must be {self.side_min} to {self.side_max} "
                f"pixels; this one is {width}x{height}."
            )
        if has_alpha and format in self.opaque_formats:
            return "image_alpha_unsupported", (
                f"A {format} image must not have an alpha channel."
            )
        return None


@dataclass(frozen=True)
class Sound:
    """What the customer wants to hear. ``url`` belongs to mode ``url``."""

    mode: AudioMode = "none"
    url: str | None = None


@dataclass(frozen=True)
class WebhookTarget:
    """A per-job address to tell. ``format`` names whose event shape and signature it gets.

    ``test_status`` asks for a rehearsal: nothing is made, one mock event is sent.
    """

    url: str
    format: str = "standard"
    events: tuple[str, ...] = ()
    test_status: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """One video, fully specified.

    Length is ``frames`` at ``fps``. ``tier`` sets sharpness; the picture's own shape is
    kept unless ``size`` (exact) or ``aspect_ratio`` says otherwise, and then the picture
    is cropped to fill. ``seed`` None is drawn at accept. ``echo`` holds what a dialect
    must show back in its own words; it changes nothing else.
    """

    model: str
    image: Picture
    frames: int
    fps: int
    tier: str
    last_image: Picture | None = None
    size: Size | None = None
    aspect_ratio: str | None = None
    prompt: str = ""
    negative_prompt: str = ""
    seed: int | None = None
    seed_is_drawn: bool = False
    steps: int | None = None
    guidance_scale: float | None = None
    guidance_scale_2: float | None = None
    flow_shift: float | None = None
    loras: tuple[Lora, ...] = ()
    quality: Quality = "quality"
    shot_type: ShotType = "single"
    audio: Sound = Sound()
    watermark: bool = False
    safety_checker: bool = True
    prompt_expansion: bool = False
    effect: str | None = None
    premium: bool = False
    priority: int = 0
    retention_seconds: int | None = None
    picture_rules: PictureRules | None = None
    webhook: WebhookTarget | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    echo: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.frames / self.fps

    def replace(self, **changes: Any) -> JobRequest:
        return dataclasses.replace(self, **changes)

    def stored(self) -> dict[str, Any]:
        """Return the JSON kept on the job: everything but picture bytes."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["image"] = self.image.stored()
        values["last_image"] = self.last_image and self.last_image.stored()
        values["size"] = self.size and [self.size.width, self.size.height]
        values["loras"] = [dataclasses.asdict(lora) for lora in self.loras]
        values["audio"] = dataclasses.asdict(self.audio)
        rules = self.picture_rules
        values["picture_rules"] = rules and dataclasses.asdict(rules)
        values["webhook"] = self.webhook and dataclasses.asdict(self.webhook)
        values["metadata"] = dict(self.metadata)
        values["echo"] = dict(self.echo)
        return values

    def fingerprint(self) -> str:
        """Return the SHA-256 by which a repeated request is recognised."""
        canonical = json.dumps(self.stored(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @classmethod
    def load(cls, stored: Mapping[str, Any]) -> JobRequest:
        """Return the request a job row holds; uploaded pictures come without bytes."""
        values = dict(stored)
        for name in ("image", "last_image"):
            if (kept := values[name]) is not None:
                size = tuple(kept["size"]) if kept.get("size") else None
                values[name] = Picture(url=kept.get("url"), size=size)
        values["size"] = Size(*values["size"]) if values["size"] else None
        values["loras"] = tuple(Lora(**lora) for lora in values["loras"])
        values["audio"] = Sound(**values["audio"])
        if rules := values.get("picture_rules"):
            lists = {n: tuple(rules[n]) for n in ("formats", "opaque_formats")}
            values["picture_rules"] = PictureRules(**{**rules, **lists})
        if hook := values["webhook"]:
            values["webhook"] = WebhookTarget(
                **{**hook, "events": tuple(hook["events"])}
            )
        return cls(**values)

    @classmethod
    def build(
        cls,
        model: PublicModel,
        *,
        image: Picture,
        tier: str | None = None,
        frames: int | None = None,
        seconds: float | None = None,
        fps: int | None = None,
        audio: Sound | None = None,
        **options: Any,
    ) -> JobRequest:
        """Return a request for ``model``; an option given as None counts as absent.

        Raises InvalidRequest or UnsupportedOption naming the canonical field.
        """
        given = {name: value for name, value in options.items() if value is not None}
        fps = _rate(model, fps)
        tier = _tier(model, tier, given.get("size"))
        request = cls(
            model=model.name,
            image=image,
            fps=fps,
            frames=_length(model, frames=frames, seconds=seconds, fps=fps),
            tier=tier,
            audio=_sound(model, audio),
            **{**model.defaults_at(tier), **given},
        )
        _check(model, request, given)
        return request


def _rate(model: PublicModel, fps: int | None) -> int:
    if fps is None or fps == model.fps:
        return model.fps
    if model.fps_range is None:
        raise UnsupportedOption("fps", model.name, models_with(Feature.FPS))
    low, high = model.fps_range
    _within("fps", fps, low, high)
    return fps


def _seconds_of(frames: float, fps: int) -> float:
    """Return the length that may be asked for: whole seconds where a frame is over."""
    whole = round(frames / fps)
    return whole if abs(whole * fps - frames) <= 1 else round(frames / fps, 2)


def _length(
    model: PublicModel, *, frames: int | None, seconds: float | None, fps: int
) -> int:
    if frames is not None and seconds is not None:
        raise InvalidRequest("seconds", "Give either 'frames' or 'seconds', not both.")
    if frames is None and seconds is None:
        return model.frames_default * fps // model.fps
    name = "frames" if seconds is None else "seconds"
    if seconds is not None:
        if not math.isfinite(seconds) or not 0 < seconds < 3600:
            raise InvalidRequest("seconds", "Must be a positive number of seconds.")
        if model.seconds_choices and seconds not in model.seconds_choices:
            choices = ", ".join(map(str, model.seconds_choices))
            raise InvalidRequest("seconds", f"Must be one of {choices}.")
        frames = round(seconds * fps)
        if model.frame_step > 1:
            # Lengths that a model cannot make exactly go to the nearest one it can.
            over = (frames - model.frames_min) % model.frame_step
            frames += model.frame_step - over if over * 2 >= model.frame_step else -over
        if model.seconds_range is None:
            # 81 frames at 16 a second is what everybody calls 5 s.
            nearest = min(max(frames, model.frames_min), model.frames_max)
            frames = nearest if abs(nearest - frames) <= 1 else frames
    assert frames is not None
    if model.seconds_range is not None:
        low, high = (bound * fps for bound in model.seconds_range)
    else:
        low, high = model.frames_min, model.frames_max
    if not low <= frames <= high:
        if name == "seconds":
            low, high = _seconds_of(low, fps), _seconds_of(high, fps)
        span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        raise InvalidRequest(name, f"Model '{model.name}' makes {span} {name}.")
    if (frames - model.frames_min) % model.frame_step and model.frame_step > 1:
        kind = "odd" if model.frame_step == 2 else f"{model.frame_step}k + 1"
        raise InvalidRequest(name, f"The number of frames must be {kind}.")
    if model.seconds_choices and frames / fps not in model.seconds_choices:
        choices = ", ".join(str(s * fps) for s in model.seconds_choices)
        raise InvalidRequest(name, f"Must be one of {choices}.")
    return frames


def _tier(model: PublicModel, tier: str | None, size: Size | None) -> str:
    """Return the tier that is priced: the one asked for, or the lowest that holds size."""
    offered = (*model.tiers, *model.upscaled_tiers)
    if tier is not None:
        if tier not in offered:
            raise InvalidRequest(
                "resolution",
                f"Model '{model.name}' offers {', '.join(offered)}.",
            )
        return tier
    if size is None:
        return model.tier_default
    holds = (one for one in offered if size.pixels <= _pixels_max(model, one))
    return next(holds, offered[-1])


def _pixels_max(model: PublicModel, tier: str) -> int:
    """Return the largest area of an exact size at the price of ``tier``.

    A third more than its 16:9 area, so that a shape as wide as 21:9 keeps its short side.
    """
    return model.size_for(16 / 9, tier).pixels * 4 // 3


def _sound(model: PublicModel, audio: Sound | None) -> Sound:
    if audio is None:
        return Sound(mode=model.audio_default)
    if audio.mode == "url" and not audio.url:
        raise InvalidRequest("audio.url", "Required when the audio mode is 'url'.")
    return audio


#: canonical field → feature that allows it, where some models lack it
_GATED: tuple[tuple[str, Feature], ...] = tuple(
    (str(feature), feature) for feature in Feature if feature is not Feature.FPS
)


def _check(model: PublicModel, request: JobRequest, given: Mapping[str, Any]) -> None:
    for name, feature in _GATED:
        value = given.get(name)
        neutral = (None, "", (), False, "single", "quality")
        if value not in neutral and not model.offers(feature):
            raise UnsupportedOption(name, model.name, models_with(feature))
    _text("prompt", request.prompt, model.prompt_max)
    _text("negative_prompt", request.negative_prompt, model.negative_prompt_max)
    if model.last_image_required and request.last_image is None:
        raise InvalidRequest("last_image", f"Model '{model.name}' needs a last image.")
    if request.seed is not None:
        _within("seed", request.seed, 0, SEED_MAX)
    _within("steps", request.steps, *model.steps_range)
    for name in ("guidance_scale", "guidance_scale_2"):
        _within(name, getattr(request, name), *model.guidance_range)
    _within("flow_shift", request.flow_shift, *model.flow_shift_range)
    if len(request.loras) > max(model.loras_max, 0):
        raise InvalidRequest("loras", f"At most {model.loras_max} LoRAs.")
    _choice("shot_type", request.shot_type, get_args(ShotType))
    _choice("quality", request.quality, get_args(Quality))
    _choice("audio.mode", request.audio.mode, get_args(AudioMode))
    if request.aspect_ratio is not None:
        _choice("aspect_ratio", request.aspect_ratio, ASPECT_RATIOS)
    _within("priority", request.priority, -10, 10)
    _within("retention_seconds", request.retention_seconds, 60, 365 * 86400)
    if request.size is not None:
        _check_size(model, request.size, request.tier)
    if request.image.size is not None:
        check_shape(model, request, request.image.size)


def check_shape(
    model: PublicModel, request: JobRequest, picture: tuple[int, int]
) -> None:
    """Refuse a picture whose own shape asks for a side that no file can have."""
    if request.size is not None or request.aspect_ratio is not None:
        return
    size = model.size_for(picture[0] / picture[1], request.tier)
    if max(size.width, size.height) > SIDE_MAX:
        raise InvalidRequest(
            "image",
            f"At {request.tier} a picture of this shape gives {size}, and no side may "
            f"exceed {SIDE_MAX}; crop it, or ask for a lower resolution.",
            code="image_size_invalid",
        )


def _check_size(model: PublicModel, size: Size, tier: str) -> None:
    if size.width % 2 or size.height % 2:
        raise InvalidRequest("size", "Both sides must be even.")
    largest = _pixels_max(model, tier)
    sides = (size.width, size.height)
    if min(sides) < 64 or max(sides) > SIDE_MAX or size.pixels > largest:
        raise InvalidRequest(
            "size",
            f"Each side must be 64 to {SIDE_MAX}, and the area at a resolution of "
            f"{tier} at most {largest} pixels.",
        )


def _text(name: str, value: str, longest: int) -> None:
    if len(value) > longest:
        raise InvalidRequest(name, f"At most {longest} characters, got {len(value)}.")


def _within(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise InvalidRequest(name, f"Must be between {low:g} and {high:g}.")


def _choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InvalidRequest(name, f"Must be one of {', '.join(choices)}.")
