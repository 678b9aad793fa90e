"""A fake of Sinancode's wan2-image-to-video."""

from __future__ import annotations

from typing import Any

from tests.fakes.server import Reply, Request
from tests.fakes.service import FakeService, Route

SIZES = {"720P": (1280, 720), "1080P": (1920, 1080)}


class Fake(FakeService):
    name = "sinancode"
    words = {
        "429": "rate_limit_exceeded",
        "500": "internal_error",
        "503": "internal_error",
        "missing_key": "unauthorized",
        "invalid_key": "unauthorized",
        "broke": "insufficient_credits",
    }

    def routes(self) -> list[Route]:
        create = "/v1/generate/bailian/wan2-image-to-video"
        return [
            ("POST", create, "submit", self.submit),
            ("GET", "/v1/tasks/(?P<id>[^/]+)", "status", self.status),
        ]

    def submit(self, request: Request, params: dict[str, str]) -> Reply:
        body = request.json()
        if hint := _refused(body):
            return self.error("invalid_parameter", hint=hint)
        job = self.accept(
            self.key_of(request),
            "wan2.6-i2v",
            body.get("prompt", ""),
            seconds=body.get("duration", 5),
            size=SIZES[body.get("resolution", "1080P")],
            sound=body.get("audio", True),
            picture=body["image_url"],
            seed=body.get("seed", 0),
            body=body,
        )
        return self.answer("submit", "accepted", id=job.id)

    def status(self, request: Request, params: dict[str, str]) -> Reply:
        job = self.owned(self.key_of(request), params["id"])
        if job is None:
            return self.error("task_not_found")
        state = self.state(job)
        # Both documented forms of ``result`` are out in the world.
        older = state == "succeeded" and job.number % 2 == 0
        return self.answer(
            "status",
            "succeeded_strings" if older else state,
            id=job.id,
            video_url=self.video_url(job),
            code=self.reason(job) or "generation_failed",
            message="internal text of the vendor",
        )


def _refused(body: dict[str, Any]) -> str:
    if not isinstance(body.get("image_url"), str) or not body["image_url"]:
        return "image_url is required"
    if body.get("model") not in (None, "", "wan2.6-i2v"):
        return "model must be wan2.6-i2v"
    if body.get("resolution", "1080P") not in SIZES:
        return "resolution must be 720P or 1080P"
    if body.get("duration", 5) not in (5, 10, 15):
        return "duration must be 5, 10 or 15"
    if len(body.get("prompt", "")) > 2000 or len(body.get("negative_prompt", "")) > 500:
        return "prompt is too long"
    if not 0 <= body.get("seed", 0) <= 2147483647:
        return "seed is out of range"
    if body.get("shot_type", "single") not in ("single", "multi"):
        return "shot_type must be single or multi"
    return ""
