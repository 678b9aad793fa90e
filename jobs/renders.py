"""From a job to the engine's plan: sizes, frames and marks, decided once and stored.

Pure given the job's request, route and the prepared pictures' sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.catalogue import MODELS, PublicModel
from inference.contracts import AudioPlan, OutputPlan, RenderRequest
from inference.geometry import Size, fit_area
from jobs.requests import JobRequest


def sizes(
    request: JobRequest, model: PublicModel, picture: tuple[int, int]
) -> tuple[Size, Size]:
    """Return the size to deliver and the size to render for this picture.

    They differ when an exact size was asked of a model with sizes of its own.
    """
    if request.size is not None:
        aspect = request.size.width / request.size.height
        delivered = request.size
    else:
        aspect = _aspect(request.aspect_ratio) or picture[0] / picture[1]
        delivered = model.size_for(aspect, request.tier)
    tier = model.native_tier(request.tier)
    if tier == request.tier and (model.sizing == "short_side" or not request.size):
        return delivered, delivered
    if model.sizing == "area":
        area = model.areas[tier]
        return delivered, fit_area(aspect, area=area, multiple=model.multiple)
    return delivered, model.size_for(aspect, tier)


def resolve(request: JobRequest, picture: tuple[int, int]) -> dict[str, Any]:
    """Return what preparing decides, as the job shows it."""
    delivered, rendered = sizes(request, MODELS[request.model], picture)
    return {
        "width": delivered.width,
        "height": delivered.height,
        "render_width": rendered.width,
        "render_height": rendered.height,
    }


def render_request(
    *,
    reference: str,
    request: JobRequest,
    route: Mapping[str, Any],
    resolved: Mapping[str, Any],
    image: Path,
    last_image: Path | None = None,
    audio: Path | None = None,
    running_seconds: float = 0.0,
) -> RenderRequest:
    """Return the engine's complete plan of a prepared job."""
    model = MODELS[request.model]
    assert request.seed is not None  # drawn at accept
    return RenderRequest(
        reference=reference,
        model=request.model,
        profile=str(route["profile"]),
        image=image,
        last_image=last_image,
        width=resolved["render_width"],
        height=resolved["render_height"],
        frames=request.frames,
        fps=request.fps,
        seed=request.seed,
        prompt=resolved.get("prompt", request.prompt),
        negative_prompt=request.negative_prompt,
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        guidance_scale_2=request.guidance_scale_2,
        flow_shift=request.flow_shift,
        loras=request.loras,
        shot_type=request.shot_type,
        quality=request.quality,
        running_seconds=running_seconds,
        output=output_plan(
            reference=reference,
            request=request,
            route=route,
            resolved=resolved,
            audio=audio,
        ),
        extra={"premium": request.premium, "is_generated": model.generated},
    )


def output_plan(
    *,
    reference: str,
    request: JobRequest,
    route: Mapping[str, Any],
    resolved: Mapping[str, Any],
    audio: Path | None = None,
) -> OutputPlan:
    """Return what the delivered file must be."""
    simulated = bool(route.get("simulates"))
    return OutputPlan(
        width=resolved["width"],
        height=resolved["height"],
        fps=request.fps,
        frames=request.frames,
        watermark=request.watermark,
        test_mark=simulated,
        audio=AudioPlan(
            mode=request.audio.mode,
            path=audio,
            prompt=_heard(request, resolved),
            seed=request.seed or 0,
        ),
        model=request.model,
        reference=reference,
        generated=MODELS[request.model].generated and not simulated,
    )


def _heard(request: JobRequest, resolved: Mapping[str, Any]) -> str:
    """Return the words that sound is generated from: the effect's, else the wish.

    What an expander adds describes the picture: "morning light" is no dawn chorus.
    """
    if request.effect is not None:
        return str(resolved.get("prompt", request.prompt))
    return request.prompt


def revoiced_plan(
    *,
    reference: str,
    request: JobRequest,
    resolved: Mapping[str, Any],
    file: Mapping[str, Any],
    simulated: bool,
    audio: Path | None = None,
) -> OutputPlan:
    """Return the plan for another sound under ``file``, a delivered one as it is stored.

    What is burnt into its picture stays; ``watermark`` only says whether it is there.
    """
    plan = output_plan(
        reference=reference,
        request=request,
        route={"simulates": simulated},
        resolved={**resolved, "width": file["width"], "height": file["height"]},
        audio=audio,
    )
    return dataclasses.replace(plan, frames=file["frames"], fps=round(file["fps"]))


def finishes_in_place(
    request: JobRequest, route: Mapping[str, Any], *, is_timestamped: bool
) -> bool:
    """Return whether the generating worker also finishes the file.

    A GPU never encodes more than 720p, nor waits for a time-stamp server; the CPU queues
    have nothing better to do.
    """
    if str(route["queue"]).startswith("cpu"):
        return True
    return request.tier in ("480p", "720p") and not is_timestamped


def _aspect(ratio: str | None) -> float | None:
    if ratio is None:
        return None
    wide, _, high = ratio.partition(":")
    return int(wide) / int(high)
