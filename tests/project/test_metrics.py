"""/metrics says what the database knows, to who has the token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db.models.functions import Now
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from inference.errors import RenderError
from jobs import claims, incidents, lifecycle
from jobs.models import (
    Job,
    ProviderAccount,
    WebhookDelivery,
    WebhookEvent,
    WebhookLane,
    Worker,
)
from project import metrics
from tests.factories import make_account, make_key
from tests.jobs.api.test_native import PICTURE

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]
DASHBOARD = Path(__file__).parents[2] / "ops" / "grafana-dashboard.json"


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    metrics._kept.forget()
    yield
    metrics._kept.forget()


def scrape() -> Any:
    token = f"Bearer {settings.METRICS_TOKEN}"
    return Client().get("/metrics", headers={"Authorization": token})


def figures() -> dict[tuple[str, ...], float]:
    """Name and label values (by the labels' names) → value."""
    text = scrape().content.decode()
    return {
        (
            sample.name.removeprefix("zoetrope_"),
            *(sample.labels[label] for label in sorted(sample.labels)),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def submit(key: str, **options: Any) -> Job:
    made = Client(headers={"Authorization": f"Bearer {key}"}).post(
        "/v1/jobs", {"image": PICTURE, **options}, content_type="application/json"
    )
    assert made.status_code == 202, made.content
    return Job.objects.get(pk=made.json()["id"])


def test_without_the_token_nothing_is_told() -> None:
    assert Client().get("/metrics").status_code == 401
    wrong = Client().get("/metrics", headers={"Authorization": "Bearer wrong"})
    assert wrong.status_code == 401
    assert b"zoetrope" not in wrong.content
    assert scrape().status_code == 200


def test_queues_jobs_and_money_are_counted() -> None:
    account = make_account("alice", credits=100)
    key = make_key(account)
    submit(key)
    failed = submit(key)
    Job.objects.filter(pk=failed.pk).update(priority=5)
    claim = claims.claim_next("media", worker="media@here")
    assert claim is not None
    lifecycle.fail(claim, RenderError("no", code="invalid_image", permanent=True))
    metrics._kept.forget()
    found = figures()
    assert found["queue_ready_jobs", "media"] == 1
    assert 0 <= found["queue_oldest_seconds", "media"] < 60
    assert found["jobs_active", "live", "queued", "prepare"] == 1
    assert found["jobs_ended_last_hour", "live", "motion", "failed"] == 1
    assert found["failures_last_hour", "invalid_image", "live"] == 1
    assert found["attempts_last_hour", "invalid_image", "failed", "prepare"] == 1
    assert found["open_holds", "live"] == 1
    assert found["open_holds_credits", "live"] == 1
    assert found["credits", "available", "live"] == 99
    assert found["credits", "held", "live"] == 1
    assert found["movements_last_hour", "hold", "live"] == 2
    assert found["credits_moved_last_hour", "release", "live"] == 1


def test_workers_webhooks_providers_and_incidents_are_shown() -> None:
    doing = [{"job": "j1", "step": "generate", "progress": 0.5}]
    Worker.objects.create(name="gpu@one", queues=["gpu.wan2.2"], doing=doing)
    account = make_account("alice")
    event = WebhookEvent.objects.create(account=account, mode="live", type="test")
    WebhookDelivery.objects.create(event=event, url="https://a.example", lane="a")
    ProviderAccount.objects.create(
        provider="sinancode", name="main", base_url="https://n.example",
        credentials='{"api_key": "sk"}',
        failures_in_row=2, poll_interval_seconds=4.0, last_ok_at=Now(),
    )  # fmt: skip
    incidents.report("ledger", "alice", "does not add up")
    found = figures()
    assert found["workers_alive", "gpu.wan2.2"] == 1
    assert found["worker_claims", "gpu@one"] == 1
    assert found["worker_progress", "j1", "generate", "gpu@one"] == 0.5
    assert found[("webhooks_due",)] == 1
    assert found["provider_usable", "main", "sinancode"] == 1
    assert found["provider_failures_in_row", "main", "sinancode"] == 2
    assert found["provider_poll_seconds", "main", "sinancode"] == 4
    assert found["incidents_open", "ledger"] == 1
    assert found[("housekeeper_running",)] == 0
    assert found[("poller_running",)] == 0


def test_a_customer_who_is_down_is_not_our_lag() -> None:
    account = make_account("alice")
    event = WebhookEvent.objects.create(account=account, mode="live", type="test")
    for lane in ("dead", "well"):
        WebhookDelivery.objects.create(event=event, url="https://a.example", lane=lane)
    WebhookDelivery.objects.filter(lane="dead").update(next_at="2000-01-01T00:00Z")
    WebhookLane.objects.create(
        key="dead", failures_in_row=3, open_until="2000-01-01T00:01Z"
    )
    found = figures()
    assert found[("webhooks_due",)] == 1
    assert found[("webhook_lag_seconds",)] < 60


def test_a_silent_worker_is_not_alive() -> None:
    worker = Worker.objects.create(name="cpu@one", queues=["cpu"], doing=[])
    Worker.objects.filter(pk=worker.pk).update(seen_at="2000-01-01T00:00Z")
    Worker.objects.create(name="cpu@two", queues=["cpu"], doing=[])
    assert figures()["workers_alive", "cpu"] == 1


def test_a_queue_whose_workers_have_left_is_told_as_zero(settings: Any) -> None:
    settings.GPU_MODELS = ["wan2.2-i2v"]
    found = figures()
    for queue in ("media", "cpu", "cpu.test", "webhook", "gpu.wan2.2"):
        assert found["workers_alive", queue] == 0


def test_scrapers_in_a_hurry_share_an_answer(
    django_assert_num_queries: Any, django_assert_max_num_queries: Any
) -> None:
    with django_assert_max_num_queries(15):
        scrape()
    with django_assert_num_queries(0):
        scrape()


def test_a_step_that_went_well_has_a_duration() -> None:
    account = make_account("alice", credits=100)
    submit(make_key(account))
    claim = claims.claim_next("media", worker="media@here")
    assert claim is not None
    claims.close_attempt(claim, "ok")
    metrics._kept.forget()
    found = figures()
    durations = [key for key in found if key[0] == "step_seconds"]
    assert {key[1] for key in durations} == {"0.5", "0.9", "0.99"}
    assert {key[-1] for key in durations} == {"prepare"}


def test_every_query_of_the_dashboard_has_its_figure() -> None:
    families = {
        family.name
        for family in text_string_to_metric_families(scrape().content.decode())
    }
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked: set[str] = set()
    for panel in panels:
        for target in panel.get("targets", []):
            names = re.findall(r"zoetrope_\w+", target["expr"])
            assert names, target
            asked |= set(names)
    assert asked <= families
    assert families <= asked
