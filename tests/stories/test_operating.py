"""What the people who run it see on the running stack: Flower, figures, logs."""

from __future__ import annotations

import ast
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from project import state
from tests.faults.test_first_video import LONG, PICTURE, QUICK
from tests.stack import LiveStack, wait_until

pytestmark = pytest.mark.stories

NEWEST = "/api/tasks?sort_by=-received&limit=100"


@pytest.fixture
def flower(live_stack: LiveStack) -> Iterator[httpx.Client]:
    password = state.local_secrets(live_stack.home)["FLOWER_PASSWORD"]
    with httpx.Client(
        base_url=f"http://127.0.0.1:{live_stack.env['FLOWER_PORT']}",
        auth=("zoetrope", password),
        trust_env=False,
        timeout=30,
    ) as client:
        yield client


def test_a_worker_goes_on_at_once_while_jobs_wait(live_stack: LiveStack) -> None:
    with live_stack.client(live_stack.key()) as client:
        jobs = [client.post("/v1/jobs", json=QUICK).json()["id"] for _ in range(9)]
        for job in jobs:
            live_stack.wait_for_job(client, job)
    # The loop of a worker that nothing wakes turns once a second.
    assert live_stack.pauses(jobs)[4] < 0.7


class TestFlower:
    def test_a_running_task_shows_job_account_model_and_progress(
        self, live_stack: LiveStack, flower: httpx.Client
    ) -> None:
        with live_stack.client(live_stack.key()) as client:
            # Progress is told once a second, so the work must take several.
            body = LONG | {"seconds": 15, "resolution": "720p"}
            job = client.post("/v1/jobs", json=body).json()["id"]

            def shown() -> dict[str, Any] | None:
                for task in flower.get(NEWEST).json().values():
                    if job in (task["kwargs"] or "") and task["worker"]:
                        facts: dict[str, Any] = ast.literal_eval(task["kwargs"])
                        if 0 < facts["progress"] < 1:
                            return facts
                return None

            facts = wait_until(shown, seconds=60, what="the task's progress", every=0.3)
            client.post(f"/v1/jobs/{job}/cancel").raise_for_status()
            live_stack.wait_for_job(client, job)
        account = live_stack.sql("SELECT account_id FROM jobs_job WHERE id = %s", job)
        assert facts["account"] == str(account[0][0])
        assert (facts["model"], facts["step"]) == ("motion", "generate")

    @pytest.mark.parametrize("path", ["/", "/tasks", "/api/tasks", "/metrics"])
    def test_it_is_behind_its_password(self, flower: httpx.Client, path: str) -> None:
        for auth in (None, ("zoetrope", "wrong")):
            refused = httpx.get(f"{flower.base_url}{path}", auth=auth, trust_env=False)
            assert refused.status_code == 401
        assert flower.get(path).status_code == 200


def test_the_running_stacks_figures_say_who_works(live_stack: LiveStack) -> None:
    token = state.local_secrets(live_stack.home)["METRICS_TOKEN"]
    url = f"{live_stack.base_url}/metrics"
    assert httpx.get(url, trust_env=False).status_code == 401

    def text() -> str:
        answer = httpx.get(
            url, headers={"Authorization": f"Bearer {token}"}, trust_env=False
        )
        assert answer.status_code == 200
        return answer.text

    wait_until(
        lambda: 'zoetrope_workers_alive{queue="media"} 1.0' in text(),
        seconds=30,
        what="the worker to be counted",
        every=1,
    )
    assert "zoetrope_housekeeper_running 1.0" in text()
    assert "zoetrope_poller_running 1.0" in text()


def logs_of(stack: LiveStack) -> dict[Path, bytes]:
    files = [*stack.home.glob("logs/*"), stack.home / "up.log"]
    return {path: path.read_bytes() for path in files}


def test_no_log_holds_a_key_a_prompt_or_a_signed_address(
    live_stack: LiveStack,
) -> None:
    canary = f"canary{secrets.token_hex(8)}"
    made = live_stack.key()
    with live_stack.client(made) as client:
        first = client.post("/v1/jobs", json={**QUICK, "prompt": canary})
        job = live_stack.wait_for_job(client, first.json()["id"])
        client.post("/v1/jobs", json={**QUICK, "prompt": [canary]})
        client.post("/v1/jobs", content=f'{{"prompt": "{canary}"'.encode())
        client.post(
            "/v1/videos",
            data={"prompt": canary, "model": "motion", "seconds": "99"},
            files={"input_reference": ("a.png", b"no picture")},
        )
        client.get(f"/v1/nowhere/{canary}?key={made}")
        client.get(f"/v1/jobs/{canary}")
        secret = client.get("/v1/webhooks/keys").json()["secret"]
        failing = client.post(
            "/v1/jobs",
            json={
                "image": f"https://{canary}.invalid/a.png?sig={canary}",
                "prompt": canary,
            },
        )
        if failing.status_code == 202:
            live_stack.wait_for_job(client, failing.json()["id"], seconds=120)
    own = state.local_secrets(live_stack.home)
    forbidden = {
        "the key": made.rsplit("_", 2)[1],
        "the prompt": canary,
        "a webhook secret": secret.removeprefix("whsec_"),
        "a signature": job["video"]["url"].rpartition("ignature=")[2][:32],
        "a picture": PICTURE[40:100],
        **{name: value for name, value in own.items() if len(value) > 8},
    }
    for path, text in logs_of(live_stack).items():
        for what, words in forbidden.items():
            assert words.encode() not in text, f"{what} in {path.name}"


def test_each_call_has_a_line_that_says_who_and_what(live_stack: LiveStack) -> None:
    with live_stack.client(live_stack.key()) as client:
        answer = client.post("/v1/jobs", json=QUICK)
        job = answer.json()["id"]
        live_stack.wait_for_job(client, job)
    web = (live_stack.home / "logs" / "web.log").read_text()
    lines = [json.loads(line) for line in web.splitlines() if job in line]
    (line,) = [entry for entry in lines if entry["method"] == "POST"]
    assert line["request"] == answer.headers["X-Request-Id"]
    assert (line["path"], line["status"]) == ("/v1/jobs", 202)
    assert line["account"]
    assert line["key"]
    assert line["ms"] > 0
    reads = {entry["path"] for entry in lines if entry["method"] == "GET"}
    assert reads == {"/v1/jobs/{id}"}
    media = (live_stack.home / "logs" / "worker-media.log").read_text()
    steps = [json.loads(line) for line in media.splitlines() if job in line]
    assert {entry["account"] for entry in steps} == {line["account"]}
