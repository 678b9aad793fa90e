"""The cookbook's own lines, run as printed: each writes the file it names."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from inference.media import provenance
from inference.media.audio import RATE, read_track
from inference.media.probe import probe
from tests.stack import ROOT, LiveStack

pytestmark = pytest.mark.stories

TEXT = (ROOT / "docs" / "cookbook.md").read_text()
LOCAL, _, REMOTE = TEXT.partition("## Through the API")


def lines(part: str) -> list[str]:
    found = re.findall(r"^```sh\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
    return "\n".join(found).strip().splitlines()


def run(code: str, folder: Path, env: dict[str, str]) -> str:
    for name in ("tests", "manage.py", "docs", "inference", ".venv"):
        (folder / name).symlink_to(ROOT / name)
    code = code.replace(".venv/bin/python", shlex.quote(sys.executable))
    done = subprocess.run(
        ["bash", "-ec", f"set -o pipefail\n{code}"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_commands_without_a_stack_make_their_files(tmp_path: Path) -> None:
    # The large one is tested where its size is; here it would only cost its time.
    code = "\n".join(lines(LOCAL)).replace("--resolution 4k", "--resolution 480p")
    told = run(code, tmp_path, {"PATH": "/usr/bin:/bin"})
    assert "rain" in told
    assert probe(tmp_path / "rain.mp4").has_audio
    assert probe(tmp_path / "purr.mp4").has_audio
    assert not probe(tmp_path / "marked.mp4").has_audio
    # The file's own tone, which rises from 440 Hz: of one second, bins are hertz.
    heard = np.abs(np.fft.rfft(read_track(tmp_path / "song.mp4").samples[:RATE, 0]))
    assert 430 < np.argmax(heard) < 500
    for name in ("4k", "shots", "song", "marked", "purr"):
        found = provenance.read_manifest(tmp_path / f"{name}.mp4")
        assert found is not None
        assert found.valid


def test_the_commands_through_the_api_make_their_files(
    live_stack: LiveStack, tmp_path: Path
) -> None:
    env = live_stack.env | {"ZOETROPE_URL": live_stack.base_url}
    told = run("\n".join(lines(REMOTE)), tmp_path, env)
    assert '"effect_version": 1' in told
    assert '"expansion": "builtin"' in told
    assert '"engine"' in told  # the scene a rocket is heard as
    assert "refused" in told
    assert not (tmp_path / "never.mp4").exists()
    for name, has_sound in (("orbit", False), ("launch", True), ("birds", True)):
        facts = probe(tmp_path / f"{name}.mp4")
        assert (facts.has_audio, facts.seconds) == (has_sound, 2.0)


def test_the_effects_previews_are_made_on_the_stack(live_stack: LiveStack) -> None:
    told = live_stack.manage("render_previews", "orbit", "--seconds", "1")
    assert "orbit v1: rendered" in told
