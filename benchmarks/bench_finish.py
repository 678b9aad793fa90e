"""Finishing: what marks, sound and provenance cost, and how it compares with ffmpeg.

1. 720p, 81 frames: encode only; then finishing with the visible mark, generated sound,
   C2PA, poster, preview, last frame, checks and storage. Promise: less than 15 % on top.
2. 720p frames delivered at 1080p and 4k with mark, sound and provenance, against the
   ffmpeg program (imageio-ffmpeg) doing scale, overlay and x264 with the same settings
   on the same frames. Aim: at least 0.8 times its speed.
3. Peak memory of 10 s of 4k, in a process of its own. Promise: under 1 GB.

    python -m benchmarks.bench_finish [--rounds 3] [--frames-4k 48] [--no-memory]
"""

from __future__ import annotations

import argparse
import functools
import itertools
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import imageio_ffmpeg
import numpy as np
from PIL import Image

from inference.contracts import AudioPlan, Context, OutputPlan
from inference.media import audio, finish, provenance
from inference.media.animation import animate
from inference.media.encode import Encoder, effort_for
from inference.media.stills import Stills
from inference.media.watermark import Watermark
from inference.testing import local_context

if TYPE_CHECKING:
    from inference.contracts import Frame

PHOTO = Path("tests/photos/coffee.jpg")
SOUND = AudioPlan(mode="generate", prompt="rain on the window", seed=1)
SIZE = (1280, 720)
FPS = 16


@dataclass(frozen=True)
class Timing:
    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:6.3f} s ({self.cpu:6.3f} s of CPU)"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench_finish")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames-4k", type=int, default=48)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of-4k", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.memory_of_4k:
        return _long_4k(given.memory_of_4k)

    with tempfile.TemporaryDirectory(prefix="bench-finish-") as place:
        context = local_context(Path(place))
        frames = _frames(81)
        ok = _overhead(context, frames, rounds=given.rounds)
        for width, height, count in ((1920, 1080, 81), (3840, 2160, given.frames_4k)):
            plan = _plan(width, height, count)
            ok &= _against_ffmpeg(context, frames, plan, rounds=given.rounds)
    if not given.no_memory:
        ok &= _memory()
    return 0 if ok else 1


def _frames(count: int) -> list[Frame]:
    """Return frames of a slowly moving photo; not read-only, so none is reused."""
    width, height = SIZE
    return list(
        animate(
            PHOTO,
            width=width,
            height=height,
            frames=count,
            fps=FPS,
            prompt="slow zoom in, pan left",
            seed=1,
        )
    )


def _plan(width: int, height: int, frames: int) -> OutputPlan:
    return OutputPlan(
        width=width,
        height=height,
        fps=FPS,
        frames=frames,
        watermark=True,
        audio=SOUND,
        model="motion",
        reference="bench",
        generated=False,
    )


# -- 1. the cost of everything but the encoding --------------------------------------


def _overhead(context: Context, frames: list[Frame], *, rounds: int) -> bool:
    plan = _plan(*SIZE, len(frames))
    bare, whole = [], []
    for turn in range(rounds):
        bare.append(_timed(lambda: _encode_only(frames, plan, context)))
        whole.append(_timed(_finishing(frames, plan, context, f"720/{turn}")))
    one, two = _best(bare), _best(whole)
    print("\n720p, 81 frames")
    print(f"  encode only (floor)                    {one}")
    print(f"  finish: marks, sound, C2PA, stills     {two}")
    over = two.wall / one.wall - 1
    parts = _parts(frames, plan, context)
    for name, part in parts.items():
        print(f"    {name:36} {part}  {part.cpu / one.cpu:6.1%} of the CPU")
    print(f"  ratio, CPU of finish to encode only     {two.cpu / one.cpu:.3f}")
    print(f"  ratio, time of finish to encode only    {1 + over:.3f}  (promise < 1.15)")
    return over < 0.15


def _encode_only(frames: list[Frame], plan: OutputPlan, context: Context) -> None:
    target = context.workdir / "bare.mp4"
    with Encoder(
        target, width=plan.width, height=plan.height, fps=plan.fps, source=SIZE
    ) as encoder:
        for frame in _stream(frames, plan.frames):
            encoder.write(frame)


def _finish(frames: list[Frame], plan: OutputPlan, context: Context, key: str) -> None:
    finish.finish(
        _stream(frames, plan.frames), plan, context, key=key, folder=context.workdir
    )


def _finishing(
    frames: list[Frame], plan: OutputPlan, context: Context, key: str
) -> Callable[[], None]:
    return functools.partial(_finish, frames, plan, context, key)


def _parts(
    frames: list[Frame], plan: OutputPlan, context: Context
) -> dict[str, Timing]:
    """Return what each part takes alone."""
    video = context.workdir / "bare.mp4"
    marks = Watermark(plan.width, plan.height, visible=True, test=False)
    with Encoder(
        context.workdir / "one.mp4", width=plan.width, height=plan.height, fps=FPS
    ) as encoder:
        picture = encoder.convert(frames[0])
        encoder.put(picture)

        def burn() -> None:
            for _ in range(81):
                marks.burn_picture(picture)

        parts = {"marks": _timed(burn)}
    track = context.workdir / "sound.m4a"
    parts["sound"] = _timed(lambda: finish._sound(plan, context, context.workdir))
    muxed, signed = context.workdir / "m.mp4", context.workdir / "s.mp4"

    def seal() -> None:
        audio.mux(video, track, muxed)
        provenance.sign(
            muxed,
            signed,
            model="m",
            reference="r",
            generated=True,
            signer=finish.signer_for(context),
        )

    parts["mux and C2PA"] = _timed(seal)

    def show() -> None:
        stills = Stills(81, fps=FPS, folder=context.workdir)
        for _ in range(81):
            stills.see(picture)
        stills.close()

    parts["poster, preview, last frame"] = _timed(show)
    parts["checks"] = _timed(lambda: finish.verify(signed, plan))
    return parts


# -- 2. against ffmpeg ---------------------------------------------------------------


def _against_ffmpeg(
    context: Context, frames: list[Frame], plan: OutputPlan, *, rounds: int
) -> bool:
    mark = context.workdir / "mark.png"
    _mark_as_png(plan, mark)
    theirs, ours = [], []
    for turn in range(rounds):
        theirs.append(_timed(lambda: _ffmpeg(frames, plan, mark, context.workdir)))
        ours.append(_timed(_finishing(frames, plan, context, f"{plan.width}/{turn}")))
    one, two = _best(theirs), _best(ours)
    print(f"\n{plan.width}x{plan.height} from 720p, {plan.frames} frames")
    print(f"  ffmpeg: scale, overlay, x264, aac (floor) {one}")
    print(f"  finish: the same, signed and checked      {two}")
    ratio = one.wall / two.wall
    print(f"  ratio, our speed to ffmpeg's              {ratio:.2f}  (aim 0.8)")
    return ratio >= 0.8


def _mark_as_png(plan: OutputPlan, target: Path) -> None:
    """Write the corner mark as a picture with transparency, for ffmpeg's overlay."""
    size = (plan.height, plan.width, 3)
    marks = Watermark(plan.width, plan.height, visible=True, test=False)
    on_black = marks.apply(np.zeros(size, np.uint8)).astype(int)
    on_white = marks.apply(np.full(size, 255, np.uint8)).astype(int)
    alpha = 255 - (on_white - on_black)[..., :1]
    colour = on_black * 255 // np.maximum(alpha, 1)
    whole = np.concatenate([colour, alpha], axis=2).clip(0, 255).astype(np.uint8)
    Image.fromarray(whole).crop(Image.fromarray(whole).getbbox()).save(target)


def _ffmpeg(frames: list[Frame], plan: OutputPlan, mark: Path, folder: Path) -> None:
    effort = effort_for(plan.width, plan.height)
    width, height = SIZE
    scale = (
        f"scale={plan.width}:{plan.height}:flags=lanczos"
        ":out_color_matrix=bt709:out_range=tv,format=yuv420p"
    )
    margin = round(min(plan.width, plan.height) * 0.02)
    command = [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"),
        *("-r", str(FPS), "-i", "-", "-i", str(mark)),
        *("-f", "lavfi", "-i", f"anoisesrc=d={plan.seconds}:c=pink:r=48000"),
        "-filter_complex",
        f"[0:v]{scale}[v];[v][1:v]overlay=W-w-{margin}:H-h-{margin}[o]",
        *("-map", "[o]", "-map", "2:a", "-c:a", "aac", "-b:a", "128k", "-ac", "2"),
        *("-c:v", "libx264", "-preset", effort.preset, "-crf", str(effort.crf)),
        *("-profile:v", "high", "-x264-params", effort.params, "-g", str(FPS * 2)),
        *("-pix_fmt", "yuv420p", "-colorspace", "bt709", "-color_primaries", "bt709"),
        *("-color_trc", "bt709", "-movflags", "+faststart", str(folder / "ff.mp4")),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as program:
        assert program.stdin is not None
        for frame in _stream(frames, plan.frames):
            program.stdin.write(frame.tobytes())
        program.stdin.close()
    if program.returncode:
        raise SystemExit(f"ffmpeg failed with {program.returncode}")


# -- 3. memory -----------------------------------------------------------------------


def _memory() -> bool:
    print("\n4k, 10 s (160 frames), resize on the CPU")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_finish", "--memory-of-4k", "160"],
        check=False,
    )
    return done.returncode == 0


def _long_4k(count: int) -> int:
    with tempfile.TemporaryDirectory(prefix="bench-4k-") as place:
        context = local_context(Path(place))
        begun = time.monotonic()
        frames = _frames(8)
        _finish(frames, _plan(3840, 2160, count), context, "long")
        spent = time.monotonic() - begun
    peak = _peak_mb()
    print(f"  {spent:.1f} s, {count / spent:.1f} frames/s")
    print(f"  peak memory of the process              {peak:.0f} MB  (promise < 1000)")
    return 0 if peak < 1000 else 1


def _peak_mb() -> float:
    """Return the most this process ever held; ru_maxrss would count its parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


# -- parts ---------------------------------------------------------------------------


def _stream(frames: list[Frame], count: int) -> Iterator[Frame]:
    # To and fro: no jump where the list ends.
    there_and_back = itertools.cycle([*frames, *frames[-2:0:-1]])
    return itertools.islice(there_and_back, count)


def _timed(work: Callable[[], object]) -> Timing:
    wall, cpu = time.perf_counter(), _cpu()
    work()
    return Timing(time.perf_counter() - wall, _cpu() - cpu)


def _cpu() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(
            resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
    )


def _best(timings: list[Timing]) -> Timing:
    return min(timings, key=lambda timing: timing.wall)


if __name__ == "__main__":
    raise SystemExit(main())
