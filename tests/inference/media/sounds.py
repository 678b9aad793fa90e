"""Sound and video files made for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np

RATE = 48_000


def tone(seconds: float, *, hz: float = 440.0, level: float = 0.3) -> Any:
    t = np.arange(int(seconds * RATE)) / RATE
    wave = (level * np.sin(2 * np.pi * hz * t)).astype(np.float32)
    return np.stack([wave, wave], axis=1)


def clicks(seconds: float, *, at: Iterable[float]) -> Any:
    """Silence with a faint tone and one sharp 2 kHz burst at each time of ``at``."""
    samples = tone(seconds, hz=200, level=0.01)
    burst = 0.9 * np.sin(2 * np.pi * 2000 * np.arange(480) / RATE)
    for moment in at:
        start = int(moment * RATE)
        samples[start : start + 480] += burst[:, None].astype(np.float32)
    return samples


KINDS = {
    "wav": ("wav", "pcm_s16le", "s16"),
    "mp3": ("mp3", "libmp3lame", "fltp"),
    "m4a": ("ipod", "aac", "fltp"),
    "ogg": ("ogg", "libopus", "flt"),
    "flac": ("flac", "flac", "s16"),
}


def write_sound(path: Path, samples: Any, *, kind: str, rate: int = RATE) -> Path:
    container, codec, sample_format = KINDS[kind]
    with av.open(str(path), "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples.T), format="fltp", layout="stereo"
        )
        frame.sample_rate = RATE
        resampler = av.AudioResampler(
            format=sample_format, layout="stereo", rate=rate, frame_size=1024
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return path


def write_video(
    path: Path,
    *,
    frames: int = 48,
    fps: int = 16,
    size: tuple[int, int] = (160, 96),
    flash_at: Iterable[int] = (),
    **options: Any,
) -> Path:
    """Write H.264: dark frames, white at each index of ``flash_at``."""
    width, height = size
    with av.open(str(path), "w", format=options.get("container", "mp4")) as out:
        stream = out.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            level = 235 if index in flash_at else 30
            picture = np.full((height, width, 3), level, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def white_moments(path: Path) -> list[float]:
    """Return when, in seconds, each white picture of the video is shown."""
    with av.open(str(path)) as box:
        return [
            frame.time
            for frame in box.decode(video=0)
            if frame.time is not None and frame.to_ndarray(format="gray").mean() > 128
        ]


def read_sound(path: Path) -> tuple[Any, float]:
    """Return (samples by 2, float32, start in seconds) of the sound track, as played."""
    with av.open(str(path)) as box:
        resampler = av.AudioResampler(format="flt", layout="stereo", rate=RATE)
        pieces, start = [], None
        for frame in box.decode(audio=0):
            start = frame.time if start is None else start
            pieces += [p.to_ndarray().reshape(-1, 2) for p in resampler.resample(frame)]
        pieces += [p.to_ndarray().reshape(-1, 2) for p in resampler.resample(None)]
    assert start is not None
    return np.concatenate(pieces), start
