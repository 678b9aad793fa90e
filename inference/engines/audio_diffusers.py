"""Sound from words by a diffusers text-to-audio pipeline in ``weights/audio``.

Knows ACE-Step, Stable Audio and Stable Audio 3; the folder's ``model_index.json`` says
which it is. Same prompt, length and seed on the same machine give the same sound. A GPU
holds it only while it makes one: the rest of the time it is its neighbours'.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av
import numpy as np
import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError

from inference.errors import EngineFailed, OutOfMemory, WeightsMissing
from inference.media.audio import RATE, Sound

FOLDER = "audio"
#: Stable Audio was trained on 44.1 kHz clips of up to 47.55 s; clips here end at 30 s.
STABLE_STEPS = 100
NEGATIVE = "low quality, distortion, clipping, speech"

Arguments = Mapping[str, Any]


def _ace_step(prompt: str, seconds: float) -> Arguments:
    # Without words to sing it is told so; 8 steps are the turbo checkpoints' number.
    return {"prompt": prompt, "lyrics": "[Instrumental]", "audio_duration": seconds}


def _stable_audio(prompt: str, seconds: float) -> Arguments:
    return {
        "prompt": prompt,
        "negative_prompt": NEGATIVE,
        "audio_end_in_s": seconds,
        "num_inference_steps": STABLE_STEPS,
    }


def _stable_audio_3(prompt: str, seconds: float) -> Arguments:
    return {"prompt": prompt, "duration": seconds}


CALLS: Mapping[str, Callable[[str, float], Arguments]] = MappingProxyType(
    {
        "AceStepPipeline": _ace_step,
        "StableAudioPipeline": _stable_audio,
        "StableAudio3Pipeline": _stable_audio_3,
    }
)


#: What diffusers, transformers and safetensors say of a folder that is not whole.
_UNUSABLE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError),
    *(ImportError, SafetensorError),
)


def is_available(weights: Path) -> bool:
    return (weights / FOLDER / "model_index.json").exists()


class DiffusersSound:
    """The text-to-audio engine of one process; ``steps`` overrides the pipeline's own."""

    def __init__(self, folder: Path, *, steps: int | None = None) -> None:
        index = folder / "model_index.json"
        if not index.exists():
            raise WeightsMissing(f"no text-to-audio pipeline: {index} is not there")
        self._steps = steps
        self._lock = threading.Lock()
        self._on_gpu = torch.cuda.is_available()
        try:
            kind = str(json.loads(index.read_text())["_class_name"])
            if kind not in CALLS:
                raise ValueError(f"it holds a {kind}; known are {sorted(CALLS)}")
            self._pipeline = DiffusionPipeline.from_pretrained(
                folder,
                local_files_only=True,
                dtype=torch.bfloat16 if self._on_gpu else torch.float32,
            )
        except _UNUSABLE as error:
            raise WeightsMissing(f"{folder}: {error}") from error
        self._pipeline.set_progress_bar_config(disable=True)
        self.name = kind.removesuffix("Pipeline")
        self._arguments = CALLS[kind]

    def sound(self, prompt: str, *, seconds: float, seed: int) -> Sound:
        arguments = dict(self._arguments(prompt or "calm ambience", seconds))
        if self._steps is not None:
            arguments["num_inference_steps"] = self._steps
        if getattr(self._pipeline, "is_turbo", False):
            arguments["guidance_scale"] = 1.0  # distilled into the weights
        # Drawn on the CPU, so that the same seed gives the same noise on every GPU.
        generator = torch.Generator("cpu").manual_seed(seed)
        try:
            with self._lock, self._on_its_device(), torch.inference_mode():
                made = self._pipeline(**arguments, generator=generator).audios[0].cpu()
        except torch.cuda.OutOfMemoryError as error:
            raise OutOfMemory(f"text-to-audio: {error}") from error
        waves = np.asarray(made.float(), np.float32)
        waves = waves.reshape(-1, waves.shape[-1])
        if not np.isfinite(waves).all() or not waves.any():
            raise EngineFailed(f"{self.name} made no usable sound")
        return _stereo_48k(waves, rate=self._rate())

    @contextmanager
    def _on_its_device(self) -> Iterator[None]:
        if not self._on_gpu:
            yield
            return
        try:
            self._pipeline.to("cuda")
            yield
        finally:
            self._pipeline.to("cpu")
            torch.cuda.empty_cache()

    def _rate(self) -> int:
        own = getattr(self._pipeline, "sample_rate", None)
        return int(own or self._pipeline.vae.config.sampling_rate)


def _stereo_48k(waves: np.ndarray, *, rate: int) -> Sound:
    """waves: (channels, samples) float32."""
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(waves[:2]),
        format="fltp",
        layout="stereo" if len(waves) > 1 else "mono",
    )
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="flt", layout="stereo", rate=RATE)
    pieces = [*resampler.resample(frame), *resampler.resample(None)]
    return Sound(
        np.concatenate([piece.to_ndarray().reshape(-1, 2) for piece in pieces])
    )
