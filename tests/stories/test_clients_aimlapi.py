"""A client written from AI/ML API's public samples, against the running stack."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stack import LiveStack, PhotoServer
from tests.stories import samples

pytestmark = pytest.mark.stories


class AimlApi:
    """Their sample: generate_video, then get_video until it is no longer underway."""

    def __init__(self, base_url: str, key: str) -> None:
        self.http = httpx.Client(
            base_url=base_url,
            headers={
                "Authorization": f"Bearer {key}",
                "Content-Type": "application/json",
            },
            trust_env=False,
        )

    def generate_video(self, path: str, **fields: Any) -> dict[str, Any]:
        answer = self.http.post(path, json=fields)
        if answer.status_code >= 400:
            raise RuntimeError(f"{answer.status_code} - {answer.text}")
        made: dict[str, Any] = answer.json()
        return made

    def get_video(self, path: str, generation_id: str) -> dict[str, Any]:
        answer = self.http.get(path, params={"generation_id": generation_id})
        video: dict[str, Any] = answer.json()
        return video

    def make(
        self, path: str = "/v2/video/generations", **fields: Any
    ) -> dict[str, Any]:
        made = self.generate_video(path, **fields)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            video = self.get_video(path, made["id"])
            if video["status"] not in ("waiting", "active", "queued", "generating"):
                return video
            time.sleep(0.2)
        raise TimeoutError


@pytest.fixture(scope="module")
def key(live_stack: LiveStack) -> str:
    return live_stack.key("test")


@pytest.fixture
def aiml(live_stack: LiveStack, key: str) -> Iterator[AimlApi]:
    made = AimlApi(live_stack.base_url, key)
    yield made
    made.http.close()


def test_a_video_is_made_and_downloaded(
    aiml: AimlApi, photo_server: PhotoServer, tmp_path: Path
) -> None:
    video = aiml.make(
        model="alibaba/wan-2-6-image-to-video-flash",
        prompt="pan left",
        image_url=photo_server.url(),
        duration="5",
        resolution="720P",
    )
    assert video["status"] == "completed", video
    assert video["meta"]["usage"]["credits_used"] > 0
    data = httpx.get(video["video"]["url"], trust_env=False).content
    facts = samples.facts(data, tmp_path)
    assert (facts.seconds, min(facts.width, facts.height)) == (5.0, 720)


def test_the_legacy_path_makes_a_video_too(
    aiml: AimlApi, photo_server: PhotoServer
) -> None:
    video = aiml.make(
        "/v2/generate/video/alibaba/generation",
        model="motion",
        prompt="pan left",
        image_url=photo_server.url(),
    )
    assert video["status"] == "completed", video
    assert video["generation_id"] == video["id"]


def test_a_failed_generation_says_why_and_uses_no_credits(
    aiml: AimlApi, photo_server: PhotoServer
) -> None:
    video = aiml.make(
        model="alibaba/wan-2-7-i2v",
        prompt="[[test:fail=engine_failed]]",
        image_url=photo_server.url(),
    )
    assert video["status"] == "error"
    assert video["error"].keys() == {"name", "message"}
    assert video["meta"]["usage"]["credits_used"] == 0


def test_the_documentations_sample_runs(
    live_stack: LiveStack, key: str, photo_server: PhotoServer, tmp_path: Path
) -> None:
    video = samples.run("aimlapi", live_stack, key, tmp_path, photo_server.url())
    assert samples.facts(video, tmp_path).seconds == 5.0
