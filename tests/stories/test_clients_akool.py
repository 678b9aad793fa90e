"""A client written from Akool's public samples, against the running stack."""

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


class Akool:
    """What the samples of docs.akool.com do; every answer must be code 1000."""

    def __init__(self, base_url: str, **headers: str) -> None:
        self.http = httpx.Client(
            base_url=f"{base_url}/api/open", headers=headers, trust_env=False
        )

    def call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.http.request(method, path, json=body)
        assert answer.status_code == 200
        told = answer.json()
        assert told["code"] == 1000, told
        return told["data"]

    def wait(self, ids: str) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            found: list[dict[str, Any]] = self.call(
                "POST", "/v4/image2Video/resultsByIds", {"_ids": ids}
            )["result"]
            if all(item["status"] in (3, 4) for item in found):
                return found
            assert all(item["video_url"] == "" for item in found if item["status"] < 3)
            time.sleep(0.2)
        raise TimeoutError


@pytest.fixture(scope="module")
def key(live_stack: LiveStack) -> str:
    return live_stack.key("test")


@pytest.fixture
def akool(live_stack: LiveStack, key: str) -> Iterator[Akool]:
    made = Akool(live_stack.base_url, **{"x-api-key": key})
    yield made
    made.http.close()


def body(photo_server: PhotoServer, **changes: Any) -> dict[str, Any]:
    return {
        "image_url": photo_server.url(),
        "prompt": "push in",
        "negative_prompt": "",
        "extend_prompt": False,
        "resolution": "720p",
        "audio_type": 3,
        "video_length": 5,
        "is_premium_model": False,
        "webhookurl": "",
    } | changes


CREATE = "/v4/image2Video/createBySourcePrompt"


def test_a_video_is_made_downloaded_and_deleted(
    akool: Akool, photo_server: PhotoServer, tmp_path: Path
) -> None:
    made = akool.call("POST", CREATE, body(photo_server))
    assert (made["status"], made["deduction_credit"]) == (1, 20)
    [video] = akool.wait(made["_id"])
    assert video["status"] == 3, video
    assert (video["_id"], video["video_duration"]) == (made["_id"], 5)
    assert video["create_time"] <= video["update_time"]
    assert "X-Amz-Expires=604800&" in video["video_url"]
    data = httpx.get(video["video_url"], trust_env=False).content
    facts = samples.facts(data, tmp_path)
    assert (facts.seconds, min(facts.width, facts.height)) == (5.0, 720)
    gone = akool.call("POST", "/v4/image2Video/delbyids", {"_ids": made["_id"]})
    assert gone == {"successIds": [made["_id"]], "noPermissionItems": []}
    assert httpx.get(video["video_url"], trust_env=False).status_code in (403, 404)


def test_a_token_makes_a_batch_as_akools_demo_does(
    live_stack: LiveStack, key: str, photo_server: PhotoServer
) -> None:
    stranger = Akool(live_stack.base_url)
    pair = {"clientId": key.split("_")[2], "clientSecret": key}
    answer = stranger.http.post("/v3/getToken", json=pair).json()
    assert answer["code"] == 1000
    stranger.http.close()
    demo = Akool(live_stack.base_url, authorization=f"Bearer {answer['token']}")
    first = demo.call("GET", "/v4/aigModel/list?types[]=1501")[0]
    assert demo.call("GET", "/v4/image2Video/effects").keys() == {"result", "count"}
    wanted = {
        "image_url": photo_server.url(),
        "prompt": "pan left",
        "model_name": first["value"],
        "negative_prompt": "blurry",
        "resolution": first["resolutionList"][0]["value"],
        "audio_url": "",
        "audio_type": "3",
        "video_length": first["durationList"][0],
        "is_premium_model": False,
        "count": 2,
    }
    made = demo.call("POST", f"{CREATE}/batch", wanted)["successList"]
    results = demo.wait(",".join(item["_id"] for item in made))
    assert [item["status"] for item in results] == [3, 3]
    assert {item["batch_count"] for item in made} == {2}
    assert demo.call("GET", "/v3/faceswap/quota/info")["credit"] > 0
    demo.http.close()


def test_a_failed_video_says_why_and_costs_nothing(
    akool: Akool, photo_server: PhotoServer
) -> None:
    prompt = "[[test:fail=content_blocked]]"
    made = akool.call("POST", CREATE, body(photo_server, prompt=prompt))
    [video] = akool.wait(made["_id"])
    assert (video["status"], video["deduction_credit"]) == (4, 0)
    assert video["error_msg"]


def test_the_documentations_sample_runs(
    live_stack: LiveStack, key: str, photo_server: PhotoServer, tmp_path: Path
) -> None:
    video = samples.run("akool", live_stack, key, tmp_path, photo_server.url())
    assert samples.facts(video, tmp_path).seconds == 5.0
