"""Webhook endpoints as customers manage them: make, list, rotate, test, log, replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from inference.egress import check_url
from inference.errors import InputRejected
from jobs import webhooks
from jobs.errors import InvalidRequest, NotAcceptableNow, NotFound
from jobs.models import WebhookDelivery, WebhookEndpoint, WebhookEvent

if TYPE_CHECKING:
    from billing.keys import Credential

#: Of one account and mode: more would make every event a small flood.
ENDPOINTS_MAX = 20
LOG_PAGE = 50


def do(credential: Credential, values: Mapping[str, Any]) -> Any:
    """Carry out ``values["action"]``; raises the ApiErrors of its checks."""
    return _ACTIONS[values["action"]](credential, values)


def create(credential: Credential, values: Mapping[str, Any]) -> dict[str, Any]:
    """Make an endpoint; its secret is in this answer and can be read again by rotating."""
    mine = _of(credential)
    if mine.filter(is_enabled=True).count() >= ENDPOINTS_MAX:
        raise NotAcceptableNow(f"At most {ENDPOINTS_MAX} endpoints.")
    endpoint = WebhookEndpoint.objects.create(
        account_id=credential.account_id,
        mode=credential.mode,
        url=_url(values.get("url")),
        description=_description(values.get("description")),
        events=_events(values.get("events")),
        secret=webhooks.new_secret(),
    )
    endpoint.refresh_from_db()
    return shown(endpoint) | {"secret": endpoint.secret}


def list_all(credential: Credential, _: Mapping[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": [shown(row) for row in _of(credential)]}


def rotate(credential: Credential, values: Mapping[str, Any]) -> dict[str, Any]:
    endpoint = _find(credential, values)
    secret = webhooks.rotate(endpoint)
    return shown(endpoint) | {"secret": secret}


def disable(credential: Credential, values: Mapping[str, Any]) -> dict[str, Any]:
    endpoint = _find(credential, values)
    WebhookEndpoint.objects.filter(pk=endpoint.pk).update(
        is_enabled=False, disabled_reason="disabled by the customer"
    )
    WebhookDelivery.objects.filter(endpoint=endpoint, state="pending").update(
        state="failed"
    )
    endpoint.refresh_from_db()
    return shown(endpoint)


def test(credential: Credential, values: Mapping[str, Any]) -> dict[str, Any]:
    """Send the endpoint an event of type ``test``; return its delivery."""
    endpoint = _find(credential, values)
    if not endpoint.is_enabled:
        raise NotAcceptableNow("The endpoint is disabled.")
    delivery = webhooks.send_test(endpoint)
    return delivery_shown(delivery)


def log(credential: Credential, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the endpoint's latest deliveries with every try."""
    endpoint = _find(credential, values)
    rows = WebhookDelivery.objects.filter(endpoint=endpoint).select_related("event")
    page = rows.order_by("-id")[:LOG_PAGE]
    return {"object": "list", "data": [delivery_shown(row) for row in page]}


def replay(credential: Credential, values: Mapping[str, Any]) -> dict[str, Any]:
    """Send a past delivery again."""
    text = str(values["delivery"])
    found = (
        WebhookDelivery.objects.filter(
            pk=int(text),
            event__account_id=credential.account_id,
            event__mode=credential.mode,
        ).select_related("event", "endpoint")
        if text.isascii() and text.isdigit() and len(text) < 18
        else WebhookDelivery.objects.none()
    )
    if (delivery := found.first()) is None:
        raise NotFound("delivery")
    if delivery.endpoint is not None and not delivery.endpoint.is_enabled:
        raise NotAcceptableNow("The endpoint is disabled.")
    webhooks.replay(delivery)
    delivery.refresh_from_db()
    return delivery_shown(delivery)


def keys(credential: Credential, _: Mapping[str, Any]) -> dict[str, Any]:
    """Return what per-job webhooks are signed with, and the public key of v1a."""
    return {
        "object": "webhook_keys",
        "secret": webhooks.account_secret(credential.account_id, credential.mode),
        "public_key": webhooks.public_key(),
    }


def shown(endpoint: WebhookEndpoint) -> dict[str, Any]:
    return {
        "id": str(endpoint.pk),
        "object": "webhook_endpoint",
        "url": endpoint.url,
        "description": endpoint.description,
        "events": endpoint.events or list(webhooks.TYPES),
        "enabled": endpoint.is_enabled,
        "disabled_reason": endpoint.disabled_reason or None,
        "created_at": endpoint.created_at.isoformat(timespec="milliseconds"),
    }


def delivery_shown(delivery: WebhookDelivery) -> dict[str, Any]:
    event: WebhookEvent = delivery.event
    return {
        "id": str(delivery.pk),
        "object": "webhook_delivery",
        "event_id": str(event.pk),
        "type": event.type,
        "job_id": str(event.job_id) if event.job_id else None,
        "url": delivery.url,
        "state": delivery.state,
        "tries": delivery.tries,
        "next_try_at": delivery.next_at.isoformat(timespec="milliseconds")
        if delivery.state == "pending"
        else None,
        "log": delivery.log,
    }


def _of(credential: Credential) -> Any:
    return WebhookEndpoint.objects.filter(
        account_id=credential.account_id, mode=credential.mode
    )


def _find(credential: Credential, values: Mapping[str, Any]) -> WebhookEndpoint:
    try:
        endpoint: WebhookEndpoint = _of(credential).get(pk=UUID(str(values["id"])))
    except (ValueError, WebhookEndpoint.DoesNotExist) as error:
        raise NotFound("webhook endpoint") from error
    return endpoint


def _url(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidRequest("url", "An https URL is required.")
    try:
        check_url(value, https_only=True)
    except InputRejected as refused:
        raise InvalidRequest("url", str(refused)) from refused
    return value


def _description(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > 200:
        raise InvalidRequest("description", "At most 200 characters.")
    return value


def _events(value: object) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(one in webhooks.TYPES for one in value):
        raise InvalidRequest(
            "events", f"Each must be one of {', '.join(webhooks.TYPES)}."
        )
    return value


_ACTIONS: Mapping[str, Callable[[Credential, Mapping[str, Any]], Any]] = {
    "create": create,
    "list": list_all,
    "rotate": rotate,
    "disable": disable,
    "test": test,
    "log": log,
    "replay": replay,
    "keys": keys,
}
