"""Previews of effects, made as customers' videos are: by our own engine, finished, stored."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

from inference import registry
from inference.catalogue import MODELS
from inference.media import finish, images
from jobs import context, effects, renders
from jobs.models import EffectVersion
from jobs.requests import JobRequest, Picture
from jobs.workfolders import workfolder

if TYPE_CHECKING:
    from inference.contracts import Context, RenderRequest

MODEL: Final = "motion"
SECONDS: Final = 3.0
#: A portrait shows moves and depth well (Chelsea the cat, S. van der Walt, CC0). It is
#: beside the code because a container has no tests.
PHOTO: Final = Path(__file__).with_name("preview.jpg")
#: What the engine needs of a route; no job and no money are involved.
ROUTE: Final = {"queue": "cpu", "profile": "motion", "simulates": False}


def render(template: EffectVersion, still: bytes, *, seconds: float = SECONDS) -> None:
    """Make the template's preview from ``still``, store it and note its keys.

    Raises InputRejected when the picture cannot be used.
    """
    world = context.get()
    with workfolder(world) as folder:
        plan = plan_of(template, still, folder, world, seconds=seconds)
        engine = registry.engine("motion", "motion", world)
        frames = engine.frames(
            plan, on_progress=lambda _: None, should_stop=lambda: False
        )
        # A key of its own each time: links to an older preview stay good.
        key = f"effects/{template.effect_id}/{template.version}-{uuid.uuid4().hex}"
        made = finish.finish(frames, plan.output, world, key=key, folder=folder)
    EffectVersion.objects.filter(pk=template.pk).update(
        preview_key=made.key, poster_key=made.poster_key or ""
    )


def plan_of(
    template: EffectVersion,
    still: bytes,
    folder: Path,
    world: Context,
    *,
    seconds: float,
) -> RenderRequest:
    """Return the engine's plan of this template over ``still``, at 480p."""
    target = folder / "image.png"
    header = images.clean(still, target, world.limits)
    size = (header.width, header.height)
    options = effects.options_for(template.parameters, MODEL)
    request = JobRequest.build(
        MODELS[MODEL],
        image=Picture(data=still, size=size),
        tier="480p",
        seconds=seconds,
        prompt=template.prompt,
        seed=options.get("seed", 0),
        shot_type=options.get("shot_type"),
    )
    return renders.render_request(
        reference=f"effect {template}",
        request=request,
        route=ROUTE,
        resolved=renders.resolve(request, size),
        image=target,
    )
