"""The words an engine or a provider is given, and who wrote them.

They are decided once, in prepare, for the route the job has then. A job that loses that
route keeps them; where its first provider was to write them and the next one does not,
the built-in rules write, at once: neither a GPU nor a place at a provider waits for a
writer.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.catalogue import MODELS
from inference.media import expansion
from jobs import outside
from jobs.requests import JobRequest

if TYPE_CHECKING:
    from inference.contracts import Context
    from inference.media.expansion import Expander
    from jobs.models import Job
    from jobs.safety import Guard


def decide(
    request: JobRequest, route: Mapping[str, Any], guard: Guard, world: Context
) -> dict[str, Any]:
    """Return the prompt the engine gets and who wrote it; refuse unsafe words.

    With an effect its template's words were decided at accept and the customer's are
    ignored. A provider that expands prompts itself gets the customer's own. Negative
    prompts name what is not wanted, so they are not judged.
    """
    if request.effect is not None:
        return {}
    guard.text(request.prompt)
    if not request.prompt_expansion:
        return {}
    if by := _expanding_provider(route):
        return {"expansion": by}
    written = _expander(world).expand(
        request.prompt,
        shot_type=request.shot_type,
        seconds=round(request.seconds, 1),
        seed=request.seed or 0,
    )
    if guard.has_more(written.prompt, than=request.prompt):
        # What was added is neither the customer's fault nor theirs to be let through.
        return _builtin(request)
    return _told(request, written.prompt, by=written.by)


def late(job: Job) -> dict[str, Any]:
    """Return what is to be changed in ``job.resolved`` now that its route makes it.

    Nothing, unless a provider was to write the words and the job has left it.
    """
    request = JobRequest.load(job.request)
    is_decided = "prompt" in job.resolved or request.effect is not None
    if is_decided or not request.prompt_expansion:
        return {}
    if by := _expanding_provider(job.route):
        return {"expansion": by}
    return _builtin(request)


def _expanding_provider(route: Mapping[str, Any]) -> str:
    """Return how a route's provider is named that writes the words itself, or ""."""
    if route["kind"] == "provider" and outside.expands(
        provider=route["runner"], wire_model=route["profile"]
    ):
        return f"provider:{route['runner']}"
    return ""


def _builtin(request: JobRequest) -> dict[str, Any]:
    prompt = expansion.builtin(
        request.prompt,
        shot_type=request.shot_type,
        seconds=round(request.seconds, 1),
        seed=request.seed or 0,
    )
    return _told(request, prompt, by="builtin")


def _told(request: JobRequest, prompt: str, *, by: str) -> dict[str, Any]:
    longest = MODELS[request.model].prompt_max
    if len(prompt) > longest:
        prompt = prompt[:longest].rsplit(" ", 1)[0]
    return {"prompt": prompt, "expanded_prompt": prompt, "expansion": by}


def _expander(world: Context) -> Expander:
    return _loaded_expander(
        world.weights,
        tuple(
            (name, value)
            for name, value in world.options.items()
            if name.startswith("expansion_")
        ),
    )


@cache
def _loaded_expander(weights: Path, options: tuple[tuple[str, Any], ...]) -> Expander:
    return expansion.load(dict(options), weights=weights)
