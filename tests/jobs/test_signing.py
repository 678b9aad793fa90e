"""A certificate that signs nothing readers accept: no job pays for it, and it is seen."""

from __future__ import annotations

import dataclasses
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from django.db.models.functions import Now
from django.utils import timezone

from billing.models import Account
from inference.media import provenance
from jobs import claims, context, fitness, renders, tasks, watch
from jobs.claims import Held
from jobs.models import Incident, Job, Worker
from jobs.states import Status
from tests.factories import make_account, make_job, make_request
from tests.jobs.finishing import site, work, world

__all__ = ["site", "world"]
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

CLIP: dict[str, Any] = {"seconds": 1, "tier": "480p", "fps": 8}


def good(folder: Path) -> None:
    (folder / "key.pem").unlink(missing_ok=True)
    provenance._write_development_chain(folder)


def expired(folder: Path) -> None:
    with time_machine.travel(timezone.now() - timedelta(days=6 * 365), tick=False):
        provenance._write_development_chain(folder)


def self_signed(folder: Path) -> None:
    key, name = ec.generate_private_key(ec.SECP256R1()), provenance._name("acme")
    leaf = provenance._certificate(
        name, key, issuer=name, issuer_key=key, authority=True
    )
    pem = serialization.Encoding.PEM
    (folder / "chain.pem").write_bytes(leaf.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "signing").mkdir()
    return tmp_path / "signing"


@pytest.fixture
def signing_world(world: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The process's context with the operator's own certificate."""
    options = {
        **world.options,
        "certificate": str(folder / "chain.pem"),
        "private_key": str(folder / "key.pem"),
    }
    made = dataclasses.replace(world, options=options)
    monkeypatch.setattr(context, "get", lambda: made)
    return made


@pytest.fixture
def alice() -> Account:
    return make_account("alice", credits=100)


@pytest.mark.parametrize("make", [expired, self_signed])
def test_a_worker_does_not_start_with_a_certificate_that_readers_refuse(
    signing_world: Any, folder: Path, make: Any
) -> None:
    make(folder)
    with pytest.raises(fitness.Unfit, match="C2PA_CERTIFICATE and C2PA_KEY cannot"):
        fitness.check(["media"], signing_world)
    fitness.check(["webhook", "provider.novita"], signing_world)


def test_a_certificate_that_runs_out_fails_no_job_and_ends_the_worker(
    alice: Account,
    signing_world: Any,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expired(folder)
    killed = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    job = make_job(alice, **CLIP)
    for queue in ("media", "cpu"):
        claim = claims.claim_next(queue, worker="test")
        assert claim is not None
        tasks._do(Held(claim))
    job.refresh_from_db()
    assert (Status(job.status).is_terminal, job.step_tries) == (False, 0)
    assert killed == [(os.getpid(), signal.SIGTERM)]

    good(folder)
    Job.objects.filter(pk=job.pk).update(run_after=None)
    assert work(job).status == Status.SUCCEEDED


def test_a_certificate_that_will_run_out_is_an_incident_until_it_is_replaced(
    signing_world: Any, folder: Path
) -> None:
    def start(name: str, queue: str) -> None:
        until = fitness.certificate_until([queue], signing_world)
        Worker.objects.update_or_create(
            name=name, defaults={"queues": [queue], "certificate_until": until}
        )

    with time_machine.travel(timezone.now() - timedelta(days=5 * 365 - 20)):
        good(folder)
    start("media@one", "media")
    start("webhook@one", "webhook")
    watch.look_at_certificates()
    incident = Incident.objects.get()
    assert (incident.kind, incident.resolved_at) == ("certificate", None)
    assert incident.detail == {"workers": ["media@one"]}
    good(folder)
    start("media@one", "media")
    watch.look_at_certificates()
    incident.refresh_from_db()
    assert incident.resolved_at is not None


def test_a_dead_workers_certificate_is_nobodys_any_more() -> None:
    Worker.objects.create(
        name="media@one",
        queues=["media"],
        seen_at=Now() - timedelta(hours=1),
        certificate_until=Now(),
    )
    watch.look_at_certificates()
    assert not Incident.objects.exists()


@pytest.mark.parametrize(
    ("queue", "is_timestamped", "in_place"),
    [
        ("gpu.wan2.2", False, True),
        ("gpu.wan2.2", True, False),
        ("cpu", True, True),
    ],
)
def test_a_gpu_waits_for_no_time_stamp(
    queue: str, is_timestamped: bool, in_place: bool
) -> None:
    request = make_request("wan2.2-i2v")
    found = renders.finishes_in_place(
        request, {"queue": queue}, is_timestamped=is_timestamped
    )
    assert found is in_place
