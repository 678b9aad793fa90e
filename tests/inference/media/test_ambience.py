from __future__ import annotations

import numpy as np
import pytest

from inference.media import audio
from inference.media.ambience import SCENES, WORDS, Ambience, ambience, scenes_in

RATE = 48_000
PROMPTS = {scene: scene for scene in SCENES} | {"tone": "a dream"}


def _measure(scene, seed=3):
    """Return centroid (Hz), share of power below 200 Hz, 5 ms crest, stereo likeness."""
    samples = ambience(PROMPTS[scene], seconds=6, seed=seed).samples
    mono = samples.mean(axis=1)
    power = np.square(np.abs(np.fft.rfft(mono)))
    hertz = np.fft.rfftfreq(len(mono), 1 / RATE)
    return {
        "centroid": float((power * hertz).sum() / power.sum()),
        "low": float(power[hertz < 200].sum() / power.sum()),
        "voice": float(power[(hertz > 200) & (hertz < 1000)].sum() / power.sum()),
        "high": float(power[hertz > 4000].sum() / power.sum()),
        "crest": float(np.abs(mono).max() / mono.std()),
        "likeness": float(np.asarray(np.corrcoef(samples.T))[0, 1]),
    }


@pytest.mark.parametrize(
    ("prompt", "scenes"),
    [
        ("A flag flutters in strong wind", ["wind"]),
        ("rainy street, people with umbrellas", ["rain", "crowd"]),
        ("Campfire on the beach, waves", ["fire", "sea"]),
        ("the rocket launches", ["engine"]),
        ("morning in the forest", ["birds"]),
        ("海浪和鸟", ["sea", "birds"]),
        ("", ["tone", "wind"]),
        ("a cat blinks", ["tone", "wind"]),
        ("carpet, brain, season, windowsill", ["tone", "wind"]),
        ("sea wind rain fire birds", ["sea", "wind", "rain"]),
    ],
)
def test_the_prompts_words_choose_up_to_three_scenes_in_order(prompt, scenes):
    assert scenes_in(prompt) == scenes


def test_every_scene_can_be_called_by_its_words():
    for scene, words in WORDS.items():
        for word in words:
            assert scenes_in(word.rstrip("*"))[0] == scene, word


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1])
def test_a_bed_has_the_length_loudness_and_headroom_promised(scene, seed):
    sound = ambience(PROMPTS[scene], seconds=81 / 16, seed=seed)
    assert sound.samples.shape == (round(81 / 16 * RATE), 2)
    assert sound.samples.dtype == np.float32
    assert audio.loudness(sound) == pytest.approx(-20, abs=2)
    assert audio.true_peak_db(sound) <= -1.3
    assert abs(sound.samples[0]).max() < 0.01
    assert abs(sound.samples[-1]).max() < 0.01
    # It never falls silent half way.
    middle = sound.samples[RATE // 2 : -RATE // 2]
    tenths = middle[: len(middle) // 4800 * 4800].reshape(-1, 4800, 2)
    assert np.sqrt(np.square(tenths).mean(axis=(1, 2))).max() < 0.5
    seconds = middle[: 4 * RATE].reshape(4, -1)
    assert (np.sqrt(np.square(seconds).mean(axis=1)) > 0.003).all()


def test_the_same_seed_gives_the_same_samples_and_another_seed_does_not():
    engine = Ambience()
    one = engine.sound("rain on the sea", seconds=3, seed=5)
    two = engine.sound("rain on the sea", seconds=3, seed=5)
    other = engine.sound("rain on the sea", seconds=3, seed=6)
    assert (one.samples == two.samples).all()
    assert np.abs(one.samples - other.samples).mean() > 0.01


@pytest.mark.parametrize("seed", [3, 11])
def test_each_scene_has_a_spectrum_of_its_own(seed):
    seen = {scene: _measure(scene, seed) for scene in SCENES}
    assert seen["wind"]["centroid"] < 500
    assert seen["wind"]["high"] < 0.01
    assert seen["rain"]["centroid"] > 3000
    assert seen["rain"]["low"] < 0.01
    assert 400 < seen["sea"]["centroid"] < 2500
    assert seen["sea"]["low"] > 0.2
    assert seen["fire"]["crest"] > 1.5 * seen["wind"]["crest"]
    assert seen["fire"]["low"] > 0.15
    assert seen["fire"]["high"] > 0.1
    assert seen["crowd"]["voice"] > 0.6
    assert seen["engine"]["low"] > 0.6
    assert seen["engine"]["likeness"] > 0.8
    assert 2500 < seen["birds"]["centroid"] < 7000
    assert seen["birds"]["low"] < 0.01
    assert seen["tone"]["low"] > 0.5
    assert seen["rain"]["likeness"] < 0.3


def test_the_engine_hums_in_harmonics_and_the_wind_does_not():
    def peakiness(scene):
        mono = ambience(PROMPTS[scene], seconds=6, seed=1).samples.mean(axis=1)
        power = np.square(np.abs(np.fft.rfft(mono * np.hanning(len(mono)))))
        hertz = np.fft.rfftfreq(len(mono), 1 / RATE)
        band = power[(hertz > 60) & (hertz < 500)][:2600].reshape(-1, 10).mean(axis=1)
        return band.max() / np.median(band)

    assert peakiness("tone") > 10 * peakiness("wind")
    assert peakiness("engine") > 2 * peakiness("wind")


def test_layers_add_what_each_brings():
    alone = _measure("sea")
    both = ambience("sea with birds", seconds=6, seed=3).samples.mean(axis=1)
    power = np.square(np.abs(np.fft.rfft(both)))
    hertz = np.fft.rfftfreq(len(both), 1 / RATE)
    assert power[hertz > 4000].sum() / power.sum() > alone["high"] + 0.05
    assert power[hertz < 200].sum() / power.sum() > 0.1
