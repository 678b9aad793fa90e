"""Sound without weights: ambience made from noise and sines, chosen by the prompt's words.

Eight scenes (wind, rain, sea, fire, crowd, engine, birds and a tone bed) are layered, up
to three at a time, the first one named the loudest. Stereo, any length, and the same
prompt, length and seed always give the same samples. NumPy only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from inference.media import audio
from inference.media.audio import RATE, Sound

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    Mono = NDArray[np.float32]
    Stereo = NDArray[np.float32]

#: Words that call a scene; a trailing * matches any ending. Chinese needs no word ends.
WORDS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "wind": (
            *(
                "wind",
                "winds",
                "windy",
                "breez*",
                "storm*",
                "gust*",
                "desert*",
                "dune*",
            ),
            *("mountain*", "snow*", "flutter*", "flag*", "kite*", "sky", "cloud*"),
            *("grass*", "field*", "sail*", "hair", "风", "雪", "山", "云"),
        ),
        "rain": (
            *("rain*", "drizzl*", "downpour", "umbrella*", "wet street", "monsoon*"),
            *("thunder*", "puddle*", "waterfall*", "雨", "瀑布"),
        ),
        "sea": (
            *("sea", "seas", "seaside", "ocean*", "wave", "waves", "beach*", "surf*"),
            *("coast*", "shore*", "tide*", "boat*", "ship*", "lake*", "river*"),
            *("water", "island*", "harbor*", "harbour*", "海", "浪", "湖", "河", "船"),
        ),
        "fire": (
            *("fire*", "flame*", "burn*", "campfire*", "bonfire*", "candle*", "torch*"),
            *("ember*", "lava", "volcan*", "blaze*", "火焰", "篝火", "火光", "燃"),
        ),
        "crowd": (
            *(
                "crowd*",
                "people",
                "market*",
                "street*",
                "city*",
                "restaurant*",
                "cafe*",
            ),
            *("café*", "party", "parties", "audience*", "festival*", "concert*"),
            *("stadium*", "coffee*", "bar", "office*", "人群", "街", "市场", "城"),
        ),
        "engine": (
            *("engine*", "car", "cars", "motor*", "truck*", "train*", "rocket*"),
            *("plane*", "aircraft*", "helicopter*", "spaceship*", "spacecraft*"),
            *("drive*", "driving", "race", "racing", "machine*", "robot*", "launch*"),
            *("traffic", "drone", "车", "引擎", "飞机", "火箭", "机器"),
        ),
        "birds": (
            *("bird*", "forest*", "garden*", "tree*", "spring", "morning*", "park"),
            *("jungle*", "meadow*", "flower*", "wood", "woods", "sparrow*", "parrot*"),
            *("sunrise", "鸟", "森林", "花", "树"),
        ),
        "tone": (
            *("dream*", "space", "galax*", "star", "stars", "magic*", "calm*"),
            *("meditat*", "ethereal", "ambient", "music*", "mystic*", "cosmic"),
            *("portrait*", "astronaut*", "梦", "星", "宇宙", "音乐"),
        ),
    }
)

_LAYER_GAINS = (1.0, 0.55, 0.4)
#: How often each voice of the crowd may sound, in syllables a second.
_SYLLABLES = (3.0, 5.5)
#: First three formants, Hz, of six vowels (Peterson and Barney 1952, averaged).
_VOWELS = np.array(
    [
        *([730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240]),
        *([530, 1840, 2480], [570, 840, 2410], [490, 1350, 1690]),
    ]
)


class Ambience:
    """The text-to-audio engine that needs no weights."""

    name = "ambience"

    def sound(self, prompt: str, *, seconds: float, seed: int) -> Sound:
        return ambience(prompt, seconds=seconds, seed=seed)


def ambience(prompt: str, *, seconds: float, seed: int) -> Sound:
    """Return a bed of exactly ``seconds`` (rounded to a sample) for ``prompt``."""
    length = max(1, round(seconds * RATE))
    mix = np.zeros((length, 2), np.float32)
    for scene, gain in zip(scenes_in(prompt), _LAYER_GAINS, strict=False):
        rng = np.random.default_rng([seed % 2**32, *scene.encode()])
        layer = SCENES[scene](rng, length)
        mix += layer * np.float32(gain / max(_rms(layer), 1e-9))
    _fade_ends(mix)
    return audio.normalise(Sound(mix), lufs=audio.AMBIENCE_LUFS)


def scenes_in(prompt: str) -> list[str]:
    """Return up to three scenes, in the order the prompt names them.

    A prompt that names none gets the tone bed over soft wind.

    >>> scenes_in("Waves roll in, gulls and birds above, rain far away")
    ['sea', 'birds', 'rain']
    """
    lowered = prompt.lower()
    first: dict[str, int] = {}
    for scene, pattern in _PATTERNS.items():
        found = pattern.search(lowered)
        if found:
            first[scene] = found.start()
    return sorted(first, key=first.__getitem__)[:3] or ["tone", "wind"]


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    parts = []
    for word in words:
        stem = re.escape(word.rstrip("*"))
        if not word.isascii() and not word.endswith("*") and len(word) < 3:
            parts.append(stem)
        else:
            parts.append(rf"\b{stem}\w*" if word.endswith("*") else rf"\b{stem}\b")
    return re.compile("|".join(parts))


_PATTERNS = {scene: _pattern(words) for scene, words in WORDS.items()}


# -- scenes --------------------------------------------------------------------------


def wind(rng: Generator, length: int) -> Stereo:
    low = _stereo(lambda: _noise(rng, length, low=50, high=260, slope=-0.8), width=0.5)
    mid = _stereo(lambda: _noise(rng, length, low=260, high=900, slope=-0.7), width=0.8)
    whistle = _stereo(lambda: _noise(rng, length, low=600, high=820, slope=0), width=1)
    gust = np.square(_wander(rng, length, every_s=1.6))
    breath = _wander(rng, length, every_s=0.45)
    return (
        low * (0.35 + 0.9 * gust)[:, None]
        + 0.75 * mid * (0.08 + gust * (0.6 + 0.5 * breath))[:, None]
        + 0.22 * whistle * (np.square(gust) * breath)[:, None]
    )


def rain(rng: Generator, length: int) -> Stereo:
    hiss = _stereo(lambda: _noise(rng, length, low=900, high=14_000, slope=-0.25))
    patter = _stereo(
        lambda: _strikes(rng, length, per_second=180, ring_hz=(2_500, 7_500), ms=(1, 4))
    )
    drops = _stereo(
        lambda: _strikes(rng, length, per_second=9, ring_hz=(900, 2_400), ms=(6, 18))
    )
    swell = 0.85 + 0.3 * _wander(rng, length, every_s=2.5)
    return (
        0.55 * _unit(hiss) * swell[:, None] + 0.5 * _unit(patter) + 0.3 * _unit(drops)
    )


def sea(rng: Generator, length: int) -> Stereo:
    t = np.arange(length, dtype=np.float32) / RATE
    out = 0.35 * _unit(
        _stereo(lambda: _noise(rng, length, low=30, high=200, slope=-1), width=0.4)
    )
    # Two trains of breakers: slow rise, crash, then hiss as the water runs back.
    for period, start, gain in ((6.3, 0.25, 1.0), (8.9, 0.62, 0.7)):
        phase = (t / period + start + 0.06 * rng.uniform(-1, 1)) % 1
        crash = np.where(
            phase < 0.38, (phase / 0.38) ** 3, np.exp(-(phase - 0.38) * 5.5)
        ).astype(np.float32)
        wash = np.exp(-(((phase - 0.52) / 0.2) ** 2)).astype(np.float32)
        body = _stereo(lambda: _noise(rng, length, low=120, high=1_800, slope=-0.6))
        foam = _stereo(lambda: _noise(rng, length, low=2_000, high=11_000, slope=-0.3))
        pan = np.array([1.0, 0.75]) if period < 7 else np.array([0.7, 1.0])
        out += (
            gain
            * pan
            * (
                _unit(body) * (0.12 + crash)[:, None]
                + 0.38 * _unit(foam) * (0.05 + wash)[:, None]
            )
        )
    return out.astype(np.float32)


def fire(rng: Generator, length: int) -> Stereo:
    roar = _stereo(lambda: _noise(rng, length, low=35, high=380, slope=-0.9), width=0.5)
    flicker = 0.5 + 0.9 * _wander(rng, length, every_s=0.16)
    breath = _stereo(lambda: _noise(rng, length, low=500, high=3_500, slope=-0.6))
    crackle = _stereo(
        lambda: _strikes(
            rng, length, per_second=16, ring_hz=(1_800, 8_000), ms=(0.4, 2.2), power=2.6
        )
    )
    pops = _stereo(
        lambda: _strikes(
            rng, length, per_second=1.6, ring_hz=(500, 1_600), ms=(2, 7), power=1.5
        )
    )
    return (
        0.55 * _unit(roar) * flicker[:, None]
        + 0.12 * _unit(breath) * flicker[:, None]
        + 0.85 * _unit(crackle)
        + 0.4 * _unit(pops)
    )


def crowd(rng: Generator, length: int) -> Stereo:
    # Speech lives below 5 kHz: a quarter of the rate costs a quarter of the time.
    slow_rate = RATE // 4
    count = -(-length // 4)
    voices = np.zeros((count, 2), np.float32)
    for _ in range(12):
        place = rng.uniform(0.1, 0.9)
        voice = _voice(rng, count, rate=slow_rate) * rng.uniform(0.3, 1.0) ** 1.5
        voices += voice[:, None] * np.sqrt([1 - place, place]).astype(np.float32)
    murmur = _upsample(voices, factor=4)[:length]
    room = _stereo(lambda: _noise(rng, length, low=90, high=2_200, slope=-0.9))
    return _unit(_room(rng, murmur, seconds=0.7, wet=0.5)) + 0.22 * _unit(room)


def engine(rng: Generator, length: int) -> Stereo:
    # Four strokes: each cylinder fires every other turn, none quite like its neighbour.
    base = rng.uniform(26, 34)
    pull = 1 + 0.10 * (_wander(rng, length, every_s=1.8) - 0.5)
    jitter = 1 + 0.012 * (_wander(rng, length, every_s=0.05) - 0.5)
    phase = 2 * np.pi * np.cumsum(base * pull * jitter) / RATE
    out = np.zeros((length, 2), np.float32)
    for order in range(1, 33):
        level = order**-0.85 * rng.uniform(0.35, 1.0) * (1.6 if order % 4 == 0 else 1)
        lean = rng.uniform(0.85, 1.15)
        wave = np.sin(order * phase + rng.uniform(0, 2 * np.pi)) * level
        out[:, 0] += wave * lean
        out[:, 1] += wave / lean
    air = _stereo(lambda: _noise(rng, length, low=150, high=2_800, slope=-0.7))
    beat = (0.55 + 0.45 * np.sin(4 * phase)).astype(np.float32)
    return np.tanh(1.3 * _unit(out)) + 0.25 * _unit(air) * beat[:, None]


def birds(rng: Generator, length: int) -> Stereo:
    song = np.zeros((length, 2), np.float32)
    for _ in range(4):
        pitch = rng.uniform(2_400, 5_200)
        sweep = rng.uniform(-0.35, 0.45)
        trill = rng.choice([0.0, 0.0, 28.0, 45.0])
        place = rng.uniform(0.08, 0.92)
        near = rng.uniform(0.35, 1.0)
        at = rng.uniform(0.05, 0.9)
        while at < length / RATE:
            for _ in range(int(rng.integers(2, 7))):
                lasts = rng.uniform(0.05, 0.15)
                note = _chirp(rng, pitch, sweep=sweep, trill_hz=trill, seconds=lasts)
                _add_at(song, note * np.float32(near), at=at, place=place)
                at += lasts + rng.uniform(0.03, 0.09)
            at += rng.uniform(0.5, 1.9)
    leaves = _stereo(lambda: _noise(rng, length, low=700, high=7_000, slope=-0.5))
    sway = 0.5 + 0.8 * _wander(rng, length, every_s=1.4)
    far = _room(rng, song, seconds=0.9, wet=0.35)
    return _unit(far) + 0.09 * _unit(leaves) * sway[:, None]


def tone(rng: Generator, length: int) -> Stereo:
    t = np.arange(length, dtype=np.float32) / RATE
    root = 110.0 * 2 ** (rng.integers(-3, 5) / 12)
    # Open fifths with a ninth are neither happy nor sad under a picture nobody has seen.
    chord = (1.0, 1.5, 2.0, 2.25, 3.0, 4.0)
    out = np.zeros((length, 2), np.float32)
    for index, ratio in enumerate(chord):
        swell = 0.45 + 0.55 * _wander(rng, length, every_s=2.2)
        for channel in range(2):
            for detune in (-1, 1):
                cents = detune * rng.uniform(2, 6)
                hz = root * ratio * 2 ** (cents / 1200)
                level = 0.8**index / (1 + 0.25 * index)
                turn = rng.uniform(0, 2 * np.pi)
                angle = np.float32(2 * np.pi * hz) * t + np.float32(turn)
                wave = np.sin(angle) + 0.18 * np.sin(2 * angle)
                out[:, channel] += np.float32(level) * wave * swell
    air = _stereo(lambda: _noise(rng, length, low=300, high=5_000, slope=-1))
    return _room(rng, _unit(out) + 0.03 * _unit(air), seconds=1.4, wet=0.35)


SCENES: Mapping[str, Callable[[Generator, int], Stereo]] = MappingProxyType(
    {
        "wind": wind,
        "rain": rain,
        "sea": sea,
        "fire": fire,
        "crowd": crowd,
        "engine": engine,
        "birds": birds,
        "tone": tone,
    }
)


# -- building blocks -----------------------------------------------------------------


def _noise(
    rng: Generator, length: int, *, low: float, high: float, slope: float
) -> Mono:
    """Return noise between ``low`` and ``high`` Hz, its amplitude falling as f**slope."""
    size = _fast_length(length)
    hertz = np.fft.rfftfreq(size, 1 / RATE)
    first, last = np.searchsorted(hertz, [low * 0.5, high * 2])
    inside = hertz[first:last]
    shape = (inside / low) ** slope
    shape = shape / (1 + (low / inside) ** 8) / (1 + (inside / high) ** 8)
    spectrum = np.zeros(len(hertz), np.complex64)
    count = last - first
    spectrum[first:last] = shape * (
        rng.standard_normal(count, np.float32)
        + 1j * rng.standard_normal(count, np.float32)
    )
    return np.fft.irfft(spectrum, size)[:length].astype(np.float32)


def _wander(rng: Generator, length: int, *, every_s: float) -> Mono:
    """Return a smooth random curve in 0..1 that turns about every ``every_s``."""
    knots = max(4, int(length / RATE / every_s) + 4)
    values = rng.uniform(0, 1, knots)
    where = np.arange(length, dtype=np.float32) / RATE / every_s + rng.uniform(0, 1)
    index = where.astype(int)
    part = where - index
    part = (part * part * (3 - 2 * part)).astype(np.float32)
    low = values[np.minimum(index, knots - 1)]
    high = values[np.minimum(index + 1, knots - 1)]
    return (low + (high - low) * part).astype(np.float32)


def _strikes(
    rng: Generator,
    length: int,
    *,
    per_second: float,
    ring_hz: tuple[float, float],
    ms: tuple[float, float],
    power: float = 1.8,
) -> Mono:
    """Return short ringing hits at random moments; few are loud, most are faint."""
    out = np.zeros(length + RATE, np.float32)
    bank = [_ring(rng.uniform(*ring_hz), rng.uniform(*ms)) for _ in range(40)]
    count = int(rng.poisson(per_second * length / RATE)) + 1
    starts = rng.integers(0, length, count)
    kinds = rng.integers(0, len(bank), count)
    gains = (rng.uniform(0.02, 1, count) ** power).astype(np.float32)
    for start, kind, gain in zip(
        starts.tolist(), kinds.tolist(), gains.tolist(), strict=True
    ):
        hit = bank[kind]
        out[start : start + len(hit)] += hit * gain
    return out[:length]


def _ring(hz: float, decay_ms: float) -> Mono:
    decay = decay_ms / 1000 * RATE
    t = np.arange(max(2, int(decay * 5)), dtype=np.float32)
    wave = np.sin(np.float32(2 * np.pi * hz / RATE) * t) * np.exp(-t / decay)
    return wave.astype(np.float32)


def _voice(rng: Generator, count: int, *, rate: int) -> Mono:
    """Return one distant talker: a pitch, vowels that change by syllable, and pauses."""
    pace = rng.uniform(*_SYLLABLES)
    syllables = int(count / rate * pace) + 3
    knots = (np.arange(syllables) + rng.uniform(-0.25, 0.25, syllables)) / pace * rate
    where = np.arange(count)
    pitch = rng.uniform(95, 230) * 2 ** (rng.normal(0, 0.12, syllables))
    phase = 2 * np.pi * np.cumsum(np.interp(where, knots, pitch)) / rate
    vowels = _VOWELS[rng.integers(0, len(_VOWELS), syllables)]
    talking = rng.uniform(0, 1, syllables) > 0.28
    stress = talking * rng.uniform(0.4, 1, syllables)

    # sin(k x) = 2 cos(x) sin((k-1) x) - sin((k-2) x): one sine for all harmonics.
    sine = np.sin(phase).astype(np.float32)
    twice = 2 * np.cos(phase).astype(np.float32)
    before, now = np.zeros_like(sine), sine
    out = np.zeros(count, np.float32)
    for harmonic in range(1, 15):
        gaps = (harmonic * pitch[:, None] - vowels) / np.array([90, 120, 180])
        levels = (np.array([1, 0.5, 0.25]) / (1 + gaps**2)).sum(axis=1) / harmonic**0.3
        out += now * np.interp(where, knots, levels).astype(np.float32)
        before, now = now, twice * now - before
    shape = np.abs(np.sin(np.pi * where / rate * pace / 2 + rng.uniform(0, 3)))
    return out * (np.interp(where, knots, stress) * (0.25 + shape)).astype(np.float32)


def _chirp(
    rng: Generator, pitch: float, *, sweep: float, trill_hz: float, seconds: float
) -> Mono:
    count = int(seconds * RATE)
    x = np.linspace(0, 1, count, dtype=np.float32)
    bend = sweep * rng.uniform(0.6, 1.3)
    hz = pitch * rng.uniform(0.96, 1.05) * (1 + bend * (x - 0.5))
    if trill_hz:
        hz *= 1 + 0.06 * np.sin(2 * np.pi * trill_hz * x * seconds)
    phase = 2 * np.pi * np.cumsum(hz) / RATE
    wave = np.sin(phase) + 0.12 * np.sin(2 * phase)
    return (wave * np.sin(np.pi * x).clip(0) ** 1.5).astype(np.float32)


def _add_at(out: Stereo, mono: Mono, *, at: float, place: float) -> None:
    start = int(at * RATE)
    mono = mono[: max(0, len(out) - start)]
    if len(mono):
        sides = np.sqrt([1 - place, place]).astype(np.float32)
        out[start : start + len(mono)] += mono[:, None] * sides


def _stereo(make: Callable[[], Mono], *, width: float = 1.0) -> Stereo:
    """Return two takes of ``make``; ``width`` 0 is mono, 1 wholly apart."""
    one, two = make(), make()
    return np.stack([one, width * two + (1 - width) * one], axis=1)


def _room(rng: Generator, dry: Stereo, *, seconds: float, wet: float) -> Stereo:
    """Return ``dry`` with the tail of a room of that decay time."""
    count = int(seconds * RATE)
    fall = np.exp(-6.9 * np.linspace(0, 1, count, dtype=np.float32))[:, None]
    tail = rng.standard_normal((count, 2), np.float32) * fall
    size = _fast_length(len(dry) + count)
    echo = np.fft.irfft(
        np.fft.rfft(dry, size, axis=0) * np.fft.rfft(tail, size, axis=0), size, axis=0
    )[: len(dry)].astype(np.float32)
    return dry + echo * np.float32(wet * _rms(dry) / max(_rms(echo), 1e-9))


def _upsample(samples: Stereo, *, factor: int) -> Stereo:
    size = _fast_length(len(samples))
    spectrum = np.fft.rfft(samples, size, axis=0)
    wide = np.zeros((size * factor // 2 + 1, 2), spectrum.dtype)
    wide[: len(spectrum)] = spectrum
    return (np.fft.irfft(wide, size * factor, axis=0) * factor).astype(np.float32)


def _fast_length(length: int) -> int:
    """Return the next length that is even and made of small primes only."""
    size = length + length % 2
    while True:
        rest = size
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2


def _rms(samples: Stereo) -> float:
    flat = np.ascontiguousarray(samples).ravel()
    return float(np.sqrt(np.dot(flat, flat) / flat.size))


def _unit(samples: Stereo) -> Stereo:
    return samples / np.float32(max(_rms(samples), 1e-9))


def _fade_ends(samples: Stereo) -> None:
    rise, fall = (min(int(s * RATE), len(samples) // 3) for s in (0.15, 0.4))
    if rise:
        samples[:rise] *= np.linspace(0, 1, rise, dtype=np.float32)[:, None] ** 2
    if fall:
        samples[-fall:] *= np.linspace(1, 0, fall, dtype=np.float32)[:, None] ** 2
