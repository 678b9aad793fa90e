"""Sound: a customer's file made safe, loudness, length, and AAC beside a finished picture.

A ``Sound`` is always 48 kHz stereo float32. ``load`` accepts wav, mp3, m4a, ogg and flac,
decodes every sample in a limited child process and refuses anything else with
``InputRejected(field="audio_url")``. ``fit`` cuts or pads to the clip, ``normalise``
brings it to one loudness under a true-peak ceiling, ``write_track`` makes AAC of it,
and ``mux`` puts that under a video without touching the video's packets. Making sound is left to ``ambience`` and engines.
"""

from __future__ import annotations

import heapq
import json
import os
import subprocess
import sys
import tempfile
import wave
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from inference.errors import EngineFailed, InputRejected
from inference.media import audio_child
from inference.media.probe import UnusableVideo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av import Packet
    from av.container import InputContainer
    from av.stream import Stream
    from numpy.typing import NDArray

    from inference.contracts import Limits

    #: (samples, 2) float32, about -1..1.
    Samples = NDArray[np.float32]

RATE = 48_000
FIELD = "audio_url"
#: Loudness of customer files and of generated beds, LUFS (ITU-R BS.1770-4).
TARGET_LUFS = -16.0
AMBIENCE_LUFS = -20.0
CEILING_DBTP = -1.5
#: Below this a file counts as silent, and quieter parts are never lifted further.
SILENCE_DB = -60.0
MAX_GAIN_DB = 24.0
AAC_BIT_RATE = 128_000

_LENGTH_TOLERANCE_S = 0.1  # mp3 and AAC pad a 30 s recording to 30.05 s


@dataclass(frozen=True)
class Sound:
    samples: Samples

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE

    def rms_db(self) -> float:
        power = float(np.mean(np.square(self.samples, dtype=np.float64)))
        return 10 * float(np.log10(max(power, 1e-20)))


class SoundEngine(Protocol):
    """Makes a sound from words; what `ambience` and the text-to-audio engines share."""

    name: str

    def sound(self, prompt: str, *, seconds: float, seed: int) -> Sound:
        """Return about ``seconds`` of sound; the same arguments give the same sound."""


# -- a customer's file ---------------------------------------------------------------


def load(path: Path, *, limits: Limits) -> Sound:
    """Decode all of ``path`` and return it; refuse what is not a usable sound file."""
    size = path.stat().st_size
    if size > limits.audio_bytes:
        megabytes = limits.audio_bytes // (1024 * 1024)
        raise InputRejected(
            f"The sound file is larger than {megabytes} MB.", field=FIELD
        )
    with path.open("rb") as file:
        container_format = sniff(file.read(64))
    if container_format is None:
        raise InputRejected(
            "The sound file is not wav, mp3, m4a, ogg or flac.", field=FIELD
        )
    sound = _decode_in_child(path, container_format=container_format, limits=limits)
    _check(sound, limits=limits)
    return sound


def sniff(head: bytes) -> str | None:
    """Return the demuxer for a file that begins with ``head``; None when not accepted.

    Naming the demuxer keeps FFmpeg from probing, and so from playlists and scripts.
    """
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"fLaC":
        return "flac"
    if head[:4] == b"OggS":
        return "ogg"
    if head[4:8] == b"ftyp":
        return "mov"
    # An MPEG frame: eleven set bits, layer III, neither free bit rate nor reserved.
    if head[:3] == b"ID3" or (
        len(head) > 3
        and head[0] == 0xFF
        and head[1] & 0xE6 == 0xE2
        and head[2] >> 4 not in (0, 15)
    ):
        return "mp3"
    return None


def save_wav(sound: Sound, path: Path) -> None:
    """Write 16-bit PCM: a sound made safe, to be kept.

    One whose peaks are over full scale (floats may be) is made quieter, not clipped; its
    loudness is set later anyway. What is far over it is damage and is clipped.
    """
    peak = min(8.0, max(1.0, float(np.abs(sound.samples).max(initial=0.0))))
    scaled = np.round(sound.samples * (32767 / peak))
    pcm = np.clip(scaled, -32768, 32767).astype("<i2")
    with wave.open(str(path), "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(pcm.tobytes())


def _decode_in_child(path: Path, *, container_format: str, limits: Limits) -> Sound:
    with tempfile.TemporaryDirectory(prefix="sound-") as folder:
        target = Path(folder) / "decoded.f32"
        command = [
            *(sys.executable, "-I", audio_child.__file__),
            *(str(path), str(target), container_format),
            str(limits.audio_seconds_max + _LENGTH_TOLERANCE_S),
            str(limits.decode_memory_bytes),
            str(max(1, int(limits.decode_seconds))),
        ]
        environment = {
            "PATH": os.defpath,
            "OPENBLAS_NUM_THREADS": "1",  # its thread buffers count as address space
        }
        try:
            child = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=environment,
                timeout=limits.decode_seconds,
                check=False,
            )
            answer = json.loads(child.stdout) if child.returncode == 0 else {}
        except subprocess.TimeoutExpired:
            answer = {"reason": "takes too long to decode"}
        except ValueError:
            answer = {}
        if not answer.get("ok"):
            reason = answer.get("reason", "cannot be decoded")
            raise InputRejected(f"The sound file {reason}.", field=FIELD)
        samples = np.fromfile(target, np.float32).reshape(-1, 2)
    return Sound(samples)


def _check(sound: Sound, *, limits: Limits) -> None:
    shortest, longest = limits.audio_seconds_min, limits.audio_seconds_max
    if not (
        shortest - _LENGTH_TOLERANCE_S <= sound.seconds <= longest + _LENGTH_TOLERANCE_S
    ):
        raise InputRejected(
            f"The sound file is {sound.seconds:.1f} s long; "
            f"it must be {shortest:g} to {longest:g} s.",
            field=FIELD,
        )
    if not np.isfinite(sound.samples).all():
        raise InputRejected("The sound file is damaged.", field=FIELD)
    if sound.rms_db() < SILENCE_DB:
        raise InputRejected("The sound file is silent.", field=FIELD)


# -- length and loudness -------------------------------------------------------------


def fit(sound: Sound, *, seconds: float) -> Sound:
    """Cut or pad with silence to ``seconds``, rounded to a sample, with short fades."""
    wanted = round(seconds * RATE)
    samples = sound.samples[:wanted].copy()
    cut = len(sound.samples) > wanted
    _fade(samples, in_seconds=0.005, out_seconds=0.3 if cut else 0.05)
    if len(samples) < wanted:
        samples = np.pad(samples, ((0, wanted - len(samples)), (0, 0)))
    return Sound(samples)


def _fade(samples: Samples, *, in_seconds: float, out_seconds: float) -> None:
    rise = min(int(in_seconds * RATE), len(samples) // 4)
    fall = min(int(out_seconds * RATE), len(samples) // 4)
    if rise:
        samples[:rise] *= _half_cosine(rise)[:, None]
    if fall:
        samples[-fall:] *= _half_cosine(fall)[::-1, None]


def _half_cosine(count: int) -> NDArray[np.float32]:
    ramp = np.sin(np.linspace(0, np.pi / 2, count, endpoint=False)) ** 2
    return ramp.astype(np.float32)


def normalise(sound: Sound, *, lufs: float = TARGET_LUFS) -> Sound:
    """Return the sound at ``lufs`` (lifted by at most 24 dB), true peaks ≤ -1.5 dBTP."""
    measured = loudness(sound)
    if measured == -np.inf:
        return sound
    gain_db = min(lufs - measured, MAX_GAIN_DB)
    return _limit(Sound(sound.samples * np.float32(10 ** (gain_db / 20))))


def loudness(sound: Sound) -> float:
    """Return integrated loudness in LUFS, gated; -inf for silence.

    Source: ITU-R BS.1770-4, annex 1, with its K-weighting applied to the spectrum of
    each 400 ms block (75 % overlap) instead of by recursive filters.
    """
    block, hop = int(0.4 * RATE), int(0.1 * RATE)
    samples = sound.samples
    if len(samples) < block:
        samples = np.pad(samples, ((0, block - len(samples)), (0, 0)))
    weights = _k_weights(block)
    starts = range(0, len(samples) - block + 1, hop)
    powers = np.empty(len(starts))
    for index, start in enumerate(starts):
        spectrum = np.fft.rfft(samples[start : start + block], axis=0)
        energy = np.square(np.abs(spectrum)).sum(axis=1)
        powers[index] = 2 * float(energy @ weights) / block**2
    heard = powers[_lufs(powers) > -70]
    if not len(heard):
        return -np.inf
    heard = heard[_lufs(heard) > float(_lufs(heard.mean())) - 10]
    return float(_lufs(heard.mean()))


def _lufs(power: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-20))


def _k_weights(block: int) -> NDArray[np.float64]:
    """Return |H(f)|² of the two K-weighting filters at the bins of a real FFT."""
    z = np.exp(-2j * np.pi * np.fft.rfftfreq(block))
    shelf = (1.53512485958697 - 2.69169618940638 * z + 1.19839281085285 * z**2) / (
        1 - 1.69065929318241 * z + 0.73248077421585 * z**2
    )
    high_pass = (1 - 2 * z + z**2) / (
        1 - 1.99004745483398 * z + 0.99007225036621 * z**2
    )
    return np.square(np.abs(shelf * high_pass))


def true_peak_db(sound: Sound) -> float:
    """Return the highest peak between samples too, by four times oversampling, in dBTP."""
    return 20 * float(np.log10(max(float(_true_peaks(sound.samples).max()), 1e-10)))


def _true_peaks(samples: Samples) -> NDArray[np.float32]:
    """Return, per sample, the largest level at it and at the three points after it."""
    peaks = np.abs(samples).max(axis=1)
    taps = np.arange(-8, 8)
    for phase in (0.25, 0.5, 0.75):
        kernel = np.sinc(phase - taps) * np.hanning(18)[1:-1]
        for channel in range(2):
            between = np.convolve(samples[:, channel], kernel, mode="full")
            peaks = np.maximum(peaks, np.abs(between[8 : 8 + len(peaks)]))
    return peaks.astype(np.float32)


def _limit(sound: Sound) -> Sound:
    """Hold true peaks under the ceiling by a smooth gain with 5 ms of look-ahead."""
    ceiling = 10 ** (CEILING_DBTP / 20)
    # Between samples a peak stands at most some 3 dB above its neighbours; 6 dB is safe.
    if float(np.abs(sound.samples).max()) * 2 <= ceiling:
        return sound
    peaks = _true_peaks(sound.samples)
    if peaks.max() <= ceiling:
        return sound
    step, reach = 48, 5  # 1 ms blocks, five of them ahead and behind
    count = -(-len(peaks) // step)
    blocks = np.pad(peaks, (0, count * step - len(peaks))).reshape(count, step)
    gain = np.minimum(1.0, ceiling / np.maximum(blocks.max(axis=1), 1e-9))
    padded = np.pad(gain, 2 * reach, constant_values=1.0)
    lowest = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).min(axis=1)
    window = np.hanning(2 * reach + 1)[1:-1]
    smooth = np.convolve(lowest, window / window.sum(), mode="same")[reach:-reach]
    where = (np.arange(count) + 0.5) * step
    curve = np.interp(np.arange(len(peaks)), where, smooth).astype(np.float32)
    return Sound(sound.samples * curve[:, None])


# -- into the file -------------------------------------------------------------------


def write_track(sound: Sound, target: Path) -> None:
    """Write the sound as AAC, 128 kbit/s, alone in an mp4."""
    import av

    planar = np.ascontiguousarray(sound.samples.T)
    with av.open(str(target), "w", format="mp4") as out:
        stream = out.add_stream(
            "aac",
            rate=RATE,
            layout="stereo",
            # Same bits, 35 ms instead of 150 for 5 s, and a higher SNR (rain 8 dB
            # against 6, tones 50 against 26) at an equal spectral error.
            options={"b": str(AAC_BIT_RATE), "aac_coder": "fast"},
        )
        for start in range(0, planar.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(planar[:, start : start + 1024]),
                format="fltp",
                layout="stereo",
            )
            frame.sample_rate = RATE
            frame.pts = start
            frame.time_base = Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def read_track(source: Path) -> Sound:
    """Return the sound of a clip, from its first picture's moment on.

    For what a provider or we ourselves made; a customer's file goes through `load`.
    Raises UnusableVideo when it does not decode.
    """
    import av

    try:
        return _read_track(source)
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise UnusableVideo(
            f"the sound of {source.name} is damaged: {error}"
        ) from error


def _read_track(source: Path) -> Sound:
    import av

    with av.open(str(source), "r", format="mp4") as box:
        resampler = av.AudioResampler(format="flt", layout="stereo", rate=RATE)
        pieces: list[av.AudioFrame] = []
        begins = 0.0
        for frame in box.decode(audio=0):
            if not pieces:
                begins = frame.time or 0.0
            pieces += resampler.resample(frame)
        pieces += resampler.resample(None)
    samples = np.concatenate(
        [piece.to_ndarray().astype(np.float32).reshape(-1, 2) for piece in pieces]
    )
    late = round(begins * RATE)
    if late > 0:
        samples = np.pad(samples, ((late, 0), (0, 0)))
    return Sound(samples[max(0, -late) :])


def mux(video: Path, track: Path | None, target: Path) -> None:
    """Write ``target``: the picture of ``video`` and the sound of ``track``.

    Packets are copied as they are, with their times, so both start together as they
    did; sound that ``video`` has itself goes, unless ``track`` is the same file. The
    index comes first. Both are mp4 files.
    """
    import av

    with ExitStack() as opened:
        picture_box = opened.enter_context(av.open(str(video), "r", format="mp4"))
        out = opened.enter_context(
            av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"})
        )
        picture = picture_box.streams.video[0]
        copies: list[tuple[InputContainer, Stream, Stream]] = [
            (picture_box, picture, out.add_stream_from_template(picture))
        ]
        if track is not None:
            sound_box = opened.enter_context(av.open(str(track), "r", format="mp4"))
            sound = sound_box.streams.audio[0]
            copies.append((sound_box, sound, out.add_stream_from_template(sound)))
        waiting = [_packets(*copy) for copy in copies]
        for packet in heapq.merge(*waiting, key=_decode_time):
            out.mux(packet)
    if not target.stat().st_size:
        raise EngineFailed("muxing wrote an empty file")


def _packets(
    box: InputContainer, stream: Stream, copy: Stream
) -> Iterator[Packet[Stream]]:
    for packet in box.demux(stream):
        if packet.dts is None:  # the demuxer's end mark
            continue
        packet.stream = copy
        yield packet


def _decode_time(packet: Packet[Stream]) -> Fraction:
    if packet.dts is None or packet.time_base is None:
        raise EngineFailed("a packet has no time")
    return packet.dts * packet.time_base
