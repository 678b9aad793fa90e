"""The job page: what was asked, what happened and when, its money, its video."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib import admin
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from unfold.decorators import display

from billing import ledger
from billing.acting import ActingAdmin
from billing.admin import ReadOnly
from jobs import context
from jobs.admin import job_acts
from jobs.admin.filters import MODES, known_queues, one_of
from jobs.dialects import DIALECTS
from jobs.models import Job, WebhookDelivery
from jobs.states import Status

if TYPE_CHECKING:
    from django.db.models import QuerySet

LABELS = {
    "succeeded": "success",
    "failed": "danger",
    "canceled": "warning",
    "running": "info",
    "queued": "primary",
}
#: Long enough to watch a video, short enough to forget in a chat.
LINK_SECONDS = 3600


@dataclass(frozen=True)
class Moment:
    """One line of the timeline."""

    at: datetime
    what: str
    more: str = ""
    actor: str = ""
    until: datetime | None = None
    tone: str = ""

    @property
    def took(self) -> str:
        if self.until is None:
            return ""
        return f"{(self.until - self.at).total_seconds():.1f} s"


@admin.register(Job)
class JobAdmin(ReadOnly, ActingAdmin):
    acts = job_acts.ACTS
    list_display = (
        "short_id",
        "account",
        "model",
        "status_label",
        "where",
        "mode",
        "dialect",
        "credits",
        "error_code",
        "created_at",
    )
    list_display_links = ("short_id",)
    list_filter = (
        "status",
        "step",
        one_of("mode", MODES),
        one_of("kind", ("video", "audio")),
        one_of("dialect", DIALECTS),
        one_of("queue", known_queues),
    )
    list_select_related = ("account",)
    search_fields = ("public_id",)
    search_help_text = "A job's, account's or provider's id, or an account's name"
    show_full_result_count = False
    change_form_template = "zoetrope/job.html"
    list_per_page = 50

    def get_queryset(self, request: HttpRequest) -> QuerySet[Job]:
        # Lists do not need the large columns.
        match = request.resolver_match
        rows: QuerySet[Job] = super().get_queryset(request)
        if match is not None and str(match.url_name).endswith("_changelist"):
            return rows.defer("request", "resolved", "inputs", "master", "error_detail")
        return rows.select_related("account", "provider_account", "source")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Job], search_term: str
    ) -> tuple[QuerySet[Job], bool]:
        """Look ids up by their indexes instead of reading every job."""
        term = search_term.strip()
        if not term:
            return queryset, False
        try:
            by_id = UUID(term)
            return queryset.filter(Q(pk=by_id) | Q(account_id=by_id)), False
        except ValueError:
            pass
        found = Q(public_id=term) | Q(provider_job_id=term) | Q(error_code=term)
        return queryset.filter(found | Q(account__name__icontains=term)), False

    @admin.display(description="job", ordering="id")
    def short_id(self, job: Job) -> str:
        return str(job.pk)[:8]

    @display(description="status", ordering="status", label=LABELS)
    def status_label(self, job: Job) -> str:
        return str(job.status)

    @admin.display(description="where")
    def where(self, job: Job) -> str:
        if Status(job.status).is_terminal:
            return ""
        share = f" {job.progress:.0%}" if job.progress else ""
        return f"{job.step}{share} {job.queue}".strip()

    @admin.display(description="credits", ordering="quoted_millicredits")
    def credits(self, job: Job) -> str:
        return f"{job.quoted_millicredits / 1000:g}"

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        job = self.get_object(request, object_id) if object_id else None
        if job is not None and self.has_view_permission(request, job):
            extra_context = {**(extra_context or {}), "page": page_of(job)}
        answer: HttpResponse = super().changeform_view(
            request, object_id, form_url, extra_context
        )
        return answer


# ------------------------------------------------------------------------ the page


def page_of(job: Job) -> dict[str, Any]:
    """Return everything the job page shows."""
    moments = sorted(timeline(job), key=lambda moment: moment.at)
    return {
        "label": LABELS.get(job.status, ""),
        "percent": round(job.progress * 100),
        "facts": _facts(job),
        "asked": _shown({k: v for k, v in job.request.items() if v not in _EMPTY}),
        "decided": _shown(job.resolved),
        "made": _shown(
            {k: v for k, v in job.output.items() if k not in ("notes", "key")}
        ),
        "notes": _shown(job.output.get("notes") or {}),
        "route": _shown(_route(job)),
        "links": links_of(job),
        "inputs": _inputs(job),
        "uploads": list(job.uploads.values_list("name", flat=True)),
        "money": _money(job),
        "attempts": list(job.attempts.select_related("provider_account")),
        "deliveries": list(
            WebhookDelivery.objects.filter(event__job=job).select_related("event")[:50]
        ),
        "deletions": list(job.deletions.all()),
        "derived": list(job.derived.only("id", "status", "model")[:20]),
        "timeline": moments,
    }


_EMPTY: tuple[Any, ...] = (None, "", [], {}, False)


def _facts(job: Job) -> list[tuple[str, Any, str]]:
    """Return (name, value, link) of what a reader looks for first."""
    account = reverse("admin:billing_account_change", args=[job.account_id])
    source = job.source and reverse("admin:jobs_job_change", args=[job.source_id])
    facts = [
        ("Account", job.account, account),
        ("Job", job.pk, ""),
        (f"Id in {job.dialect}", job.public_id, ""),
        ("Model", job.model, ""),
        ("Mode", job.mode, ""),
        ("API key", job.api_key_id or "an operator", ""),
        ("Step", f"{job.step} {job.queue}".strip(), ""),
        ("Worker", job.worker, ""),
        ("Stage", job.stage, ""),
        ("Comes from", job.source, source or ""),
        ("Quoted", f"{job.quoted_millicredits / 1000:g} credits", ""),
        ("Charged", f"{job.charged_millicredits / 1000:g} credits", ""),
        ("Given back", f"{job.refunded_millicredits / 1000:g} credits", ""),
        (
            "Our cost",
            job.cost_microdollars and f"${job.cost_microdollars / 1e6:.4f}",
            "",
        ),
        ("Work", job.work_seconds and f"{job.work_seconds:.1f} s", ""),
        ("Price version", job.price_version, ""),
        ("Files until", job.files_expire_at, ""),
        ("Files deleted", job.files_deleted_at, ""),
        ("Error", job.error_code, ""),
        ("The customer reads", job.error_message, ""),
        ("Retryable", "yes" if job.error_retryable else "", ""),
    ]
    return [(name, value, link) for name, value, link in facts if value]


def _route(job: Job) -> dict[str, Any]:
    at_provider = {
        "provider account": str(job.provider_account or ""),
        "our token there": job.submit_token,
        "sent at": str(job.submit_sent_at or ""),
        "its id there": job.provider_job_id,
        "next look": str(job.next_poll_at or ""),
        "looks in vain": job.poll_failures,
        "given up before": ", ".join(job.routes_tried),
    }
    return {**job.route, **{k: v for k, v in at_provider.items() if v}}


def _shown(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            name.replace("_", " "),
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
        )
        for name, value in sorted(values.items())
    ]


def links_of(job: Job) -> dict[str, str]:
    """Return short-lived links to the job's files, while there are any."""
    if job.files_deleted_at is not None:
        return {}
    storage = context.get().storage
    named = {
        "video": job.output.get("key"),
        "poster": job.output.get("poster_key"),
        "preview": job.output.get("preview_key"),
    }
    return {
        name: storage.presign(key, seconds=LINK_SECONDS)
        for name, key in named.items()
        if key
    }


def _money(job: Job) -> list[dict[str, Any]]:
    movements = ledger.movements_of(
        account_id=job.account_id, mode=job.mode, reference=str(job.pk)
    )
    return [
        {
            "id": movement.id,
            "at": movement.created_at,
            "kind": movement.kind,
            "available": f"{movement.available_millicredits / 1000:+,.3f}",
            "held": f"{movement.held_millicredits / 1000:+,.3f}",
            "after": f"{movement.available_after_millicredits / 1000:,.3f}",
            "actor": movement.actor,
            "reason": movement.reason,
        }
        for movement in movements
    ]


def _inputs(job: Job) -> list[tuple[str, str, Any]]:
    storage = context.get().storage
    return [
        (
            name,
            storage.presign(entry["key"], seconds=LINK_SECONDS),
            "x".join(map(str, entry.get("size") or ())),
        )
        for name, entry in job.inputs.items()
        if entry and entry.get("key")
    ]


def timeline(job: Job) -> Iterator[Moment]:
    """Yield everything that happened to the job, in no order."""
    yield Moment(job.created_at, "accepted", f"by {job.dialect}")
    if job.ready_at is not None:
        yield Moment(job.ready_at, "got a slot")
    if job.submit_sent_at is not None:
        yield Moment(job.submit_sent_at, "sent", str(job.provider_account or ""))
    if job.cancel_requested_at is not None:
        yield Moment(job.cancel_requested_at, "cancel asked", job.cancel_reason)
    for attempt in job.attempts.all():
        outcome = attempt.outcome or "under way"
        yield Moment(
            attempt.started_at,
            f"{attempt.step} #{attempt.fence} {outcome}",
            " ".join(filter(None, (attempt.error_code, attempt.error_detail[:300]))),
            attempt.worker,
            attempt.ended_at,
            "bad" if attempt.outcome in ("failed", "lost") else "",
        )
    for note in job.notes.all():
        yield Moment(note.at, note.kind, note.text, note.actor)
    if job.finished_at is not None:
        tones = {"succeeded": "good", "failed": "bad"}
        yield Moment(
            job.finished_at,
            job.status,
            job.error_code,
            tone=tones.get(job.status, ""),
        )
    for deletion in job.deletions.all():
        files = f"{len(deletion.keys)} files ({deletion.reason})"
        yield Moment(deletion.at, "deleted", files, deletion.actor)
