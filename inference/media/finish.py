"""From frames to the delivered file in storage: one streaming pass, then checks.

Enlarge and mark each frame, encode it, and write the poster of the first, all while the
engine still draws the next; then look at the file and put it away under a key nobody
has used. Memory stays flat however long the clip is.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from inference.contracts import Artifact, Context, OutputPlan
from inference.errors import EngineFailed
from inference.media import upscale
from inference.media.encode import Encoder
from inference.media.frames import fit, read_frames
from inference.media.poster import write_poster
from inference.media.probe import UnusableVideo, VideoFacts, probe
from inference.media.watermark import Watermark

if TYPE_CHECKING:
    from inference.contracts import Frame

QUEUED_FRAMES: Final = 3  # between engine and encoder; 1080p frames are 6 MB each
#: How much shorter than ordered somebody else's clip may be; its last frame then holds.
SHORT_SECONDS: Final = 0.25


def finish(
    frames: Iterator[Frame],
    output: OutputPlan,
    context: Context,
    *,
    key: str,
    folder: Path,
) -> Artifact:
    """Deliver ``frames`` as ``output`` says; return what was stored.

    ``key`` is the storage key without an ending, ``folder`` an empty folder of the
    caller's. Raises what the frames raise, and EngineFailed when they are not as planned.
    """
    video, poster = folder / "video.mp4", folder / "poster.jpg"

    # 1-3. Enlarge, mark, encode, frame by frame.
    made = _encode(frames, output, context, video, poster)

    # 4. Look at what was made.
    facts = verify(video, output)

    # 5. Put it away.
    return _store(video, poster, facts, context, key=key, notes=made.notes)


@dataclass(frozen=True)
class _Made:
    notes: dict[str, Any]


def _encode(
    frames: Iterator[Frame],
    output: OutputPlan,
    context: Context,
    video: Path,
    poster: Path,
) -> _Made:
    """Encode in a thread of its own, so that the engine never waits for x264."""
    line: queue.Queue[Frame | None] = queue.Queue(QUEUED_FRAMES)
    with ThreadPoolExecutor(1, thread_name_prefix="encode") as pool:
        press = pool.submit(_press, line, output, context, video, poster)
        try:
            for frame in frames:
                _pass_on(frame, line, press)
            _pass_on(None, line, press)
        except BaseException as error:
            if not press.done():
                _drain(line)
                line.put(None)
            if press.exception() is not None and isinstance(error, _PressStopped):
                press.result()
            raise
        finally:
            if close := getattr(frames, "close", None):
                close()  # lets go of what the engine holds, also when x264 failed
        return press.result()


class _PressStopped(Exception):
    """The encoder's thread has ended early; its future holds the reason."""


def _pass_on(
    frame: Frame | None, line: queue.Queue[Frame | None], press: Future[_Made]
) -> None:
    while True:
        if press.done():
            raise _PressStopped
        try:
            line.put(frame, timeout=0.5)
        except queue.Full:
            continue
        return


def _drain(line: queue.Queue[Frame | None]) -> None:
    while True:
        try:
            line.get_nowait()
        except queue.Empty:
            return


def _press(
    line: queue.Queue[Frame | None],
    output: OutputPlan,
    context: Context,
    video: Path,
    poster: Path,
) -> _Made:
    first = line.get()
    if first is None:
        raise EngineFailed("the engine made no frames")
    source = (first.shape[1], first.shape[0])
    enlarging = upscale.plan(
        source,
        (output.width, output.height),
        weights=context.weights,
        options=context.options,
    )
    big = enlarging.enlarge(first)
    size = (big.shape[1], big.shape[0])
    marks = Watermark(*size, visible=output.watermark, test=output.test_mark)
    with Encoder(
        video,
        width=output.width,
        height=output.height,
        fps=output.fps,
        source=size,
    ) as encoder:
        shown: Frame = marks.apply(big)
        write_poster(shown, poster)
        encoder.write(shown)
        last = first
        while (frame := line.get()) is not None:
            # Engines may show one read-only picture several times.
            if frame is not last or frame.flags.writeable:
                shown = marks.apply(enlarging.enlarge(frame))
                if not frame.flags.writeable:
                    shown.setflags(write=False)
            last = frame
            encoder.write(shown)
        if encoder.frames != output.frames:
            raise EngineFailed(f"{encoder.frames} frames of {output.frames} were made")
    return _Made(notes={"upscaler": enlarging.label})


def verify(video: Path, output: OutputPlan) -> VideoFacts:
    """Return the facts of the file; raise EngineFailed when it is not as planned."""
    facts = probe(video)
    found = (facts.width, facts.height, facts.frames, round(facts.fps, 3))
    wanted = (output.width, output.height, output.frames, round(float(output.fps), 3))
    if found != wanted:
        raise EngineFailed(f"the file has {found}, ordered was {wanted}")
    return facts


def _store(
    video: Path,
    poster: Path,
    facts: VideoFacts,
    context: Context,
    *,
    key: str,
    notes: dict[str, Any],
) -> Artifact:
    storage = context.storage
    with ThreadPoolExecutor(1, thread_name_prefix="store") as pool:
        beside = pool.submit(
            storage.put_file, f"{key}.jpg", poster, content_type="image/jpeg"
        )
        stored = storage.put_file(f"{key}.mp4", video, content_type="video/mp4")
        poster_key = beside.result().key
    return Artifact(
        key=stored.key,
        size_bytes=stored.size_bytes,
        sha256=stored.sha256,
        width=facts.width,
        height=facts.height,
        fps=facts.fps,
        frames=facts.frames,
        seconds=facts.seconds,
        has_audio=facts.has_audio,
        poster_key=poster_key,
        notes=notes,
    )


def frames_of(source: Path, output: OutputPlan) -> Iterator[Frame]:
    """Yield exactly the planned frames of a clip made elsewhere, at the planned rate.

    Another rate is met by the nearest frame in time, another shape by cropping around
    the centre; what is longer is cut. Raises UnusableVideo when it is too short.
    """
    facts = probe(source)
    aspect = output.width / output.height
    ratio = facts.fps / output.fps if facts.fps else 1.0
    wanted = 0
    frame: Frame | None = None
    for index, fresh in enumerate(read_frames(source)):
        frame = _shaped(fresh, aspect)
        frame.setflags(write=False)
        # Show this frame for as long as it is the nearest to the next moment due.
        while wanted < output.frames and round(wanted * ratio) <= index:
            yield frame
            wanted += 1
        if wanted == output.frames:
            return
    missing = output.frames - wanted
    if frame is None or missing / output.fps > SHORT_SECONDS:
        raise UnusableVideo(f"the clip is {missing} frames short of {output.frames}")
    for _ in range(missing):
        yield frame


def _shaped(frame: Frame, aspect: float) -> Frame:
    height, width = frame.shape[:2]
    if abs(width / height / aspect - 1) < 0.02:
        return frame
    wide = min(width, round(height * aspect / 2) * 2)
    high = min(height, round(width / aspect / 2) * 2)
    return np.array(fit(Image.fromarray(frame), wide, high))
