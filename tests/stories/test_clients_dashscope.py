"""The dashscope package, unmodified, against the running stack with a test key."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import dashscope
import httpx
import pytest
from dashscope import VideoSynthesis
from dashscope.v2 import Client

from tests.stack import LiveStack, PhotoServer
from tests.stories import samples

pytestmark = pytest.mark.stories


@pytest.fixture(scope="module")
def key(live_stack: LiveStack) -> str:
    return live_stack.key("test")


@pytest.fixture(autouse=True)
def base_url(live_stack: LiveStack, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"{live_stack.base_url}/api/v1"
    monkeypatch.setattr(dashscope, "base_http_api_url", url)
    return url


@pytest.fixture
def newer(base_url: str, key: str) -> Iterator[Client]:
    with Client(api_key=key, base_url=base_url) as made:
        yield made


def make(key: str, image: str, **changes: Any) -> Any:
    wanted: dict[str, Any] = {
        "model": "wan2.6-i2v",
        "prompt": "push in",
        "img_url": image,
        "resolution": "720P",
        "duration": 5,
    }
    task = VideoSynthesis.async_call(api_key=key, **(wanted | changes))
    assert task.status_code == HTTPStatus.OK, task.message
    assert task.output.task_status == "PENDING"
    return VideoSynthesis.wait(task, api_key=key)


def test_a_video_is_made_and_downloaded(
    key: str, photo_server: PhotoServer, tmp_path: Path
) -> None:
    done = make(key, photo_server.url())
    assert done.output.task_status == "SUCCEEDED", done
    assert done.output.orig_prompt == "push in"
    assert done.usage.duration == 5
    assert done.usage.SR == 720
    assert done.output.submit_time <= done.output.scheduled_time <= done.output.end_time
    assert "X-Amz-Expires=86400&" in done.output.video_url
    data = httpx.get(done.output.video_url, trust_env=False).content
    facts = samples.facts(data, tmp_path)
    assert (facts.seconds, min(facts.width, facts.height)) == (5.0, 720)


def test_a_kf2v_model_gets_its_two_frames(key: str, photo_server: PhotoServer) -> None:
    done = make(
        key,
        "",
        model="wanx2.1-kf2v-plus",
        first_frame_url=photo_server.url("chelsea.jpg"),
        last_frame_url=photo_server.url("coffee.jpg"),
    )
    assert done.output.task_status == "SUCCEEDED", done
    assert done.usage.video_ratio == "standard"


def test_the_newer_client_makes_lists_and_reads(
    newer: Client, photo_server: PhotoServer, tmp_path: Path
) -> None:
    job = newer.videos.generate(
        model="wan2.7-i2v", prompt="pan", image_url=photo_server.url()
    )
    assert job.succeeded, job
    listed = newer.videos.jobs.list()
    assert job.task_id in [task.task_id for task in listed.tasks]
    data = httpx.get(str(job.video_url), trust_env=False).content
    assert samples.facts(data, tmp_path).seconds == 5.0


def test_a_failed_task_says_why(key: str, photo_server: PhotoServer) -> None:
    done = make(key, photo_server.url(), prompt="[[test:fail=content_blocked]]")
    assert done.status_code == HTTPStatus.OK
    assert done.output.task_status == "FAILED"
    assert done.output.code == "DataInspectionFailed"
    assert done.output.message


def test_a_task_is_listed_and_canceled_only_while_it_waits(
    key: str, photo_server: PhotoServer
) -> None:
    done = make(key, photo_server.url())
    task_id = done.output.task_id
    synthesis: Any = VideoSynthesis  # its stub leaves ``list`` out
    listed = synthesis.list(api_key=key, status="SUCCEEDED")
    assert listed.output["data"][0]["task_id"] == task_id
    late = VideoSynthesis.cancel(task_id, api_key=key)
    assert (late.status_code, late.code) == (400, "UnsupportedOperation")


def test_refusals_come_back_in_the_packages_fields(
    key: str, live_stack: LiveStack, photo_server: PhotoServer
) -> None:
    text = VideoSynthesis.async_call(
        api_key=key, model="wan2.6-i2v", prompt="no picture"
    )
    assert (text.status_code, text.code) == (400, "InvalidParameter")
    assert "img_url" in text.message
    assert text.request_id
    stranger = VideoSynthesis.async_call(
        api_key="wrong", model="wan2.6-i2v", prompt="p", img_url=photo_server.url()
    )
    assert (stranger.status_code, stranger.code) == (401, "InvalidApiKey")
    unknown = VideoSynthesis.fetch("00000000-0000-4000-8000-000000000000", api_key=key)
    assert unknown.output.task_status == "UNKNOWN"
    poor = VideoSynthesis.async_call(
        api_key=live_stack.key(credits=0), model="motion", img_url=photo_server.url()
    )
    assert (poor.status_code, poor.code) == (400, "Arrearage")


def test_the_documentations_sample_runs(
    live_stack: LiveStack, key: str, photo_server: PhotoServer, tmp_path: Path
) -> None:
    video = samples.run("dashscope", live_stack, key, tmp_path, photo_server.url())
    assert samples.facts(video, tmp_path).seconds == 5.0
