"""Plans and prices as operators edit them: what they name must exist here."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.contrib import admin

from billing.acting import ReasonedModelForm
from billing.admin import PlanAdmin, PriceRowAdmin
from inference.catalogue import MODELS
from jobs import intake
from jobs.admin.boxes import JsonBox, known_model
from jobs.dialects import DIALECTS


def _months(given: dict[str, Any]) -> str:
    for name, videos in given.items():
        if name not in DIALECTS:
            return f"There is no API {name!r}; there are {', '.join(DIALECTS)}."
        if isinstance(videos, bool) or not isinstance(videos, int) or videos < 0:
            return f"{name!r} must be a whole number of videos."
    return ""


class PlanForm(ReasonedModelForm):
    monthly_videos = JsonBox(
        dict,
        _months,
        help_text="Videos a calendar month (UTC) by the API they come in through, such "
        'as {"magicoal": 5}; an API that is not named has no limit.',
    )


def _options(given: dict[str, Any]) -> str:
    known = intake.PRICED_OPTIONS
    for name, value in given.items():
        if name not in known:
            return f"There is no option {name!r}; there are {', '.join(known)}."
        if not isinstance(value, str | bool):
            return f"{name!r} must be a text, true or false."
    return ""


class PriceForm(ReasonedModelForm):
    options = JsonBox(
        dict,
        _options,
        help_text='Only when the request has all of these, such as {"quality": "fast"}.',
    )

    def clean_model(self) -> str:
        return known_model(self.cleaned_data["model"])

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        model = MODELS.get(cleaned.get("model") or self.instance.model)
        tier = cleaned.get("resolution")
        if model and tier and tier not in model.tiers:
            self.add_error(
                "resolution",
                f"{model.name} renders {', '.join(model.tiers)}; empty: any.",
            )
        return cleaned


class SoldPlanAdmin(PlanAdmin):
    form = PlanForm


class SoldPriceAdmin(PriceRowAdmin):
    form = PriceForm


for name, edited in (("Plan", SoldPlanAdmin), ("PriceRow", SoldPriceAdmin)):
    admin.site.unregister(apps.get_model("billing", name))
    admin.site.register(apps.get_model("billing", name), edited)
