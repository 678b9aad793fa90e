"""The openai package, unmodified, against the running stack with a test key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from tests.stack import LiveStack, PhotoServer
from tests.stories import samples

pytestmark = [
    pytest.mark.stories,
    # The package marks its video methods as deprecated; ours stay.
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def key(live_stack: LiveStack) -> str:
    return live_stack.key("test")


@pytest.fixture
def client(live_stack: LiveStack, key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live_stack.base_url}/v1", api_key=key) as made:
        yield made


def make(client: OpenAI, **changes: object) -> openai.types.Video:
    wanted = {
        "model": "wan2.6-i2v",
        "prompt": "push in",
        "seconds": "4",
        "size": "1280x720",
        "input_reference": samples.PHOTO,
        "poll_interval_ms": 200,
    }
    return client.videos.create_and_poll(**{**wanted, **changes})  # type: ignore[arg-type]  # values vary by test


def test_a_video_is_made_listed_remixed_downloaded_and_deleted(
    client: OpenAI, tmp_path: Path
) -> None:
    video = make(client)
    assert video.status == "completed", video.error
    assert (video.object, video.progress) == ("video", 100)
    assert (video.model, video.seconds, video.size) == ("wan2.6-i2v", "4", "1280x720")
    assert video.completed_at is not None
    assert video.completed_at >= video.created_at

    facts = samples.facts(client.videos.download_content(video.id).read(), tmp_path)
    assert (facts.width, facts.height, facts.seconds) == (1280, 720, 4.0)
    thumbnail = client.videos.download_content(video.id, variant="thumbnail").read()
    assert thumbnail[:3] == b"\xff\xd8\xff"

    remix = client.videos.poll(client.videos.remix(video.id, prompt="pan left").id)
    assert remix.status == "completed", remix.error
    assert remix.remixed_from_video_id == video.id
    assert remix.prompt == "pan left"

    ids = [one.id for one in client.videos.list(limit=1)]
    assert ids[:2] == [remix.id, video.id]
    ids = [one.id for one in client.videos.list(limit=1, order="asc")]
    assert ids[-2:] == [video.id, remix.id]

    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.download_content(video.id)


def test_a_video_is_made_from_an_image_url_in_a_json_body(
    live_stack: LiveStack, key: str, photo_server: PhotoServer
) -> None:
    with live_stack.client(key) as http:
        body = {"prompt": "pan", "input_reference": {"image_url": photo_server.url()}}
        made = http.post("/v1/videos", json=body).json()
        assert (made["model"], made["seconds"], made["size"]) == (
            "sora-2",
            "4",
            "720x1280",
        )
    with OpenAI(base_url=f"{live_stack.base_url}/v1", api_key=key) as client:
        assert client.videos.poll(made["id"]).status == "completed"


def test_a_failed_video_says_why(client: OpenAI) -> None:
    video = make(client, prompt="[[test:fail=content_blocked]]")
    assert video.status == "failed"
    assert video.error is not None
    assert video.error.code == "content_blocked"


def test_refusals_are_the_packages_own_exceptions(
    client: OpenAI, live_stack: LiveStack
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.videos.create(prompt="waves")
    assert caught.value.param == "input_reference"
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve("video_0")
    stranger = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError):
        stranger.videos.list()
    poor = client.with_options(api_key=live_stack.key(credits=0))
    with pytest.raises(openai.RateLimitError) as broke:
        make(poor, model="motion")
    assert broke.value.code == "insufficient_quota"


def test_the_documentations_sample_runs(
    live_stack: LiveStack, key: str, tmp_path: Path
) -> None:
    video = samples.run("openai", live_stack, key, tmp_path, image="")
    assert samples.facts(video, tmp_path).seconds == 4.0
