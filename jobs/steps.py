"""What a worker does for each step of a job. Each function takes a claim to its next move.

They raise RenderError when the step failed; the task decides what follows from that.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import (
    claims,
    context,
    lifecycle,
    preparing,
    provider_steps,
    renders,
    safety,
    screening,
    words,
)
from jobs.requests import JobRequest
from jobs.states import Step
from jobs.workfolders import folder_of, workfolder

if TYPE_CHECKING:
    from inference.contracts import Artifact, Context, OutputPlan
    from inference.media.finish import Watch
    from jobs.claims import Claim, Held
    from jobs.models import Job


def run(held: Held) -> None:
    """Do the claimed step and move the job on."""
    STEPS[held.claim.step](held)


# -------------------------------------------------------------------- generate


def generate(held: Held) -> None:
    """Make the frames on this machine; finish the file here when it is small."""
    from inference import registry

    claim, job = held.claim, claims.load(held.claim)
    lifecycle.announce_running(claim)
    request = JobRequest.load(job.request)
    world = context.get()
    job.resolved |= words.late(job)
    with workfolder(world) as folder:
        plan = renders.render_request(
            reference=str(job.id),
            request=request,
            route=job.route,
            resolved=job.resolved,
            running_seconds=claim.running_seconds,
            **_local_inputs(job, world, folder),
        )
        engine = registry.engine(job.route["runner"], job.route["profile"], world)
        frames = engine.frames(
            plan, on_progress=held.on_progress, should_stop=held.should_stop
        )
        is_timestamped = bool(world.options.get("timestamp_url"))
        if renders.finishes_in_place(request, job.route, is_timestamped=is_timestamped):
            artifact = _finish(job, claim.fence, frames, plan.output, world, folder)
            # Asked after the frames: only then is it known how they were made.
            resolved = {**job.resolved, "fingerprint": dict(engine.fingerprint(plan))}
            _hand_over(claim, job, artifact, resolved=resolved)
            return
        master = _store_master(job, claim.fence, frames, plan, world, folder)
        resolved = {**job.resolved, "fingerprint": dict(engine.fingerprint(plan))}
    lifecycle.advance(
        claim,
        Step.FINISH,
        queue="media",
        master=master,
        resolved=resolved,
    )


def _local_inputs(job: Job, world: Context, folder: Path) -> dict[str, Path]:
    """Bring the prepared inputs into ``folder``."""
    found = {}
    for name, entry in job.inputs.items():
        found[name] = folder / Path(entry["key"]).name
        world.storage.get_file(entry["key"], found[name])
    return found


def _store_master(
    job: Job, fence: int, frames: Iterator[Any], plan: Any, world: Context, folder: Path
) -> dict[str, Any]:
    """Keep the frames, nearly lossless, for the media workers to finish."""
    from inference.media.encode import MASTER, Encoder

    target = folder / "master.mp4"
    with Encoder(
        target, width=plan.width, height=plan.height, fps=plan.fps, effort=MASTER
    ) as encoder:
        for frame in frames:
            encoder.write(frame)
    key = f"{folder_of(job)}/work/{fence}-{uuid.uuid4().hex}.mp4"
    world.storage.put_file(key, target, content_type="video/mp4")
    return {"key": key, "width": plan.width, "height": plan.height}


# ---------------------------------------------------------------------- finish


def finish(held: Held) -> None:
    """Turn an unfinished clip (a GPU's or a provider's) into the delivered file.

    Raises Stopped soon after it should stop: finishing a long clip outlasts a drain.
    """
    from inference.media.finish import finish_file, frames_of

    claim, job = held.claim, claims.load(held.claim)
    if job.kind == "audio":
        _revoice(held, job)
        return
    request = JobRequest.load(job.request)
    world = context.get()
    with workfolder(world) as folder:
        source = folder / "master.mp4"
        world.storage.get_file(job.master["key"], source)
        audio = _local_inputs(job, world, folder).get("audio")
        output = renders.output_plan(
            reference=str(job.id),
            request=request,
            route=job.route,
            resolved=job.resolved,
            audio=audio,
        )
        if job.route["kind"] == "provider":
            artifact = finish_file(
                source,
                output,
                world,
                key=_out_key(job, claim.fence),
                folder=folder,
                keep_sound=bool(job.master.get("has_customers_sound")),
                watch=_watch(held, job, output),
            )
        else:
            frames = _watch(held, job, output)(frames_of(source, output))
            artifact = _finish(job, claim.fence, frames, output, world, folder)
    _hand_over(claim, job, artifact)


def _watch(held: Held, job: Job, output: OutputPlan) -> Watch:
    """Return what stops the pictures when the step should stop and shows how far it is.

    Progress goes on from where making the clip has left it.
    """
    from inference.engines.base import watched

    return functools.partial(
        watched,
        total=output.frames,
        on_progress=held.on_progress,
        should_stop=held.should_stop,
        begin=job.progress,
        stage="finish",
    )


def _revoice(held: Held, job: Job) -> None:
    """Put another sound under the finished video of the job's source."""
    from inference.media.finish import revoice

    lifecycle.announce_running(held.claim)
    world = context.get()
    assert job.source is not None  # an audio-only job is made for one
    with workfolder(world) as folder:
        source = folder / "source.mp4"
        world.storage.get_file(job.source.output["key"], source)
        output = renders.revoiced_plan(
            reference=str(job.id),
            request=JobRequest.load(job.request),
            resolved=job.resolved,
            file=job.source.output,
            simulated=bool(job.route["simulates"]),
            audio=_local_inputs(job, world, folder).get("audio"),
        )
        key = _out_key(job, held.claim.fence)
        artifact = revoice(
            source,
            output,
            world,
            key=key,
            folder=folder,
            watch=_watch(held, job, output),
        )
    # Its picture was looked at when the source was made.
    _hand_over(held.claim, job, artifact)


def _hand_over(claim: Claim, job: Job, artifact: Artifact, **changes: Any) -> None:
    """Close the job with its file; or, where a classifier looks, send it there first."""
    mode = safety.mode_of(job)
    if mode == safety.CLASSIFIER and job.kind != "audio":
        lifecycle.keep_for_review(claim, artifact, **changes)
        return
    notes = {**artifact.notes, "safety": {"mode": mode}}
    artifact = replace(artifact, notes=notes)
    lifecycle.succeed(claim, artifact, **changes)


def _finish(
    job: Job,
    fence: int,
    frames: Iterator[Any],
    output: Any,
    world: Context,
    folder: Path,
) -> Any:
    from inference.media import finish as finishing

    key = _out_key(job, fence)
    return finishing.finish(frames, output, world, key=key, folder=folder)


def _out_key(job: Job, fence: int) -> str:
    # The fence in the key: a late worker's file is an orphan, never the job's.
    return f"{folder_of(job)}/out/{fence}-{uuid.uuid4().hex}"


StepFunction = Callable[["Held"], None]

STEPS: Mapping[Step, StepFunction] = {
    Step.PREPARE: preparing.prepare,
    Step.SCREEN: screening.screen,
    Step.GENERATE: generate,
    Step.SUBMIT: provider_steps.submit,
    Step.COLLECT: provider_steps.collect,
    Step.FINISH: finish,
    Step.REVIEW: screening.review,
}
