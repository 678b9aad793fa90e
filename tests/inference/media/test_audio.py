from __future__ import annotations

import struct
import tracemalloc
import wave

import av
import numpy as np
import pytest

from inference.contracts import Limits
from inference.errors import InputRejected
from inference.media import audio
from inference.media.audio import Sound
from tests.inference.media.sounds import (
    KINDS,
    RATE,
    clicks,
    read_sound,
    tone,
    white_moments,
    write_sound,
    write_video,
)


def _refusal(path, **limits):
    with pytest.raises(InputRejected) as caught:
        audio.load(path, limits=Limits(**limits))
    assert caught.value.field == "audio_url"
    assert caught.value.permanent
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        (kind, rate)
        for kind in KINDS
        for rate in (44_100, 48_000)
        if (kind, rate) != ("ogg", 44_100)  # Opus has no such rate
    ],
)
def test_every_accepted_kind_is_decoded_whole(tmp_path, kind, rate):
    path = write_sound(tmp_path / "in", tone(5, hz=440), kind=kind, rate=rate)
    sound = audio.load(path, limits=Limits())
    assert sound.seconds == pytest.approx(5, abs=0.06)
    spectrum = np.abs(np.fft.rfft(sound.samples[: 4 * RATE, 0]))
    assert np.argmax(spectrum) / 4 == pytest.approx(440, abs=1)
    assert sound.rms_db() == pytest.approx(-13.5, abs=0.6)


def test_a_video_named_as_sound_is_refused(tmp_path):
    path = write_video(tmp_path / "in.m4a", frames=80)
    assert "video" in _refusal(path)


@pytest.mark.parametrize(
    "text",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"<?xml version='1.0'?><MPD/>",
        b"[playlist]\nFile1=http://127.0.0.1/\n",
        b"",
        b"RIFF",
        b"\xff\xd8\xff\xe0 a picture, not a sound" * 9,
    ],
)
def test_playlists_and_strangers_are_refused_unopened(tmp_path, text):
    path = tmp_path / "in.mp3"
    path.write_bytes(text)
    assert "not wav, mp3, m4a, ogg or flac" in _refusal(path)


@pytest.mark.parametrize(
    "head",
    [
        b"RIFF\xff\xff\xff\x7fWAVEfmt ",
        b"fLaC",
        b"OggS",
        b"\0\0\0\x20ftypM4A ",
        b"ID3\x04\0\0\0\0\0\0",
        b"\xff\xfb\x90\x64",
    ],
)
def test_noise_behind_a_true_signature_is_refused(tmp_path, head):
    path = tmp_path / "in"
    noise = np.random.default_rng(5).integers(0, 256, 60_000, dtype=np.uint8)
    path.write_bytes(head + noise.tobytes())
    _refusal(path)


@pytest.mark.parametrize("kind", ["wav", "m4a", "flac"])
def test_a_file_cut_in_half_is_refused(tmp_path, kind):
    path = write_sound(tmp_path / "in", tone(8), kind=kind, rate=44_100)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    _refusal(path)


def test_a_file_damaged_in_the_middle_is_refused(tmp_path):
    noisy = np.random.default_rng(0).normal(0, 0.2, (8 * RATE, 2)).astype(np.float32)
    path = write_sound(tmp_path / "in", noisy, kind="flac")
    data = bytearray(path.read_bytes())
    middle = len(data) // 3
    data[middle : middle * 2] = bytes(middle)
    path.write_bytes(data)
    _refusal(path)


def test_what_is_over_full_scale_is_kept_undistorted(tmp_path):
    """As a float WAV out of an editor may be, or a hot mp3."""
    hot = Sound(tone(4, level=4.0))
    audio.save_wav(hot, tmp_path / "kept.wav")
    kept = audio.load(tmp_path / "kept.wav", limits=Limits())
    power = np.square(np.abs(np.fft.rfft(kept.samples[RATE : 2 * RATE, 0])))
    tone_itself = power[435:446].sum()
    assert (power.sum() - tone_itself) / tone_itself < 1e-6
    quiet = Sound(tone(4, level=0.25))
    audio.save_wav(quiet, tmp_path / "quiet.wav")
    again = audio.load(tmp_path / "quiet.wav", limits=Limits())
    assert np.abs(again.samples - quiet.samples).max() < 1e-4  # as loud as it was


def test_one_broken_sample_makes_the_rest_no_dust(tmp_path):
    samples = tone(4, level=0.25).copy()
    samples[1000] = 1e6
    audio.save_wav(Sound(samples), tmp_path / "kept.wav")
    kept = audio.load(tmp_path / "kept.wav", limits=Limits())
    assert np.abs(kept.samples).max() <= 1.0
    assert np.abs(kept.samples[RATE : 2 * RATE]).max() > 0.25 / 8 * 0.99


def test_silence_is_refused(tmp_path):
    path = write_sound(tmp_path / "in", tone(5, level=0.0), kind="mp3")
    assert "silent" in _refusal(path)


@pytest.mark.parametrize(("seconds", "said"), [(2.5, "2.5 s"), (31, "too long")])
def test_too_short_and_too_long_are_refused(tmp_path, seconds, said):
    path = write_sound(tmp_path / "in", tone(seconds), kind="mp3", rate=44_100)
    assert said in _refusal(path)


@pytest.mark.parametrize("seconds", [3, 30])
def test_the_shortest_and_longest_promised_files_are_taken(tmp_path, seconds):
    path = write_sound(tmp_path / "in", tone(seconds), kind="mp3", rate=44_100)
    assert audio.load(path, limits=Limits()).seconds == pytest.approx(seconds, abs=0.1)


def test_one_byte_over_15_mb_is_refused(tmp_path):
    path = tmp_path / "in.wav"
    with wave.open(str(path), "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(bytes(15 * 1024 * 1024 + 1 - 44))
    assert path.stat().st_size == 15 * 1024 * 1024 + 1
    assert "larger than 15 MB" in _refusal(path)


def test_samples_that_are_no_numbers_are_refused(tmp_path):
    values = np.full((5 * RATE, 1), np.nan, "<f4").tobytes()
    fmt = struct.pack("<HHIIHH", 3, 1, RATE, RATE * 4, 4, 32)
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt
    body += b"data" + struct.pack("<I", len(values)) + values
    path = tmp_path / "in.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert "damaged" in _refusal(path)


def test_a_header_claiming_an_absurd_rate_is_refused(tmp_path):
    path = tmp_path / "in.wav"
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(1)
        out.writeframes(bytes(40))
    _refusal(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_that_needs_too_much_memory_ends_alone(tmp_path, kind):
    """Whatever the file: also a wav that needs no conversion is read in the child."""
    path = write_sound(tmp_path / "in", tone(5), kind=kind)
    assert "cannot be decoded" in _refusal(path, decode_memory_bytes=20 * 1024 * 1024)


def test_a_wav_that_claims_four_gigabytes_takes_no_more_than_it_holds(tmp_path):
    path = tmp_path / "in"
    audio.save_wav(Sound(tone(4)), path)
    data = bytearray(path.read_bytes())
    data[4:8], data[40:44] = (
        struct.pack("<I", 0xFFFF_FFFF),
        struct.pack("<I", 2**32 - 8),
    )
    path.write_bytes(data)
    tracemalloc.start()
    try:
        assert audio.load(path, limits=Limits()).seconds == pytest.approx(4, abs=0.1)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 50 * 1024 * 1024


def test_a_prepared_file_reads_back_the_same(tmp_path):
    sound = Sound(tone(4))
    audio.save_wav(sound, tmp_path / "ready.wav")
    again = audio.load(tmp_path / "ready.wav", limits=Limits())
    assert np.abs(again.samples - sound.samples).max() < 1e-4


# -- length and loudness


@pytest.mark.parametrize("seconds", [5.0625, 9.0])
def test_fit_gives_exactly_the_clips_length_without_a_click(seconds):
    fitted = audio.fit(Sound(tone(6, level=0.8)), seconds=seconds)
    assert len(fitted.samples) == round(seconds * RATE)
    assert abs(fitted.samples[0]).max() < 1e-3
    end = round(min(seconds, 6) * RATE)
    assert abs(fitted.samples[end - 20 : end]).max() < 0.01
    steps = np.abs(np.diff(fitted.samples, axis=0))
    assert steps.max() < 0.8 * 2 * np.pi * 440 / RATE * 1.05
    assert (fitted.samples[6 * RATE :] == 0).all()


def test_the_meter_agrees_with_the_standards_calibration():
    # EBU Tech 3341 case 1: a stereo 1 kHz sine at -23 dBFS reads -23 LUFS.
    assert audio.loudness(
        Sound(tone(20, hz=997, level=10 ** (-23 / 20)))
    ) == pytest.approx(-23.0, abs=0.1)


def test_the_meter_ignores_pauses():
    loud = tone(5, hz=997, level=0.1)
    with_pause = np.concatenate([loud, np.zeros_like(loud), loud])
    assert audio.loudness(Sound(with_pause)) == pytest.approx(
        audio.loudness(Sound(loud)), abs=0.3
    )


@pytest.mark.parametrize("level", [0.003, 0.05, 0.99])
def test_quiet_and_loud_files_end_equally_loud(level):
    rng = np.random.default_rng(3)
    spectrum = np.fft.rfft(rng.normal(0, 1, (6 * RATE, 2)), axis=0)
    hertz = np.fft.rfftfreq(6 * RATE, 1 / RATE)[:, None]
    pink = np.fft.irfft(spectrum * (hertz > 30) / np.sqrt(hertz + 1), axis=0)
    sound = Sound((level * pink / np.abs(pink).max()).astype(np.float32))
    done = audio.normalise(sound)
    gain_needed = -16 - audio.loudness(sound)
    if gain_needed <= 24:
        assert audio.loudness(done) == pytest.approx(-16, abs=0.8)
    assert audio.true_peak_db(done) <= -1.3


def test_hard_peaks_stay_under_the_ceiling():
    sound = Sound(clicks(6, at=np.arange(0.5, 5.5, 0.8)) * 2)
    done = audio.normalise(sound)
    assert audio.true_peak_db(done) <= -1.3
    assert np.isfinite(done.samples).all()


def test_silence_is_not_lifted():
    silent = Sound(np.zeros((RATE, 2), np.float32))
    assert audio.normalise(silent) is silent


# -- into the file


def _under(video, sound, target):
    track = target.with_suffix(".m4a")
    audio.write_track(sound, track)
    audio.mux(video, track, target)


@pytest.mark.parametrize("fps", [8, 16, 24, 30])
def test_sound_and_picture_agree_to_a_frame(tmp_path, fps):
    frames = fps * 4 + 1
    moments = [1.0, 2.0, 3.5]
    flashes = [round(moment * fps) for moment in moments]
    video = write_video(tmp_path / "v.mp4", frames=frames, fps=fps, flash_at=flashes)
    sound = audio.fit(Sound(clicks(5, at=moments)), seconds=frames / fps)
    _under(video, sound, tmp_path / "out.mp4")

    seen = white_moments(tmp_path / "out.mp4")
    heard, start = read_sound(tmp_path / "out.mp4")
    loud = np.flatnonzero(np.abs(heard[:, 0]) > 0.3)
    onsets = loud[np.diff(loud, prepend=-RATE) > RATE // 10] / RATE + start
    assert len(onsets) == len(seen) == 3
    assert np.abs(onsets - seen).max() < 1 / fps / 4


def test_mux_keeps_every_video_packet_and_puts_the_index_first(tmp_path):
    video = write_video(tmp_path / "v.mp4", frames=40, fps=16)
    _under(video, audio.fit(Sound(tone(3)), seconds=2.5), tmp_path / "out.mp4")

    def packets(path):
        with av.open(str(path)) as box:
            return [bytes(p) for p in box.demux(video=0) if p.size]

    assert packets(video) == packets(tmp_path / "out.mp4")
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(tmp_path / "out.mp4")) as box:
        track = box.streams.audio[0]
        assert (track.codec_context.name, track.rate, track.channels) == (
            "aac",
            RATE,
            2,
        )
        assert track.duration is not None
        assert track.time_base is not None
        assert float(track.duration * track.time_base) == pytest.approx(2.5, abs=0.03)


def test_replacing_sound_drops_the_old_track(tmp_path):
    video = write_video(tmp_path / "v.mp4", frames=48, fps=16)
    _under(video, audio.fit(Sound(tone(3, hz=440)), seconds=3), tmp_path / "one.mp4")
    _under(
        tmp_path / "one.mp4",
        audio.fit(Sound(tone(3, hz=1000)), seconds=3),
        tmp_path / "two.mp4",
    )
    with av.open(str(tmp_path / "two.mp4")) as box:
        assert len(box.streams.audio) == 1
    heard, _ = read_sound(tmp_path / "two.mp4")
    spectrum = np.abs(np.fft.rfft(heard[: 2 * RATE, 0]))
    assert np.argmax(spectrum) / 2 == pytest.approx(1000, abs=1)
