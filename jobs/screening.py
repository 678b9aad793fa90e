"""Looking at a job's pictures, on the one worker that has torch and the classifier.

`screen` judges the prepared input before anything is made of it, `review` the finished
file before its customer sees it. Whether a job comes by here was decided in `prepare`;
what is refused fails the job, gives back its hold and leaves no file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from inference.media.safety import enforce
from inference.media.sampling import sample
from jobs import claims, context, lifecycle, routing, safety
from jobs.workfolders import workfolder

if TYPE_CHECKING:
    from inference.contracts import Context, SafetyPolicy
    from inference.media.safety import Verdict
    from jobs.claims import Held
    from jobs.models import Job

PICTURES = ("image", "last_image")


def screen(held: Held) -> None:
    """Judge the prepared pictures; what passes goes to its route's first step."""
    job, world = claims.load(held.claim), context.get()
    with workfolder(world) as folder:
        verdict = safety.judge_of(world).inputs(_pictures(job, world, folder))
    noted = _enforced(verdict, job, where="input")
    flags = [*job.resolved.get("safety_flags", []), *noted.get("flagged", [])]
    lifecycle.advance(
        held.claim,
        routing.first_step(job.route),
        queue=job.route["queue"],
        resolved={**job.resolved, **({"safety_flags": flags} if flags else {})},
    )


def review(held: Held) -> None:
    """Judge frames of the finished file; what passes is delivered and charged."""
    job, world = claims.load(held.claim), context.get()
    artifact = lifecycle.kept_artifact(job)
    with workfolder(world) as folder:
        video = folder / "made.mp4"
        world.storage.get_file(artifact.key, video)
        images = sample(video, frames=artifact.frames, should_stop=held.should_stop)
        verdict = safety.judge_of(world).frames(images)
    told = {"mode": safety.mode_of(job), **_enforced(verdict, job, where="output")}
    notes = {**artifact.notes, "safety": told}
    lifecycle.succeed(held.claim, replace(artifact, notes=notes))


def _pictures(job: Job, world: Context, folder: Path) -> list[Path]:
    """Bring the prepared pictures into ``folder``."""
    found = []
    for name in PICTURES:
        if entry := job.inputs.get(name):
            found.append(folder / f"{name}.png")
            world.storage.get_file(entry["key"], found[-1])
    return found


def _enforced(verdict: Verdict, job: Job, *, where: str) -> dict[str, Any]:
    """Return what the job's policy notes; raise ContentBlocked where it refuses."""
    policy = cast("SafetyPolicy", job.resolved["safety_policy"])
    noted = enforce(verdict, policy)
    safety.note_flags(job, noted.get("flagged", []), where=where)
    return noted
