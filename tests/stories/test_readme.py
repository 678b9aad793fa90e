"""The README's own lines, run as printed against the running stack with a test key."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import av
import pytest

from tests.stack import ROOT, LiveStack

pytestmark = pytest.mark.stories


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(
    command: list[str], live_stack: LiveStack, folder: Path
) -> subprocess.CompletedProcess[str]:
    (folder / "tests").symlink_to(ROOT / "tests")
    (folder / "manage.py").symlink_to(ROOT / "manage.py")
    return subprocess.run(
        command,
        cwd=folder,
        env=live_stack.env,
        capture_output=True,
        text=True,
        check=False,
    )


def here(code: str, live_stack: LiveStack) -> str:
    """Return the printed code with this run's address and Python in it."""
    code = code.replace("http://127.0.0.1:8000", live_stack.base_url)
    return code.replace(".venv/bin/python", sys.executable)


def seconds_of(path: Path) -> float:
    with av.open(path) as video:
        assert video.duration is not None
        return video.duration / av.time_base


def test_the_shell_lines_make_a_video(live_stack: LiveStack, tmp_path: Path) -> None:
    code = "set -e\n" + here("\n".join(blocks("sh")), live_stack)
    done = run(["bash", "-c", code], live_stack, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"status": "succeeded"' in done.stdout
    assert seconds_of(tmp_path / "coffee.mp4") == pytest.approx(3.0, abs=0.1)


def test_the_python_lines_make_a_video(live_stack: LiveStack, tmp_path: Path) -> None:
    """In the terminal in which the line before them made the key."""
    [code] = blocks("python")
    (tmp_path / "rocket.py").write_text(here(code, live_stack))
    lines = f"set -e\n{blocks('sh')[0]}\n.venv/bin/python rocket.py"
    done = run(["bash", "-c", here(lines, live_stack)], live_stack, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert seconds_of(tmp_path / "rocket.mp4") == pytest.approx(5.0, abs=0.1)


def test_every_make_target_of_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", text, re.MULTILINE))
    named = {one or other for one, other in targets}
    makefile = (ROOT / "Makefile").read_text()
    assert named - set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)) == set()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
