"""Runs the sample of a documentation page as its reader would: as a program."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from inference.media.probe import VideoFacts, probe
from jobs.dialects import pages

if TYPE_CHECKING:
    from tests.stack import LiveStack

PHOTO = Path(__file__).parents[1] / "photos" / "chelsea.jpg"
_BLOCK = re.compile(r"```python\n(?P<code>.*?)```", re.S)
_HOST = "https://your-host"


def run(dialect: str, stack: LiveStack, key: str, folder: Path, image: str) -> Path:
    """Run the page's Python with only host, key and picture put in; give its video."""
    found = _BLOCK.search(pages.page(dialect))
    assert found is not None
    code = found["code"].replace(_HOST, stack.base_url)
    for name, value in (("KEY", key), ("IMAGE", image), ("PHOTO", str(PHOTO))):
        code = re.sub(rf'^{name} = ".*"', f"{name} = {value!r}", code, flags=re.M)
    assert _HOST not in code
    program = folder / "sample.py"
    program.write_text(code)
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "video.mp4"


def facts(data: bytes | Path, folder: Path) -> VideoFacts:
    """Return what is in a downloaded video, every frame decoded."""
    if isinstance(data, Path):
        return probe(data, depth="all")
    path = folder / "downloaded.mp4"
    path.write_bytes(data)
    return probe(path, depth="all")
