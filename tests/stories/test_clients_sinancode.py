"""A client written from Sinancode's public samples, against the running stack."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stack import LiveStack, PhotoServer
from tests.stories import samples

pytestmark = pytest.mark.stories


class Sinancode:
    def __init__(self, base_url: str, key: str) -> None:
        self.http = httpx.Client(
            base_url=f"{base_url}/v1",
            headers={"Authorization": f"Bearer {key}"},
            trust_env=False,
        )

    def make(self, **fields: Any) -> dict[str, Any]:
        answer = self.http.post("/generate/bailian/wan2-image-to-video", json=fields)
        answer.raise_for_status()
        task_id = answer.json()["task_id"]
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            task: dict[str, Any] = self.http.get(f"/tasks/{task_id}").json()
            if task["status"] in ("completed", "failed"):
                return task
            assert task.keys() == {"id", "status"}
            time.sleep(0.2)
        raise TimeoutError


@pytest.fixture(scope="module")
def key(live_stack: LiveStack) -> str:
    return live_stack.key("test")


@pytest.fixture
def sinan(live_stack: LiveStack, key: str) -> Iterator[Sinancode]:
    made = Sinancode(live_stack.base_url, key)
    yield made
    made.http.close()


#: 451 x 300: one side is under 360.
TOO_SMALL = "chelsea.jpg"


def test_a_video_is_made_and_downloaded(
    sinan: Sinancode, photo_server: PhotoServer, tmp_path: Path
) -> None:
    task = sinan.make(
        image_url=photo_server.url("coffee.jpg"),
        model="",
        prompt="push in",
        resolution="720P",
        duration=5,
    )
    assert task["status"] == "completed", task
    [result] = task["result"]
    assert result["type"] == "video"
    data = httpx.get(result["url"], trust_env=False).content
    facts = samples.facts(data, tmp_path)
    assert (facts.seconds, min(facts.width, facts.height)) == (5.0, 720)


def test_base64_outside_the_picture_rules_is_refused_at_once(
    sinan: Sinancode,
) -> None:
    small = samples.PHOTO.with_name(TOO_SMALL).read_bytes()
    answer = sinan.http.post(
        "/generate/bailian/wan2-image-to-video",
        json={"image_url": base64.b64encode(small).decode()},
    )
    assert answer.status_code == 400
    assert answer.json()["error_code"] == "image_size_invalid"


def test_a_url_outside_the_picture_rules_is_a_failed_task_that_costs_nothing(
    sinan: Sinancode, live_stack: LiveStack, key: str, photo_server: PhotoServer
) -> None:
    task = sinan.make(image_url=photo_server.url(TOO_SMALL))
    assert task["status"] == "failed"
    assert task["error_code"] == "image_size_invalid"
    assert "360" in task["error_msg"]
    with live_stack.client(key) as http:
        [job] = http.get("/v1/jobs?limit=1").json()["data"]
        assert job["credits"]["charged"] == 0.0
        assert job["credits"]["held"] == 0.0
        assert job["credits"]["refunded"] == job["credits"]["quoted"]


def test_the_documentations_sample_runs(
    live_stack: LiveStack, key: str, photo_server: PhotoServer, tmp_path: Path
) -> None:
    image = photo_server.url("coffee.jpg")
    video = samples.run("sinancode", live_stack, key, tmp_path, image)
    assert samples.facts(video, tmp_path).seconds == 5.0
