"""Faults that must not lose a job, charge one twice or charge for nothing.

Real processes, real kills. After each: every job has ended, the books add up, and a job
is charged if and only if exactly one readable video of it exists.
"""

from __future__ import annotations

import base64
import io
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import av
import httpx
import pytest

from tests.factories import png
from tests.stack import ROOT, LiveStack, wait_until

PICTURE = base64.b64encode(png(160, 120)).decode()
QUICK = {"image": PICTURE, "resolution": "480p", "seconds": 1, "fps": 8}
LONG = {"image": PICTURE, "resolution": "480p", "seconds": 10, "fps": 30}


@pytest.fixture(autouse=True)
def everything_adds_up(live_stack: LiveStack) -> Iterator[None]:
    ((began,),) = live_stack.sql("SELECT clock_timestamp()")
    yield
    wait_until(
        lambda: (
            not live_stack.sql(
                "SELECT 1 FROM jobs_job WHERE status IN ('queued', 'running')"
            )
        ),
        seconds=120,
        what="every job to end",
    )
    live_stack.check_ledger()
    open_holds = live_stack.sql("SELECT * FROM billing_hold WHERE state = 'open'")
    assert open_holds == []
    wrong = live_stack.sql(
        "SELECT id, status, charged_millicredits, output FROM jobs_job"
        " WHERE (status = 'succeeded') <> (output <> '{}')"
        " OR (status = 'succeeded') <> (charged_millicredits > 0)"
    )
    assert wrong == []
    check_files(live_stack, since=began)


def check_files(live_stack: LiveStack, *, since: datetime) -> None:
    """Assert that each job that was charged has exactly one video, and it is readable.

    A file counts when the attempt it is of was accepted: late workers' files lie under
    their own fence until they are swept.
    """
    storage = live_stack.storage()
    accepted = live_stack.sql(
        "SELECT j.account_id || '/' || j.id, j.output, j.files_deleted_at IS NOT NULL,"
        " array(SELECT fence FROM jobs_attempt"
        "        WHERE job_id = j.id AND outcome = 'ok')"
        " FROM jobs_job j WHERE created_at >= %s",
        since,
    )
    for folder, output, is_deleted, fences in accepted:
        videos = [
            file.key
            for file in storage.list(f"{folder}/out/")
            if file.key.endswith(".mp4") and fence_of(file.key) in fences
        ]
        assert videos == ([output["key"]] if output and not is_deleted else [])
        for key in videos:
            _, blocks = storage.open(key)
            assert frames_of(b"".join(blocks)) == output["frames"]


def fence_of(key: str) -> int:
    return int(key.rpartition("/")[2].partition("-")[0])


def create(client: httpx.Client, **options: object) -> str:
    response = client.post("/v1/jobs", json={**QUICK, **options})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def frames_of(video: bytes) -> int:
    with av.open(io.BytesIO(video), "r") as container:
        return sum(1 for _ in container.decode(video=0))


def download(job: dict[str, Any]) -> bytes:
    response = httpx.get(job["video"]["url"], trust_env=False)
    assert response.status_code == 200
    return response.content


def test_a_job_survives_the_kill_of_its_worker(live_stack: LiveStack) -> None:
    with live_stack.client(live_stack.key()) as client:
        job = create(client, **LONG)
        wait_until(
            lambda: client.get(f"/v1/jobs/{job}").json()["status"] == "running",
            seconds=30,
            what="the job to run",
        )
        killed = live_stack.kill("worker-cpu")
        live_stack.wait_restarted("worker-cpu", killed)
        ended = live_stack.wait_for_job(client, job, seconds=150)
        assert ended["status"] == "succeeded", ended["error"]
        assert frames_of(download(ended)) == 300
    outcomes = live_stack.sql(
        "SELECT outcome FROM jobs_attempt WHERE job_id = %s AND step = 'generate'"
        " ORDER BY fence",
        job,
    )
    assert outcomes == [("lost",), ("ok",)]


@contextmanager
def in_place_of_the_cpu_worker(
    live_stack: LiveStack, code: str, folder: Path, **env: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``code`` as a cpu worker of its own while the stack's is frozen.

    What it prints is in ``folder / "said"``.
    """
    live_stack.kill("worker-cpu", signal.SIGSTOP)
    with (folder / "said").open("wb") as said:
        worker = subprocess.Popen(
            [sys.executable, "manage.py", "shell", "--no-imports", "-c", code],
            env=live_stack.env | env,
            cwd=ROOT,
            stdout=said,
        )
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait(10)
        live_stack.kill("worker-cpu", signal.SIGCONT)


#: Freezes when its file is stored and the job is to be closed, twice.
IS_LATE = """
import os, signal, time
from jobs import claims, lifecycle, tasks

succeed = lifecycle.succeed

def late(*args, **changes):
    for _ in range(2):
        print("frozen", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            succeed(*args, **changes)
        except lifecycle.Superseded:
            print("superseded", flush=True)

lifecycle.succeed = late
while (claim := claims.claim_next("cpu", worker="late@test")) is None:
    time.sleep(0.05)
with tasks.heart.hold(claim) as held:
    tasks._do(held)
"""


def test_the_late_finish_of_a_frozen_worker_changes_nothing(
    live_stack: LiveStack, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    with (
        live_stack.client(live_stack.key()) as client,
        in_place_of_the_cpu_worker(live_stack, IS_LATE, tmp_path) as late,
    ):
        job = create(client, **LONG | {"seconds": 6})
        wait_for_lines(said, ["frozen"])
        live_stack.kill("worker-cpu", signal.SIGCONT)
        wait_until(
            lambda: live_stack.sql(
                "SELECT 1 FROM jobs_attempt WHERE job_id = %s AND step = 'generate'"
                " AND worker LIKE 'cpu@%%'",
                job,
            ),
            seconds=60,
            what="the second worker to claim the job",
        )
        late.send_signal(signal.SIGCONT)
        wait_for_lines(said, ["frozen", "superseded", "frozen"])
        # It came while the second one was at work; now once more, after the end.
        assert client.get(f"/v1/jobs/{job}").json()["status"] == "running"
        ended = live_stack.wait_for_job(client, job, seconds=120)
        late.send_signal(signal.SIGCONT)
        assert late.wait(30) == 0
        wait_for_lines(said, ["frozen", "superseded", "frozen", "superseded"])
        assert client.get(f"/v1/jobs/{job}").json()["status"] == "succeeded"
        assert ended["credits"]["charged"] == 2.0
        assert frames_of(download(ended)) == 180
    attempts = live_stack.sql(
        "SELECT split_part(worker, '@', 1), outcome FROM jobs_attempt"
        " WHERE job_id = %s AND step = 'generate' ORDER BY fence",
        job,
    )
    assert attempts == [("late", "lost"), ("cpu", "ok")]


def wait_for_lines(file: Path, lines: list[str]) -> None:
    wait_until(
        lambda: file.read_text().splitlines() == lines,
        seconds=90,
        what=f"{lines} in {file}",
    )


#: Hangs in its engine, which never asks whether it should stop.
HANGS = """
import time
from inference import registry
from jobs import claims, tasks

class Deaf:
    def frames(self, plan, **_):
        print("hangs", flush=True)
        time.sleep(600)
        yield

registry.engine = lambda *_: Deaf()
while (claim := claims.claim_next("cpu", worker="deaf@test")) is None:
    time.sleep(0.05)
with tasks.heart.hold(claim) as held:
    tasks._do(held)
"""


def test_a_worker_that_hangs_loses_its_job_and_ends_itself(
    live_stack: LiveStack, tmp_path: Path
) -> None:
    with (
        live_stack.client(live_stack.key()) as client,
        in_place_of_the_cpu_worker(
            live_stack, HANGS, tmp_path, LEASE_SECONDS="3"
        ) as deaf,
    ):
        job = create(client)
        wait_for_lines(tmp_path / "said", ["hangs"])
        client.post(f"/v1/jobs/{job}/cancel").raise_for_status()
        ended = live_stack.wait_for_job(client, job, seconds=30)
        assert ended["status"] == "canceled"
        assert ended["credits"]["refunded"] == 1.0
        assert deaf.wait(30) == 70
    told = live_stack.sql(
        "SELECT detail ->> 'worker' FROM jobs_incident"
        " WHERE kind = 'step_hung' AND subject = %s",
        job,
    )
    assert told == [("deaf@test",)]


def test_the_job_of_a_frozen_worker_can_be_canceled(live_stack: LiveStack) -> None:
    with live_stack.client(live_stack.key()) as client:
        job = create(client, **LONG | {"seconds": 15, "resolution": "720p"})
        # In the midst of its pictures: no transaction of its is open then, whose locks
        # would be frozen with it.
        wait_until(
            lambda: 0 < client.get(f"/v1/jobs/{job}").json()["progress"] < 0.7,
            seconds=30,
            what="the job to be drawn",
        )
        frozen = live_stack.pid("worker-cpu")
        live_stack.kill("worker-cpu", signal.SIGSTOP)
        try:
            wait_until(
                lambda: live_stack.sql(
                    "SELECT 1 FROM jobs_attempt WHERE job_id = %s AND outcome = 'lost'",
                    job,
                ),
                seconds=30,
                what="the lease to be taken away",
            )
            client.post(f"/v1/jobs/{job}/cancel").raise_for_status()
        finally:
            live_stack.kill("worker-cpu", signal.SIGCONT)
        ended = live_stack.wait_for_job(client, job)
        assert ended["status"] == "canceled"
        assert ended["credits"]["charged"] == 0
        # The one that woke up goes on working for others.
        after = create(client)
        assert live_stack.wait_for_job(client, after)["status"] == "succeeded"
    assert live_stack.pid("worker-cpu") == frozen


def test_an_empty_broker_loses_no_queued_job(live_stack: LiveStack) -> None:
    with live_stack.client(live_stack.key()) as client:
        with ThreadPoolExecutor(8) as pool:
            jobs = list(pool.map(lambda n: create(client, seed=n), range(100)))
        killed = live_stack.kill("redis")
        for file in (live_stack.home / "redis").rglob("*"):
            if file.suffix in {".aof", ".rdb", ".manifest"}:
                file.unlink(missing_ok=True)
        live_stack.wait_restarted("redis", killed)
        for job in jobs:
            ended = live_stack.wait_for_job(client, job, seconds=150)
            assert ended["status"] == "succeeded", ended
    captures = live_stack.sql(
        "SELECT count(*), count(DISTINCT id) FROM jobs_job"
        " WHERE id = ANY(%s::uuid[]) AND charged_millicredits > 0",
        jobs,
    )
    assert captures == [(100, 100)]
    # And the workers go on without a rest, as before (see project.waking).
    assert live_stack.pauses(jobs)[50] < 0.7


#: Accepts a job and dies where the bell would be rung: after the commit, before the bell.
DIES_BEFORE_THE_BELL = """
import os
from jobs import bells, intake
bells._ring_now = lambda name: os._exit(9)
from billing import keys
from tests.factories import make_request
intake.submit(make_request(tier="480p", seconds=1),
              credential=keys.authenticate("{key}"), dialect="native")
"""


def test_a_job_whose_bell_was_never_rung_starts_within_3_s(
    live_stack: LiveStack,
) -> None:
    key = live_stack.key()
    died = subprocess.run(
        [
            sys.executable,
            "manage.py",
            "shell",
            "-c",
            DIES_BEFORE_THE_BELL.format(key=key),
        ],
        env=live_stack.env,
        cwd=ROOT,
        check=False,
        timeout=60,
    )
    assert died.returncode == 9
    with live_stack.client(key) as client:
        (job,) = client.get("/v1/jobs").json()["data"]
        assert live_stack.wait_for_job(client, job["id"])["status"] == "succeeded"
    (waited,) = live_stack.sql(
        "SELECT extract(epoch FROM min(a.started_at) - j.created_at)"
        " FROM jobs_job j JOIN jobs_attempt a ON a.job_id = j.id"
        " WHERE j.id = %s GROUP BY j.created_at",
        job["id"],
    )
    assert waited[0] < 3.0


def test_50_posts_with_one_idempotency_key_make_one_job(
    live_stack: LiveStack,
) -> None:
    with live_stack.client(live_stack.key()) as client:
        gate = threading.Barrier(50)

        def post(_: int) -> httpx.Response:
            gate.wait()
            return client.post(
                "/v1/jobs", json=QUICK, headers={"Idempotency-Key": "one"}
            )

        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(post, range(50)))
        assert {a.status_code for a in answers} <= {202, 409}
        accepted = {a.json()["id"] for a in answers if a.status_code == 202}
        assert len(accepted) == 1
        listed = client.get("/v1/jobs").json()["data"]
        assert [job["id"] for job in listed] == list(accepted)
        movements = client.get("/v1/ledger").json()["data"]
        assert sum(m["kind"] == "hold" for m in movements) == 1


def test_money_for_one_job_buys_one_of_100(live_stack: LiveStack) -> None:
    with live_stack.client(live_stack.key(credits=1)) as client:
        gate = threading.Barrier(100)

        def post(_: int) -> int:
            gate.wait()
            return client.post("/v1/jobs", json=QUICK).status_code

        with ThreadPoolExecutor(100) as pool:
            answers = sorted(pool.map(post, range(100)))
        assert answers == [202] + [402] * 99


def test_a_drained_worker_gives_its_job_back_at_once(live_stack: LiveStack) -> None:
    with live_stack.client(live_stack.key()) as client:
        job = create(client, **LONG)
        wait_until(
            lambda: client.get(f"/v1/jobs/{job}").json()["progress"] > 0,
            seconds=30,
            what="the job to show progress",
        )
        stopped = live_stack.kill("worker-cpu", signal.SIGTERM)
        began = time.monotonic()
        wait_until(
            lambda: live_stack.sql(
                "SELECT 1 FROM jobs_attempt WHERE job_id = %s AND outcome = 'released'",
                job,
            ),
            seconds=30,
            what="the job to be given back",
        )
        assert time.monotonic() - began < 10
        live_stack.wait_restarted("worker-cpu", stopped)
        client.post(f"/v1/jobs/{job}/cancel").raise_for_status()
        assert live_stack.wait_for_job(client, job)["status"] == "canceled"
    tries = live_stack.sql("SELECT step_tries FROM jobs_job WHERE id = %s", job)
    assert tries == [(0,)]


def test_a_running_job_stops_when_canceled(live_stack: LiveStack) -> None:
    with live_stack.client(live_stack.key()) as client:
        job = create(client, **LONG)
        wait_until(
            lambda: client.get(f"/v1/jobs/{job}").json()["progress"] > 0,
            seconds=30,
            what="the job to show progress",
        )
        client.post(f"/v1/jobs/{job}/cancel").raise_for_status()
        ended = live_stack.wait_for_job(client, job, seconds=15)
        assert ended["status"] == "canceled"
        assert ended["credits"] == {
            "quoted": 2.0,
            "held": 0.0,
            "charged": 0.0,
            "refunded": 2.0,
        }


def test_files_of_a_deleted_job_are_gone(live_stack: LiveStack) -> None:
    with live_stack.client(live_stack.key()) as client:
        job = live_stack.wait_for_job(client, create(client))
        url = job["video"]["url"]
        assert httpx.get(url, trust_env=False).status_code == 200
        client.delete(f"/v1/jobs/{job['id']}").raise_for_status()
        assert httpx.get(url, trust_env=False).status_code == 404
        shown = client.get(f"/v1/jobs/{job['id']}").json()
        assert shown["video"] is None
        assert shown["credits"]["charged"] == 1.0


def test_a_signed_url_is_all_that_opens_a_file(live_stack: LiveStack) -> None:
    with live_stack.client(live_stack.key()) as client:
        job = live_stack.wait_for_job(client, create(client))
        bare = job["video"]["url"].partition("?")[0]
        assert httpx.get(bare, trust_env=False).status_code == 403


def test_a_picture_is_fetched_from_its_url(
    live_stack: LiveStack, photo_server: object
) -> None:
    with live_stack.client(live_stack.key()) as client:
        url = photo_server.url("coffee.jpg")  # type: ignore[attr-defined]
        job = live_stack.wait_for_job(client, create(client, image=url))
        assert job["status"] == "succeeded", job["error"]
        missing = live_stack.wait_for_job(client, create(client, image=url + ".not"))
        assert missing["status"] == "failed"
        assert missing["credits"]["refunded"] == 1.0


def test_a_damaged_picture_fails_and_is_refunded(live_stack: LiveStack) -> None:
    whole = (Path(__file__).parent.parent / "photos" / "chelsea.jpg").read_bytes()
    damaged = base64.b64encode(whole[: len(whole) // 3]).decode()
    with live_stack.client(live_stack.key()) as client:
        job = live_stack.wait_for_job(client, create(client, image=damaged))
        assert job["status"] == "failed"
        assert job["error"]["code"] == "invalid_image"
        assert job["credits"]["refunded"] == 1.0
