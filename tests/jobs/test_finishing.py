"""What a finished job carries: marks, signature, pictures beside it, its exact size."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from django.test import Client
from PIL import Image

from billing import ledger
from billing.models import Account
from inference import egress, registry
from inference.media import provenance
from jobs import context, deliveries, routing
from jobs.models import Job, WebhookDelivery, Worker
from jobs.requests import Picture
from jobs.states import Status
from tests.factories import make_account, make_job, make_key, png
from tests.jobs.finishing import PHOTO, download, facts, frames, site, work, world
from tests.receivers import Receiver

__all__ = ["site", "world"]
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

CLIP: dict[str, Any] = {"seconds": 1, "tier": "480p", "fps": 8}


@pytest.fixture
def alice() -> Account:
    return make_account("alice", credits=100)


def available(account: Account) -> int:
    return ledger.balance(account_id=account.pk, mode="live").available_millicredits


def grey() -> Picture:
    return Picture(data=png(color="gray"), size=(96, 64))


def marked_share(path: Path, *, corner: bool) -> float:
    """Return how much of a corner (or of the rest) is no longer plain grey."""
    picture = frames(path, width=480)[0]
    high, wide = picture.shape
    far = np.abs(picture - np.median(picture)) > 12
    region = np.zeros_like(far)
    region[high * 3 // 4 :, wide // 2 :] = True
    return float(far[region if corner else ~region].mean())


def test_the_visible_mark_is_in_the_corner_and_only_when_asked(
    alice: Account, tmp_path: Path
) -> None:
    plain = work(make_job(alice, **CLIP, image=grey()))
    marked = work(make_job(alice, **CLIP, image=grey(), watermark=True))
    assert marked_share(download(plain, tmp_path), corner=True) < 0.001
    assert marked_share(download(marked, tmp_path), corner=True) > 0.01
    assert marked_share(download(marked, tmp_path), corner=False) < 0.001
    assert marked.output["notes"]["watermark"]
    assert not plain.output["notes"]["watermark"]


def test_a_test_keys_video_says_so_in_the_picture(
    alice: Account, tmp_path: Path
) -> None:
    job = work(make_job(alice, mode="test", **CLIP, image=grey()))
    path = download(job, tmp_path)
    share = max(marked_share(path, corner=place) for place in (True, False))
    assert share > 0.005


def test_every_file_is_signed_and_says_which_job_made_it(
    alice: Account, tmp_path: Path
) -> None:
    job = work(make_job(alice, **CLIP))
    found = provenance.read_manifest(download(job, tmp_path))
    assert found is not None
    assert found.valid
    assert not found.trusted  # by a development certificate
    assert (found.model, found.reference) == ("motion", str(job.pk))
    assert found.source_type == provenance.ALGORITHMIC
    shown = Client().get(
        f"/v1/jobs/{job.pk}", headers={"Authorization": f"Bearer {make_key(alice)}"}
    )
    assert shown.json()["video"]["notes"]["provenance"] == found.summary()


def test_poster_preview_and_last_frame_can_be_fetched(alice: Account) -> None:
    # One that moves: of a plain colour the preview would be a single picture.
    picture = Picture(data=PHOTO.read_bytes(), size=(451, 300))
    job = work(make_job(alice, **CLIP, image=picture, prompt="push in"))
    headers = {"Authorization": f"Bearer {make_key(alice)}"}
    video = Client().get(f"/v1/jobs/{job.pk}", headers=headers).json()["video"]
    kinds = {}
    for name in ("poster_url", "preview_url", "last_frame_url"):
        data = httpx.get(video[name], trust_env=False).content
        with Image.open(io.BytesIO(data)) as image:
            kinds[name] = (image.format, getattr(image, "n_frames", 1) > 1)
    assert kinds == {
        "poster_url": ("JPEG", False),
        "preview_url": ("WEBP", True),
        "last_frame_url": ("JPEG", False),
    }


# --------------------------------------------------------------------------- sizes


def test_motion_is_made_at_4k(alice: Account, tmp_path: Path) -> None:
    job = work(make_job(alice, seconds=1, fps=8, tier="4k"))
    assert job.status == Status.SUCCEEDED, job.error_detail
    found = facts(download(job, tmp_path))
    assert (found.width, found.height) == (3240, 2160)
    assert job.output["notes"]["upscaler"] == "none"


class Noise:
    """An engine that draws small noise, as a model does that knows one size only."""

    def setup(self) -> None: ...

    def frames(self, request: Any, **_: Any) -> Iterator[np.ndarray]:
        self.size = request.width, request.height
        rng = np.random.default_rng(1)
        shape = (request.height, request.width, 3)
        for _i in range(request.output.frames):
            yield rng.integers(0, 255, shape, np.uint8)

    def fingerprint(self, request: Any) -> dict[str, str]:
        return {"engine": "noise"}


def test_what_a_model_makes_small_is_delivered_large_and_the_job_says_how(
    alice: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Worker.objects.create(name="gpu@a", queues=["gpu.wan-tiny"])
    routing.forget()
    engine = Noise()
    monkeypatch.setattr(registry, "engine", lambda *_: engine)
    monkeypatch.setattr("tests.jobs.finishing.QUEUES", ("media", "gpu.wan-tiny"))
    job = work(make_job(alice, model="wan-tiny", tier="1080p", frames=9))
    assert job.status == Status.SUCCEEDED, job.error_detail
    assert engine.size[0] * engine.size[1] <= 64 * 96
    found = facts(download(job, tmp_path))
    assert (found.height, found.frames) == (1080, 9)
    assert job.output["notes"]["upscaler"] == "lanczos"
    routing.forget()


def test_a_tier_above_the_native_one_costs_its_surcharge(alice: Account) -> None:
    Worker.objects.create(name="gpu@a", queues=["gpu.wan2.1"])
    routing.forget()
    quoted = {
        tier: make_job(alice, model="wan2.1-i2v", tier=tier).quoted_millicredits
        for tier in ("720p", "1080p")
    }
    assert quoted == {"720p": 40_000, "1080p": 45_000}
    routing.forget()


# -------------------------------------------------------------- rehearsed webhooks


@pytest.fixture
def receiver(world: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    running = Receiver()
    hosts = [running.host]
    open_world = dataclasses.replace(world, egress=egress.Egress(allow_hosts=hosts))
    monkeypatch.setattr(context, "get", lambda: open_world)
    egress.configure(hosts)
    yield running
    egress.configure([])
    running.stop()


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("TASK_STATUS_SUCCEED", "TASK_STATUS_SUCCEED"),
        ("TASK_STATUS_FAILED", "TASK_STATUS_FAILED"),
    ],
)
def test_novitas_test_mode_sends_one_mock_event_and_makes_nothing(
    alice: Account, receiver: Receiver, asked: str, status: str
) -> None:
    Worker.objects.create(name="gpu@a", queues=["gpu.wan2.1"])
    routing.forget()
    job = make_novita_job(alice, receiver.url, asked)
    assert (job.status, job.error_code) == (Status.CANCELED, "webhook_test")
    assert job.quoted_millicredits == 0
    assert available(alice) == 100_000
    assert deliveries.deliver_next()
    assert not deliveries.deliver_next()
    [call] = receiver.calls
    body = httpx.Response(200, content=call.body).json()
    assert body["event_type"] == "ASYNC_TASK_RESULT"
    task = body["payload"]["task"]
    assert (task["task_id"], task["status"]) == (job.public_id, status)
    assert bool(body["payload"]["videos"]) == (status == "TASK_STATUS_SUCCEED")
    assert WebhookDelivery.objects.count() == 1
    read = Client().get(
        f"/v3/async/task-result?task_id={job.public_id}",
        headers={"Authorization": f"Bearer {make_key(alice)}"},
    )
    assert read.json()["task"] == task
    assert len(read.json()["videos"]) == len(body["payload"]["videos"])
    routing.forget()


def make_novita_job(account: Account, url: str, status: str) -> Job:
    picture = base64.b64encode(png(640, 480)).decode()
    answer = Client().post(
        "/v3/async/wan-i2v",
        {
            "prompt": "a cat",
            "image_url": f"data:image/png;base64,{picture}",
            "extra": {
                "webhook": {
                    "url": url,
                    "test_mode": {"enabled": True, "return_task_status": status},
                }
            },
        },
        content_type="application/json",
        headers={"Authorization": f"Bearer {make_key(account)}"},
    )
    assert answer.status_code == 200, answer.content
    return Job.objects.get(public_id=answer.json()["task_id"])
