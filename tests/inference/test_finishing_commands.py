"""Sound, expansion, marks and provenance from the command line."""

from __future__ import annotations

import numpy as np
import pytest

from inference.__main__ import main
from inference.media import audio, provenance
from inference.media.probe import probe
from tests.inference.media.sounds import tone, write_sound

PHOTO = "tests/photos/coffee.jpg"


@pytest.fixture
def render(tmp_path):
    def made(*options):
        target = tmp_path / "made.mp4"
        status = main(
            [
                *("render", PHOTO, "--resolution", "480p", "--seconds", "3"),
                *("--seed", "1", "--out", str(target)),
                *("--weights", str(tmp_path / "weights"), *options),
            ]
        )
        assert status == 0
        return target

    return made


def test_a_clip_gets_sound_from_its_prompt_and_says_what_it_is(render, capsys):
    target = render("--prompt", "waves, slow zoom in", "--sound", "generate")
    assert "'scenes': ['sea']" in capsys.readouterr().out
    assert probe(target).has_audio
    assert audio.loudness(audio.read_track(target)) == pytest.approx(-20, abs=1.5)


def test_a_finished_clip_gets_another_sound(render, tmp_path, capsys):
    first = render("--prompt", "waves", "--sound", "generate", "--watermark")
    file = write_sound(tmp_path / "in.mp3", tone(4, hz=1000), kind="mp3")
    second = tmp_path / "second.mp4"
    weights = str(tmp_path / "weights")
    command = ["sound", str(first), "--sound", str(file), "--out", str(second)]
    assert main([*command, "--weights", weights]) == 0
    heard = audio.read_track(second).samples
    spectrum = np.abs(np.fft.rfft(heard[:48_000, 0]))
    assert np.argmax(spectrum) == pytest.approx(1000, abs=2)
    read = provenance.read_manifest(second)
    assert read is not None
    assert read.model == "motion"
    assert main(["inspect", str(second)]) == 0
    assert "algorithmicallyEnhanced" in capsys.readouterr().out


def test_a_clip_is_delivered_larger_with_its_prompt_written_out(render, capsys):
    target = render("--prompt", "a cup", "--expand", "--deliver", "720p")
    assert probe(target).height == 720
    said = capsys.readouterr().out
    assert "Lighting:" in said
    assert "enlarged by: lanczos" in said


def test_an_unusable_sound_file_is_an_error_and_leaves_no_file(
    render, tmp_path, capsys
):
    (tmp_path / "in.mp3").write_bytes(b"#EXTM3U")
    command = ["render", PHOTO, "--sound", str(tmp_path / "in.mp3"), "--seconds", "3"]
    target = tmp_path / "none.mp4"
    assert main([*command, "--resolution", "480p", "--out", str(target)]) == 1
    assert "wav, mp3, m4a, ogg or flac" in capsys.readouterr().err
    assert not target.exists()
