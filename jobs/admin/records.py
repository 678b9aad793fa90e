"""What was written down: incidents, deletions, attempts, notes, answers kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.http import HttpRequest
from unfold.admin import ModelAdmin
from unfold.decorators import display

from billing.acting import Act, ActingAdmin, Deed, Refused
from billing.admin import ReadOnly
from jobs import incidents
from jobs.admin.filters import one_of
from jobs.models import (
    Attempt,
    DeletionRecord,
    IdempotencyRecord,
    Incident,
    JobNote,
    ProviderErrand,
    Worker,
)

if TYPE_CHECKING:
    from django.db.models import QuerySet


class OpenFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("open", "open"), ("over", "over")]

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Incident]
    ) -> QuerySet[Incident]:
        if self.value() is None:
            return queryset
        return queryset.filter(resolved_at__isnull=self.value() == "open")


def _resolve(incident: Incident, deed: Deed) -> str:
    if not incidents.resolve(incident.kind, incident.subject, by=deed.actor):
        raise Refused("It is over already.")
    if incident.kind == "worker_dead":
        Worker.objects.filter(name=incident.subject).delete()
    return "resolved; it comes back if its cause is still there."


@admin.register(Incident)
class IncidentAdmin(ReadOnly, ActingAdmin):
    list_display = (
        "kind",
        "subject",
        "state",
        "text",
        "opened_at",
        "seen_at",
        "resolved_by",
    )
    list_filter = (OpenFilter, "kind")
    search_fields = ("subject", "text", "kind")
    acts = (
        Act(
            name="resolve",
            label="Resolve",
            explains="Somebody has looked at it. What is still wrong is reported anew "
            "at the next check.",
            run=_resolve,
            icon="task_alt",
            fits=lambda row: row.resolved_at is None,
        ),
    )

    @display(description="state", label={"open": "danger", "over": "success"})
    def state(self, incident: Incident) -> str:
        return "open" if incident.resolved_at is None else "over"


@admin.register(DeletionRecord)
class DeletionRecordAdmin(ReadOnly, ModelAdmin):
    list_display = ("at", "reason", "files", "job", "account_id", "actor")
    list_filter = ("reason",)
    list_select_related = ("job",)
    search_fields = ("job__id", "account_id", "actor")
    show_full_result_count = False

    @admin.display(description="files")
    def files(self, record: DeletionRecord) -> int:
        return len(record.keys)


@admin.register(Attempt)
class AttemptAdmin(ReadOnly, ModelAdmin):
    list_display = (
        "job",
        "fence",
        "step",
        "route",
        "worker",
        "outcome",
        "error_code",
        "started_at",
        "ended_at",
    )
    list_filter = (
        "step",
        one_of(
            "outcome",
            ("ok", "failed", "in_doubt", "lost", "released", "stopped", "canceled"),
        ),
    )
    list_select_related = ("job",)
    search_fields = ("job__id", "worker", "error_code")
    ordering = ("-id",)
    show_full_result_count = False


@admin.register(JobNote)
class JobNoteAdmin(ReadOnly, ModelAdmin):
    list_display = ("at", "job", "kind", "text", "actor")
    list_filter = (one_of("kind", ("route", "operator", "refund", "reconcile")),)
    list_select_related = ("job",)
    search_fields = ("job__id", "actor", "text")
    ordering = ("-id",)
    show_full_result_count = False


@admin.register(IdempotencyRecord)
class IdempotencyRecordAdmin(ReadOnly, ModelAdmin):
    list_display = ("key", "account", "mode", "status", "created_at")
    list_select_related = ("account",)
    search_fields = ("key", "account__name")
    show_full_result_count = False


@admin.register(ProviderErrand)
class ProviderErrandAdmin(ReadOnly, ModelAdmin):
    list_display = ("kind", "account", "provider_job_id", "job", "tries", "due_at")
    list_select_related = ("account", "job")
    search_fields = ("provider_job_id",)
