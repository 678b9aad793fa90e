"""What is refused or flagged, by which policy, and what is left of it: nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from PIL import Image

from billing import ledger
from billing.models import Account
from billing.plans import PlanTerms, terms_of
from inference.media import finish, safety
from jobs import context, fitness, tasks
from jobs import safety as policies
from jobs.models import Job, JobUpload, Worker
from jobs.requests import Picture
from jobs.states import Status
from tests.factories import make_account, make_job, png
from tests.jobs.finishing import site, stored, work, world

__all__ = ["site", "world"]
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

CLIP: dict[str, Any] = {"seconds": 1, "tier": "480p", "fps": 8}
UNSAFE = "a nude woman dances"


class RedIsUnsafe:
    """A classifier for tests: how red the reddest picture is."""

    def scores(self, images: Sequence[Image.Image]) -> list[float]:
        return [
            float(image.resize((1, 1)).getpixel((0, 0))[0] / 255)  # type: ignore[index]
            for image in images
        ]


@pytest.fixture
def classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = finish.tools_for

    def with_classifier(world: Any) -> finish.Tools:
        checks = safety.Safety(RedIsUnsafe())
        return dataclasses.replace(tools(world), safety=checks)

    monkeypatch.setattr(finish, "tools_for", with_classifier)


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


def picture(color: str) -> Picture:
    return Picture(data=png(color=color), size=(96, 64))


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
    job = work(make_job(alice, **CLIP))
    assert job.resolved["safety"] == "prompt_only"
    assert job.output["notes"]["safety"]["mode"] == "prompt_only"
    assert client.get("/readyz").json()["safety"] == "prompt_only"


def test_readyz_says_classifier_when_every_worker_has_it(client: Client) -> None:
    Worker.objects.create(name="media@a", queues=["media"], safety="classifier")
    assert client.get("/readyz").json()["safety"] == "classifier"
    Worker.objects.create(name="cpu@b", queues=["cpu"], safety="prompt_only")
    assert client.get("/readyz").json()["safety"] == "prompt_only"


@pytest.mark.usefixtures("classifier")
class TestWithTheClassifier:
    def test_an_unsafe_picture_is_never_stored(self, alice: Account) -> None:
        job = work(make_job(alice, **CLIP, image=picture("red")))
        assert (job.status, job.error_code) == (Status.FAILED, "content_blocked")
        assert job.attempts.count() == 1  # not tried again
        assert stored(job) == []
        assert available(alice) == 100_000

    def test_a_safe_one_passes_and_the_job_says_who_looked(
        self, alice: Account
    ) -> None:
        job = work(make_job(alice, **CLIP, image=picture("teal")))
        assert job.status == Status.SUCCEEDED
        assert job.resolved["safety"] == "classifier"

    def test_unsafe_output_frames_are_refunded_and_nothing_is_kept(
        self, alice: Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(policies.Guard, "picture", lambda *_: None)
        job = work(make_job(alice, **CLIP, image=picture("red")))
        assert (job.status, job.error_code) == (Status.FAILED, "content_blocked")
        assert job.attempts.count() == 2  # prepared, and refused once made
        assert stored(job) == []
        assert available(alice) == 100_000

    def test_flagged_output_is_delivered_and_noted(self, alice: Account) -> None:
        job = work(make_job(under(alice, "flag"), **CLIP, image=picture("red")))
        assert job.status == Status.SUCCEEDED
        assert job.resolved["safety_flags"] == ["input_image"]
        assert job.output["notes"]["safety"]["flagged"] == ["output_frames"]
        assert job.notes.filter(kind="safety").count() == 2

    def test_a_trusted_account_may_switch_it_off(self, alice: Account) -> None:
        account = under(alice, "off", trusted=True)
        job = work(make_job(account, **CLIP, image=picture("red")))
        assert job.status == Status.SUCCEEDED
        assert job.resolved["safety"] == "off"


def test_a_provider_that_refuses_content_leaves_nothing_either(alice: Account) -> None:
    job = make_job(alice, **CLIP)
    from inference.errors import Fault, ProviderError
    from jobs import claims
    from jobs.claims import Held

    claim = claims.claim_next("media", worker="w")
    assert claim is not None
    error = ProviderError("no", fault=Fault.CUSTOMER, code="content_blocked")
    tasks._failed(Held(claim), error)
    job.refresh_from_db()
    assert job.files_deleted_at is not None


def test_a_worker_does_not_start_without_a_demanded_classifier(world: Any) -> None:
    demanding = dataclasses.replace(world, options={"safety_required": True})
    with pytest.raises(fitness.Unfit, match="safety"):
        fitness.check(["media"], demanding)
    fitness.check(["webhook", "provider.novita"], demanding)
    with pytest.raises(SystemExit, match="cannot start"):
        _start_with(demanding)


def _start_with(demanding: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "get", lambda: demanding)
        tasks._check_fitness(options={"queues": "cpu,media"})


def test_the_whole_stack_does_not_start_without_it(
    settings: Any, tmp_path: Path
) -> None:
    settings.SAFETY_REQUIRE_CLASSIFIER = True
    settings.WEIGHTS_DIR = tmp_path
    with pytest.raises(CommandError, match="SAFETY_REQUIRE_CLASSIFIER"):
        call_command("up")


def test_half_a_signing_pair_is_refused_at_the_start(world: Any) -> None:
    half = dataclasses.replace(world, options={"certificate": "/nowhere.pem"})
    with pytest.raises(fitness.Unfit, match="C2PA_CERTIFICATE"):
        fitness.check(["media"], half)


def test_markup_in_a_prompt_is_only_words(alice: Account) -> None:
    prompt = "<script>alert(1)</script> {{7*7}} ${jndi:ldap://x} push in"
    job = work(make_job(alice, **CLIP, prompt=prompt))
    assert job.status == Status.SUCCEEDED
    assert Job.objects.get().request["prompt"] == prompt
