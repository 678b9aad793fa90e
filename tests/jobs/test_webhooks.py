"""Webhooks: signed as the reference verifier wants, retried, and nobody waits for another."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.apps import apps
from django.core.management import call_command
from django.db import connection
from django.db.models.functions import Now
from standardwebhooks import Webhook, WebhookVerificationError

from billing import keys
from billing.models import Account
from inference.egress import Egress
from inference.errors import InputRejected
from jobs import context, deliveries, endpoints, housekeeper, lifecycle, webhooks
from jobs.errors import NotAcceptableNow
from jobs.models import (
    FormerSecret,
    Incident,
    Job,
    SigningKey,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
    WebhookLane,
)
from jobs.requests import WebhookTarget
from tests.factories import credential, make_account, make_job
from tests.jobs.test_lifecycle import ARTIFACT, claim, prepared
from tests.receivers import Received, Receiver

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("s3_address")]


@pytest.fixture
def alice() -> Account:
    return make_account("alice", credits=100)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    running = Receiver()
    world = dataclasses.replace(
        context.get(), egress=Egress(allow_hosts=[running.host])
    )
    monkeypatch.setattr(context, "get", lambda: world)
    monkeypatch.setattr("jobs.endpoints.check_url", lambda url, **_: None)
    yield running
    running.stop()


def endpoint(account: Account, url: str, **options: Any) -> WebhookEndpoint:
    made = endpoints.create(credential(account), {"url": url, **options})
    return WebhookEndpoint.objects.get(pk=made["id"])


def finish(job: Job) -> None:
    lifecycle.succeed(prepared(job), ARTIFACT)


def due_now() -> None:
    """Make all due, the oldest first: among equals Postgres picks any."""
    for age, delivery in enumerate(WebhookDelivery.objects.order_by("-pk"), start=1):
        delivery.next_at = Now() - timedelta(seconds=age)
        delivery.save(update_fields=["next_at"])
    WebhookLane.objects.update(open_until=None)


def test_a_finished_job_is_told_and_the_reference_verifier_accepts_it(
    alice: Account, receiver: Receiver
) -> None:
    hook = endpoint(alice, receiver.url)
    job = make_job(alice, metadata={"order": "17"})
    finish(job)
    assert deliveries.deliver_next()
    (call,) = receiver.calls
    body = Webhook(str(hook.secret)).verify(call.body, call.headers)
    assert body["type"] == "job.succeeded"
    assert body["data"]["id"] == str(job.pk)
    assert body["data"]["metadata"] == {"order": "17"}
    assert body["data"]["video"]["url"].startswith("http")
    assert WebhookDelivery.objects.get().state == "delivered"


def test_the_ed25519_signature_verifies_with_the_public_key(
    alice: Account, receiver: Receiver
) -> None:
    endpoint(alice, receiver.url)
    finish(make_job(alice))
    deliveries.deliver_next()
    (call,) = receiver.calls
    parts = call.headers["webhook-signature"].split(" ")
    (signature,) = [p.removeprefix("v1a,") for p in parts if p.startswith("v1a,")]
    key = base64.b64decode(webhooks.public_key().removeprefix("whpk_"))
    signed = f"{call.headers['webhook-id']}.{call.headers['webhook-timestamp']}."
    Ed25519PublicKey.from_public_bytes(key).verify(
        base64.b64decode(signature), signed.encode() + call.body
    )


def test_a_new_secrets_key_leaves_the_public_key_as_customers_know_it(
    settings: Any,
) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    settings.SECRETS_KEY = old
    known = webhooks.public_key()
    settings.SECRETS_KEY = f"{new},{old}"
    call_command("rotate_secrets", stdout=io.StringIO())
    assert webhooks.public_key() == known
    settings.SECRETS_KEY = new
    assert webhooks.public_key() == known


def test_an_older_installations_public_key_stays_what_it_was(alice: Account) -> None:
    migration = import_module("jobs.migrations.0014_the_signing_key_is_a_row")
    migration.keep_the_key(apps, None)
    assert not SigningKey.objects.exists()  # nobody was ever told anything
    WebhookEvent.objects.create(account=alice, mode="live", type="test")
    migration.keep_the_key(apps, None)
    migration.keep_the_key(apps, None)
    # Of the tests' SECRETS_KEY, from before the key was a row.
    assert webhooks.public_key() == "whpk_HUV8xIsoqTUPORSV5F5dXB5c8fY4P9LHumBw/o7WSg0="


def test_a_job_tells_its_own_address_signed_with_the_accounts_secret(
    alice: Account, receiver: Receiver
) -> None:
    finish(make_job(alice, webhook=WebhookTarget(url=receiver.url)))
    deliveries.deliver_next()
    secret = endpoints.keys(credential(alice), {})["secret"]
    Webhook(secret).verify(receiver.calls[0].body, receiver.calls[0].headers)


def test_failed_and_canceled_jobs_are_told_too(
    alice: Account, receiver: Receiver
) -> None:
    endpoint(alice, receiver.url)
    make_job(alice)
    lifecycle.fail(claim("media"), InputRejected("bad", field="image"))
    lifecycle.cancel(make_job(alice))
    while deliveries.deliver_next():
        pass
    told = {json.loads(call.body)["type"] for call in receiver.calls}
    assert told == {"job.failed", "job.canceled"}


def test_running_is_told_once_though_its_first_worker_died(alice: Account) -> None:
    endpoint(alice, "https://shop.example/")
    told = WebhookEvent.objects.filter(type="job.running")
    prepared(make_job(alice))  # whose worker is killed before it does anything
    expire_leases()
    second = claim("cpu", "w2")
    assert not second.is_start
    lifecycle.announce_running(second)
    assert told.count() == 1
    lifecycle.let_go(second)
    lifecycle.announce_running(claim("cpu", "w3"))
    assert told.count() == 1


def test_a_worker_whose_job_was_taken_away_tells_nothing(alice: Account) -> None:
    endpoint(alice, "https://shop.example/")
    late = prepared(make_job(alice))
    expire_leases()
    lifecycle.announce_running(late)
    assert not WebhookEvent.objects.exists()


def expire_leases() -> None:
    Job.objects.exclude(lease_until=None).update(lease_until=Now())
    housekeeper.reap()
    Job.objects.update(run_after=None)


def test_an_endpoint_gets_only_the_events_it_asked_for(
    alice: Account, receiver: Receiver
) -> None:
    endpoint(alice, receiver.url, events=["job.failed"])
    finish(make_job(alice))
    assert not deliveries.deliver_next()


def test_a_failed_try_is_repeated_with_the_same_id_and_a_new_signature(
    alice: Account, receiver: Receiver
) -> None:
    endpoint(alice, receiver.url)
    receiver.statuses = [500]
    finish(make_job(alice))
    deliveries.deliver_next()
    assert not deliveries.deliver_next()  # not due yet
    due_now()
    deliveries.deliver_next()
    first, second = receiver.calls
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    delivery = WebhookDelivery.objects.get()
    assert [entry["status"] for entry in delivery.log] == [500, 200]
    assert delivery.state == "delivered"


def steady(call: Received) -> Any:
    """Return what the call says, without what is made anew for each try."""
    body = json.loads(call.body)
    for name in ("url", "urls_expire_at") if body["data"]["video"] else ():
        body["data"]["video"].pop(name)
    return body


def test_a_late_try_says_what_the_first_one_said(
    alice: Account, receiver: Receiver
) -> None:
    """Whoever keeps one call per webhook-id has the same facts, whichever he kept."""
    endpoint(alice, receiver.url)
    job = make_job(alice)
    work = prepared(job)
    lifecycle.announce_running(work)
    receiver.statuses = [500, 200, 500]
    deliveries.deliver_next()
    lifecycle.succeed(work, ARTIFACT)
    due_now()
    while deliveries.deliver_next():
        pass
    lifecycle.refund(
        Job.objects.get(pk=job.pk),
        amount_millicredits=500,
        actor="olga",
        reason="too dark",
    )
    due_now()
    deliveries.deliver_next()
    calls: dict[str, list[Any]] = {}
    for call in receiver.calls:
        calls.setdefault(call.headers["webhook-id"], []).append(steady(call))
    (running, running_late), (done, done_late) = calls.values()
    assert running["type"] == "job.running"
    assert running == running_late
    assert running_late["data"]["status"] == "running"
    assert running_late["data"]["finished_at"] is None
    assert running_late["data"]["credits"]["charged"] == 0
    assert running_late["data"]["video"] is None
    assert done["type"] == "job.succeeded"
    assert done == done_late
    assert done_late["data"]["credits"]["refunded"] == 0
    late = json.loads(receiver.calls[-1].body)["data"]["video"]
    assert late["url"].startswith("http")


def test_no_link_is_sent_to_a_file_that_is_gone(
    alice: Account, receiver: Receiver
) -> None:
    endpoint(alice, receiver.url)
    finish(make_job(alice))
    Job.objects.update(files_deleted_at=Now())
    deliveries.deliver_next()
    body = json.loads(receiver.calls[0].body)
    assert body["data"]["status"] == "succeeded"
    assert body["data"]["video"] is None


def test_the_schedule_is_kept_and_ends(alice: Account, receiver: Receiver) -> None:
    endpoint(alice, receiver.url)
    receiver.statuses = [500] * 20
    finish(make_job(alice))
    pauses = deliveries.SCHEDULES["standard"].pauses_seconds
    for number, pause in enumerate(pauses, start=1):
        assert deliveries.deliver_next(), number
        delivery = WebhookDelivery.objects.get()
        if number < len(pauses):
            left = (delivery.next_at - Job.objects.get().finished_at).total_seconds()  # type: ignore[operator]
            assert left >= pauses[number] * 0.99, pause
        due_now()
    assert WebhookDelivery.objects.get().state == "failed"
    assert len(receiver.calls) == 8


def test_retry_after_is_honoured(alice: Account, receiver: Receiver) -> None:
    endpoint(alice, receiver.url)
    receiver.statuses, receiver.headers = [503], {"Retry-After": "900"}
    finish(make_job(alice))
    deliveries.deliver_next()
    soon = WebhookDelivery.objects.filter(next_at__lt=Now() + timedelta(seconds=890))
    assert not soon.exists()


@pytest.mark.parametrize(
    ("format", "status", "state"),
    [
        ("standard", 204, "delivered"),
        ("standard", 410, "failed"),
        ("novita", 202, "delivered"),
        ("novita", 410, "pending"),
        ("akool", 200, "delivered"),
        ("akool", 204, "pending"),
        ("akool", 410, "pending"),
    ],
)
def test_what_counts_as_received_is_what_each_services_page_says(
    alice: Account, receiver: Receiver, format: str, status: int, state: str
) -> None:
    key, _ = keys.mint(alice, "live", keys.SCOPES)
    keys.give_pair(key)
    receiver.statuses = [status]
    finish(make_job(alice, webhook=WebhookTarget(receiver.url, format=format)))
    deliveries.deliver_next()
    assert len(receiver.calls) == 1
    assert WebhookDelivery.objects.get().state == state


def test_redirects_count_as_failures(alice: Account, receiver: Receiver) -> None:
    endpoint(alice, receiver.url)
    receiver.statuses = [302]
    receiver.headers = {"Location": receiver.url}
    finish(make_job(alice))
    deliveries.deliver_next()
    assert len(receiver.calls) == 1
    assert WebhookDelivery.objects.get().state == "pending"


def test_gone_switches_the_endpoint_off_and_tells_the_others(
    alice: Account, receiver: Receiver
) -> None:
    gone = endpoint(alice, receiver.url, events=["job.succeeded"])
    endpoint(alice, receiver.url + "/other", events=["endpoint.disabled"])
    receiver.statuses = [410]
    finish(make_job(alice))
    while deliveries.deliver_next():
        pass
    gone.refresh_from_db()
    assert not gone.is_enabled
    body = json.loads(receiver.calls[-1].body)
    assert body["type"] == "endpoint.disabled"
    assert body["data"]["endpoint_id"] == str(gone.pk)
    assert Incident.objects.get().kind == "webhook_endpoint"


def test_an_endpoint_that_was_switched_off_is_called_no_more(
    alice: Account, receiver: Receiver
) -> None:
    hook = endpoint(alice, receiver.url)
    finish(make_job(alice))  # as it is switched off: the event did not see it
    WebhookEndpoint.objects.filter(pk=hook.pk).update(is_enabled=False)
    while deliveries.deliver_next():
        pass
    assert receiver.calls == []
    assert WebhookDelivery.objects.get().state == "failed"


@pytest.mark.parametrize("is_own_address", [True, False])
def test_a_secret_nobody_can_read_is_logged_and_tried_by_the_schedule(
    alice: Account, receiver: Receiver, settings: Any, is_own_address: bool
) -> None:
    if is_own_address:
        finish(make_job(alice, webhook=WebhookTarget(url=receiver.url)))
        webhooks.account_secret(alice.pk, "live")
    else:
        endpoint(alice, receiver.url)
        finish(make_job(alice))
    readable, settings.SECRETS_KEY = (
        settings.SECRETS_KEY,
        Fernet.generate_key().decode(),
    )
    assert deliveries.deliver_next()
    rows = WebhookDelivery.objects.all()
    delivery = rows.get()
    assert delivery.log[0]["answer"] == "not sent: a fault of ours"
    assert (delivery.state, delivery.claimed_until) == ("pending", None)
    assert not WebhookLane.objects.exists()  # the receiver did nothing wrong
    assert not deliveries.deliver_next()  # not before its pause
    settings.SECRETS_KEY = readable
    due_now()
    assert deliveries.deliver_next()
    assert rows.get().state == "delivered"
    assert len(receiver.calls) == 1


def test_at_most_1_kb_of_an_answer_is_kept(alice: Account, receiver: Receiver) -> None:
    endpoint(alice, receiver.url)
    receiver.answer = b"x" * 10_000_000
    finish(make_job(alice))
    deliveries.deliver_next()
    assert len(WebhookDelivery.objects.get().log[0]["answer"]) <= 1024


def test_a_dead_receivers_lane_is_closed_and_others_are_served(
    alice: Account, receiver: Receiver
) -> None:
    dead = endpoint(alice, "http://127.0.0.1:9/")
    alive = endpoint(alice, receiver.url)
    for _ in range(6):
        finish(make_job(alice))
    while deliveries.deliver_next():
        pass
    assert len(receiver.calls) == 6
    assert not WebhookDelivery.objects.filter(endpoint=alive, state="pending").exists()
    lane = WebhookLane.objects.get(key=f"endpoint:{dead.pk}")
    assert lane.failures_in_row == deliveries.LANE_FAILURES_TO_OPEN
    assert lane.open_until is not None


def test_one_bell_sends_all_that_is_due(alice: Account, receiver: Receiver) -> None:
    endpoint(alice, receiver.url)
    for _ in range(12):
        finish(make_job(alice))
    deliveries.deliver_some(lambda: False)
    assert len(receiver.calls) == 12


def test_a_worker_that_drains_begins_no_other_delivery(
    alice: Account, receiver: Receiver
) -> None:
    endpoint(alice, receiver.url)
    for _ in range(3):
        finish(make_job(alice))
    deliveries.deliver_some(lambda: bool(receiver.calls))
    assert len(receiver.calls) == 1


def test_after_a_batch_the_bell_is_rung_on(
    alice: Account,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    django_capture_on_commit_callbacks: Any,
) -> None:
    monkeypatch.setattr(deliveries, "BATCH", 2)
    endpoint(alice, receiver.url)
    for _ in range(3):
        finish(make_job(alice))
    for rings in (1, 0):
        with django_capture_on_commit_callbacks() as rung:
            deliveries.deliver_some(lambda: False)
        assert len(rung) == rings
    assert len(receiver.calls) == 3


def test_each_address_has_a_bell(
    alice: Account, django_capture_on_commit_callbacks: Any
) -> None:
    for number in range(3):
        endpoint(alice, f"https://shop.example/{number}", events=["balance.low"])
    with django_capture_on_commit_callbacks() as rung:
        webhooks.announce_account(alice.pk, "live", "balance.low", {})
    assert len(rung) == 3


def test_what_waits_for_an_open_lane_is_not_due(
    alice: Account, receiver: Receiver, django_capture_on_commit_callbacks: Any
) -> None:
    hook = endpoint(alice, receiver.url)
    receiver.statuses = [500] * 3
    for _ in range(20):
        finish(make_job(alice))
    while deliveries.deliver_next():
        pass
    lane = WebhookLane.objects.get(key=f"endpoint:{hook.pk}")
    assert deliveries.due() == 0
    with django_capture_on_commit_callbacks() as rung:
        webhooks.announce_account(alice.pk, "live", "balance.low", {})
    assert rung == []  # nor what comes meanwhile
    assert deliveries.due() == 0
    waiting = WebhookDelivery.objects.filter(state="pending")
    assert waiting.filter(next_at__gte=lane.open_until).count() == 21
    due_now()
    while deliveries.deliver_next():
        pass
    assert not waiting.exists()


@pytest.mark.django_db(transaction=True)
def test_calls_of_a_lane_that_fail_at_once_are_all_written_down(
    alice: Account, receiver: Receiver
) -> None:
    endpoint(alice, receiver.url)
    receiver.statuses, receiver.hang_seconds = [500] * 5, 0.3
    for _ in range(15):
        finish(make_job(alice))
    outcomes: list[bool] = []

    def deliver() -> None:
        try:
            outcomes.append(deliveries.deliver_next())
        finally:
            connection.close()

    threads = [threading.Thread(target=deliver) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [True] * 5
    tried = WebhookDelivery.objects.exclude(log=[])
    assert tried.count() == 5
    assert not tried.exclude(claimed_until=None).exists()


def test_both_secrets_sign_for_a_while_after_a_rotation(
    alice: Account, receiver: Receiver
) -> None:
    hook = endpoint(alice, receiver.url)
    old = str(hook.secret)
    new = endpoints.rotate(credential(alice), {"id": str(hook.pk)})["secret"]
    finish(make_job(alice))
    deliveries.deliver_next()
    (call,) = receiver.calls
    assert new != old
    for secret in (old, new):
        Webhook(secret).verify(call.body, call.headers)


def test_a_second_rotation_leaves_the_secret_in_use_alone(
    alice: Account, receiver: Receiver
) -> None:
    hook = endpoint(alice, receiver.url)
    deployed = str(hook.secret)
    webhooks.rotate(hook)
    newest = endpoints.rotate(credential(alice), {"id": str(hook.pk)})["secret"]
    finish(make_job(alice))
    deliveries.deliver_next()
    (call,) = receiver.calls
    for secret in (deployed, newest):
        Webhook(secret).verify(call.body, call.headers)
    FormerSecret.objects.filter(endpoint=hook).update(until=Now())
    finish(make_job(alice))
    deliveries.deliver_next()
    with pytest.raises(WebhookVerificationError):
        Webhook(deployed).verify(receiver.calls[1].body, receiver.calls[1].headers)
    assert Webhook(newest).verify(receiver.calls[1].body, receiver.calls[1].headers)


def test_rotations_of_a_day_are_limited(alice: Account) -> None:
    hook = endpoint(alice, "https://shop.example/")
    for _ in range(webhooks.FORMER_SECRETS_MAX):
        webhooks.rotate(hook)
    with pytest.raises(NotAcceptableNow, match="within a day"):
        webhooks.rotate(hook)
    FormerSecret.objects.update(until=Now())
    webhooks.rotate(hook)


@pytest.mark.django_db(transaction=True)
def test_rotations_at_once_keep_every_secret_given_out(alice: Account) -> None:
    hook = endpoint(alice, "https://shop.example/")
    given, ready = [str(hook.secret)], threading.Barrier(4)

    def rotate() -> None:
        try:
            ready.wait()
            given.append(webhooks.rotate(WebhookEndpoint.objects.get(pk=hook.pk)))
        finally:
            connection.close()

    threads = [threading.Thread(target=rotate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.refresh_from_db()
    assert set(webhooks.secrets_of(hook)) == set(given)
    assert len(given) == 5


def test_a_delivery_is_sent_again_on_request(
    alice: Account, receiver: Receiver
) -> None:
    endpoint(alice, receiver.url)
    finish(make_job(alice))
    deliveries.deliver_next()
    endpoints.replay(
        credential(alice), {"delivery": str(WebhookDelivery.objects.get().pk)}
    )
    deliveries.deliver_next()
    first, second = receiver.calls
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


def test_a_test_event_reaches_its_endpoint(alice: Account, receiver: Receiver) -> None:
    hook = endpoint(alice, receiver.url)
    endpoints.test(credential(alice), {"id": str(hook.pk)})
    deliveries.deliver_next()
    assert json.loads(receiver.calls[0].body)["type"] == "test"


def test_a_low_balance_is_told_once(alice: Account, receiver: Receiver) -> None:
    alice.low_balance_threshold_millicredits = 99_500
    alice.save()
    endpoint(alice, receiver.url, events=["balance.low"])
    for _ in range(3):
        make_job(alice)
    while deliveries.deliver_next():
        pass
    assert len(receiver.calls) == 1
    assert json.loads(receiver.calls[0].body)["data"] == {"available_credits": 99.0}


def test_private_targets_are_never_called(alice: Account) -> None:
    WebhookEndpoint.objects.create(
        account=alice, mode="live", url="https://10.0.0.1/", secret="whsec_eHg="
    )
    finish(make_job(alice))
    deliveries.deliver_next()
    entry = WebhookDelivery.objects.get().log[0]
    assert entry["status"] == 0
    assert entry["answer"].startswith("refused")
