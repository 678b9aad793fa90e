"""The diffusers path in the real stack: `make worker-gpu` on a CPU with wan-tiny.

A photo goes in through the public API and an .mp4 comes out of S3, made by the real
pipeline classes with random weights in a worker process of its own.
"""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import httpx
import pytest

from tests.stack import ROOT, LiveStack, wait_until

pytestmark = [pytest.mark.stories, pytest.mark.timeout(300)]
PHOTO = Path(__file__).parent.parent / "photos" / "astronaut.jpg"
#: each real checkpoint's folder, filled with tiny random weights of its kind
FOLDERS = {
    "Wan2.1-I2V-14B-480P": "2.1",
    "Wan2.1-I2V-14B-720P": "2.1",
    "Wan2.1-FLF2V-14B-720P": "flf",
    "Wan2.2-I2V-A14B": "2.2",
    "Wan2.2-TI2V-5B": "5b",
}


@dataclass
class GpuWorker:
    process: subprocess.Popen[str]
    log: Path

    def pid(self) -> int:
        found = re.findall(r"worker-gpu-cpu started, pid (\d+)", self.log.read_text())
        return int(found[-1])


@pytest.fixture(scope="module")
def worker(live_stack: LiveStack, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = start(live_stack, tmp_path_factory.mktemp("gpu") / "worker.log")
    try:
        wait_until(lambda: serves(live_stack), seconds=150, what=f"{made.log}")
        yield made
    finally:
        made.process.terminate()
        made.process.wait(60)


def start(stack: LiveStack, log: Path) -> GpuWorker:
    env = stack.env | {
        "GPU_MODELS": "wan-tiny",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "WEIGHTS_SOURCES": ",".join(f"{n}=synthetic:{k}" for n, k in FOLDERS.items()),
    }
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "manage.py"), "worker_gpu"],
            env=env,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
    return GpuWorker(process, log)


def serves(stack: LiveStack) -> bool:
    rows = stack.sql(
        "SELECT queues FROM jobs_worker WHERE name LIKE 'gpu-%%'"
        " AND seen_at > now() - interval '15 seconds'"
    )
    return any("gpu.wan-tiny" in queues for (queues,) in rows)


@pytest.fixture
def client(live_stack: LiveStack, worker: GpuWorker) -> Iterator[httpx.Client]:
    with live_stack.client(live_stack.key()) as made:
        yield made


def order(client: httpx.Client, **options: Any) -> str:
    picture = base64.b64encode(PHOTO.read_bytes()).decode()
    answer = client.post(
        "/v1/jobs", json={"model": "wan-tiny", "image": picture, **options}
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def video(job: dict[str, Any]) -> tuple[int, tuple[int, int], float]:
    answer = httpx.get(job["video"]["url"], trust_env=False)
    assert answer.status_code == 200
    with av.open(io.BytesIO(answer.content), "r") as container:
        stream = container.streams.video[0]
        frames = len(list(container.decode(stream)))
        return frames, (stream.width, stream.height), float(stream.average_rate or 0)


def test_a_photo_becomes_a_video_by_the_real_diffusers_path(
    live_stack: LiveStack, client: httpx.Client
) -> None:
    job_id = order(client, prompt="the astronaut waves", frames=19, seed=7)
    job = live_stack.wait_for_job(client, job_id, seconds=90)
    assert job["status"] == "succeeded", job
    frames, size, rate = video(job)
    assert (frames, rate) == (19, 16)
    assert size[0] % 16 == 0
    assert size[1] % 16 == 0
    ((resolved,),) = live_stack.sql(
        "SELECT resolved FROM jobs_job WHERE id = %s", job_id
    )
    assert resolved["fingerprint"]["engine"] == "wan"
    assert resolved["fingerprint"]["checkpoint"] == "wan-tiny"
    assert resolved["fingerprint"]["attention"] == "native"


def point_route_at(stack: LiveStack, profile: str) -> None:
    """Edit the route as an operator does, and wait until every process has read it."""
    stack.sql(
        "UPDATE jobs_route SET profile = %s WHERE model = 'wan-tiny' AND runner = 'wan'",
        profile,
    )
    stack.forget_routes()


@pytest.mark.parametrize(
    ("profile", "checkpoint"),
    [
        ("wan2.1-i2v-14b", "Wan2.1-I2V-14B-480P"),
        ("wan2.1-flf2v-14b-720p", "Wan2.1-FLF2V-14B-720P"),
        ("wan2.2-i2v-a14b", "Wan2.2-I2V-A14B"),
        ("wan2.2-ti2v-5b", "Wan2.2-TI2V-5B"),
    ],
)
def test_every_kind_of_checkpoint_goes_the_same_way(
    profile: str, checkpoint: str, live_stack: LiveStack, client: httpx.Client
) -> None:
    """An operator points wan-tiny's route at the profile: small sizes, its real code."""
    point_route_at(live_stack, profile)
    options: dict[str, Any] = {
        "aspect_ratio": "4:3",
        "frames": 9,
        "prompt": "it moves",
    }
    if "flf" in profile:
        options["last_image"] = base64.b64encode(PHOTO.read_bytes()).decode()
    try:
        job = live_stack.wait_for_job(client, order(client, **options), seconds=120)
    finally:
        point_route_at(live_stack, "wan-tiny")
    assert job["status"] == "succeeded", job
    assert video(job) == (9, (96, 64), 16)
    ((resolved,),) = live_stack.sql(
        "SELECT resolved FROM jobs_job WHERE id = %s", job["id"]
    )
    assert resolved["fingerprint"]["profile"] == profile
    assert resolved["fingerprint"]["checkpoint"] == checkpoint


def test_what_the_model_cannot_do_is_refused_before_the_charge(
    client: httpx.Client,
) -> None:
    for options, field in (
        ({"frames": 7, "last_image": "https://photos.example/a.jpg"}, "frames"),
        ({"loras": [{"path": "nobody/knows"}]}, "loras"),
    ):
        answer = client.post(
            "/v1/jobs",
            json={
                "model": "wan-tiny",
                "image": "https://photos.example/a.jpg",
                **options,
            },
        )
        assert answer.status_code == 422, answer.text
        assert field in answer.text


def test_killed_on_the_way_a_job_is_made_again_and_charged_once(
    live_stack: LiveStack, client: httpx.Client, worker: GpuWorker
) -> None:
    jobs = [order(client, frames=33, steps=8, seed=n) for n in range(6)]
    before = worker.pid()
    wait_until(
        lambda: live_stack.sql(
            "SELECT 1 FROM jobs_job WHERE status = 'running' AND model = 'wan-tiny'"
        ),
        seconds=60,
        what="a job to run",
    )
    time.sleep(0.3)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: worker.pid() != before, seconds=60, what="a new worker")
    for job_id in jobs:
        job = live_stack.wait_for_job(client, job_id, seconds=120)
        assert job["status"] == "succeeded", job
        assert video(job)[0] == 33
    charges = live_stack.sql(
        "SELECT id, charged_millicredits, quoted_millicredits FROM jobs_job"
        " WHERE id = ANY(%s::uuid[])",
        jobs,
    )
    assert all(charged == quoted for _id, charged, quoted in charges)
    live_stack.check_ledger()
