"""Work that does not stop when told to: its job ends anyway, and its process with it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db import connections

from billing import keys, prices
from billing.models import Account
from inference import registry
from jobs import housekeeper, lifecycle, routing, steps, tasks
from jobs.claims import Claim, Heart, Held
from jobs.models import Attempt, Incident, Job
from jobs.states import Status, Step
from tests.factories import make_account, make_job
from tests.jobs.finishing import site, world
from tests.jobs.test_lifecycle import available, claim, prepared

__all__ = ["site", "world"]
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(60)]


@pytest.fixture
def alice() -> Account:
    for module in (keys, prices, routing):
        module.forget()
    return make_account("alice", credits=10)


@pytest.fixture(autouse=True)
def fast(settings: Any) -> None:
    settings.LEASE_SECONDS = 0.6
    settings.HEARTBEAT_SECONDS = 0.1


@dataclass
class DeafEngine:
    """Sleeps as a device that hangs would, and never asks whether it should stop."""

    began: threading.Event = field(default_factory=threading.Event)
    woken: threading.Event = field(default_factory=threading.Event)

    def frames(self, plan: Any, **_: Any) -> Iterator[Any]:
        self.began.set()
        self.woken.wait(50)
        yield from ()


@dataclass
class Hung:
    """What a heart said of the claims of its process."""

    heart: Heart = field(init=False)
    told: list[tuple[Claim, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.heart = Heart(tick_seconds=0.05, on_hung=self.tell)

    def tell(self, hung: Any, is_all: bool) -> None:
        self.told += [(held.claim, is_all) for held in hung]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> DeafEngine:
    deaf = DeafEngine()
    monkeypatch.setattr(registry, "engine", lambda *_: deaf)
    return deaf


@pytest.fixture
def hung() -> Iterator[Hung]:
    one = Hung()
    yield one
    one.heart.stop()


@pytest.fixture
def work(hung: Hung, engine: DeafEngine) -> Iterator[Callable[[Claim], None]]:
    """Do a claimed step as a worker's thread does, under ``hung``'s heart."""
    threads = []

    def run(claim: Claim) -> None:
        with hung.heart.hold(claim) as held:
            tasks._do(held)
        connections.close_all()

    def start(claim: Claim) -> None:
        threads.append(threading.Thread(target=run, args=(claim,)))
        threads[-1].start()

    yield start
    engine.woken.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def keep_house_until(true: Callable[[], Any], *, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        housekeeper.reap()
        housekeeper.end_overdue()
        time.sleep(0.05)


def generating(job: Job) -> Claim:
    """Prepare the job as a media worker does, and claim its generate step."""
    tasks._do(Held(claim("media")))
    return claim("cpu")


def state() -> str:
    return Job.objects.get().status


@pytest.mark.usefixtures("redis_url")
def test_a_cancel_ends_a_job_whose_engine_hangs(
    alice: Account, engine: DeafEngine, hung: Hung, work: Callable[[Claim], None]
) -> None:
    job = make_job(alice)
    claimed = generating(job)
    work(claimed)
    assert engine.began.wait(20)
    lifecycle.cancel(job)
    keep_house_until(lambda: state() == Status.CANCELED)
    assert available(alice) == 10_000
    keep_house_until(lambda: hung.told)
    assert hung.told[0] == (claimed, True)
    engine.woken.set()  # it wakes up after all, too late to change anything


@pytest.mark.usefixtures("redis_url")
def test_a_deadline_ends_a_job_whose_engine_hangs(
    alice: Account, engine: DeafEngine, work: Callable[[Claim], None]
) -> None:
    job = make_job(alice)
    work(generating(job))
    assert engine.began.wait(20)
    Job.objects.update(end_by="2020-01-01T00:00Z")
    keep_house_until(lambda: state() == Status.FAILED)
    job.refresh_from_db()
    # Not begun again: there is no time left.
    assert (job.error_code, job.fence) == ("deadline_exceeded", 2)
    assert available(alice) == 10_000


@pytest.mark.usefixtures("redis_url")
def test_a_hung_step_before_the_run_goes_to_another_worker(
    alice: Account,
    engine: DeafEngine,
    work: Callable[[Claim], None],
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
) -> None:
    settings.PREPARE_SECONDS = 0.3
    monkeypatch.setitem(steps.STEPS, Step.PREPARE, lambda _: engine.woken.wait(50))
    make_job(alice)
    work(claim("media"))
    keep_house_until(lambda: Attempt.objects.get().outcome == "lost")
    assert claim("media", "w2").tries == 1


def test_work_that_nobody_stops_keeps_its_lease(
    alice: Account, hung: Hung, settings: Any
) -> None:
    make_job(alice)
    with hung.heart.hold(prepared(Job.objects.get())) as held:
        until = time.monotonic() + 3 * settings.LEASE_SECONDS
        while time.monotonic() < until:
            housekeeper.reap()
            time.sleep(0.05)
        assert not held.should_stop()
    assert hung.told == []


class Ended(BaseException):
    """Stands for the end of the process."""


def test_a_worker_that_hangs_drains_its_other_work_reports_and_ends(
    alice: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append(number))

    def leave(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", leave)
    make_job(alice)
    held = Held(claim("media"))
    held.stop("canceled")
    tasks._end_hung([held], False)
    assert len(signals) == 1  # drained, as at a deploy
    with pytest.raises(Ended, match=str(tasks.EXIT_HUNG)):
        tasks._end_hung([held], True)
    incident = Incident.objects.get()
    assert (incident.kind, incident.subject) == ("step_hung", str(held.claim.job_id))
    assert incident.detail["worker"] == "w1"
