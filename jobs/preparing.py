"""Preparing a job: its pictures and sound fetched and made safe, its words decided.

Whatever is wrong with a customer's input is found here, before anything costs: the job
then fails with the reason and every credit goes back. Only what its pictures show is
judged in a step of its own (``screening``), where there is a classifier.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from billing import accounts
from inference import egress
from inference.catalogue import MODELS
from inference.errors import InputRejected
from inference.media import audio, images
from jobs import claims, context, lifecycle, renders, routing, safety, words
from jobs.errors import InvalidRequest
from jobs.requests import JobRequest, Picture, check_shape
from jobs.states import Step
from jobs.workfolders import folder_of, workfolder

if TYPE_CHECKING:
    from inference.contracts import Context
    from jobs.claims import Held
    from jobs.models import Job

AUDIO_FIELD = "audio.url"


def prepare(held: Held) -> None:
    """Take the claimed job to its next step, or raise RenderError."""
    job = claims.load(held.claim)
    if job.kind == "audio":
        _prepare_audio(held, job)
    else:
        _prepare_video(held, job)


def _prepare_video(held: Held, job: Job) -> None:
    request = JobRequest.load(job.request)
    world = context.get()
    terms = accounts.terms_of_account(job.account_id)
    guard = safety.Guard(safety.policy_of(terms, is_asked=request.safety_checker))
    told = words.decide(request, job.route, guard, world)
    inputs: dict[str, Any] = {}
    with workfolder(world) as folder:
        for name in ("image", "last_image"):
            picture: Picture | None = getattr(request, name)
            if picture is not None:
                inputs[name] = _picture(job, request, name, picture, folder, world)
        _check_shape(request, tuple(inputs["image"]["size"]))
        if request.audio.mode == "url":
            inputs["audio"] = _sound(job, request, folder, world)
    safety.note_flags(job, guard.flags, where="input")
    told |= guard.told(world)
    is_screened = told["safety"] == safety.CLASSIFIER
    lifecycle.advance(
        held.claim,
        Step.SCREEN if is_screened else routing.first_step(job.route),
        queue=safety.QUEUE if is_screened else job.route["queue"],
        inputs=inputs,
        resolved={
            **job.resolved,
            **renders.resolve(request, tuple(inputs["image"]["size"])),
            **told,
        },
    )


def _prepare_audio(held: Held, job: Job) -> None:
    """Fetch the sound of an audio-only job; there is nothing to generate."""
    request = JobRequest.load(job.request)
    world = context.get()
    inputs: dict[str, Any] = {}
    if request.audio.mode == "url":
        with workfolder(world) as folder:
            inputs["audio"] = _sound(job, request, folder, world)
    lifecycle.advance(held.claim, Step.FINISH, queue="media", inputs=inputs)


# -------------------------------------------------------------------- pictures


def _picture(
    job: Job,
    request: JobRequest,
    name: str,
    picture: Picture,
    folder: Path,
    world: Context,
) -> dict[str, Any]:
    """Return the stored clean picture: its key and size."""
    kept = _kept_input(job, name)
    if kept is not None:
        return kept
    data = _bytes_of(job, name, picture, world)
    target = folder / f"{name}.png"
    try:
        header = images.clean(data, target, world.limits)
    except InputRejected as refused:
        raise InputRejected(str(refused), field=name, code=refused.code) from refused
    if rules := request.picture_rules:
        broken = rules.broken_by(
            width=header.width,
            height=header.height,
            size_bytes=len(data),
            format=header.format,
            has_alpha=header.has_alpha,
        )
        if broken is not None:
            code, message = broken
            raise InputRejected(message, field=name, code=code)
    key = f"{folder_of(job)}/in/{job.fence}-{name}.png"
    stored = world.storage.put_file(key, target, content_type="image/png")
    return {
        "key": key,
        "size": [header.width, header.height],
        "sha256": stored.sha256,
    }


def _check_shape(request: JobRequest, picture: tuple[int, int]) -> None:
    """Do what accepting did where the picture came along: a fetched one is new."""
    try:
        check_shape(MODELS[request.model], request, picture)
    except InvalidRequest as refused:
        raise InputRejected(str(refused), field="image", code=refused.code) from refused


def _kept_input(job: Job, name: str) -> dict[str, Any] | None:
    """Return the source's picture for a remix, whose request has no bytes."""
    if job.source is None or job.uploads.filter(name=name).exists():
        return None
    kept: dict[str, Any] | None = job.source.inputs.get(name)
    return kept


def _bytes_of(job: Job, name: str, picture: Picture, world: Context) -> bytes:
    if picture.url is None:
        return bytes(job.uploads.get(name=name).data)
    try:
        return world.egress.fetch(
            picture.url,
            max_bytes=world.limits.image_bytes,
            accept="image/*",
            field=name,
        )
    except InputRejected as refused:
        is_size = refused.code == egress.FILE_TOO_LARGE
        code = "image_too_large" if is_size else refused.code
        raise InputRejected(str(refused), field=name, code=code) from refused


# ----------------------------------------------------------------------- sound


def _sound(
    job: Job, request: JobRequest, folder: Path, world: Context
) -> dict[str, Any]:
    """Return the customer's sound, decoded and stored as plain PCM."""
    given, clean = folder / "audio.given", folder / "audio.wav"
    assert request.audio.url is not None  # the mode says so
    try:
        world.egress.fetch_to(
            request.audio.url,
            given,
            max_bytes=world.limits.audio_bytes,
            accept="audio/*",
            deadline_seconds=30.0,
            field=AUDIO_FIELD,
        )
        sound = audio.load(given, limits=world.limits)
    except InputRejected as refused:
        is_unusable = refused.code in ("invalid_input", egress.FILE_TOO_LARGE)
        code = "audio_invalid" if is_unusable else refused.code
        raise InputRejected(str(refused), field=AUDIO_FIELD, code=code) from refused
    audio.save_wav(sound, clean)
    key = f"{folder_of(job)}/in/{job.fence}-audio.wav"
    stored = world.storage.put_file(key, clean, content_type="audio/wav")
    return {"key": key, "seconds": round(sound.seconds, 3), "sha256": stored.sha256}
