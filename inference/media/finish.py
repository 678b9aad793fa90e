"""From frames to the delivered file in storage: the one path every result takes.

Enlarge, mark and encode each frame while the engine still draws the next; put sound
under it; sign it; look at the finished file; make the pictures that go beside it; put
all of it away under a key nobody has used. Memory stays flat however long the clip is.

``finish`` takes frames, ``finish_file`` somebody else's clip (which passes through
unencoded where it is already what was ordered), ``revoice`` a delivered file that gets
another sound.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import queue
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from inference.contracts import Artifact, Context, OutputPlan
from inference.errors import CannotSign, EngineFailed, OutOfMemory, WeightsMissing
from inference.media import audio, provenance, upscale
from inference.media.ambience import Ambience, scenes_in
from inference.media.encode import Encoder
from inference.media.frames import fit, read_frames, read_pictures
from inference.media.probe import UnusableVideo, VideoFacts, probe
from inference.media.stills import Stills
from inference.media.watermark import Watermark

if TYPE_CHECKING:
    from inference.contracts import Frame
    from inference.media.audio import Sound, SoundEngine
    from inference.storage import Storage

log = logging.getLogger(__name__)

QUEUED_FRAMES: Final = 3  # between engine and encoder; 1080p frames are 6 MB each
#: How much shorter than ordered somebody else's clip may be; its last frame then holds.
SHORT_SECONDS: Final = 0.25
#: The text-to-audio plug-in, used where its weights lie. It stands above this package,
#: so it is named here and not imported.
TEXT_TO_AUDIO: Final = "inference.engines.audio_diffusers:DiffusersSound"


def signer_for(context: Context) -> provenance.Credential:
    """Return what files are signed with here.

    Options: ``certificate``, ``private_key``, ``timestamp_url``, ``signing_folder``.
    Raises CannotSign when the files are no certificate and its key.
    """
    options = context.options
    home = Path(options.get("signing_folder") or context.workdir.parent / "signing")
    try:
        return provenance.credential(options, home=home)
    except (ValueError, OSError) as error:
        raise CannotSign(str(error)) from error


@functools.lru_cache(maxsize=4)
def _sound_engine(weights: Path) -> SoundEngine:
    folder = weights / "audio"
    if not (folder / "model_index.json").exists():
        return Ambience()
    if importlib.util.find_spec("diffusers") is None:
        return Ambience()  # a media worker beside GPU workers shares their folder
    module, _, name = TEXT_TO_AUDIO.partition(":")
    try:
        made: SoundEngine = getattr(importlib.import_module(module), name)(folder)
    except WeightsMissing as missing:
        log.warning("sound is the built-in one here: %s", missing)
        return Ambience()
    return made


#: Wraps the pictures of a clip on their way through: shows how far they are, and raises
#: what shall end the work. Nothing is kept then.
Watch = Callable[[Iterator[Any]], Iterator[Any]]


# -- the three ways in ---------------------------------------------------------------


def finish(
    frames: Iterator[Frame],
    output: OutputPlan,
    context: Context,
    *,
    key: str,
    folder: Path,
) -> Artifact:
    """Deliver ``frames`` as ``output`` says; return what was stored.

    ``key`` is the storage key without an ending, ``folder`` a folder of the caller's.
    Raises what the frames raise, EngineFailed when they are not as planned,
    and InputRejected for an unusable sound file; then nothing is kept.
    """
    if _sounds_by_network(output, context):
        # After the last frame: an engine plans with the whole card.
        made = _encode(frames, output, context, folder)
        track, told = _sound(output, context, folder)
    else:
        with ThreadPoolExecutor(1, thread_name_prefix="sound") as pool:
            # Made while the frames are: x264 leaves room on a second core.
            sound = pool.submit(_sound, output, context, folder)
            made = _encode(frames, output, context, folder)
            track, told = sound.result()
    return _deliver(
        # A silent file stays as the encoder left it: its index is in front already.
        _muxed(made.video, track, folder) if track else made.video,
        output,
        context,
        stills=made.stills,
        notes={**made.notes, **told},
        has_sound=track is not None,
        key=key,
        folder=folder,
    )


def finish_file(
    source: Path,
    output: OutputPlan,
    context: Context,
    *,
    key: str,
    folder: Path,
    keep_sound: bool = False,
    watch: Watch = iter,
) -> Artifact:
    """Deliver a provider's clip as ``output`` says.

    Its packets pass through untouched where size, rate, length and colours are those
    ordered and no mark is to be burnt in. Its own sound stays when ``keep_sound`` is
    true (the provider was given the customer's file), and where sound was to be
    generated and the provider did; otherwise it goes.
    """
    facts = probe(source, depth="all")
    keeps = facts.has_audio and (keep_sound or output.audio.mode == "generate")
    if not _is_as_ordered(facts, output):
        if not keeps:
            frames = watch(frames_of(source, output))
            return finish(frames, output, context, key=key, folder=folder)
        return _finish_with_its_sound(
            source, output, context, key=key, folder=folder, watch=watch
        )
    if not keeps:
        sound = _sound(output, context, folder)
    elif _is_as_long(facts, output):
        sound = source, _PROVIDERS
    else:
        sound = _fitted(source, output, folder), _PROVIDERS
    return _repack(source, sound, output, context, key=key, folder=folder, watch=watch)


def revoice(
    source: Path,
    output: OutputPlan,
    context: Context,
    *,
    key: str,
    folder: Path,
    watch: Watch = iter,
) -> Artifact:
    """Deliver a file of ours again with the sound ``output.audio`` plans.

    The picture's packets are copied; its marks are in them already. ``output`` must
    plan the size, rate and frames the file has.
    """
    sound = _sound(output, context, folder)
    return _repack(source, sound, output, context, key=key, folder=folder, watch=watch)


def _finish_with_its_sound(
    source: Path,
    output: OutputPlan,
    context: Context,
    *,
    key: str,
    folder: Path,
    watch: Watch,
) -> Artifact:
    made = _encode(watch(frames_of(source, output)), output, context, folder)
    return _deliver(
        _muxed(made.video, _fitted(source, output, folder), folder),
        output,
        context,
        stills=made.stills,
        notes={**made.notes, **_PROVIDERS},
        has_sound=True,
        key=key,
        folder=folder,
    )


# -- frames to a silent video --------------------------------------------------------


@dataclass(frozen=True)
class _Made:
    video: Path
    stills: Stills
    notes: dict[str, Any] = field(default_factory=dict)


def _encode(
    frames: Iterator[Frame],
    output: OutputPlan,
    context: Context,
    folder: Path,
) -> _Made:
    """Encode in a thread of its own, so that the engine never waits for x264."""
    line: queue.Queue[Frame | None] = queue.Queue(QUEUED_FRAMES)
    with ThreadPoolExecutor(1, thread_name_prefix="encode") as pool:
        press = pool.submit(_press, line, output, context, folder)
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
    folder: Path,
) -> _Made:
    frame = line.get()
    if frame is None:
        raise EngineFailed("the engine made no frames")
    width, height = output.width, output.height
    enlarging = upscale.plan(
        (frame.shape[1], frame.shape[0]),
        (width, height),
        weights=context.weights,
        options=context.options,
    )
    marks = Watermark(width, height, visible=output.watermark, test=output.test_mark)
    stills = Stills(output.frames, fps=output.fps, folder=folder)
    video = folder / "video.mp4"
    big = enlarging.enlarge(frame)
    with Encoder(
        video,
        width=width,
        height=height,
        fps=output.fps,
        source=(big.shape[1], big.shape[0]),
    ) as encoder:
        shown = None
        while frame is not None:
            # Engines may show one read-only picture several times.
            if shown is None or shown[0] is not frame or frame.flags.writeable:
                big = enlarging.enlarge(frame)
                picture = encoder.convert(big)
                marks.burn_picture(picture)
                shown = frame, picture
            stills.see(shown[1])
            encoder.put(shown[1])
            frame = line.get()
        if encoder.frames != output.frames:
            raise EngineFailed(f"{encoder.frames} frames of {output.frames} were made")
    return _Made(video, stills, {"upscaler": enlarging.label})


def frames_of(source: Path, output: OutputPlan) -> Iterator[Frame]:
    """Yield exactly the planned frames of a clip made elsewhere, at the planned rate.

    Another rate is met by the nearest frame in time, another shape by cropping around
    the centre what players show; what is longer is cut. Raises UnusableVideo when it is too short.
    """
    facts = probe(source)
    aspect = output.width / output.height
    ratio = facts.fps / output.fps if facts.fps else 1.0
    wanted = 0
    frame: Frame | None = None
    for index, fresh in enumerate(read_frames(source)):
        frame = _shaped(_shown(fresh, facts), aspect)
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


def _shown(frame: Frame, facts: VideoFacts) -> Frame:
    """Return the picture as a player shows it: upright, of square pixels."""
    if facts.is_shown_as_stored:
        return frame
    height, width = frame.shape[:2]
    wide = max(2, round(width * facts.pixel_aspect))
    square = np.array(Image.fromarray(frame).resize((wide, height)))
    return np.ascontiguousarray(np.rot90(square, round(facts.rotation / 90)))


def _shaped(frame: Frame, aspect: float) -> Frame:
    height, width = frame.shape[:2]
    if abs(width / height / aspect - 1) < 0.02:
        return frame
    wide = min(width, round(height * aspect / 2) * 2)
    high = min(height, round(width / aspect / 2) * 2)
    return np.array(fit(Image.fromarray(frame), wide, high))


# -- a video that stays as it is -----------------------------------------------------


def _is_as_ordered(facts: VideoFacts, output: OutputPlan) -> bool:
    return (
        not output.watermark
        and not output.test_mark
        and _measures(facts) == _ordered(output)
        and (facts.codec, facts.pixel_format) == ("h264", "yuv420p")
        and facts.is_bt709
        and facts.is_limited_range
        and facts.is_shown_as_stored
    )


def _repack(
    source: Path,
    sound: _Voice,
    output: OutputPlan,
    context: Context,
    *,
    key: str,
    folder: Path,
    watch: Watch,
) -> Artifact:
    """Deliver ``source`` with its picture's packets as they are."""
    track, told = sound
    stills = Stills(output.frames, fps=output.fps, folder=folder)
    for picture in watch(read_pictures(source)):
        stills.see(picture)
    return _deliver(
        _muxed(source, track, folder),
        output,
        context,
        stills=stills,
        notes={"upscaler": "none", "remuxed": True, **told},
        has_sound=track is not None,
        key=key,
        folder=folder,
    )


# -- sound ---------------------------------------------------------------------------


#: An AAC track of the clip's length, if any, and what the job says of it.
_Voice = tuple[Path | None, Mapping[str, Any]]
_PROVIDERS: Final = MappingProxyType({"audio": {"by": "provider"}})


def _sound(output: OutputPlan, context: Context, folder: Path) -> _Voice:
    """Write the planned sound as AAC of the clip's length; return it and what it is."""
    plan = output.audio
    if plan.mode == "none":
        return None, {"audio": None}
    if plan.mode == "url":
        if plan.path is None:
            raise EngineFailed("the plan names no sound file")
        sound = audio.normalise(
            audio.fit(
                audio.load(plan.path, limits=context.limits), seconds=output.seconds
            )
        )
        told: dict[str, Any] = {"by": "customer"}
    else:
        engine = _sound_engine(context.weights)
        try:
            sound = _generated(plan.prompt, output.seconds, plan.seed, engine)
        except (OutOfMemory, EngineFailed) as error:
            # The pictures are made and paid for, and were what was wanted most.
            log.warning("sound was made by the built-in rules: %s", error)
            engine = Ambience()
            sound = _generated(plan.prompt, output.seconds, plan.seed, engine)
        told = {"by": engine.name, "seed": plan.seed}
        if isinstance(engine, Ambience):
            told["scenes"] = scenes_in(plan.prompt)
    track = folder / "sound.m4a"
    audio.write_track(sound, track)
    return track, {"audio": {**told, "rms_db": round(sound.rms_db(), 1)}}


def _sounds_by_network(output: OutputPlan, context: Context) -> bool:
    return output.audio.mode == "generate" and not isinstance(
        _sound_engine(context.weights), Ambience
    )


def _fitted(source: Path, output: OutputPlan, folder: Path) -> Path:
    """Write a provider's own sound as AAC of the clip's length."""
    track = folder / "sound.m4a"
    own = audio.read_track(source)
    audio.write_track(audio.fit(own, seconds=output.seconds), track)
    return track


def _generated(prompt: str, seconds: float, seed: int, engine: SoundEngine) -> Sound:
    sound = engine.sound(prompt, seconds=seconds, seed=seed)
    if isinstance(engine, Ambience):
        return sound  # already of that length and loudness, faded at both ends
    return audio.normalise(audio.fit(sound, seconds=seconds))


# -- the last steps, the same for all ------------------------------------------------


def _deliver(
    video: Path,
    output: OutputPlan,
    context: Context,
    *,
    stills: Stills,
    notes: Mapping[str, Any],
    has_sound: bool,
    key: str,
    folder: Path,
) -> Artifact:
    """Sign, check and store ``video``, whose bytes stay as they are otherwise."""
    signed = folder / "signed.mp4"
    with ThreadPoolExecutor(1, thread_name_prefix="stills") as pool:
        # Should the file not pass, its pictures are orphans, deleted as such.
        beside = pool.submit(_store_stills, stills, context.storage, key)
        told = provenance.sign(
            video,
            signed,
            model=output.model,
            reference=output.reference,
            generated=output.generated,
            signer=signer_for(context),
        )
        facts = verify(signed, output, has_sound=has_sound)
        stored = context.storage.put_file(
            f"{key}.mp4", signed, content_type="video/mp4"
        )
        pictures = beside.result()
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
        **pictures,
        notes={
            **notes,
            "watermark": output.watermark,
            "provenance": told.summary(),
        },
    )


def _muxed(video: Path, track: Path | None, folder: Path) -> Path:
    target = folder / "muxed.mp4"
    audio.mux(video, track, target)
    return target


def verify(
    video: Path, output: OutputPlan, *, has_sound: bool | None = None
) -> VideoFacts:
    """Return the facts of the file; raise EngineFailed when it is not as planned."""
    facts = probe(video)
    if _measures(facts) != _ordered(output):
        raise EngineFailed(
            f"the file has {_measures(facts)}, ordered was {_ordered(output)}"
        )
    if not facts.is_shown_as_stored:
        raise EngineFailed(f"players would stretch or turn the picture: {facts}")
    if not (facts.is_bt709 and facts.is_limited_range and facts.is_faststart):
        raise EngineFailed(f"colour tags or index are not as they should be: {facts}")
    if abs(facts.seconds - output.seconds) > 0.5 / output.fps:
        raise EngineFailed(f"the file lasts {facts.seconds} s, not {output.seconds}")
    if has_sound is not None and facts.has_audio != has_sound:
        raise EngineFailed(f"sound was planned: {has_sound}, found: {facts.has_audio}")
    if has_sound and not _is_as_long(facts, output):
        raise EngineFailed(
            f"the sound lasts {facts.audio_seconds} s, the picture {output.seconds}"
        )
    return facts


def _is_as_long(facts: VideoFacts, output: OutputPlan) -> bool:
    """Say whether the sound ends with the picture, to a frame or two AAC blocks."""
    slack = max(1 / output.fps, 2 * 1024 / audio.RATE)
    return abs(facts.audio_seconds - output.seconds) <= slack


def _measures(facts: VideoFacts) -> tuple[int, int, int, float]:
    return facts.width, facts.height, facts.frames, round(facts.fps, 3)


def _ordered(output: OutputPlan) -> tuple[int, int, int, float]:
    return output.width, output.height, output.frames, round(float(output.fps), 3)


def _store_stills(stills: Stills, storage: Storage, key: str) -> dict[str, str]:
    """Store the pictures beside the video; return their keys by the artifact's names."""
    files = stills.close()
    beside = {
        "poster_key": (f"{key}.jpg", files.poster, "image/jpeg"),
        "preview_key": (f"{key}.webp", files.preview, "image/webp"),
        "last_frame_key": (f"{key}.last.jpg", files.last, "image/jpeg"),
    }
    with ThreadPoolExecutor(len(beside), thread_name_prefix="store") as pool:
        pending = {
            name: pool.submit(storage.put_file, target, path, content_type=kind)
            for name, (target, path, kind) in beside.items()
        }
        return {name: put.result().key for name, put in pending.items()}
