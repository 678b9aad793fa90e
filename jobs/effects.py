"""Effect templates: a named look that fills in prompt and parameters.

``apply`` puts the newest version's template into a request; the job keeps the version's
number and its words, so that editing an effect changes no accepted job. The customer's
own prompt is ignored then, and shown back as it was sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from django.db import transaction

from inference.catalogue import MODELS, Feature, PublicModel
from inference.contracts import Lora
from jobs import ours
from jobs.errors import Forbidden, InvalidRequest, UnsupportedOption
from jobs.first_effects import FIRST_EFFECTS
from jobs.models import Effect, EffectVersion, Job
from jobs.requests import SEED_MAX, JobRequest

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from billing.plans import PlanTerms

EVERY_MODEL: Final = "*"
#: How strongly a template may apply a LoRA; customers' requests have the same bound.
SCALE_MAX: Final = 4.0
#: What a template may set besides its words; a model without the option ignores it.
OPTIONS: Final = (
    "seed",
    "steps",
    "guidance_scale",
    "guidance_scale_2",
    "flow_shift",
    "shot_type",
    "quality",
)
#: Where a job keeps what its template has replaced in the request. Not shown.
AS_ASKED: Final = "as_asked"


@dataclass(frozen=True)
class Applied:
    """A request with its template in it, and what the job keeps of the effect."""

    request: JobRequest
    resolved: Mapping[str, Any] = field(default_factory=dict)


def apply(request: JobRequest, *, plan: PlanTerms) -> Applied:
    """Return the request with its effect's newest template applied.

    Raises InvalidRequest for an unknown effect, Forbidden when the plan has it not, and
    UnsupportedOption when it is not made for the request's model.
    """
    if request.effect is None:
        return Applied(request)
    effect = Effect.objects.filter(pk=request.effect, is_enabled=True).first()
    if effect is None:
        raise InvalidRequest(
            "effect",
            f"There is no effect '{request.effect}'; GET /v1/effects lists them.",
        )
    if effect.plans and plan.code not in effect.plans:
        raise Forbidden(
            f"Effect '{effect.code}' needs another plan than {plan.code}.",
            field="effect",
        )
    if effect.for_models and request.model not in effect.for_models:
        raise UnsupportedOption("effect", request.model, effect.for_models)
    template = effect.current
    filled = _filled(request, template)
    return Applied(
        filled,
        {
            "prompt": template.prompt,
            "effect_name": effect.name,
            "effect_version": template.version,
            AS_ASKED: _replaced(request.stored(), filled.stored()),
        },
    )


def as_asked(job: Job) -> JobRequest:
    """Return the job's request as it was before a template was put into it."""
    return JobRequest.load({**job.request, **job.resolved.get(AS_ASKED, {})})


def _replaced(asked: Mapping[str, Any], filled: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asked[name] for name in asked if asked[name] != filled[name]}


def _filled(request: JobRequest, template: EffectVersion) -> JobRequest:
    model = MODELS[request.model]
    options = {
        name: value
        for name, value in options_for(template.parameters, request.model).items()
        if name == "seed" or model.offers(Feature(name))
    }
    if request.seed is not None:
        options.pop("seed", None)
    if model.offers(Feature.NEGATIVE_PROMPT):
        options["negative_prompt"] = template.negative_prompt[
            : model.negative_prompt_max
        ]
    if model.offers(Feature.LORAS) and template.loras:
        own = tuple(Lora(**lora) for lora in template.loras)
        options["loras"] = own + tuple(
            lora for lora in request.loras if lora not in own
        )
        if len(options["loras"]) > model.loras_max:
            raise InvalidRequest(
                "loras",
                f"The effect brings {len(own)} LoRAs; the model takes "
                f"{model.loras_max} in all.",
            )
    # The template's words are final: nothing is to be added to them.
    return request.replace(**options, prompt_expansion=False)


def options_for(parameters: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return what a template sets for this model."""
    return {**parameters.get(EVERY_MODEL, {}), **parameters.get(model, {})}


# -------------------------------------------------------------------- the catalogue


def listed() -> QuerySet[Effect]:
    return Effect.objects.filter(is_enabled=True).order_by("rank", "code")


def install() -> None:
    """Add the first effects that are not there yet; change nothing."""
    for rank, first in enumerate(FIRST_EFFECTS):
        effect, is_new = Effect.objects.get_or_create(
            code=first.code,
            defaults={
                "name": first.name,
                "description": first.description,
                "rank": rank * 10,
                "plans": list(first.plans),
            },
        )
        if is_new:
            publish(
                effect,
                prompt=first.prompt,
                negative_prompt=first.negative_prompt,
                parameters=first.parameters,
            )


def publish(
    effect: Effect,
    *,
    prompt: str,
    negative_prompt: str = "",
    parameters: Mapping[str, Any] | None = None,
    loras: Sequence[Mapping[str, Any]] = (),
) -> EffectVersion:
    """Make this the effect's newest version; jobs accepted before keep theirs."""
    with transaction.atomic():
        Effect.objects.select_for_update(no_key=True).get(pk=effect.pk)
        newest = effect.versions.order_by("-version").first()
        return EffectVersion.objects.create(
            effect=effect,
            version=newest.version + 1 if newest else 1,
            prompt=prompt,
            negative_prompt=negative_prompt,
            parameters=dict(parameters or {}),
            loras=[asdict(Lora(**lora)) for lora in loras],
        )


def problem_with(parameters: object, loras: object) -> str:
    """Say what is wrong with a template's parameters or LoRAs, or answer ""."""
    if not isinstance(parameters, dict):
        return "Parameters must be an object: model name, or *, to options."
    for name, options in parameters.items():
        if name != EVERY_MODEL and name not in MODELS:
            return f"There is no model '{name}'."
        if not isinstance(options, dict):
            return f"The options of '{name}' must be an object."
        scope = [m for m in MODELS.values() if name in (EVERY_MODEL, m.name)]
        for option, value in options.items():
            if found := _problem_with(option, value, scope):
                return f"{name}: {found}"
    return _problem_with_loras(loras)


def _problem_with(option: str, value: Any, models: Sequence[PublicModel]) -> str:
    if option not in OPTIONS:
        return f"'{option}' is none of {', '.join(OPTIONS)}."
    choices = {"shot_type": ("single", "multi"), "quality": ("quality", "fast")}
    if option in choices:
        wanted = choices[option]
        return "" if value in wanted else f"{option} must be {' or '.join(wanted)}."
    if not _is_number(value):
        return f"{option} must be a number."
    if option == "steps" and not isinstance(value, int):
        return "steps must be a whole number."
    if option == "seed":
        good = isinstance(value, int) and 0 <= value <= SEED_MAX
        return "" if good else f"seed must be 0 to {SEED_MAX}."
    for model in models:
        if not model.offers(Feature(option)):
            continue
        low, high = {
            "steps": model.steps_range,
            "flow_shift": model.flow_shift_range,
        }.get(option, model.guidance_range)
        if not low <= value <= high:
            return f"{option} must be {low:g} to {high:g} for {model.name}."
    return ""


def _problem_with_loras(loras: object) -> str:
    if not isinstance(loras, list):
        return "LoRAs must be a list."
    most = min(model.loras_max for model in MODELS.values() if model.loras_max)
    if len(loras) > most:
        return f"At most {most} LoRAs, as many as a model takes."
    names = set()
    for lora in loras:
        try:
            made = Lora(**lora)
        except TypeError:
            return "Each LoRA is {path, scale, path_low, scale_low}."
        paths = [made.path] if made.path_low is None else [made.path, made.path_low]
        if not all(isinstance(path, str) and path for path in paths):
            return "The path of a LoRA must be its name or address."
        for scale in (made.scale, made.scale_low):
            if not (scale is None or (_is_number(scale) and abs(scale) <= SCALE_MAX)):
                return f"The scale of a LoRA must be -{SCALE_MAX:g} to {SCALE_MAX:g}."
        names.update(paths)
    unknown = ours.unknown_loras(names)
    return f"There is no LoRA {', '.join(unknown)} here." if unknown else ""


def problem_with_length(prompt: str, for_models: Sequence[str]) -> str:
    """Say which models cannot take so long a template, or answer "". None named: all."""
    longest = min(MODELS[name].prompt_max for name in for_models or MODELS)
    if len(prompt) > longest:
        return f"The prompt has {len(prompt)} characters; its models take {longest}."
    return ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
