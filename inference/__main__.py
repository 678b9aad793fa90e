"""Render without a database, a broker or a web server: ``python -m inference``.

python -m inference render IMAGE --model motion --prompt "slow zoom in" --out out.mp4
python -m inference sound out.mp4 --sound rain.mp3 --out with-rain.mp4
python -m inference inspect out.mp4
python -m inference models
python -m inference resave weights/Wan2.2-I2V-A14B weights/Wan2.2-I2V-A14B-bf16
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from inference import registry, runner
from inference.catalogue import MODELS, PublicModel, RouteSpec
from inference.contracts import (
    Artifact,
    AudioPlan,
    Context,
    Limits,
    OutputPlan,
    Progress,
    RenderRequest,
)
from inference.engines.wan import host
from inference.errors import RenderError
from inference.geometry import AREA, SHORT_SIDE, fit_short_side
from inference.media import audio, expansion, provenance
from inference.media.finish import revoice
from inference.media.images import read_header
from inference.media.probe import probe
from inference.testing import local_context


@dataclass(frozen=True)
class Command:
    """``arguments`` describes the options; ``run`` does it and returns the exit status."""

    summary: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m inference")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        command.arguments(commands.add_parser(name, help=command.summary))
    given = parser.parse_args(arguments)
    try:
        return COMMANDS[given.command].run(given)
    except (RenderError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


# ------------------------------------------------------------------------- render


def _render_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", help="a file, or an http(s) URL")
    parser.add_argument("--model", default="motion", choices=sorted(MODELS))
    parser.add_argument("--prompt", default="")
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--out", type=Path, default=Path("out.mp4"))
    parser.add_argument("--last-image", type=Path)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float)
    length.add_argument("--frames", type=int)
    parser.add_argument("--fps", type=int)
    parser.add_argument("--resolution", help="480p, 720p, 1080p or 4k")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--guidance-scale-2", type=float)
    parser.add_argument("--flow-shift", type=float)
    parser.add_argument("--fast", action="store_true", help="the faster variant")
    parser.add_argument("--cuts", action="store_true", help="several shots")
    parser.add_argument("--watermark", action="store_true")
    parser.add_argument("--expand", action="store_true", help="write the prompt out")
    parser.add_argument(
        "--deliver",
        choices=sorted(SHORT_SIDE),
        help="enlarge what the model makes to this tier",
    )
    _sound_argument(parser)
    parser.add_argument("--simulate", action="store_true", help="as a test key would")
    _weights_argument(parser)


def _sound_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sound",
        default="none",
        help="none, generate (from the prompt), or a sound file",
    )


def _audio_plan(sound: str, prompt: str, seed: int) -> AudioPlan:
    if sound == "none":
        return AudioPlan()
    if sound == "generate":
        return AudioPlan(mode="generate", prompt=prompt, seed=seed)
    return AudioPlan(mode="url", path=Path(sound))


def _weights_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        type=Path,
        default=Path(
            os.environ.get("WEIGHTS_DIR")
            or Path(os.environ.get("ZOETROPE_HOME") or ".data") / "weights"
        ),
    )


def _render(given: argparse.Namespace) -> int:
    model = MODELS[given.model]
    route = _route(model, simulate=given.simulate)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="zoetrope-") as place:
        context = _context(Path(place), given.weights)
        folder = context.workdir
        pictures = {}
        for name in ("image", "last_image"):
            if (source := getattr(given, name)) is not None:
                pictures[name] = _picture(str(source))
        for name, source in pictures.items():
            runner.prepare(
                source, context, key=f"in/{name}.png", folder=folder, field=name
            )
        request = _plan(given, model, route, folder, pictures.keys())
        engine = runner.engine_for(request, route.runner, context)
        artifact = runner.generate_and_finish(
            request,
            engine,
            context,
            key="out/video",
            folder=folder,
            on_progress=_show,
            should_stop=lambda: False,
        )
        _hand_over(artifact, context, given.out)
    _clear()
    if given.expand:
        print(f"prompt: {request.prompt}")
    if artifact.notes["upscaler"] != "none":
        print(f"enlarged by: {artifact.notes['upscaler']}")
    if artifact.notes["audio"] is not None:
        print(f"sound: {artifact.notes['audio']}")
    print(
        f"{given.out}  {artifact.width}x{artifact.height}  {artifact.frames} frames  "
        f"{artifact.seconds:g} s at {artifact.fps:g} fps  seed {request.seed}  "
        f"made in {time.monotonic() - begun:.1f} s"
    )
    return 0


def _context(place: Path, weights: Path) -> Context:
    # The development certificate stays beside the weights, so it is made only once.
    signing = weights.absolute().parent / "signing"
    return dataclasses.replace(
        local_context(place, weights=weights), options={"signing_folder": signing}
    )


def _hand_over(artifact: Artifact, context: Context, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".part")
    context.storage.get_file(artifact.key, partial)
    shutil.move(partial, out)


def _picture(source: str) -> str | bytes:
    if source.startswith(("http://", "https://")):
        return source
    return Path(source).read_bytes()


def _route(model: PublicModel, *, simulate: bool) -> RouteSpec:
    for route in model.routes:
        if route.kind == "engine" and route.simulates == simulate:
            return route
    raise RenderError(
        f"'{model.name}' has no engine of our own; try --simulate, or use the API"
    )


def _plan(
    given: argparse.Namespace,
    model: PublicModel,
    route: RouteSpec,
    folder: Path,
    pictures: object,
) -> RenderRequest:
    tier = given.resolution or model.tier_default
    if tier not in model.tiers:
        raise ValueError(f"'{model.name}' offers {', '.join(model.tiers)}")

    image = folder / "image.png"
    header = read_header(image.read_bytes(), Limits(image_bytes=sys.maxsize))
    size = model.size_for(header.width / header.height, tier)
    fps = given.fps or model.fps
    frames = given.frames or (
        round(given.seconds * fps)
        if given.seconds
        else model.frames_default * fps // model.fps
    )
    seed = random.randrange(2**31) if given.seed is None else given.seed  # noqa: S311
    defaults = model.defaults_at(tier)
    last = folder / "last_image.png"
    prompt = given.prompt
    if given.expand:
        # A local model is loaded for this one wish: worth waiting for here.
        options = {"expansion_budget_seconds": 120}
        expander = expansion.load(options, weights=given.weights)
        prompt = expander.expand(
            prompt,
            shot_type="multi" if given.cuts else "single",
            seconds=frames / fps,
            seed=seed,
        ).prompt
    delivered = size
    if given.deliver:
        delivered = fit_short_side(
            size.width / size.height,
            short_side=SHORT_SIDE[given.deliver],
            max_area=AREA["4k"],
        )
    return RenderRequest(
        reference="command-line",
        model=model.name,
        profile=route.profile,
        image=image,
        last_image=last if last.exists() else None,
        width=size.width,
        height=size.height,
        frames=frames,
        fps=fps,
        seed=seed,
        prompt=prompt,
        negative_prompt=given.negative_prompt,
        steps=given.steps or defaults.get("steps"),
        guidance_scale=_or(given.guidance_scale, defaults, "guidance_scale"),
        guidance_scale_2=_or(given.guidance_scale_2, defaults, "guidance_scale_2"),
        flow_shift=_or(given.flow_shift, defaults, "flow_shift"),
        shot_type="multi" if given.cuts else "single",
        quality="fast" if given.fast else "quality",
        # Here nobody comes back later.
        running_seconds=math.inf,
        output=OutputPlan(
            width=delivered.width,
            height=delivered.height,
            fps=fps,
            frames=frames,
            watermark=given.watermark,
            audio=_audio_plan(given.sound, given.prompt, seed),
            test_mark=route.simulates,
            model=model.name,
            reference="command-line",
            generated=model.generated and not route.simulates,
        ),
    )


def _or(value: float | None, defaults: Mapping[str, float], name: str) -> float | None:
    return defaults.get(name) if value is None else value


def _show(progress: Progress) -> None:
    if not sys.stderr.isatty():
        return
    left = f"  {progress.eta_seconds:.0f} s left" if progress.eta_seconds else ""
    print(
        f"\r\033[K{progress.fraction:4.0%}  {progress.stage}{left}",
        end="",
        file=sys.stderr,
        flush=True,
    )


def _clear() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- sound and inspect


def _sound_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", type=Path, help="a file made here")
    _sound_argument(parser)
    parser.add_argument("--prompt", default="", help="what the sound is of")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out.mp4"))
    _weights_argument(parser)


def _sound(given: argparse.Namespace) -> int:
    facts = probe(given.video, depth="all")
    told = provenance.read_manifest(given.video)
    output = OutputPlan(
        width=facts.width,
        height=facts.height,
        fps=round(facts.fps),
        frames=facts.frames,
        audio=_audio_plan(given.sound, given.prompt, given.seed),
        model=told.model if told else "",
        reference="command-line",
        generated=told is not None and told.source_type == provenance.TRAINED,
    )
    with tempfile.TemporaryDirectory(prefix="zoetrope-") as place:
        context = _context(Path(place), given.weights)
        artifact = revoice(
            given.video, output, context, key="out/video", folder=context.workdir
        )
        _hand_over(artifact, context, given.out)
    print(f"{given.out}  sound: {artifact.notes['audio']}")
    return 0


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", type=Path)


def _inspect(given: argparse.Namespace) -> int:
    facts = dataclasses.asdict(probe(given.video, depth="all"))
    if facts["has_audio"]:
        sound = audio.read_track(given.video)
        facts["loudness_lufs"] = round(audio.loudness(sound), 1)
    told = provenance.read_manifest(given.video)
    found = {**facts, "provenance": told and dataclasses.asdict(told)}
    for name, value in found.items():
        print(f"{name:18} {value}")
    return 0


# ------------------------------------------------------------------------- models


def _models_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="also those made elsewhere")
    _weights_argument(parser)


def _models(given: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="zoetrope-") as place:
        context = local_context(Path(place), weights=given.weights)
        wan = {line.model: line for line in host.report(context)}
    for name, model in sorted(MODELS.items()):
        engines = [
            f"{registry.RUNNERS[route.runner].label} ({route.profile})"
            for route in model.routes
            if route.kind == "engine"
            and not route.simulates
            and route.runner in registry.RUNNERS
        ]
        if not engines and not given.all:
            continue
        here = "elsewhere" if not engines else "ready"
        if (line := wan.get(name)) is not None:
            here = f"{'ready' if line.ready else 'not here'}: {line.detail}"
        print(f"{name:36} {', '.join(engines):44} {here}")
    return 0


# ------------------------------------------------------------------------- resave


def _resave_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a checkpoint's folder")
    parser.add_argument("target", type=Path, help="a folder that is not there yet")


def _resave(given: argparse.Namespace) -> int:
    # Torch takes seconds to import: only this command needs it.
    from inference.engines.wan.resaving import resave

    resave(given.source, given.target, tell=print)
    return 0


COMMANDS: Mapping[str, Command] = {
    "render": Command("make a video from a picture", _render_arguments, _render),
    "sound": Command("give a video another sound", _sound_arguments, _sound),
    "inspect": Command(
        "show what a video holds and who signed it", _inspect_arguments, _inspect
    ),
    "models": Command("say what this host can make", _models_arguments, _models),
    "resave": Command("write weights again in bf16", _resave_arguments, _resave),
}

if __name__ == "__main__":
    sys.exit(main())
