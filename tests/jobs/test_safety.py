"""What is refused or flagged, by which policy, and what is left of it: nothing."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from django.db.models.functions import Now
from django.test import Client

from billing import ledger
from billing.models import Account
from billing.plans import PlanTerms, terms_of
from inference import registry
from inference.media.safety import Judge, Verdict
from jobs import (
    claims,
    context,
    display,
    fitness,
    housekeeper,
    intake,
    lifecycle,
    retention,
    routing,
    tasks,
)
from jobs import safety as policies
from jobs.claims import Held
from jobs.models import Job, JobUpload, ProviderErrand, Worker
from jobs.requests import Picture, Sound
from jobs.states import Status, Step
from project import stack
from tests import classifier
from tests.factories import credential, make_account, make_job, make_key, png
from tests.jobs import providers_world
from tests.jobs.finishing import site, stored, work, world

__all__ = ["site", "world"]
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

CLIP: dict[str, Any] = {"seconds": 1, "tier": "480p", "fps": 8}
UNSAFE = "a nude woman dances"
WHITE = Picture(data=png(color="white"), size=(96, 64))
BLACK = Picture(data=png(color="black"), size=(96, 64))


@pytest.fixture
def weights(world: Any) -> Path:
    """A classifier in the folder of weights, to which white is unsafe and black safe."""
    return classifier.write(world.weights)


@pytest.fixture
def alice() -> Account:
    return make_account("alice", credits=100)


def under(account: Account, policy: str, *, trusted: bool = False) -> Account:
    account.plan.safety_policy = policy
    account.plan.save(update_fields=["safety_policy"])
    account.is_trusted = trusted
    account.save(update_fields=["is_trusted"])
    return account


def terms(policy: str, *, trusted: bool) -> PlanTerms:
    plan = make_account("any").plan
    plan.safety_policy = policy
    return terms_of(plan, is_trusted=trusted)


def available(account: Account) -> int:
    return ledger.balance(account_id=account.pk, mode="live").available_millicredits


@pytest.mark.parametrize(
    ("policy", "trusted", "asked", "becomes"),
    [
        ("block", False, True, "block"),
        ("block", False, False, "block"),
        ("block", True, False, "flag"),
        ("flag", False, False, "flag"),
        ("flag", True, False, "off"),
        ("off", False, True, "block"),
        ("off", False, False, "block"),
        ("off", True, True, "off"),
    ],
)
def test_the_plan_decides_and_only_trusted_accounts_get_less(
    policy: str, trusted: bool, asked: bool, becomes: str
) -> None:
    found = policies.policy_of(terms(policy, trusted=trusted), is_asked=asked)
    assert found == becomes


def test_an_unsafe_prompt_is_refunded_and_nothing_of_it_is_kept(alice: Account) -> None:
    job = work(make_job(alice, **CLIP, prompt=UNSAFE))
    assert (job.status, job.error_code) == (Status.FAILED, "content_blocked")
    assert "nude" not in job.error_message
    assert available(alice) == 100_000
    assert stored(job) == []
    assert not JobUpload.objects.filter(job=job).exists()
    assert job.files_deleted_at is not None


def test_a_prompt_that_is_flagged_only_is_delivered_and_noted(alice: Account) -> None:
    job = work(make_job(under(alice, "flag"), **CLIP, prompt=UNSAFE))
    assert job.status == Status.SUCCEEDED
    assert job.resolved["safety_flags"] == ["sexual"]
    assert job.notes.filter(kind="safety").exists()


def test_what_no_policy_allows_is_refused_to_trusted_accounts_too(
    alice: Account,
) -> None:
    account = under(alice, "off", trusted=True)
    job = work(make_job(account, **CLIP, prompt="nude child", safety_checker=False))
    assert job.error_code == "content_blocked"


def test_without_weights_job_and_readyz_say_prompt_only(
    alice: Account, client: Client
) -> None:
    job = work(make_job(alice, **CLIP, image=WHITE))
    assert job.resolved["safety"] == "prompt_only"
    assert job.output["notes"]["safety"] == {"mode": "prompt_only"}
    assert steps_of(job) == ["prepare", "generate"]
    assert client.get("/readyz").json()["safety"] == "prompt_only"


class TestReadyz:
    """What `/readyz` says of who judges pictures."""

    def ask(self) -> Any:
        return Client().get("/readyz").json()["safety"]

    def test_a_live_safety_worker_is_a_classifier(self) -> None:
        Worker.objects.create(name="media@a", queues=["media"], safety="classifier")
        assert self.ask() == "classifier_unreachable"
        Worker.objects.create(name="safety@a", queues=["safety"], safety="classifier")
        assert self.ask() == "classifier"

    @pytest.mark.usefixtures("weights")
    def test_weights_without_a_worker_are_not_called_prompt_only(self) -> None:
        assert self.ask() == "classifier_unreachable"

    def test_neither_is_a_demand_without_one(
        self, world: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(context, "get", lambda: demanding(world))
        assert self.ask() == "classifier_unreachable"

    def test_one_media_worker_that_sends_no_job_to_it_spoils_it(self) -> None:
        Worker.objects.create(name="safety@a", queues=["safety"], safety="classifier")
        Worker.objects.create(name="media@b", queues=["media"], safety="prompt_only")
        assert self.ask() == "prompt_only"


@pytest.mark.usefixtures("weights")
class TestWithTheClassifier:
    def test_a_safe_picture_passes_and_the_job_says_who_looked(
        self, alice: Account
    ) -> None:
        job = work(make_job(alice, **CLIP, image=BLACK))
        assert job.status == Status.SUCCEEDED, job.error_detail
        assert steps_of(job) == ["prepare", "screen", "generate", "review"]
        assert job.resolved["safety"] == "classifier"
        assert job.output["notes"]["safety"] == {"mode": "classifier"}
        assert job.master == {}
        assert job.work_seconds > 0
        assert available(alice) == 99_000

    def test_an_unsafe_picture_is_refunded_and_nothing_is_kept(
        self, alice: Account
    ) -> None:
        job = work(make_job(alice, **CLIP, image=WHITE))
        assert (job.status, job.error_code) == (Status.FAILED, "content_blocked")
        assert steps_of(job) == ["prepare", "screen"]  # not made, not tried again
        assert_nothing_is_left(job, alice)

    def test_unsafe_output_frames_are_refunded_and_nothing_is_kept(
        self, alice: Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Judge, "inputs", lambda *_: Verdict())
        job = work(make_job(alice, **CLIP, image=WHITE))
        assert (job.status, job.error_code) == (Status.FAILED, "content_blocked")
        assert steps_of(job) == ["prepare", "screen", "generate", "review"]
        assert_nothing_is_left(job, alice)
        assert job.output == {}

    def test_flagged_content_is_delivered_and_noted(self, alice: Account) -> None:
        job = make_job(under(alice, "flag"), **CLIP, image=WHITE, prompt=UNSAFE)
        job = work(job)
        assert job.status == Status.SUCCEEDED
        assert job.resolved["safety_flags"] == ["sexual", "input_image"]
        assert job.output["notes"]["safety"]["mode"] == "classifier"
        assert job.output["notes"]["safety"]["flagged"] == ["output_frames"]
        notes = job.notes.filter(kind="safety").values_list("text", flat=True)
        assert list(notes) == [
            "input: sexual (policy: flag)",
            "input: input_image (policy: flag)",
            "output: output_frames (policy: flag)",
        ]

    def test_a_trusted_account_may_switch_it_off(self, alice: Account) -> None:
        account = under(alice, "off", trusted=True)
        job = work(make_job(account, **CLIP, image=WHITE))
        assert job.status == Status.SUCCEEDED
        assert job.resolved["safety"] == "off"
        assert job.output["notes"]["safety"] == {"mode": "off"}
        assert steps_of(job) == ["prepare", "generate"]

    def test_test_keys_are_judged_as_live_ones_are(self, alice: Account) -> None:
        job = work(make_job(alice, **CLIP, mode="test", image=WHITE))
        assert job.error_code == "content_blocked"

    def test_a_file_that_is_finished_elsewhere_is_reviewed_too(
        self, alice: Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Worker.objects.create(name="gpu@a", queues=["gpu.wan-tiny"])
        routing.forget()
        monkeypatch.setattr(registry, "engine", lambda *_: Dark())
        queues = ("media", "safety", "gpu.wan-tiny")
        monkeypatch.setattr("tests.jobs.finishing.QUEUES", queues)
        job = work(
            make_job(alice, model="wan-tiny", tier="1080p", frames=9, image=BLACK)
        )
        assert job.status == Status.SUCCEEDED, job.error_detail
        assert steps_of(job)[2:] == ["generate", "finish", "review"]
        assert list(job.master) == ["key", "width", "height"]  # the clip, for an hour
        routing.forget()

    @pytest.mark.parametrize("color", ["black", "white"])
    def test_what_a_provider_made_is_reviewed_and_its_copy_deleted_there(
        self, alice: Account, color: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unsafe = Verdict(flagged=color == "white", reasons=("output_frames",))
        monkeypatch.setattr(Judge, "frames", lambda *_: unsafe)
        with providers_world.start("dashscope") as fake:
            providers_world.enter(fake)
            job = providers_world.order(alice, "dashscope", image=BLACK)
            for queue in ("media", "safety", "provider.dashscope"):
                do(queue)
            providers_world.finish_there(fake)
            providers_world.look()
            for queue in ("provider.dashscope", "media", "safety"):
                do(queue)
        job.refresh_from_db()
        assert steps_of(job) == [
            *("prepare", "screen", "submit", "collect", "finish", "review")
        ]
        [errand] = ProviderErrand.objects.all()
        assert (errand.kind, errand.provider_job_id) == ("delete", job.provider_job_id)
        if color == "black":
            assert job.status == Status.SUCCEEDED
        else:
            assert job.error_code == "content_blocked"
            assert_nothing_is_left(job, alice)

    def test_another_sound_under_a_reviewed_picture_is_not_reviewed_again(
        self, alice: Account
    ) -> None:
        source = work(make_job(alice, **CLIP, image=BLACK))
        job = work(
            intake.submit_audio(
                source,
                Sound("generate"),
                credential=credential(alice),
                dialect="native",
            )
        )
        assert job.status == Status.SUCCEEDED, job.error_detail
        assert steps_of(job) == ["prepare", "finish"]
        assert job.output["notes"]["safety"] == {"mode": "classifier"}

    def test_whoever_was_to_be_judged_waits_for_the_worker(
        self, alice: Account, world: Any
    ) -> None:
        job = make_job(alice, **CLIP, image=BLACK)
        do("media")
        shutil.rmtree(world.weights)  # it is away, or its disk is
        job.refresh_from_db()
        assert (job.status, job.step, job.queue) == ("queued", "screen", "safety")
        assert claims.claim_next("cpu", worker="w") is None


@pytest.mark.usefixtures("weights")
class TestUnderReview:
    """A job whose file is made and has not been looked at."""

    @pytest.fixture
    def job(self, alice: Account) -> Job:
        made = make_job(alice, **CLIP, image=BLACK)
        for queue in ("media", "safety", "cpu"):
            do(queue)
        made.refresh_from_db()
        assert (made.status, made.step) == (Status.RUNNING, Step.REVIEW)
        return made

    def test_no_customer_sees_the_file_yet(self, alice: Account, job: Job) -> None:
        headers = {"Authorization": f"Bearer {make_key(alice)}"}
        api = Client(headers=headers)
        answer = api.get(f"/v1/jobs/{job.pk}")
        shown = answer.json()
        assert (shown["status"], shown["step"]) == ("running", "review")
        assert shown["video"] is None
        assert "/out/" not in answer.content.decode()
        assert api.get(f"/v1/videos/{job.pk}/content").status_code == 404
        assert Client().get(display.permanent_path(job, "video")).status_code == 404
        assert available(alice) == 99_000
        assert job.charged_millicredits == 0

    def test_a_cancel_comes_first_and_the_file_goes_with_the_others(
        self, alice: Account, job: Job
    ) -> None:
        lifecycle.cancel(job)
        assert claims.claim_next("safety", worker="w") is None
        job.refresh_from_db()
        assert job.status == Status.CANCELED
        assert available(alice) == 100_000
        retention.delete_files(job)
        assert stored(job) == []

    def test_a_draining_worker_gives_it_back_untried(self, job: Job) -> None:
        claim = claims.claim_next("safety", worker="old")
        assert claim is not None
        held = Held(claim)
        held.is_draining.set()
        tasks._do(held)
        assert work(job).status == Status.SUCCEEDED
        assert [a.outcome for a in job.attempts.filter(step="review")] == [
            "released",
            "ok",
        ]

    @pytest.mark.parametrize("verdict", ["safe", "unsafe"])
    def test_a_zombies_late_verdict_changes_nothing(
        self, alice: Account, job: Job, verdict: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        zombie = claims.claim_next("safety", worker="zombie")
        assert zombie is not None
        Job.objects.update(lease_until=Now() - timedelta(seconds=1))
        housekeeper.reap()
        done = work(job)
        assert done.status == Status.SUCCEEDED
        before = Job.objects.filter(pk=job.pk).values().get(), stored(job)

        flagged = Verdict(flagged=True, reasons=("output_frames",), score=0.9)
        if verdict == "unsafe":
            monkeypatch.setattr(Judge, "frames", lambda *_: flagged)
        # What it had read before it froze: its row as it was then.
        monkeypatch.setattr(claims, "load", lambda _: job)
        tasks._do(Held(zombie))
        assert (Job.objects.filter(pk=job.pk).values().get(), stored(job)) == before
        assert available(alice) == 99_000
        call_command("check_ledger")

    def test_a_worker_that_died_of_it_three_times_costs_the_customer_nothing(
        self, alice: Account, job: Job
    ) -> None:
        for _ in range(3):
            assert claims.claim_next("safety", worker="dies") is not None
            Job.objects.update(lease_until=Now() - timedelta(seconds=1))
            housekeeper.reap()
        job.refresh_from_db()
        assert (job.status, job.error_code) == (Status.FAILED, "worker_lost")
        assert available(alice) == 100_000


class Dark:
    """An engine that draws black."""

    def setup(self) -> None: ...

    def frames(self, request: Any, **_: Any) -> Iterator[np.ndarray]:
        shape = (request.height, request.width, 3)
        for _i in range(request.output.frames):
            yield np.zeros(shape, np.uint8)

    def fingerprint(self, request: Any) -> dict[str, str]:
        return {"engine": "dark"}


def do(queue: str) -> None:
    """Do one step of what waits in ``queue``."""
    claim = claims.claim_next(queue, worker="test")
    assert claim is not None
    tasks._do(Held(claim))


def steps_of(job: Job) -> list[str]:
    return [attempt.step for attempt in job.attempts.all()]


def assert_nothing_is_left(job: Job, account: Account) -> None:
    assert stored(job) == []
    assert job.files_deleted_at is not None
    assert (job.inputs, job.master) == ({}, {})
    assert not JobUpload.objects.filter(job=job).exists()
    assert job.charged_millicredits == 0
    assert job.refunded_millicredits == job.quoted_millicredits
    assert available(account) == 100_000
    call_command("check_ledger")


def test_a_provider_that_refuses_content_leaves_nothing_either(alice: Account) -> None:
    job = make_job(alice, **CLIP)
    from inference.errors import Fault, ProviderError

    claim = claims.claim_next("media", worker="w")
    assert claim is not None
    error = ProviderError("no", fault=Fault.CUSTOMER, code="content_blocked")
    tasks._failed(Held(claim), error)
    job.refresh_from_db()
    assert job.files_deleted_at is not None


# ------------------------------------------------------------------ at the start


def demanding(world: Any) -> Any:
    return dataclasses.replace(
        world, options={**world.options, "safety_required": True}
    )


def test_the_safety_worker_does_not_start_without_weights(world: Any) -> None:
    with pytest.raises(
        fitness.Unfit, match=f"no classifier weights in {world.weights}"
    ):
        fitness.check(["safety"], world)
    with pytest.raises(fitness.Unfit, match="SAFETY_REQUIRE_CLASSIFIER is set, but no"):
        fitness.check(["safety"], demanding(world))
    with pytest.raises(SystemExit, match="cannot start: no picture can be judged"):
        tasks._check_fitness(options={"queues": ["safety"]})


@pytest.mark.usefixtures("weights")
def test_nor_without_torch(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fitness.check(["safety"], world)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(fitness.Unfit, match="torch is not installed"):
        fitness.check(["safety"], world)


def test_nor_with_weights_that_cannot_be_loaded(weights: Path) -> None:
    (weights / "model.safetensors").write_bytes(b"half a downlo")
    with pytest.raises(SystemExit):
        tasks._prewarm(options={"queues": "safety"})


def test_other_workers_need_neither(world: Any) -> None:
    fitness.check(["media", "cpu", "gpu.wan2.2", "webhook"], demanding(world))


def test_the_stack_has_a_safety_worker_where_pictures_are_judged(
    settings: Any, tmp_path: Path
) -> None:
    settings.WEIGHTS_DIR = tmp_path
    assert "safety" not in [worker.name for worker in stack.workers()]
    (tmp_path / "safety").mkdir()
    (tmp_path / "safety" / "config.json").write_text("{}")
    [worker] = [worker for worker in stack.workers() if "safety" in worker.queues]
    assert worker == stack.Worker("safety", ("safety",), 1)


@pytest.mark.parametrize("command", [["up"], ["process", "worker-safety"]])
def test_the_stack_does_not_start_without_a_demanded_classifier(
    settings: Any, tmp_path: Path, command: list[str]
) -> None:
    settings.SAFETY_REQUIRE_CLASSIFIER = True
    settings.WEIGHTS_DIR = tmp_path
    with pytest.raises(CommandError, match=f"SAFETY_REQUIRE_CLASSIFIER .*{tmp_path}"):
        call_command(*command)


def test_half_a_signing_pair_is_refused_at_the_start(world: Any) -> None:
    half = dataclasses.replace(world, options={"certificate": "/nowhere.pem"})
    with pytest.raises(fitness.Unfit, match="C2PA_CERTIFICATE"):
        fitness.check(["media"], half)


def test_markup_in_a_prompt_is_only_words(alice: Account) -> None:
    prompt = "<script>alert(1)</script> {{7*7}} ${jndi:ldap://x} push in"
    job = work(make_job(alice, **CLIP, prompt=prompt))
    assert job.status == Status.SUCCEEDED
    assert Job.objects.get().request["prompt"] == prompt
