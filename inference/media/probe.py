"""What a video file really holds, told by reading it, not by believing its header."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from inference.errors import EngineFailed

Depth = Literal["packets", "all"]


class UnusableVideo(EngineFailed):
    """The file is no video, is damaged, or holds no frames."""

    default_code = "unusable_video"


@dataclass(frozen=True)
class VideoFacts:
    """``frames`` were counted and ``seconds`` is the picture's length."""

    width: int
    height: int
    fps: float
    frames: int
    seconds: float
    codec: str
    profile: str
    pixel_format: str
    is_bt709: bool  # matrix, primaries and transfer say so
    is_limited_range: bool
    has_audio: bool
    audio_seconds: float
    is_faststart: bool
    #: A stored pixel's width over its height, and by how many degrees players turn the
    #: picture, counter-clockwise.
    pixel_aspect: float = 1.0
    rotation: int = 0

    @property
    def is_shown_as_stored(self) -> bool:
        return self.pixel_aspect == 1 and self.rotation == 0


def probe(path: Path, *, depth: Depth = "packets") -> VideoFacts:
    """Return what is in the file at ``path``; raise UnusableVideo when it is no video.

    ``packets`` counts the pictures without decoding more than the first, which is
    enough for what we encoded ourselves; ``all`` decodes every one.
    """
    try:
        with av.open(str(path), "r", format="mp4") as container:
            return _read(container, path, depth)
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise UnusableVideo(f"{path.name} is no usable video: {error}") from error


def _read(
    container: av.container.InputContainer, path: Path, depth: Depth
) -> VideoFacts:
    if not container.streams.video:
        raise UnusableVideo(f"{path.name} has no picture")
    stream = container.streams.video[0]
    context = stream.codec_context
    if depth == "packets":
        context.thread_count = 1  # several would each wait for a picture of their own
    frames = decoded = 0
    first = last = None
    tick = stream.time_base or Fraction(1)
    ends = Fraction(0)
    for packet in container.demux(stream):
        if packet.pts is not None:
            frames += 1
            end = Fraction(packet.pts + (packet.duration or 0)) * tick
            ends = end if end > ends else ends
        if depth == "all" or decoded == 0:
            for frame in packet.decode():
                first, last = first or frame, frame
                decoded += 1
    if first is None or last is None or frames == 0:
        raise UnusableVideo(f"{path.name} holds no frames")
    if depth == "all" and decoded != frames:
        raise UnusableVideo(f"{path.name} decodes to {decoded} of {frames} frames")
    sound = container.streams.audio[0] if container.streams.audio else None
    rate = stream.average_rate or stream.guessed_rate
    start = (stream.start_time or 0) * tick
    return VideoFacts(
        width=first.width,
        height=first.height,
        fps=float(rate or 0),
        frames=frames,
        seconds=float(ends - start),
        codec=context.name,
        profile=str(context.profile or ""),
        pixel_format=first.format.name,
        is_bt709=(context.colorspace, context.color_primaries, context.color_trc)
        == (Colorspace.ITU709, ColorPrimaries.BT709, ColorTrc.BT709),
        is_limited_range=context.color_range == ColorRange.MPEG,
        has_audio=sound is not None,
        audio_seconds=float((sound.duration or 0) * sound.time_base)
        if sound is not None and sound.time_base
        else 0.0,
        is_faststart=_is_faststart(path),
        pixel_aspect=float(stream.sample_aspect_ratio or 1),
        rotation=first.rotation,
    )


def _is_faststart(path: Path) -> bool:
    """Say whether the index (moov) stands before the pictures (mdat)."""
    with path.open("rb") as file:
        while len(head := file.read(8)) == 8:
            size, name = int.from_bytes(head[:4]), head[4:]
            if name in {b"moov", b"mdat"}:
                return name == b"moov"
            if size == 1:
                size = int.from_bytes(file.read(8)) - 8
            if size < 8:
                return False
            file.seek(size - 8, 1)
    return False
