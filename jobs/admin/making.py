"""What makes videos: routes, aliases, effects, accounts at providers, workers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils import timezone
from django.utils.html import format_html
from unfold.admin import TabularInline
from unfold.decorators import display
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextareaWidget

from billing.acting import (
    Act,
    ActingAdmin,
    Deed,
    ReasonedAdmin,
    ReasonedModelForm,
    Refused,
)
from billing.admin import NoDelete, ReadOnly
from inference.catalogue import MODELS
from inference.registry import PROVIDERS, RUNNERS
from jobs import context, effects, incidents, outside, provider_steps, routing
from jobs.admin import margin
from jobs.admin.boxes import known_model, models_box, plans_box
from jobs.models import (
    Effect,
    EffectVersion,
    Lora,
    ModelAlias,
    ProviderAccount,
    Route,
    Worker,
)

# -------------------------------------------------------------------------- routes


class RouteForm(ReasonedModelForm):
    """A route to something that exists."""

    plans = plans_box()

    def clean_model(self) -> str:
        return known_model(self.cleaned_data["model"])

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        is_provider = cleaned.get("kind") == Route.Kind.PROVIDER
        known = PROVIDERS if is_provider else RUNNERS
        if cleaned.get("runner") not in known:
            word = "Providers" if is_provider else "Engines"
            self.add_error("runner", f"{word} are {', '.join(sorted(known))}.")
        return cleaned


@admin.register(Route)
class RouteAdmin(NoDelete, ReasonedAdmin):
    form = RouteForm
    list_display = (
        "__str__",
        "kind",
        "queue",
        "profile",
        "rank",
        "weight",
        "is_enabled",
        "simulates",
        "cost",
    )
    list_filter = ("kind", "is_enabled", "simulates", "runner")
    search_fields = ("model", "name", "runner", "profile")

    def get_urls(self) -> list[Any]:
        return [
            path(
                "margin/", self.admin_site.admin_view(self.margin), name="jobs_margin"
            ),
            *super().get_urls(),
        ]

    def margin(self, request: HttpRequest) -> HttpResponse:
        return margin.page(request, given=self.admin_site.each_context(request))

    @admin.display(description="our cost a job", ordering="cost_microdollars")
    def cost(self, route: Route) -> str:
        return (
            f"${route.cost_microdollars / 1e6:.4f}" if route.cost_microdollars else ""
        )

    def save_model(
        self, request: HttpRequest, obj: Any, form: Any, change: Any
    ) -> None:
        super().save_model(request, obj, form, change)
        routing.forget()


class AliasForm(ReasonedModelForm):
    """A name that is free, for a model that exists."""

    def clean_model(self) -> str:
        return known_model(self.cleaned_data["model"])

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if name in MODELS:
            raise ValidationError("This is a public model's own name.")
        return name


@admin.register(ModelAlias)
class ModelAliasAdmin(ReasonedAdmin):
    form = AliasForm
    list_display = ("name", "model")
    search_fields = ("name", "model")

    def save_model(
        self, request: HttpRequest, obj: Any, form: Any, change: Any
    ) -> None:
        super().save_model(request, obj, form, change)
        routing.forget()

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        super().delete_model(request, obj)
        routing.forget()


# -------------------------------------------------------------------- the providers


#: Empty: the adapter's own figure.
_LIMITS = ("concurrent_jobs", "submits_per_second", "statuses_per_second")


class ProviderAccountForm(ReasonedModelForm):
    """Credentials go in and never come out."""

    provider = forms.ChoiceField(
        choices=[(name, name) for name in sorted(PROVIDERS)],
        widget=UnfoldAdminSelectWidget(),
    )
    new_credentials = forms.CharField(
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3, "autocomplete": "off"}),
        help_text="One JSON object, such as {&quot;api_key&quot;: &quot;…&quot;}. "
        "Empty: what is stored stays. It is never shown again.",
    )

    class Meta:
        model = ProviderAccount
        exclude = ("credentials",)

    def clean_new_credentials(self) -> str:
        text: str = self.cleaned_data["new_credentials"].strip()
        if not text:
            return ""
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValidationError(f"This is no JSON: {error}") from error
        if not isinstance(given, dict):
            raise ValidationError("It must be one JSON object.")
        return text

    def clean_settings(self) -> Any:
        given = self.cleaned_data["settings"]
        return {} if given is None else given  # the box was emptied

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        for name in ("weight", *_LIMITS):
            if (limit := cleaned.get(name)) is not None and not 0 < limit < math.inf:
                self.add_error(name, "It must be more than 0.")
        if self.instance._state.adding and not self.data.get("new_credentials"):
            self.add_error("new_credentials", "A new account needs its credentials.")
        if "settings" in cleaned and cleaned.get("provider"):
            adapter = outside.adapter(cleaned["provider"])
            if problem := adapter.settings_problem(cleaned["settings"]):
                self.add_error("settings", f"Not usable: {problem}.")
        text = cleaned.get("new_credentials")
        if text and cleaned.get("provider"):
            self._check_credentials(json.loads(text), cleaned["provider"])
        return cleaned

    def _check_credentials(self, given: dict[str, Any], provider: str) -> None:
        adapter = outside.adapter(provider)
        known = {field.name for field in adapter.credential_fields}
        if unknown := sorted(set(given) - known):
            self.add_error(
                "new_credentials",
                f"Unknown: {', '.join(unknown)}; it takes {', '.join(sorted(known))}.",
            )
            return
        try:
            found = adapter.credentials(given)
        except ValueError as error:
            self.add_error("new_credentials", f"Its {error}.")
        else:
            self.cleaned_data["new_credentials"] = json.dumps(found)


def _reset(row: ProviderAccount, deed: Deed) -> str:
    ProviderAccount.objects.filter(pk=row.pk).update(is_enabled=True)
    outside.back_in_order(row.pk, by=deed.actor)
    routing.forget()
    return "used again from now on."


def _disable(row: ProviderAccount, deed: Deed) -> str:
    ProviderAccount.objects.filter(pk=row.pk).update(is_enabled=False)
    routing.forget()
    return "takes no more jobs; those it has are still awaited."


@admin.register(ProviderAccount)
class ProviderAccountAdmin(NoDelete, ReasonedAdmin):
    form = ProviderAccountForm
    list_display = (
        "__str__",
        "base_url",
        "health",
        "failures_in_row",
        "last_ok_at",
        "last_error",
        "poll_interval_seconds",
    )
    list_filter = ("provider", "is_enabled")
    search_fields = ("provider", "name", "base_url")
    readonly_fields = (
        "takes_jobs",
        "callback_url",
        "failures_in_row",
        "open_until",
        "rest_until",
        "next_submit_at",
        "out_of_order_at",
        "last_ok_at",
        "last_error",
        "poll_interval_seconds",
    )
    acts = (
        Act(
            name="enable",
            label="Use again",
            explains="Its breaker is closed and it takes jobs at once: use this when "
            "its key or its credit has been put right.",
            run=_reset,
            icon="play_circle",
        ),
        Act(
            name="disable",
            label="Use no more",
            explains="No new jobs go there; those it has are still awaited.",
            run=_disable,
            icon="block",
            is_dangerous=True,
            fits=lambda row: row.is_enabled,
        ),
    )

    @display(
        description="health",
        label={"well": "success", "off": "primary", "resting": "warning"},
    )
    def health(self, row: ProviderAccount) -> str:
        return health_of(row)

    @admin.display(description="takes jobs")
    def takes_jobs(self, row: ProviderAccount) -> str:
        """Say whether a job may go there at all, and if not, why."""
        if row._state.adding:
            return "shown once the account is saved"
        reason = outside.why_not(row)
        return f"no: {reason}" if reason else "yes"

    @admin.display(description="callback URL")
    def callback_url(self, row: ProviderAccount) -> str:
        """Show the address to enter at the provider, or why there is none."""
        if row._state.adding:
            return "shown once the account is saved"
        abilities = outside.adapter(row.provider).capabilities
        if not (abilities.callback_per_job or abilities.callback_signed):
            return "none: this provider calls nobody, its jobs are asked about"
        if not settings.CALLBACKS:
            return "unavailable: CALLBACKS is off, its jobs are asked about"
        if not provider_steps.reaches_us(row.base_url):
            return (
                f"unavailable: the provider cannot reach PUBLIC_URL "
                f"({settings.PUBLIC_URL}); its jobs are asked about"
            )
        if abilities.callback_per_job:
            return "nothing to enter: each job tells the provider its own"
        return provider_steps.account_callback_url(row)

    def save_model(
        self, request: HttpRequest, obj: Any, form: Any, change: Any
    ) -> None:
        if form.cleaned_data["new_credentials"]:
            obj.credentials = form.cleaned_data["new_credentials"]
        super().save_model(request, obj, form, change)
        routing.forget()


def health_of(row: ProviderAccount) -> str:
    """Return one word for how the account is doing."""
    now = timezone.now()
    if row.out_of_order_at is not None:
        return "out of order"
    if not row.is_enabled:
        return "off"
    if outside.why_not(row):
        return "unusable"
    if row.open_until is not None and row.open_until > now:
        return "failing"
    if row.rest_until is not None and row.rest_until > now:
        return "resting"
    return "failing" if row.failures_in_row >= outside.FAILURES_TO_OPEN else "well"


# ------------------------------------------------------------------------- effects


class EffectForm(ReasonedModelForm):
    """An effect's listing, and the words of its next version."""

    plans = plans_box()
    for_models = models_box()
    prompt = forms.CharField(widget=UnfoldAdminTextareaWidget(attrs={"rows": 4}))
    negative_prompt = forms.CharField(
        required=False, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2})
    )
    parameters = forms.JSONField(
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text="Options by public model; those under * are for every model.",
    )
    loras = forms.JSONField(
        required=False, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2})
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk and not self.instance._state.adding:
            current = self.instance.current
            for name in _TEMPLATE:
                self.fields[name].initial = getattr(current, name)

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        problem = effects.problem_with(
            cleaned.get("parameters") or {}, cleaned.get("loras") or []
        ) or effects.problem_with_length(
            cleaned.get("prompt", ""), cleaned.get("for_models") or []
        )
        if problem:
            raise ValidationError(problem)
        return cleaned


#: Long enough to look at the page.
PREVIEW_LINK_SECONDS = 3600
PREVIEW_WAIT_SECONDS = 120.0


def _render_preview(effect: Effect, deed: Deed) -> str:
    # In a process of its own: the web process draws no frames and loads no weights.
    manage = str(settings.BASE_DIR / "manage.py")
    try:
        done = subprocess.run(
            [sys.executable, manage, "render_previews", effect.code, "--again"],
            capture_output=True,
            text=True,
            timeout=PREVIEW_WAIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise Refused(f"not ready after {PREVIEW_WAIT_SECONDS:.0f} s") from late
    if done.returncode != 0:
        told = done.stderr.strip().splitlines()
        raise Refused(told[-1][:300] if told else f"it ended with {done.returncode}")
    return done.stdout.strip()


_TEMPLATE = ("prompt", "negative_prompt", "parameters", "loras")


class EffectVersionInline(ReadOnly, TabularInline):
    model = EffectVersion
    fields = readonly_fields = ("version", "prompt", "parameters", "created_at")
    extra = 0
    can_delete = False


@admin.register(Effect)
class EffectAdmin(NoDelete, ReasonedAdmin):
    """Changed words are a new version; accepted jobs keep theirs."""

    form = EffectForm
    list_display = ("code", "name", "rank", "is_enabled", "plans", "for_models")
    list_filter = ("is_enabled",)
    search_fields = ("code", "name", "description")
    readonly_fields = ("preview", "created_at")
    inlines = (EffectVersionInline,)
    acts = (
        Act(
            name="render",
            label="Render preview",
            explains="Makes the newest version's preview with our own engine; "
            "customers see it in the list of effects.",
            run=_render_preview,
            icon="movie",
            in_bulk=False,  # each takes seconds of the page's time
        ),
    )

    @admin.display(description="preview of the newest version")
    def preview(self, effect: Effect) -> str:
        """Show the clip, or say that nobody has rendered it yet."""
        template = effect.versions.order_by("-version").first()
        if template is None or not template.preview_key:
            return "not rendered yet"
        storage = context.get().storage
        return format_html(
            '<video src="{}" width="320" muted loop autoplay playsinline></video>',
            storage.presign(template.preview_key, seconds=PREVIEW_LINK_SECONDS),
        )

    def save_model(
        self, request: HttpRequest, obj: Any, form: Any, change: Any
    ) -> None:
        super().save_model(request, obj, form, change)
        if change and not set(_TEMPLATE) & set(form.changed_data):
            return
        effects.publish(
            obj,
            prompt=form.cleaned_data["prompt"],
            negative_prompt=form.cleaned_data["negative_prompt"],
            parameters=form.cleaned_data["parameters"] or {},
            loras=form.cleaned_data["loras"] or (),
        )


@admin.register(Lora)
class LoraAdmin(NoDelete, ReasonedAdmin):
    """LoRAs are checked and stored by `manage.py addlora`; here they go on and off."""

    list_display = ("name", "is_enabled", "sha256", "created_at")
    search_fields = ("name",)
    readonly_fields = ("name", "key", "sha256", "created_at")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False


# ------------------------------------------------------------------------- workers


def _forget_worker(worker: Worker, deed: Deed) -> str:
    worker_name = worker.name
    Worker.objects.filter(pk=worker.pk).delete()
    incidents.resolve("worker_dead", worker_name, by=deed.actor)
    return "forgotten; should it still live, it comes back within seconds."


@admin.register(Worker)
class WorkerAdmin(ReadOnly, ActingAdmin):
    list_display = ("name", "queues", "seen_at", "started_at", "doing")
    search_fields = ("name",)
    acts = (
        Act(
            name="forget",
            label="Forget",
            explains="For a worker that is gone for good, such as a host that was "
            "given back.",
            run=_forget_worker,
            icon="delete",
        ),
    )
