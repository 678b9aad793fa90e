"""motion: drawing and encoding a clip, against the encoder alone fed with its frames.

    python -m benchmarks.bench_motion [--rounds 3] [--frames 64]

Prints frames/s of both and their ratio for each size and kind of move: "plain" only
zooms and shifts, "depth" is drawn through the mesh. Then the peak memory of a 1080p
clip of 161 frames, in a process of its own. Promise: under 400 MB.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from inference.media.animation import animate
from inference.media.encode import Encoder

if TYPE_CHECKING:
    from inference.contracts import Frame

PHOTO = Path("tests/photos/coffee.jpg")
FPS = 16
SIZES = ((720, 480), (1280, 720), (1920, 1080))
MOVES = {"plain": "zoom in and pan left", "depth": "orbit, zoom in"}
MEMORY_LIMIT_MB = 400


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench_motion")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.memory is not None:
        return _measure_memory(given.memory)
    print(f"{'size':>10}  {'moves':5}  {'encoder':>9}  {'motion':>9}  ratio")
    with tempfile.TemporaryDirectory(prefix="bench-motion-") as place:
        target = Path(place) / "out.mp4"
        for width, height in SIZES:
            for name, prompt in MOVES.items():
                _compare(width, height, name, prompt, given, target)
        return _memory(target)


def _compare(
    width: int,
    height: int,
    name: str,
    prompt: str,
    given: argparse.Namespace,
    target: Path,
) -> None:
    # At most 64 1080p frames are held at once: 400 MB.
    count = given.frames

    def drawn() -> Iterator[Frame]:
        return animate(
            PHOTO,
            width=width,
            height=height,
            frames=count,
            fps=FPS,
            prompt=prompt,
            seed=1,
        )

    held = list(drawn())
    alone, together = [], []
    for _ in range(given.rounds):  # in turn, so that both see the same machine
        alone.append(count / _encode(lambda: iter(held), width, height, target))
        together.append(count / _encode(drawn, width, height, target))
    floor, got = statistics.median(alone), statistics.median(together)
    print(
        f"{width:>5}x{height:<4}  {name:5}  {floor:5.1f} f/s  {got:5.1f} f/s  "
        f"{got / floor:5.2f}"
    )


def _encode(
    frames: Callable[[], Iterator[Frame]], width: int, height: int, target: Path
) -> float:
    started = time.perf_counter()
    with Encoder(target, width=width, height=height, fps=FPS) as encoder:
        for frame in frames():
            encoder.write(frame)
    return time.perf_counter() - started


def _memory(target: Path) -> int:
    command = [sys.executable, "-m", "benchmarks.bench_motion", "--memory", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = int(done.stdout)
    print(f"1920x1080, 161 frames: peak {peak} MB (at most {MEMORY_LIMIT_MB})")
    return 0 if peak < MEMORY_LIMIT_MB else 1


def _measure_memory(target: Path) -> int:
    frames = animate(
        PHOTO, width=1920, height=1080, frames=161, fps=FPS, prompt="orbit", seed=1
    )
    _encode(lambda: frames, 1920, 1080, target)
    # Not getrusage: its figure begins with the parent's.
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
    return 0


if __name__ == "__main__":
    sys.exit(main())
