"""A finish heeds drains and cancels in its midst and shows how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from billing.models import Account
from inference.contracts import Progress
from jobs import intake, lifecycle, tasks
from jobs.claims import Held
from jobs.models import Job
from jobs.requests import Sound
from jobs.states import Status, Step
from tests.factories import credential, make_account, make_job
from tests.jobs.finishing import site, work, world
from tests.jobs.test_lifecycle import available, claim

__all__ = ["site", "world"]
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

CLIP: dict[str, Any] = {"seconds": 1, "tier": "480p", "fps": 8}
PROVIDER = {"kind": "provider", "runner": "novita", "name": "novita"}
HEARD = Sound("generate")


@dataclass
class Interrupted(Held):
    """A claim in whose midst something happens."""

    happens: Callable[[Held], object] = lambda held: None
    shown: list[Progress] = field(default_factory=list)

    def on_progress(self, progress: Progress) -> None:
        super().on_progress(progress)
        self.shown.append(progress)
        self.happens(self)


@pytest.fixture
def alice() -> Account:
    return make_account("alice", credits=100)


@pytest.fixture
def clip(alice: Account) -> Job:
    """A finished video of the size, rate and length of all others here, with sound."""
    return work(make_job(alice, **CLIP, audio=HEARD))


def unfinished(account: Account, clip: Job, route: Any, **options: Any) -> Job:
    """Return a job that waits to be finished from the clip's file."""
    job = make_job(account, **CLIP, **options)
    tasks._do(Held(claim("media")))
    job.refresh_from_db()
    Job.objects.filter(pk=job.pk).update(
        step=Step.FINISH,
        queue="media",
        route=job.route | route,
        master={"key": clip.output["key"]},
        progress=0.5,
    )
    return job


def another_sound(account: Account, clip: Job) -> Job:
    return intake.submit_audio(
        clip, HEARD, credential=credential(account), dialect="native"
    )


WAYS: dict[str, Callable[[Account, Job], Job]] = {
    "an engine's frames": lambda a, c: unfinished(a, c, {}),
    "a clip as ordered": lambda a, c: unfinished(a, c, PROVIDER, audio=HEARD),
    "a clip to be marked": lambda a, c: unfinished(a, c, PROVIDER, watermark=True),
    "one that keeps its sound": lambda a, c: unfinished(
        a, c, PROVIDER, watermark=True, audio=HEARD
    ),
    "another sound": another_sound,
}
every_way = pytest.mark.parametrize("make", WAYS.values(), ids=WAYS.keys())


def finish(job: Job, happens: Callable[[Held], object]) -> Interrupted:
    if job.kind == "audio":
        tasks._do(Held(claim("media")))
    held = Interrupted(claim("media"), happens=happens)
    assert held.claim.step is Step.FINISH
    tasks._do(held)
    job.refresh_from_db()
    return held


@every_way
def test_a_drain_gives_a_finish_back_untried(
    alice: Account, clip: Job, make: Callable[[Account, Job], Job]
) -> None:
    job = make(alice, clip)
    held = finish(job, lambda held: held.is_draining.set())
    assert (job.step, job.step_tries, job.lease_until) == ("finish", 0, None)
    assert job.attempts.values_list("outcome", flat=True).last() == "released"
    assert len(held.shown) == 1
    assert work(job).status == Status.SUCCEEDED, job.error_detail


@every_way
def test_a_cancel_ends_a_finish_in_its_midst(
    alice: Account, clip: Job, make: Callable[[Account, Job], Job]
) -> None:
    before = available(alice)
    job = make(alice, clip)

    def cancel(held: Held) -> None:
        lifecycle.cancel(job)
        held.stop("canceled")  # as the heart does within a second

    held = finish(job, cancel)
    assert job.status == Status.CANCELED
    assert len(held.shown) == 1
    assert available(alice) == before


@every_way
def test_a_finish_shows_how_far_it_is(
    alice: Account, clip: Job, make: Callable[[Account, Job], Job]
) -> None:
    job = make(alice, clip)
    began = Job.objects.get(pk=job.pk).progress
    held = finish(job, lambda held: None)
    shown = [progress.fraction for progress in held.shown]
    assert len(shown) == 8
    assert shown == sorted(shown)
    assert began < shown[0] < shown[-1] == 1.0
    assert {progress.stage for progress in held.shown} == {"finish"}
    assert job.status == Status.SUCCEEDED, job.error_detail
