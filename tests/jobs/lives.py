"""Jobs brought to an end as workers would, with their files in real storage."""

from __future__ import annotations

import tempfile
from pathlib import Path

from inference.contracts import Artifact
from inference.errors import RenderError
from jobs import claims, context, lifecycle
from jobs.models import Job
from jobs.states import Step


def store(key: str, data: bytes = b"x") -> str:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        context.get().storage.put_file(key, Path(file.name))
    return key


def stored(prefix: str) -> set[str]:
    return {file.key for file in context.get().storage.list(prefix)}


def running(job: Job) -> claims.Claim:
    """Take the job through prepare, its picture stored, and claim its generate step."""
    claim = claims.claim_next("media", worker="w1")
    assert claim is not None
    assert claim.job_id == job.pk
    key = store(f"{job.account_id}/{job.pk}/in/1-image.png")
    lifecycle.advance(
        claim,
        Step.GENERATE,
        queue="cpu",
        inputs={"image": {"key": key, "size": [9, 6]}},
    )
    claim = claims.claim_next("cpu", worker="w1")
    assert claim is not None
    return claim


def succeeded(job: Job) -> Job:
    claim = running(job)
    folder = f"{job.account_id}/{job.pk}"
    Job.objects.filter(pk=job.pk).update(
        master={"key": store(f"{folder}/work/2-m.mp4")}
    )
    artifact = Artifact(
        key=store(f"{folder}/out/2-a.mp4"),
        size_bytes=1,
        sha256="00",
        width=96,
        height=64,
        fps=16.0,
        frames=80,
        seconds=5.0,
        has_audio=False,
        poster_key=store(f"{folder}/out/2-a.jpg"),
    )
    lifecycle.succeed(claim, artifact)
    return Job.objects.get(pk=job.pk)


def failed(job: Job) -> Job:
    error = RenderError("out of memory", code="out_of_memory", permanent=True)
    lifecycle.fail(running(job), error)
    return Job.objects.get(pk=job.pk)
