"""The poller: how often it asks, whom, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone
from structlog.testing import capture_logs

from billing.models import Account
from jobs import leading, outside, poller, provider_steps, reconcile
from jobs.models import Incident, Job, ProviderAccount, ProviderErrand
from jobs.poller import Poller
from tests.factories import make_account
from tests.fakes import FakeService
from tests.jobs import providers_world as world
from tests.stack import wait_until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("redis_url"),
]


@pytest.fixture
def alice() -> Account:
    return make_account("alice", plan="enterprise", credits=1000)


@pytest.fixture(scope="module")
def services() -> Iterator[dict[str, FakeService]]:
    started = {name: world.start(name) for name in ("novita", "akool")}
    yield started
    for fake in started.values():
        fake.stop()


@pytest.fixture
def novita(services: dict[str, FakeService]) -> FakeService:
    return world.forget(services["novita"])


@pytest.fixture
def akool(services: dict[str, FakeService]) -> FakeService:
    return world.forget(services["akool"])


def accept(fake: FakeService, count: int) -> list[str]:
    key = fake.client_secret if fake.name == "akool" else "sk-test"
    body = {"video_length": 5, "resolution": "720p"}  # akool shows them again
    return [fake.accept(key, "any", "words", body=body).id for _ in range(count)]


async def quiet(poller: Poller) -> None:
    """Wait for the calls under way and write down what they said."""
    while poller._tasks:
        await asyncio.wait(set(poller._tasks))
    await poller._db(poller._write_answers)


def ask(rounds: int = 1, *, together: int = 1) -> None:
    """Let so many pollers, each with so many rounds, ask about what is due."""

    async def all_of_them() -> None:
        pollers = [Poller() for _ in range(together)]
        for _ in range(rounds):
            await asyncio.gather(*(one.round() for one in pollers))
            await asyncio.gather(*map(quiet, pollers))
        await asyncio.gather(*(one.close() for one in pollers))

    asyncio.run(all_of_them())


def test_one_call_asks_about_as_many_jobs_as_the_provider_takes(akool, alice):
    row = world.enter(akool)
    world.put_out(alice, row, accept(akool, 60))
    ask()
    assert len(akool.calls_to("status")) == 2  # 50 and 10
    assert not Job.objects.filter(next_poll_at__lte=Now()).exists()


def test_one_id_that_is_not_ours_costs_neither_the_account_nor_the_others(akool, alice):
    row = world.enter(akool)
    ids = accept(akool, 3)
    world.put_out(alice, row, ids)
    for there in akool.jobs.values():
        there.created -= 1000
    akool.script("status", "error:1009", times=2)  # all three; then the first alone
    ask()
    steps = sorted(Job.objects.values_list("step", "poll_failures"))
    assert steps == [("await", 1), ("collect", 0), ("collect", 0)]
    row.refresh_from_db()
    assert row.out_of_order_at is None
    assert not Incident.objects.exists()


def test_a_finished_job_goes_to_its_collector_and_a_running_one_waits(novita, alice):
    row = world.enter(novita)
    done, running = world.put_out(alice, row, accept(novita, 2))
    there = novita.jobs[done.provider_job_id]
    there.created -= 1000
    novita.jobs[running.provider_job_id].created -= novita.queued_seconds + 30
    ask()
    done.refresh_from_db()
    running.refresh_from_db()
    assert (done.step, done.queue, done.next_poll_at) == (
        "collect",
        "provider.novita",
        None,
    )
    assert running.step == "await"
    assert running.progress > 0
    assert running.next_poll_at is not None
    wait = (running.next_poll_at - timezone.now()).total_seconds()
    assert 7.5 < wait < 11.1  # ten seconds since it was due, a tenth to either side


def test_no_account_is_asked_faster_than_its_rate(novita, alice):
    row = world.enter(novita, statuses_per_second=4)
    world.put_out(alice, row, accept(novita, 40))
    started = time.monotonic()
    ask(3)
    seconds = time.monotonic() - started
    assert len(novita.calls_to("status")) <= 1 + 4 * (seconds + 1)


def test_where_the_rate_is_too_low_all_wait_evenly_longer_and_it_shows(novita, alice):
    row = world.enter(novita, statuses_per_second=2, settings={"poll_seconds": 5})
    jobs = world.put_out(alice, row, accept(novita, 40))
    # The longest due are asked about first.
    for number, job in enumerate(jobs):
        Job.objects.filter(pk=job.pk).update(
            next_poll_at=Now() - timedelta(seconds=number)
        )
    # Nobody's turn comes sooner because others were asked late.
    ask()
    row.refresh_from_db()
    assert row.poll_interval_seconds == 20  # 40 jobs at 2 a second, not 5 s
    asked = set(Job.objects.filter(next_poll_at__gt=Now()).values_list("pk", flat=True))
    assert asked == {job.pk for job in jobs[-len(asked) :]}
    for wait in Job.objects.filter(pk__in=asked).annotate(
        wait=F("next_poll_at") - Now()
    ):
        assert 7 < wait.wait.total_seconds() < 12.1  # from when it was due


def test_two_pollers_never_ask_about_the_same_job(akool, alice):
    row = world.enter(akool, statuses_per_second=1000)
    ids = accept(akool, 300)
    world.put_out(alice, row, ids)
    ask(together=2)
    asked = [
        one
        for call in akool.calls_to("status")
        for one in json.loads(call.body)["_ids"].split(",")
    ]
    assert sorted(asked) == sorted(ids)
    assert not Job.objects.filter(next_poll_at__lte=Now()).exists()


def test_of_two_pollers_one_leads_until_its_connection_is_gone():
    async def contest() -> list[bool]:
        first, second = Poller(), Poller()
        said = [await one._db(poller._leads) for one in (first, second, first)]
        await first.close()
        for _ in range(50):  # its end reaches the server in a moment
            if await second._db(poller._leads):
                break
            await asyncio.sleep(0.1)
        said.append(await second._db(poller._leads))
        await second.close()
        return said

    assert asyncio.run(contest()) == [True, False, True, True]


def test_what_a_dead_poller_had_taken_is_soon_due_again(novita, alice):
    row = world.enter(novita)
    world.put_out(alice, row, accept(novita, 3))
    taken = poller._take({row.pk: 10})  # and then it is killed
    assert len(taken[row.pk]) == 3
    assert not poller._take({row.pk: 10})
    Job.objects.update(
        next_poll_at=F("next_poll_at") - timedelta(seconds=poller.HOLD_SECONDS)
    )
    assert len(poller._take({row.pk: 10})[row.pk]) == 3


def test_a_sick_service_is_asked_less_and_counts_against_health_at_last(novita, alice):
    row = world.enter(novita, settings={"poll_seconds": 0.01})
    world.put_out(alice, row, accept(novita, 1))
    novita.script("status", "500", times=100)
    line_waits = []

    async def see() -> None:
        asking = Poller()
        for _ in range(outside.FAILURES_TO_OPEN):
            began = time.monotonic()
            await asking.round()
            await quiet(asking)
            line = asking._lines[row.pk]
            since, until = time.monotonic() - began, line.rests_until - began
            line_waits.append((until - since, until))
            line.rests_until = 0.0
            line.allowance = 5.0
            await asking._db(world.due_now)
        await asking.close()

    asyncio.run(see())
    for (least, most), rest in zip(line_waits, [1, 2, 4, 8, 16], strict=True):
        assert least <= rest <= most
    row.refresh_from_db()
    assert row.failures_in_row == 1  # once for the five
    job = Job.objects.get()
    assert (job.step, job.poll_failures) == ("await", 0)


def test_a_429_on_a_status_call_rests_the_whole_account(novita, alice):
    row = world.enter(novita)
    world.put_out(alice, row, accept(novita, 3))
    novita.script("status", "429", times=1, retry_after="30")

    async def see() -> int:
        asking = Poller()
        await asking.round()
        await quiet(asking)
        before = len(novita.calls_to("status"))
        await asking._db(world.due_now)
        asking._lines[row.pk].allowance = 5.0
        await asking.round()
        await quiet(asking)
        await asking.close()
        return len(novita.calls_to("status")) - before

    assert asyncio.run(see()) == 0
    row.refresh_from_db()
    assert row.rest_until is not None


def test_an_id_the_provider_forgot_is_looked_at_by_a_person(novita, alice):
    row = world.enter(novita)
    (job,) = world.put_out(alice, row, ["never-given"])
    for _ in range(poller.UNKNOWN_LOOKS):
        assert Job.objects.get().step == "await"
        world.due_now()
        ask()
    job.refresh_from_db()
    assert (job.step, job.status) == ("reconcile", "running")


def wait_until_blocked(sessions: int) -> None:
    """Return when so many wait for a lock of this session, or for one who does."""
    deadline, blocked = time.monotonic() + 20, -1
    while blocked != sessions:
        assert time.monotonic() < deadline, f"{blocked} wait"
        with connection.cursor() as cursor:
            cursor.execute(
                "WITH RECURSIVE waits AS (SELECT pid, pg_blocking_pids(pid) AS behind"
                "   FROM pg_locks WHERE NOT granted),"
                " ours(pid) AS (SELECT pg_backend_pid() UNION"
                "   SELECT waits.pid FROM waits JOIN ours ON ours.pid = ANY(behind))"
                " SELECT count(*) - 1 FROM ours"
            )
            (blocked,) = cursor.fetchone() or (0,)


def test_two_who_find_a_lost_job_at_once_do_not_have_it_stopped(novita, alice):
    row = world.enter(novita)
    (job,) = world.put_out(alice, row, [""], step="reconcile", submit_token="t")

    def told() -> None:
        provider_steps.was_found(job.pk, "there", token="t")
        connection.close()

    two = [threading.Thread(target=told) for _ in range(2)]
    with transaction.atomic():
        Job.objects.select_for_update(no_key=True).get(pk=job.pk)
        for each in two:
            each.start()
        wait_until_blocked(2)  # both have begun and neither has changed anything
    for each in two:
        each.join()
    job.refresh_from_db()
    assert (job.step, job.provider_job_id) == ("await", "there")
    assert not ProviderErrand.objects.exists()


def test_of_two_jobs_told_of_one_id_at_once_only_one_gets_it(novita, alice):
    row = world.enter(novita)
    bob = make_account("bob", plan="enterprise", credits=10)
    doubt = {"step": "reconcile", "submit_token": "t"}
    pair = [world.put_out(who, row, [who.name], **doubt)[0] for who in (alice, bob)]
    Job.objects.update(provider_job_id="")
    answers: list[bool] = []

    def told(job: Job) -> None:
        answers.append(provider_steps.was_found(job.pk, "there", token="t"))
        connection.close()

    two = [threading.Thread(target=told, args=(job,)) for job in pair]
    with transaction.atomic():
        # Neither gets far before both have begun.
        Job.objects.select_for_update(no_key=True).get(pk=pair[0].pk)
        Job.objects.select_for_update(no_key=True).get(pk=pair[1].pk)
        for each in two:
            each.start()
        wait_until_blocked(2)
    for each in two:
        each.join()
    assert sorted(answers) == [False, True]
    assert Job.objects.filter(provider_job_id="there", step="await").count() == 1
    assert Job.objects.filter(provider_job_id="", step="reconcile").count() == 1
    assert not ProviderErrand.objects.exists()  # nor is the one's video stopped


@pytest.mark.parametrize(
    "what", ["credentials", {"poll_seconds": "?"}, {"poll_seconds": 1e300}, [], "x"]
)
def test_an_account_that_cannot_be_read_stops_no_other_and_is_an_incident(
    what, novita, alice
):
    bad, good = world.enter(novita, "bad"), world.enter(novita, "good")
    if what == "credentials":
        world.spoil(bad)
    else:
        ProviderAccount.objects.filter(pk=bad.pk).update(settings=what)
    for row in (bad, good):
        world.put_out(alice, row, accept(novita, 1))
    for there in novita.jobs.values():
        there.created -= 1000

    ask()
    steps = dict(Job.objects.values_list("provider_account__name", "step"))
    assert steps == {"bad": "await", "good": "collect"}
    incident = Incident.objects.get(resolved_at=None)
    assert (incident.kind, incident.subject) == ("account_unusable", "novita: bad")
    fresh = ProviderAccount.objects.get(pk=bad.pk)
    fresh.settings = {}
    fresh.credentials = json.dumps(world.credentials_of(novita))
    fresh.save()
    Job.objects.filter(step="await").update(next_poll_at=Now())
    ask()
    assert not Job.objects.filter(step="await").exists()
    assert not Incident.objects.filter(resolved_at=None).exists()


def test_a_look_that_breaks_is_in_the_log_and_stops_no_polling(
    novita, alice, monkeypatch
):
    def breaks() -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(reconcile, "look", breaks)
    row = world.enter(novita)
    world.put_out(alice, row, accept(novita, 1))
    with capture_logs() as lines:
        ask()
    assert len(novita.calls_to("status")) == 1
    (line,) = [line for line in lines if line["event"] == "look_broke"]
    assert "unforeseen" in line["error"]


def test_a_slow_service_delays_no_other(novita, akool, alice):
    slow, quick = world.enter(novita), world.enter(akool)
    world.put_out(alice, slow, accept(novita, 5))
    (job,) = world.put_out(alice, quick, accept(akool, 1))
    akool.jobs[job.provider_job_id].created -= 1000
    novita.script("status", "slow:2", times=5)

    async def see() -> float:
        asking = Poller()
        started = time.monotonic()
        await asking.round()
        while True:
            await asyncio.sleep(0.02)
            found = await asking._db(lambda: Job.objects.get(pk=job.pk).step)
            if found == "collect" or time.monotonic() - started > 5:
                break
        seconds = time.monotonic() - started
        await asking.close()
        return seconds

    assert asyncio.run(see()) < 2


def test_an_accounts_new_key_is_used_from_the_next_count_on(novita, alice):
    row = world.enter(novita, key="sk-other")
    world.put_out(alice, row, accept(novita, 1))

    async def see() -> str:
        asking = Poller()
        await asking.round()
        await quiet(asking)
        fresh = world.credentials_of(novita)
        await asking._db(lambda: rewrite(row, fresh))
        asking._counted_at = float("-inf")
        await asking.round()
        await quiet(asking)
        await asking.close()
        return str(asking._lines[row.pk].account.credentials["api_key"])

    assert asyncio.run(see()) == "sk-test"


def rewrite(row: ProviderAccount, credentials: dict[str, str]) -> None:
    row.credentials = json.dumps(credentials)
    row.save(update_fields=["credentials"])


def test_it_stops_when_told_and_leaves_no_connection(alice):
    async def see() -> None:
        stop = asyncio.Event()
        running = asyncio.create_task(poller.run(stop))
        await asyncio.sleep(0.3)
        stop.set()
        await asyncio.wait_for(running, 5)

    def holders() -> int:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_locks"
                " WHERE locktype = 'advisory' AND objid = %s",
                [leading.LOCKS["poller"]],
            )
            return int(cursor.fetchone()[0])

    asyncio.run(see())
    # Postgres ends a session a moment after its client has left.
    wait_until(lambda: holders() == 0, seconds=10, what="the lock to be free")
    held = (1,)
    deadline = time.monotonic() + 5
    with connection.cursor() as cursor:
        while held != (0,) and time.monotonic() < deadline:
            # The end of its connection reaches the server in a moment.
            cursor.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
                " AND objid = %s",
                [leading.LOCKS["poller"]],
            )
            held = cursor.fetchone()
    assert held == (0,)
