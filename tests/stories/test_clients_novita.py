"""novita-client, unmodified, against the running stack with a test key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from novita_client import NovitaClient
from novita_client.exceptions import NovitaResponseError
from novita_client.proto import V3TaskResponse, V3TaskResponseStatus

from tests.stack import LiveStack, PhotoServer
from tests.stories import samples

pytestmark = pytest.mark.stories

WAN_21 = "/v3/async/wan-i2v"


@pytest.fixture(scope="module")
def key(live_stack: LiveStack) -> str:
    return live_stack.key("test")


@pytest.fixture
def client(live_stack: LiveStack, key: str) -> NovitaClient:
    return NovitaClient(key, base_url=live_stack.base_url)


def make(client: NovitaClient, path: str = WAN_21, **body: Any) -> V3TaskResponse:
    return client.wait_for_task_v3(client._post(path, body)["task_id"])


def test_a_video_is_made_and_downloaded(
    client: NovitaClient, photo_server: PhotoServer, tmp_path: Path
) -> None:
    done = make(client, prompt="push in", image_url=photo_server.url(), seed=2**33 + 7)
    assert done.task.status is V3TaskResponseStatus.TASK_STATUS_SUCCEED
    assert (done.task.progress_percent, done.task.eta) == (100, 0)
    assert done.extra.seed == 7
    debug = done.extra.debug_info
    assert debug.submit_time_ms <= debug.execute_time_ms <= debug.complete_time_ms
    [video] = done.videos
    assert (video.video_type, int(video.video_url_ttl)) == ("mp4", 3600)
    assert "X-Amz-Expires=3600&" in video.video_url
    data = httpx.get(video.video_url, trust_env=False).content
    facts = samples.facts(data, tmp_path)
    assert (facts.frames, facts.fps) == (81, 16)
    # 451 x 300: the picture keeps its shape within the 480p budget.
    assert facts.width * facts.height <= 480 * 832
    assert facts.width / facts.height == pytest.approx(451 / 300, rel=0.06)


def test_a_newer_model_is_made(
    client: NovitaClient, photo_server: PhotoServer, tmp_path: Path
) -> None:
    done = make(
        client,
        "/v3/async/wan-2.5-i2v-preview",
        input={"prompt": "pan", "img_url": photo_server.url()},
        parameters={"resolution": "480P", "duration": 5, "audio": False},
    )
    assert done.task.status is V3TaskResponseStatus.TASK_STATUS_SUCCEED
    data = httpx.get(done.get_video_urls()[0], trust_env=False).content
    facts = samples.facts(data, tmp_path)
    assert (facts.seconds, min(facts.width, facts.height)) == (5.0, 480)


def test_a_failed_task_says_why(
    client: NovitaClient, photo_server: PhotoServer
) -> None:
    done = make(
        client, prompt="[[test:fail=content_blocked]]", image_url=photo_server.url()
    )
    assert done.task.status is V3TaskResponseStatus.TASK_STATUS_FAILED
    assert done.task.reason
    assert done.get_video_urls() == []


def test_refusals_are_the_packages_own_exception(
    client: NovitaClient, live_stack: LiveStack
) -> None:
    with pytest.raises(NovitaResponseError):
        client._post(WAN_21, {"prompt": "no picture"})
    with pytest.raises(NovitaResponseError):
        client.async_task_result("00000000-0000-4000-8000-000000000000")
    with pytest.raises(NovitaResponseError):
        NovitaClient("wrong", base_url=live_stack.base_url).user_info()


def test_the_balance_is_read(live_stack: LiveStack) -> None:
    rich = NovitaClient(live_stack.key(credits=10), base_url=live_stack.base_url)
    assert rich.user_info().credit_balance == 1000


def test_the_documentations_sample_runs(
    live_stack: LiveStack, key: str, photo_server: PhotoServer, tmp_path: Path
) -> None:
    image = photo_server.url()
    video = samples.run("novita", live_stack, key, tmp_path, image)
    assert samples.facts(video, tmp_path).frames == 81
