"""A fake of AI/ML API's video generations."""

from __future__ import annotations

import secrets
import string
from typing import Any

from tests.fakes.server import Reply, Request
from tests.fakes.service import FakeService, Route

MODELS = {
    "alibaba/wan-2-7-i2v": ({"720p", "1080p"}, {5, 10, 15}, 10),
    "alibaba/wan-2-6-i2v": ({"720p", "1080p"}, {5, 10, 15}, 5),
    "alibaba/wan-2-6-image-to-video-flash": ({"720p", "1080p"}, {5, 10, 15}, 5),
    "alibaba/wan2.5-i2v-preview": ({"480p", "720p", "1080p"}, {5, 10}, 5),
    "alibaba/wan2.2-i2v-plus": ({"480p", "1080p"}, {5}, 5),
}
SIZES = {"480p": (832, 480), "720p": (1280, 720), "1080p": (1920, 1080)}


class Fake(FakeService):
    name = "aimlapi"
    words = {
        "429": "TOO_MANY_REQUESTS",
        "500": "INTERNAL",
        "503": "UNAVAILABLE",
        "missing_key": "UNAUTHORIZED",
        "invalid_key": "UNAUTHORIZED",
        "broke": "OUT_OF_CREDITS",
    }

    def routes(self) -> list[Route]:
        return [
            ("POST", "/v2/video/generations", "submit", self.submit),
            ("GET", "/v2/video/generations", "status", self.status),
        ]

    def new_id(self) -> str:
        letters = string.ascii_letters + string.digits + "_-"
        return "".join(secrets.choice(letters) for _ in range(21))

    def submit(self, request: Request, params: dict[str, str]) -> Reply:
        body = request.json()
        if hint := _refused(body):
            return self.error("VALIDATION", hint=hint)
        _, _, default = MODELS[body["model"]]
        resolution = body.get("resolution", "1080p").lower()
        seconds = int(body.get("duration", default))
        job = self.accept(
            self.key_of(request),
            body["model"],
            body["prompt"],
            seconds=seconds,
            size=SIZES[resolution],
            sound=body.get("generate_audio", body["model"] == "alibaba/wan-2-7-i2v"),
            picture=body["image_url"],
            body=body,
        )
        usd = round(seconds * (0.15 if resolution == "1080p" else 0.10), 4)
        return self.answer(
            "submit", "accepted", id=job.id, usd=usd, credits=round(usd * 2_000_000)
        )

    def status(self, request: Request, params: dict[str, str]) -> Reply:
        job = self.owned(self.key_of(request), request.query.get("generation_id", ""))
        if job is None:
            return self.error("NOT_FOUND")
        state = self.state(job)
        return self.answer(
            "status",
            state,
            id=job.id,
            video_url=self.video_url(job),
            name=self.reason(job) or "GenerationError",
            message="internal text of the vendor",
        )


def _refused(body: dict[str, Any]) -> str:
    if body.get("model") not in MODELS:
        return "Invalid enum value for model"
    resolutions, lengths, default = MODELS[body["model"]]
    for name in ("prompt", "image_url"):
        if not isinstance(body.get(name), str) or not body[name]:
            return f"{name}: Required"
    if str(body.get("resolution", "1080p")).lower() not in resolutions:
        return f"Invalid enum value. Expected {sorted(resolutions)}"
    try:
        seconds = int(body.get("duration", default))
    except ValueError:
        return "duration: Expected number"
    if seconds not in lengths:
        return f"Invalid enum value. Expected {sorted(lengths)}"
    if len(body.get("negative_prompt", "")) > 500:
        return "negative_prompt: String must contain at most 500 character(s)"
    return ""
