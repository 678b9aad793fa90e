"""A fake of Novita AI: the Wan endpoints, task-result and the unsigned webhook."""

from __future__ import annotations

import json
from typing import Any

from tests.fakes.server import Reply, Request
from tests.fakes.service import FakeService, Job, Route

SIZES = {"480P": (832, 480), "720P": (1280, 720), "1080P": (1920, 1080)}
PAIRS = {(480, 832), (832, 480), (720, 1280), (1280, 720)}
#: model → (lengths, frames per second, whether it makes sound when not told)
NESTED: dict[str, tuple[set[int], int, bool]] = {
    "wan-2.2-i2v": ({5, 8}, 16, False),
    "wan-2.5-i2v-preview": ({5, 10}, 24, True),
    "wan2.6-i2v": ({5, 10, 15}, 30, True),
}


class Fake(FakeService):
    name = "novita"
    words = {
        "429": "RATE_LIMIT_EXCEEDED",
        "500": "CREATE_TASK_FAILED",
        "503": "BILLING_FAILED",
        "missing_key": "MISSING_API_KEY",
        "invalid_key": "INVALID_API_KEY",
        "broke": "BILLING_BALANCE_NOT_ENOUGH",
    }

    def routes(self) -> list[Route]:
        return [
            ("GET", "/v3/async/task-result", "status", self.status),
            ("POST", "/v3/async/(?P<model>wan[\\w.-]+)", "submit", self.submit),
        ]

    def submit(self, request: Request, params: dict[str, str]) -> Reply:
        body, model = request.json(), params["model"]
        if model == "wan-i2v":
            facts = _wan_2_1(body)
        elif model == "wan2.7-i2v":
            facts = _wan_2_7(body)
        elif model in NESTED:
            facts = _nested(body, model)
        else:
            return self.error("API_NOT_FOUND")
        hook = body.get("extra", {}).get("webhook")
        if facts is None or (hook is not None and not hook.get("url")):
            return self.error("INVALID_REQUEST_BODY")
        if str(facts["picture"]).startswith("data:"):
            # Only addresses are documented; be as strict as the page.
            return self.error("INVALID_IMAGE_FORMAT")
        job = self.accept(
            self.key_of(request),
            model,
            facts.pop("prompt"),
            callback_url=hook["url"] if hook else None,
            body=body,
            **facts,
        )
        return self.answer("submit", "accepted", id=job.id)

    def status(self, request: Request, params: dict[str, str]) -> Reply:
        job = self.owned(self.key_of(request), request.query.get("task_id", ""))
        if job is None:
            return self.error("TASK_NOT_FOUND")
        return Reply(200, self._task(job))

    def _task(self, job: Job) -> dict[str, Any]:
        submitted = int(job.created * 1000)
        answer = self.answer(
            "status",
            self.state(job),
            id=job.id,
            seed=str(job.seed),
            progress=self.percent(job),
            submit_ms=str(submitted),
            execute_ms=str(submitted + int(self.queued_seconds * 1000)),
            complete_ms=str(submitted + 60_000),
            video_url=self.video_url(job),
            reason=self.reason(job) or "internal text of the vendor",
        )
        task: dict[str, Any] = answer.body
        return task

    def callback(self, job: Job) -> tuple[bytes, dict[str, str]]:
        payload = self._task(job)
        if job.callback == "foreign":
            payload["task"]["task_id"] = self.new_id()
        event = self.answer("callback", "event", payload=payload).body
        return json.dumps(event).encode(), {}


def _wan_2_1(body: dict[str, Any]) -> dict[str, Any] | None:
    size = (body.get("width", 832), body.get("height", 480))
    within = (
        1 <= len(body.get("prompt", "")) <= 2000
        and len(body.get("negative_prompt", "")) <= 2000
        and size in PAIRS
        and -1 <= body.get("seed", -1) <= 9_999_999_999
        and 1 <= body.get("steps", 30) <= 40
        and 0 <= body.get("guidance_scale", 5) <= 10
        and 1 <= body.get("flow_shift", 5) <= 10
        and len(body.get("loras", [])) <= 3
        and all(0 <= lora["scale"] <= 4 for lora in body.get("loras", []))
        and body.get("model_name", "wan2.1-i2v") == "wan2.1-i2v"
    )
    if not within or not body.get("image_url"):
        return None
    return {
        "prompt": body["prompt"],
        "picture": body["image_url"],
        "size": size,
        "fps": 16,
        "seed": max(0, body.get("seed", 0)),
    }


def _nested(body: dict[str, Any], model: str) -> dict[str, Any] | None:
    source, how = body.get("input", {}), body.get("parameters", {})
    lengths, fps, loud = NESTED[model]
    if not source.get("img_url") or how.get("duration", 5) not in lengths:
        return None
    if how.get("resolution", "720P") not in SIZES:
        return None
    return {
        "prompt": source.get("prompt", ""),
        "picture": source["img_url"],
        "size": SIZES[how.get("resolution", "720P")],
        "seconds": how.get("duration", 5),
        "fps": fps,
        "sound": bool(how.get("audio", loud)),
        "seed": how.get("seed", 0),
    }


def _wan_2_7(body: dict[str, Any]) -> dict[str, Any] | None:
    seconds = body.get("duration", 5)
    if not body.get("image_url") or not 2 <= seconds <= 15:
        return None
    if body.get("resolution", "1080P") not in ("720P", "1080P"):
        return None
    return {
        "prompt": body.get("prompt", ""),
        "picture": body["image_url"],
        "size": SIZES[body.get("resolution", "1080P")],
        "seconds": seconds,
        "fps": 30,
        "sound": True,
        "seed": body.get("seed", 0),
    }
