"""What needs a person becomes an incident, is told once, and is over when it is over."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from standardwebhooks import Webhook

from billing import keys, ledger, prices
from billing.models import Account
from jobs import alarms, claims, incidents, leading, routing, watch, workers
from jobs.models import Incident, Job, WebhookDelivery, WebhookEvent, Worker
from tests.factories import make_account, make_job
from tests.receivers import Receiver

pytestmark = pytest.mark.django_db
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def alice(db: None) -> Account:
    keys.forget()
    prices.forget()
    routing.forget()
    return make_account("alice", plan="pro", credits=100)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    running = Receiver()
    yield running
    running.stop()


def open_incidents() -> set[tuple[str, str]]:
    rows = Incident.objects.filter(resolved_at__isnull=True)
    return set(rows.values_list("kind", "subject"))


class Clock:
    """Looks with a canary as if time had passed."""

    def __init__(self) -> None:
        self.canary = watch.Canary()

    def pass_seconds(self, seconds: float) -> None:
        self.canary._since = {
            queue: since - seconds for queue, since in self.canary._since.items()
        }
        self.canary.look()


# ------------------------------------------------------------------------- the loops


class Leader:
    """A housekeeper or a poller somewhere: a session that holds the loop's lock."""

    def __init__(self, name: str) -> None:
        facts = connection.get_connection_params()
        self._session = psycopg.connect(
            **{k: facts[k] for k in ("dbname", "user", "password", "host", "port")},
            autocommit=True,
        )
        lock = leading.LOCKS[name]
        self._session.execute("SELECT pg_advisory_lock(%s)", [lock])

    def round(self) -> None:
        self._session.execute("SELECT 1")

    def die(self) -> None:
        self._session.close()


class Watch:
    """Looks at the loops as if time had passed."""

    def __init__(self) -> None:
        self.loops = watch.Loops()

    def pass_seconds(self, seconds: float) -> None:
        self.loops._gone_since = {
            name: since - seconds for name, since in self.loops._gone_since.items()
        }
        look_afresh()
        self.loops.look()


def look_afresh() -> None:
    """Within a transaction, as here, sessions look as they did the first time."""
    connection.cursor().execute("SELECT pg_stat_clear_snapshot()")


@pytest.fixture
def others() -> Iterator[dict[str, Leader]]:
    """Both loops, living."""
    made = {name: Leader(name) for name in leading.LOCKS}
    yield made
    for leader in made.values():
        leader.die()


def wait_for(state: str, name: str) -> None:
    deadline = time.monotonic() + 10
    while leading.state_of(leading.silences()[name]) != state:
        assert time.monotonic() < deadline, f"{name} never became {state}"
        time.sleep(0.02)
        look_afresh()


@pytest.mark.parametrize("name", ["housekeeper", "poller"])
def test_a_loop_that_died_is_an_incident_until_another_leads(
    others: dict[str, Leader], name: str
) -> None:
    seen = Watch()
    seen.pass_seconds(0)
    assert open_incidents() == set()
    others[name].die()
    wait_for("not running", name)
    seen.pass_seconds(0)
    seen.pass_seconds(59)
    assert open_incidents() == set()  # it may just be started anew
    seen.pass_seconds(2)
    assert open_incidents() == {("loop_dead", name)}
    # One who has only begun to look does not know how long it has been so.
    Watch().pass_seconds(0)
    assert open_incidents() == {("loop_dead", name)}
    others[name] = Leader(name)
    seen.pass_seconds(0)
    assert open_incidents() == set()


def test_a_loop_that_hangs_is_an_incident_though_it_holds_its_lock(
    others: dict[str, Leader], settings: Any
) -> None:
    settings.DEAD_WORKER_SECONDS = 0.3
    wait_for("silent", "poller")
    Watch().pass_seconds(0)
    assert ("loop_dead", "poller") in open_incidents()
    settings.DEAD_WORKER_SECONDS = 60.0
    others["poller"].round()
    Watch().pass_seconds(0)
    assert open_incidents() == set()


def test_the_first_page_and_the_figures_say_which_loop_is_gone(
    others: dict[str, Leader], client: Client
) -> None:
    client.force_login(
        get_user_model().objects.create_superuser("olga"),
        backend="django.contrib.auth.backends.ModelBackend",
    )
    others["poller"].die()
    wait_for("not running", "poller")
    board = client.get("/admin/").context["board"]
    assert [(name, state) for name, _, state in board["loops"]] == [
        ("housekeeper", "ok"),
        ("poller", "not running"),
    ]
    page = client.get("/admin/").content.decode()
    assert 'class="zoe-alarm">not running' in page


# ----------------------------------------------------------------------- the canary


def test_a_queue_of_which_nothing_is_claimed_is_an_incident_until_it_is(
    alice: Account,
) -> None:
    make_job(alice)
    clock = Clock()
    clock.pass_seconds(0)
    clock.pass_seconds(119)
    assert open_incidents() == set()
    clock.pass_seconds(2)
    assert open_incidents() == {("queue_stuck", "media")}
    Worker.objects.create(name="w1", queues=["media"])
    assert claims.claim_next("media", worker="w1") is not None
    clock.pass_seconds(10)
    assert open_incidents() == set()


def test_a_busy_queue_is_no_incident(alice: Account) -> None:
    make_job(alice)
    make_job(alice)
    assert claims.claim_next("media", worker="w1") is not None
    clock = Clock()
    for _ in range(5):
        clock.pass_seconds(100)
    assert open_incidents() == set()


def test_a_queue_whose_work_is_taken_and_given_back_is_no_incident(
    alice: Account,
) -> None:
    make_job(alice)
    Worker.objects.create(name="w1", queues=["media"])
    clock = Clock()
    for _ in range(5):
        clock.pass_seconds(100)
        claim = claims.claim_next("media", worker="w1")
        assert claim is not None
        Job.objects.filter(pk=claim.job_id).update(lease_until=None)
    assert open_incidents() == set()


def test_work_that_pauses_or_waits_for_a_slot_is_not_ready(alice: Account) -> None:
    job = make_job(alice)
    Job.objects.filter(pk=job.pk).update(run_after=Now() + timedelta(hours=1))
    other = make_job(alice)
    Job.objects.filter(pk=other.pk).update(ready_at=None)
    clock = Clock()
    clock.pass_seconds(0)
    clock.pass_seconds(1000)
    assert open_incidents() == set()


def test_webhooks_nobody_sends_are_an_incident_and_failing_addresses_are_not(
    alice: Account,
) -> None:
    event = WebhookEvent.objects.create(account=alice, mode="live", type="balance.low")
    row = WebhookDelivery.objects.create(
        event=event, url="https://a.example", lane="l", next_at=Now()
    )
    WebhookDelivery.objects.filter(pk=row.pk).update(
        next_at=Now() - timedelta(minutes=5)
    )
    clock = Clock()
    clock.pass_seconds(0)
    clock.pass_seconds(121)
    assert open_incidents() == {("queue_stuck", "webhook")}
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO jobs_webhooklane (key, failures_in_row) VALUES ('l', 3)"
        )
    clock.pass_seconds(121)
    assert open_incidents() == set()


# ----------------------------------------------------------------------- the workers


def test_a_silent_worker_is_an_incident_until_it_speaks(db: None) -> None:
    Worker.objects.create(name="gpu@one", queues=["gpu.wan2.2"])
    Worker.objects.create(name="media@one", queues=["media"])
    Worker.objects.filter(name="gpu@one").update(seen_at=Now() - timedelta(minutes=5))
    watch.look_at_workers()
    assert open_incidents() == {("worker_dead", "gpu@one")}
    assert "gpu.wan2.2" in Incident.objects.get().text
    Worker.objects.filter(name="gpu@one").update(seen_at=Now())
    watch.look_at_workers()
    assert open_incidents() == set()


def test_a_worker_taken_for_dead_comes_back_with_its_queues(db: None) -> None:
    started = datetime(2026, 11, 1, tzinfo=UTC)
    worker = Worker.objects.create(
        name="gpu@one",
        queues=["gpu.wan2.2"],
        started_at=started,
        certificate_until=started,
    )
    Worker.objects.filter(name="gpu@one").delete()
    workers._report(worker, claims.Heart())
    row = Worker.objects.get()
    assert (row.queues, row.started_at) == (["gpu.wan2.2"], started)
    assert row.certificate_until == started
    assert row.seen_at > started


def test_a_worker_that_leaves_is_not_put_back_by_its_last_sign_of_life(
    db: None,
) -> None:
    worker = Worker.objects.create(name="media@one", queues=["media"])
    workers.leave("media@one")
    workers._report(worker, claims.Heart())
    assert not Worker.objects.exists()
    workers._left.clear()


def test_a_worker_that_ends_as_it_should_is_no_incident(db: None) -> None:
    Worker.objects.create(name="media@one", queues=["media"])
    workers.leave("media@one")
    watch.look_at_workers()
    assert open_incidents() == set()
    assert not Worker.objects.exists()
    workers._left.clear()


# -------------------------------------------------------------------------- the books


def test_a_wallet_that_does_not_add_up_is_frozen_and_reported(alice: Account) -> None:
    bob = make_account("bob", credits=5)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE billing_wallet SET available = available + 7"
            " WHERE account_id = %s AND mode = 'live'",
            [bob.pk],
        )
    watch.look_at_ledger()
    assert open_incidents() == {("ledger_mismatch", f"{bob.pk} live")}
    assert ledger.balance(account_id=bob.pk, mode="live").frozen
    assert not ledger.balance(account_id=alice.pk, mode="live").frozen
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE billing_wallet SET available = available - 7"
            " WHERE account_id = %s AND mode = 'live'",
            [bob.pk],
        )
    watch.look_at_ledger()
    assert open_incidents() == set()
    # A person thaws it: what was wrong once is worth a look.
    assert ledger.balance(account_id=bob.pk, mode="live").frozen


# --------------------------------------------------------------------- the operator


@pytest.fixture
def told(receiver: Receiver, settings: Any) -> Receiver:
    settings.OPERATOR_WEBHOOK_URL = receiver.url
    settings.OPERATOR_WEBHOOK_SECRET = SECRET
    return receiver


def test_the_operator_is_told_of_the_beginning_and_the_end_once_each(
    told: Receiver,
) -> None:
    incidents.report("queue_stuck", "media", "nothing was claimed", detail={"n": 1})
    incidents.report("queue_stuck", "media", "still nothing was claimed")
    assert alarms.tell_next()
    assert not alarms.tell_next()
    incidents.resolve("queue_stuck", "media", by="over")
    assert alarms.tell_next()
    assert not alarms.tell_next()
    bodies = [
        Webhook(SECRET).verify(call.body, call.headers)
        and json.loads(call.body)  # the reference verifier accepts it
        for call in told.calls
    ]
    assert [body["type"] for body in bodies] == [
        "incident.opened",
        "incident.resolved",
    ]
    assert bodies[0]["data"]["kind"] == "queue_stuck"
    assert bodies[1]["data"]["resolved_at"]


def test_what_was_not_taken_is_told_again(told: Receiver) -> None:
    incidents.report("open_hold", "job", "credits are held")
    told.statuses = [500]
    assert alarms.tell_next()
    assert not alarms.tell_next()  # not yet
    Incident.objects.update(tell_at=Now())
    assert alarms.tell_next()
    assert not alarms.tell_next()
    assert len(told.calls) == 2
    assert told.calls[0].headers["webhook-id"] == told.calls[1].headers["webhook-id"]


def test_an_incident_the_receiver_refuses_keeps_no_other_from_it(
    told: Receiver,
) -> None:
    for subject in ("one", "two", "three"):
        incidents.report("open_hold", subject, "credits are held")
    told.statuses = [422]
    while alarms.tell_next():
        pass
    subjects = [json.loads(call.body)["data"]["subject"] for call in told.calls]
    assert subjects == ["one", "two", "three"]
    refused = Incident.objects.get(told_at__isnull=True)
    assert refused.subject == "one"
    assert 0 < (refused.tell_at - refused.opened_at).total_seconds() < 10
    for _ in range(12):
        told.statuses = [422]
        Incident.objects.update(tell_at=Now())
        alarms.tell_next()
    refused.refresh_from_db()
    late = Incident.objects.filter(tell_at__gt=Now() + timedelta(seconds=301))
    assert not late.exists()
    assert refused.tell_tries == 13


@pytest.mark.django_db(transaction=True)
def test_whatever_goes_wrong_the_operator_is_told_later(
    told: Receiver, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarms, "EVERY_SECONDS", 0.01)
    settings.OPERATOR_WEBHOOK_SECRET = "whsec_abcde"  # no base64 is that long
    incidents.report("open_hold", "job", "credits are held")
    stop = threading.Event()
    thread = threading.Thread(target=alarms.run, args=(stop,))
    thread.start()
    try:
        stop.wait(0.1)
        assert thread.is_alive()
        assert told.calls == []
        settings.OPERATOR_WEBHOOK_SECRET = SECRET
        deadline = time.monotonic() + 10
        while not told.calls:
            assert time.monotonic() < deadline
            stop.wait(0.02)
    finally:
        stop.set()
        thread.join()


def test_telling_locks_no_row_that_a_report_needs(told: Receiver) -> None:
    incidents.report("open_hold", "job", "credits are held")
    told.hang_seconds = 0.2
    assert alarms.tell_next()
    incidents.report("open_hold", "job", "credits are still held")
    assert Incident.objects.get().told_at is not None
