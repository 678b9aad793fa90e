"""Customers' webhooks: where they go, how each delivery went, and sending one again."""

from __future__ import annotations

import json

from django.contrib import admin
from django.http import HttpRequest
from unfold.admin import ModelAdmin
from unfold.decorators import display

from billing.acting import Act, ActingAdmin, Deed, Refused
from billing.admin import ReadOnly
from jobs import deliveries, webhooks
from jobs.admin.filters import MODES, one_of
from jobs.models import (
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
    WebhookLane,
)


def _disable(endpoint: WebhookEndpoint, deed: Deed) -> str:
    webhooks.disable(endpoint, "the operator switched it off")
    return "disabled; its account is told."


def _enable(endpoint: WebhookEndpoint, deed: Deed) -> str:
    WebhookEndpoint.objects.filter(pk=endpoint.pk).update(
        is_enabled=True, disabled_reason=""
    )
    WebhookLane.objects.filter(key=f"endpoint:{endpoint.pk}").delete()
    return "enabled."


def _replay(delivery: WebhookDelivery, deed: Deed) -> str:
    if delivery.state == "pending":
        raise Refused("It is still on its way.")
    if delivery.endpoint is not None and not delivery.endpoint.is_enabled:
        raise Refused("Its endpoint is disabled; enable that first.")
    webhooks.replay(delivery)
    return "sent again now."


@admin.register(WebhookEndpoint)
class WebhookEndpointAdmin(ReadOnly, ActingAdmin):
    """Secrets are never shown, to nobody."""

    list_display = ("url", "account", "mode", "is_enabled", "disabled_reason")
    list_filter = (one_of("mode", MODES), "is_enabled")
    list_select_related = ("account",)
    search_fields = ("url", "account__name")
    fields = (
        "id",
        "account",
        "mode",
        "url",
        "description",
        "events",
        "is_enabled",
        "disabled_reason",
        "created_at",
    )
    acts = (
        Act(
            name="disable",
            label="Disable",
            explains="Nothing more is sent there, and the account is told so.",
            run=_disable,
            icon="block",
            is_dangerous=True,
            fits=lambda row: row.is_enabled,
        ),
        Act(
            name="enable",
            label="Enable",
            explains="Events from now on are sent there again.",
            run=_enable,
            icon="check_circle",
            fits=lambda row: not row.is_enabled,
        ),
    )


@admin.register(WebhookDelivery)
class WebhookDeliveryAdmin(ReadOnly, ActingAdmin):
    list_display = (
        "id",
        "event_type",
        "url",
        "format",
        "state_label",
        "tries",
        "next_at",
        "delivered_at",
    )
    list_filter = (
        "state",
        one_of("format", deliveries.SCHEDULES),
        one_of("event__type", webhooks.TYPES),
    )
    list_select_related = ("event",)
    search_fields = ("url", "event__id")
    show_full_result_count = False
    fields = (
        "event",
        "endpoint",
        "url",
        "format",
        "lane",
        "state",
        "tries",
        "next_at",
        "delivered_at",
        "what_happened",
    )
    readonly_fields = ("what_happened",)
    acts = (
        Act(
            name="replay",
            label="Send again",
            explains="It is sent now, and retried as if it were new.",
            run=_replay,
            icon="replay",
            fits=lambda row: row.state != "pending",
        ),
    )

    @admin.display(description="event", ordering="event__type")
    def event_type(self, delivery: WebhookDelivery) -> str:
        return delivery.event.type

    @display(
        description="state",
        ordering="state",
        label={"delivered": "success", "failed": "danger", "pending": "info"},
    )
    def state_label(self, delivery: WebhookDelivery) -> str:
        return str(delivery.state)

    @admin.display(description="tries so far")
    def what_happened(self, delivery: WebhookDelivery) -> str:
        return "\n".join(
            f"{entry['at']}  {entry['status'] or 'no answer'}  "
            f"{entry['seconds']} s  {json.dumps(entry['answer'], ensure_ascii=False)}"
            for entry in delivery.log
        )


@admin.register(WebhookEvent)
class WebhookEventAdmin(ReadOnly, ModelAdmin):
    list_display = ("id", "type", "account", "mode", "job", "created_at")
    list_filter = (one_of("type", webhooks.TYPES), one_of("mode", MODES))
    list_select_related = ("account", "job")
    search_fields = ("id", "account__name")
    show_full_result_count = False


@admin.register(WebhookLane)
class WebhookLaneAdmin(ReadOnly, ModelAdmin):
    """Addresses that fail. Deleting one gives it its full share of calls at once."""

    list_display = ("key", "failures_in_row", "failing_since", "open_until")
    search_fields = ("key",)

    def has_delete_permission(
        self, request: HttpRequest, obj: WebhookLane | None = None
    ) -> bool:
        return bool(request.user.has_perm("jobs.delete_webhooklane"))
