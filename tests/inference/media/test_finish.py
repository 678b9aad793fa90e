from __future__ import annotations

import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from PIL.WebPImagePlugin import WebPImageFile

from inference.contracts import AudioPlan, OutputPlan
from inference.errors import (
    EngineFailed,
    InputRejected,
    OutOfMemory,
)
from inference.media import audio, finish, provenance
from inference.media.audio import Sound
from inference.media.probe import UnusableVideo, probe
from inference.media.watermark import Watermark
from inference.testing import local_context
from tests.fakes.videos import with_damaged_sound
from tests.inference.media.sounds import (
    RATE,
    clicks,
    read_sound,
    tone,
    white_moments,
    write_sound,
    write_video,
)

PLAN = OutputPlan(
    width=160, height=96, fps=16, frames=33, model="motion", reference="job_1"
)


@pytest.fixture
def context(tmp_path):
    return local_context(tmp_path / "home")


@pytest.fixture
def folder(context):
    return context.workdir


def _ramp(plan, *, size=None, count=None):
    """Yield frames that grow brighter, with a red square that stays."""
    width, height = size or (plan.width, plan.height)
    step = 3 * min(1, 33 / plan.frames)
    for index in range(count or plan.frames):
        level = 40 + round(step * index)
        frame = np.full((height, width, 3), level, np.uint8)
        frame[: height // 3, : width // 3] = (200, 30, 30)
        yield frame


def _finished(plan, context, folder, frames=None):
    artifact = finish.finish(
        frames or _ramp(plan), plan, context, key="out/1", folder=folder
    )
    target = folder / "delivered.mp4"
    context.storage.get_file(artifact.key, target)
    return artifact, target


def _pixels(path):
    with av.open(str(path)) as box:
        return [frame.to_ndarray(format="rgb24") for frame in box.decode(video=0)]


def test_the_file_is_what_was_ordered_and_says_so(context, folder):
    artifact, target = _finished(PLAN, context, folder)
    facts = probe(target, depth="all")
    assert (facts.width, facts.height, facts.frames, facts.fps) == (160, 96, 33, 16)
    assert (facts.codec, facts.profile, facts.pixel_format) == (
        "h264",
        "High",
        "yuv420p",
    )
    assert facts.is_bt709
    assert facts.is_limited_range
    assert facts.is_faststart
    assert not facts.has_audio
    assert artifact.frames == 33
    assert artifact.seconds == pytest.approx(33 / 16)
    assert artifact.sha256 == context.storage.stat(artifact.key).sha256
    assert artifact.notes["upscaler"] == "none"
    assert artifact.notes["audio"] is None


def test_colours_survive(context, folder):
    _, target = _finished(PLAN, context, folder)
    seen = _pixels(target)[16].astype(int)
    assert np.abs(seen[8, 8] - (200, 30, 30)).max() <= 4
    assert np.abs(seen[80, 120] - (40 + 3 * 16)).max() <= 3


@pytest.mark.parametrize("generated", [True, False])
def test_every_file_carries_a_valid_manifest_whatever_the_mark(
    context, folder, generated
):
    plan = replace(PLAN, generated=generated, watermark=generated)
    artifact, target = _finished(plan, context, folder)
    read = provenance.read_manifest(target)
    assert read is not None
    assert read.valid
    assert (read.model, read.reference) == ("motion", "job_1")
    assert artifact.notes["provenance"]["digital_source_type"] == (
        "trainedAlgorithmicMedia" if generated else "algorithmicallyEnhanced"
    )
    # The certificate was made beside the work folder, once.
    assert (context.workdir.parent / "signing" / "chain.pem").exists()


def test_the_marks_are_in_the_file_and_only_where_they_belong(context, folder):
    plain = replace(PLAN, width=320, height=192)
    marked = replace(plain, watermark=True, test_mark=True)
    _, first = _finished(plain, context, folder)
    before = _pixels(first)[0]
    finish.finish(_ramp(marked), marked, context, key="out/2", folder=folder)
    context.storage.get_file("out/2.mp4", folder / "marked.mp4")
    after = _pixels(folder / "marked.mp4")[0]
    wanted = Watermark(320, 192, visible=True, test=True).apply(before)
    assert np.abs(after.astype(int) - wanted).mean() < 3
    difference = np.abs(after.astype(int) - before).max(axis=2)
    assert difference[170:, 220:].max() > 100
    assert difference[:40, :80].max() > 80
    assert difference[70:160, :200].max() < 12


def test_a_larger_tier_is_resized_and_the_job_says_by_what(context, folder):
    plan = replace(PLAN, width=480, height=288)
    artifact, target = _finished(plan, context, folder, _ramp(plan, size=(160, 96)))
    assert artifact.notes["upscaler"] == "lanczos"
    seen = _pixels(target)[0].astype(int)
    assert seen.shape == (288, 480, 3)
    assert np.abs(seen[20, 20] - (200, 30, 30)).max() <= 5


def test_pictures_beside_the_video_show_what_it_shows(context, folder):
    plan = replace(PLAN, width=640, height=384, frames=64)
    artifact, target = _finished(plan, context, folder)
    frames = _pixels(target)
    for key in (artifact.poster_key, artifact.preview_key, artifact.last_frame_key):
        context.storage.get_file(key, folder / Path(key).name)
    with Image.open(folder / "1.jpg") as poster:
        assert poster.size == (640, 384)
        assert np.abs(np.asarray(poster).astype(int) - frames[0]).mean() < 3
    with Image.open(folder / "1.last.jpg") as last:
        assert last.size == (640, 384)
        assert np.abs(np.asarray(last).astype(int) - frames[-1]).mean() < 3
    with Image.open(folder / "1.webp") as preview:
        assert isinstance(preview, WebPImageFile)
        assert preview.size == (320, 192)
        assert 8 <= preview.n_frames <= 24  # WebP joins frames that look the same
        levels, lasts = [], 0
        for index in range(preview.n_frames):
            preview.seek(index)
            preview.load()
            lasts += preview.info["duration"]
            levels.append(np.asarray(preview.convert("L"))[150:].mean())
    assert lasts == pytest.approx(4000, abs=50)
    assert levels == sorted(levels)
    assert levels[-1] - levels[0] > 80


# -- sound


def _with_sound(**sound):
    return replace(PLAN, frames=81, audio=AudioPlan(**sound))


def test_generated_sound_is_there_at_a_known_loudness_and_says_what_it_is(
    context, folder
):
    plan = _with_sound(mode="generate", prompt="waves on the beach", seed=5)
    artifact, target = _finished(plan, context, folder)
    heard, start = read_sound(target)
    assert start == pytest.approx(0, abs=1e-3)
    assert len(heard) / RATE == pytest.approx(81 / 16, abs=0.03)
    assert audio.loudness(Sound(heard)) == pytest.approx(-20, abs=1)
    assert artifact.has_audio
    told = artifact.notes["audio"]
    assert (told["by"], told["scenes"], told["seed"]) == ("ambience", ["sea"], 5)
    assert told["rms_db"] == pytest.approx(Sound(heard).rms_db(), abs=0.5)


def test_scenes_keep_their_spectra_in_the_file(context, folder):
    centroids = {}
    for scene in ("wind", "rain", "fire", "birds"):
        plan = _with_sound(mode="generate", prompt=scene, seed=2)
        made = finish.finish(
            _ramp(plan), plan, context, key=f"out/{scene}", folder=folder
        )
        context.storage.get_file(made.key, folder / "heard.mp4")
        mono = read_sound(folder / "heard.mp4")[0].mean(axis=1)
        power = np.square(np.abs(np.fft.rfft(mono)))
        hertz = np.fft.rfftfreq(len(mono), 1 / RATE)
        centroids[scene] = (power * hertz).sum() / power.sum()
    assert centroids["wind"] < 500 < centroids["fire"] < 4000
    assert centroids["rain"] > 3000
    assert centroids["birds"] > 2500


@pytest.mark.parametrize("kind", ["wav", "mp3", "m4a", "ogg", "flac"])
def test_the_customers_sound_starts_with_the_picture(context, folder, kind):
    path = write_sound(folder / "in", clicks(6, at=[1.0, 3.0]), kind=kind)
    plan = _with_sound(mode="url", path=path)

    def flashing():
        for index in range(81):
            level = 240 if index in (16, 48) else 20
            yield np.full((96, 160, 3), level, np.uint8)

    artifact, target = _finished(plan, context, folder, flashing())
    assert artifact.notes["audio"]["by"] == "customer"
    seen = white_moments(target)
    heard, start = read_sound(target)
    loud = np.flatnonzero(np.abs(heard[:, 0]) > 0.3)
    onsets = loud[np.diff(loud, prepend=-RATE) > RATE // 10] / RATE + start
    assert len(onsets) == len(seen) == 2
    # An mp3 starts up to two of its 26 ms frames late, by its own encoder's delay.
    assert np.abs(onsets - seen).max() < 1 / 16


def test_a_shorter_sound_ends_in_silence_and_a_longer_one_fades(context, folder):
    short = write_sound(folder / "short", tone(3), kind="wav")
    _, target = _finished(_with_sound(mode="url", path=short), context, folder)
    heard, _ = read_sound(target)
    assert np.abs(heard[int(3.2 * RATE) :]).max() < 0.01
    assert np.abs(heard[2 * RATE : int(2.5 * RATE)]).max() > 0.1


@pytest.mark.parametrize("broken", ["video", "silent", "noise"])
def test_an_unusable_sound_fails_the_job_and_keeps_nothing(context, folder, broken):
    path = folder / "in"
    if broken == "video":
        write_video(path, frames=80)
    elif broken == "silent":
        write_sound(path, tone(5, level=0), kind="wav")
    else:
        path.write_bytes(b"OggS" + bytes(range(256)) * 40)
    plan = _with_sound(mode="url", path=path)
    with pytest.raises(InputRejected) as caught:
        finish.finish(_ramp(plan), plan, context, key="out/1", folder=folder)
    assert caught.value.field == "audio_url"
    assert not list(context.storage.list())


# -- what goes wrong


@pytest.mark.parametrize("count", [1, 32, 34])
def test_too_few_or_too_many_frames_are_never_delivered(context, folder, count):
    with pytest.raises(EngineFailed):
        _finished(PLAN, context, folder, _ramp(PLAN, count=count))
    assert not list(context.storage.list())


def test_an_engines_error_comes_through_and_nothing_is_kept(context, folder):
    def broken():
        yield from _ramp(PLAN, count=5)
        raise OutOfMemory("no room")

    with pytest.raises(OutOfMemory):
        _finished(PLAN, context, folder, broken())
    assert not list(context.storage.list())


# -- somebody else's clip


def _providers_clip(context, folder, *, sound=None, **plan):
    """Return a clip as a provider sends it: H.264, BT.709, with or without sound."""
    order = replace(PLAN, **plan)
    made = finish.finish(
        _ramp(order),
        replace(order, audio=sound or AudioPlan()),
        context,
        key="theirs",
        folder=folder,
    )
    target = folder / "theirs.mp4"
    context.storage.get_file(made.key, target)
    context.storage.delete([item.key for item in context.storage.list()])
    return target


def _packets(path):
    with av.open(str(path)) as box:
        return [bytes(packet) for packet in box.demux(video=0) if packet.size]


def test_a_clip_already_as_ordered_passes_through_unencoded(context, folder):
    source = _providers_clip(context, folder)
    plan = replace(PLAN, model="wan2.6-i2v", reference="job_9")
    artifact = finish.finish_file(source, plan, context, key="out/1", folder=folder)
    context.storage.get_file(artifact.key, folder / "mine.mp4")
    assert artifact.notes["remuxed"] is True
    assert _packets(folder / "mine.mp4") == _packets(source)
    read = provenance.read_manifest(folder / "mine.mp4")
    assert read is not None
    assert read.valid
    assert (read.model, read.reference) == ("wan2.6-i2v", "job_9")
    assert artifact.preview_key
    assert artifact.last_frame_key


@pytest.mark.parametrize(
    "changes",
    [
        {"watermark": True},
        {"frames": 30},
        {"width": 192, "height": 96},
        {"fps": 8, "frames": 16},
    ],
)
def test_another_order_is_met_by_encoding_again(context, folder, changes):
    source = _providers_clip(context, folder)
    plan = replace(PLAN, **changes)
    artifact = finish.finish_file(source, plan, context, key="out/1", folder=folder)
    assert "remuxed" not in artifact.notes
    context.storage.get_file(artifact.key, folder / "mine.mp4")
    facts = probe(folder / "mine.mp4", depth="all")
    assert (facts.width, facts.height, facts.fps, facts.frames) == (
        plan.width,
        plan.height,
        plan.fps,
        plan.frames,
    )


@pytest.mark.parametrize("watermark", [False, True])
def test_a_providers_own_sound_stays_when_sound_was_to_be_made(
    context, folder, watermark
):
    sound = AudioPlan(mode="generate", prompt="rain", seed=1)
    source = _providers_clip(context, folder, sound=sound, frames=65)
    plan = replace(
        PLAN,
        frames=65,
        watermark=watermark,
        audio=AudioPlan(mode="generate", prompt="engine", seed=1),
    )
    artifact = finish.finish_file(source, plan, context, key="out/1", folder=folder)
    assert artifact.notes["audio"] == {"by": "provider"}
    context.storage.get_file(artifact.key, folder / "mine.mp4")
    mine, theirs = read_sound(folder / "mine.mp4")[0], read_sound(source)[0]
    likeness = np.corrcoef(mine[: 3 * RATE, 0], theirs[: 3 * RATE, 0])[0, 1]
    assert likeness > 0.8  # hiss, coded once or twice more


@pytest.mark.parametrize("lasts", [2.5, 3.9, 4.2, 6.0])
@pytest.mark.parametrize("mode", ["generate", "url"])
def test_a_providers_sound_of_another_length_is_fitted_to_an_untouched_picture(
    context, folder, mode, lasts
):
    silent = _providers_clip(context, folder, frames=65)
    source, track = folder / "odd.mp4", folder / "odd.m4a"
    audio.write_track(Sound(tone(lasts)), track)
    audio.mux(silent, track, source)
    plan = replace(PLAN, frames=65, audio=AudioPlan(mode=mode, prompt="rain"))
    artifact = finish.finish_file(
        source,
        plan,
        context,
        key="out/1",
        folder=folder,
        keep_sound=mode == "url",
    )
    assert artifact.notes["remuxed"] is True
    assert artifact.notes["audio"] == {"by": "provider"}
    context.storage.get_file(artifact.key, folder / "mine.mp4")
    assert _packets(folder / "mine.mp4") == _packets(source)
    heard, start = read_sound(folder / "mine.mp4")
    assert start == pytest.approx(0, abs=1e-3)
    assert len(heard) / RATE == pytest.approx(65 / 16, abs=1 / 16)
    assert np.argmax(np.abs(np.fft.rfft(heard[: 2 * RATE, 0]))) / 2 == 440
    after = heard[int((lasts + 0.1) * RATE) : int(4.05 * RATE)]
    assert not len(after) or np.abs(after).max() < 0.01


def test_a_providers_sound_goes_when_none_was_ordered(context, folder):
    sound = AudioPlan(mode="generate", prompt="rain", seed=1)
    source = _providers_clip(context, folder, sound=sound)
    artifact = finish.finish_file(source, PLAN, context, key="out/1", folder=folder)
    assert not artifact.has_audio
    assert artifact.notes["remuxed"] is True


class NetworkSound:
    """A text-to-audio engine that notes when it was asked."""

    name = "Net"

    def __init__(self, events, error=None):
        self._events, self._error = events, error

    def sound(self, prompt, *, seconds, seed):
        self._events.append("sound")
        if self._error:
            raise self._error
        return Sound(tone(seconds))


SINGING = replace(PLAN, audio=AudioPlan(mode="generate", prompt="rain", seed=1))


def test_a_network_makes_sound_when_the_engine_is_done_with_the_card(
    context, folder, monkeypatch
):
    events = []

    def frames():
        yield from _ramp(SINGING)
        events.append("last frame")

    monkeypatch.setattr(finish, "_sound_engine", lambda _: NetworkSound(events))
    artifact, _ = _finished(SINGING, context, folder, frames())
    assert events == ["last frame", "sound"]
    assert artifact.notes["audio"]["by"] == "Net"


@pytest.mark.parametrize("error", [OutOfMemory("full"), EngineFailed("only NaN")])
def test_a_network_that_fails_leaves_the_sound_to_the_builtin_rules(
    context, folder, monkeypatch, error
):
    monkeypatch.setattr(finish, "_sound_engine", lambda _: NetworkSound([], error))
    artifact, _ = _finished(SINGING, context, folder)
    assert artifact.has_audio
    assert artifact.notes["audio"]["by"] == "ambience"
    assert artifact.notes["audio"]["scenes"] == ["rain"]


@pytest.mark.parametrize(
    "index", ["", "{}", '{"_class_name": "WanPipeline"}', '{"_class_name": 7}']
)
def test_a_damaged_text_to_audio_model_is_logged_once_and_fails_no_clip(
    context, folder, caplog, index
):
    (context.weights / "audio").mkdir(parents=True)
    (context.weights / "audio" / "model_index.json").write_text(index)
    for _ in range(2):
        artifact = finish._sound(SINGING, context, folder)[1]
        assert artifact["audio"]["by"] == "ambience"
    assert caplog.text.count("sound is the built-in one here") == 1


def _flagged(folder, *, size, pixel_aspect=Fraction(1), turned=False):
    """Write a grey clip with a red stripe where players show the top of it."""
    width, height = size
    picture = np.full((height, width, 3), 90, np.uint8)
    stripe = picture[:, :10] if turned else picture[:10]
    stripe[:] = (200, 30, 30)
    path = folder / "odd.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = pixel_aspect
        for _ in range(33):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    if turned:  # a quarter clockwise, as phones write it into the track's header
        data = bytearray(path.read_bytes())
        at = data.index(b"tkhd") + 4 + 40
        data[at : at + 36] = struct.pack(
            ">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30
        )
        path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "odd",
    [
        {"size": (160, 96)},
        {"size": (120, 96), "pixel_aspect": Fraction(4, 3)},
        {"size": (160, 96), "pixel_aspect": Fraction(4, 3)},
        {"size": (96, 160), "turned": True},
    ],
)
def test_a_providers_clip_is_delivered_as_players_show_it(context, folder, odd):
    source = _flagged(folder, **odd)
    artifact = finish.finish_file(source, PLAN, context, key="out/1", folder=folder)
    context.storage.get_file(artifact.key, folder / "mine.mp4")
    facts = probe(folder / "mine.mp4")
    assert (facts.width, facts.height, facts.is_shown_as_stored) == (160, 96, True)
    seen = _pixels(folder / "mine.mp4")[16].astype(int)
    assert np.abs(seen[4, ::20] - (200, 30, 30)).max() < 30  # colours untagged
    assert np.abs(seen[14:, ::20] - 90).max() < 12


def test_a_providers_damaged_sound_is_unusable(context, folder):
    sound = AudioPlan(mode="generate", prompt="rain", seed=1)
    source = _providers_clip(context, folder, sound=sound)
    source.write_bytes(with_damaged_sound(source.read_bytes()))
    with pytest.raises(UnusableVideo, match="sound"):
        audio.read_track(source)
    plan = replace(PLAN, watermark=True, audio=sound)
    with pytest.raises(UnusableVideo, match="sound"):
        finish.finish_file(source, plan, context, key="out/1", folder=folder)


def test_a_file_that_is_no_video_is_refused(context, folder):
    for name, data in {
        "html": b"<html>error</html>",
        "list": b"#EXTM3U\nfile:///etc/passwd\n",
        "cut": write_video(folder / "v.mp4").read_bytes()[:1500],
    }.items():
        (folder / name).write_bytes(data)
        with pytest.raises(UnusableVideo):
            finish.finish_file(folder / name, PLAN, context, key="out/1", folder=folder)


def test_a_delivered_file_gets_another_sound_and_keeps_its_picture(context, folder):
    first = AudioPlan(mode="generate", prompt="rain", seed=1)
    source = _providers_clip(context, folder, sound=first, watermark=True, frames=65)
    path = write_sound(folder / "in", tone(5, hz=1000), kind="mp3")
    plan = replace(
        PLAN,
        watermark=True,
        frames=65,
        reference="job_2",
        audio=AudioPlan(mode="url", path=path),
    )
    artifact = finish.revoice(source, plan, context, key="out/1", folder=folder)
    context.storage.get_file(artifact.key, folder / "mine.mp4")
    assert _packets(folder / "mine.mp4") == _packets(source)
    heard = read_sound(folder / "mine.mp4")[0]
    spectrum = np.abs(np.fft.rfft(heard[: 2 * RATE, 0]))
    assert np.argmax(spectrum) / 2 == pytest.approx(1000, abs=1)
    read = provenance.read_manifest(folder / "mine.mp4")
    assert read is not None
    assert read.reference == "job_2"
