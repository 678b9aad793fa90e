"""A client written from coals.ai's public samples, against the running stack."""

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


class MagiCoal:
    """Polls until ``done``, as the status page tells clients to."""

    def __init__(self, base_url: str, key: str) -> None:
        self.http = httpx.Client(
            base_url=f"{base_url}/api/v1/magicoal",
            headers={"Authorization": f"Bearer {key}"},
            trust_env=False,
        )

    def call(self, method: str, path: str, **options: Any) -> Any:
        answer = self.http.request(method, path, **options)
        body = answer.json()
        if not body["success"]:
            raise RuntimeError(f"{answer.status_code} {body['error']['code']}")
        return body

    def make(self, **fields: Any) -> dict[str, Any]:
        started = self.call("POST", "/generate/i2v", json=fields)["data"]
        assert started["status"] == "queued"
        deadline = time.monotonic() + 90
        last = 0
        while time.monotonic() < deadline:
            data: dict[str, Any] = self.call("GET", f"/status/{started['uuid']}")[
                "data"
            ]
            if data["done"]:
                return data
            assert data["progress"] >= last
            last = data["progress"]
            time.sleep(0.2)
        raise TimeoutError


@pytest.fixture(scope="module")
def key(live_stack: LiveStack) -> str:
    return live_stack.key("test")


@pytest.fixture
def coals(live_stack: LiveStack, key: str) -> Iterator[MagiCoal]:
    made = MagiCoal(live_stack.base_url, key)
    yield made
    made.http.close()


def test_a_video_is_made_from_a_url_and_stays_at_its_address(
    coals: MagiCoal, photo_server: PhotoServer, tmp_path: Path
) -> None:
    done = coals.make(image=photo_server.url(), prompt="pan left", num_frames=33)
    assert (done["status"], done["stage"], done["progress"]) == (
        "completed",
        "completed",
        100,
    )
    assert done["duration_seconds"] == 33 / 16
    video = httpx.get(done["video_url"], follow_redirects=True, trust_env=False)
    facts = samples.facts(video.content, tmp_path)
    assert (facts.frames, facts.fps) == (33, 16.0)
    thumbnail = httpx.get(done["thumbnail_url"], follow_redirects=True, trust_env=False)
    assert thumbnail.content[:3] == b"\xff\xd8\xff"
    # Called permanent: the same on each read.
    again = coals.call("GET", f"/status/{done['uuid']}")["data"]
    assert again["video_url"] == done["video_url"]
    listed = coals.call("GET", "/videos", params={"per_page": 1})
    assert listed["data"][0]["uuid"] == done["uuid"]
    assert listed["data"][0]["video_url"] == done["video_url"]
    assert listed["meta"]["current_page"] == 1


def test_a_video_is_made_from_base64(coals: MagiCoal, tmp_path: Path) -> None:
    image = base64.b64encode(samples.PHOTO.read_bytes()).decode()
    done = coals.make(image=image, num_frames=17, seed=5, guidance_scale=2)
    assert done["status"] == "completed"


def test_a_failed_video_says_so_and_costs_nothing(
    coals: MagiCoal, photo_server: PhotoServer
) -> None:
    done = coals.make(image=photo_server.url(), prompt="[[test:fail=engine_failed]]")
    assert (done["status"], done["done"], done["video_url"]) == ("failed", True, None)
    assert done["credits_charged"] == 0.0
    assert done["error"]["code"] == "ENGINE_FAILED"


def test_an_image_that_is_not_there_becomes_a_failed_video(
    coals: MagiCoal, photo_server: PhotoServer
) -> None:
    done = coals.make(image=photo_server.url("missing.jpg"))
    assert done["status"] == "failed"
    assert done["credits_charged"] == 0.0


def test_the_documentations_sample_runs(
    live_stack: LiveStack, key: str, photo_server: PhotoServer, tmp_path: Path
) -> None:
    video = samples.run("magicoal", live_stack, key, tmp_path, photo_server.url())
    assert samples.facts(video, tmp_path).frames == 81
