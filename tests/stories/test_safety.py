"""A stack with a picture classifier: who passes, who is refused, and what is left of it.

The classifier is a real ViT, tiny, to which bright pictures are unsafe.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests import classifier, stack
from tests.factories import png
from tests.stack import LiveStack, wait_until

pytestmark = [
    pytest.mark.stories,
    pytest.mark.timeout(240),
]


@pytest.fixture(scope="module")
def judging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStack]:
    home = tmp_path_factory.mktemp("judging")
    weights = classifier.write(home / "weights").parent
    running = stack.start(home, WEIGHTS_DIR=str(weights), OMP_NUM_THREADS="1")
    try:
        wait_until(
            lambda: readyz(running)["safety"] == "classifier",
            seconds=90,
            what="the safety worker",
        )
        yield running
    finally:
        running.stop()


def readyz(running: LiveStack) -> dict[str, Any]:
    body: dict[str, Any] = httpx.get(
        f"{running.base_url}/readyz", timeout=10, trust_env=False
    ).json()
    return body


def made(running: LiveStack, client: httpx.Client, color: str) -> dict[str, Any]:
    picture = base64.b64encode(png(color=color)).decode()
    options = {"image": picture, "seconds": 1, "resolution": "480p", "fps": 8}
    answer = client.post("/v1/jobs", json=options)
    assert answer.status_code == 202, answer.text
    return running.wait_for_job(client, answer.json()["id"])


def stored(running: LiveStack, job_id: str) -> list[str]:
    code = (
        "from jobs import context; [print(f.key) for f in context.get().storage.list()]"
    )
    keys = running.manage("shell", "--no-imports", "-c", code).split()
    return [key for key in keys if job_id in key]


def test_pictures_are_judged_by_a_worker_of_their_own(judging: LiveStack) -> None:
    ready = readyz(judging)
    assert (ready["safety"], ready["workers"]["safety"]) == ("classifier", 1)
    with judging.client(judging.key(plan="pro", credits=100)) as client:
        safe = made(judging, client, "black")
        assert safe["status"] == "succeeded", safe
        assert safe["parameters"]["safety"] == "classifier"
        assert safe["video"]["notes"]["safety"] == {"mode": "classifier"}
        assert httpx.get(safe["video"]["url"], trust_env=False).status_code == 200
        assert len(stored(judging, safe["id"])) == 5

        unsafe = made(judging, client, "white")
        assert unsafe["status"] == "failed"
        assert unsafe["error"]["code"] == "content_blocked"
        assert unsafe["credits"]["charged"] == 0
        assert unsafe["video"] is None
        # Its files go right after it was refused.
        wait_until(
            lambda: stored(judging, unsafe["id"]) == [], seconds=30, what="the files"
        )
        balance = client.get("/v1/balance").json()
        assert (balance["available_credits"], balance["held_credits"]) == (99, 0)
    workers = judging.sql(
        "SELECT step, split_part(worker, '@', 1) FROM jobs_attempt WHERE job_id = %s"
        " ORDER BY fence",
        safe["id"],
    )
    assert workers == [
        ("prepare", "media"),
        ("screen", "safety"),
        ("generate", "cpu"),
        ("review", "safety"),
    ]
    judging.check_ledger()
