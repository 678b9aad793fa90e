"""Makes the small real videos that fakes hand out: a slow push into the submitted picture.

Without a readable picture it is a moving colour pattern. Equal orders are made once.
"""

from __future__ import annotations

import fractions
import functools
import io
import random

import av
import numpy as np
from PIL import Image, UnidentifiedImageError


def make(
    picture: bytes,
    *,
    seconds: float,
    fps: int,
    size: tuple[int, int],
    sound: bool = False,
) -> bytes:
    """Return an H.264 MP4 of exactly ``seconds`` at ``fps``; sides are made even."""
    frames = max(1, round(seconds * fps))
    even = (size[0] // 2 * 2, size[1] // 2 * 2)
    return _make(picture, frames, fps, even, sound)


def damaged(video: bytes) -> bytes:
    """Return the clip with its index and first picture whole and the others blank."""
    with av.open(io.BytesIO(video), "r") as container:
        pictures = [packet for packet in container.demux(video=0) if packet.size]
        places = [(int(packet.pos or 0), packet.size) for packet in pictures[1:]]
    spoilt = bytearray(video)
    for start, size in places:
        spoilt[start : start + size] = bytes(size)
    return bytes(spoilt)


def with_damaged_sound(video: bytes) -> bytes:
    """Return the clip with its pictures whole and noise for most of its sound."""
    with av.open(io.BytesIO(video), "r") as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size]
        places = [(int(packet.pos or 0), packet.size) for packet in packets]
    spoilt, noise = bytearray(video), random.Random(0)
    for start, size in places[len(places) // 3 :]:
        spoilt[start : start + size] = noise.randbytes(size)
    return bytes(spoilt)


@functools.lru_cache(maxsize=64)
def _make(
    picture: bytes, frames: int, fps: int, size: tuple[int, int], sound: bool
) -> bytes:
    still = _still(picture, size)
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "28"}
        tone = container.add_stream("aac", rate=48000) if sound else None
        for index in range(frames):
            pixels = np.asarray(_moved(still, index / frames))
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if tone is not None:
            _hum(container, tone, frames / fps)
    return target.getvalue()


def _still(picture: bytes, size: tuple[int, int]) -> Image.Image:
    try:
        with Image.open(io.BytesIO(picture)) as opened:
            return opened.convert("RGB").resize(size)
    except (UnidentifiedImageError, OSError):
        across = np.linspace(0, 255, size[0], dtype=np.uint8)
        down = np.linspace(0, 255, size[1], dtype=np.uint8)
        red, green = np.meshgrid(across, down)
        return Image.fromarray(np.dstack([red, green, 255 - red]))


def _moved(still: Image.Image, progress: float) -> Image.Image:
    wide, high = still.size
    inset = 0.15 * progress
    box = (wide * inset, high * inset, wide * (1 - inset), high * (1 - inset))
    return still.resize(still.size, Image.Resampling.BILINEAR, box=box)


def _hum(
    container: av.container.OutputContainer, stream: av.AudioStream, seconds: float
) -> None:
    rate, chunk = 48000, 1024
    for start in range(0, int(seconds * rate), chunk):
        moments = np.arange(start, start + chunk) / rate
        wave = (0.1 * np.sin(2 * np.pi * 220 * moments)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(wave[None, :], "fltp", "mono")
        frame.sample_rate, frame.pts = rate, start
        frame.time_base = fractions.Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
