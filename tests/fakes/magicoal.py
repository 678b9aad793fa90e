"""A fake of coals.ai MagiCoal."""

from __future__ import annotations

import math
import time
from typing import Any

from tests.fakes.bodies import load
from tests.fakes.server import Reply, Request
from tests.fakes.service import FakeService, Job, Route

KINDS = {"queued": "queued", "running": "running", "succeeded": "succeeded"}


class Fake(FakeService):
    name = "magicoal"
    words = {
        "429": "RATE_LIMIT_EXCEEDED",
        "500": "SERVER_ERROR",
        "503": "SERVER_ERROR",
        "missing_key": "UNAUTHORIZED",
        "invalid_key": "UNAUTHORIZED",
        "broke": "INSUFFICIENT_CREDITS",
    }

    def routes(self) -> list[Route]:
        root = "/api/v1/magicoal"
        return [
            ("POST", f"{root}/generate/i2v", "submit", self.submit),
            ("GET", f"{root}/status/(?P<id>[^/]+)", "status", self.status),
            ("GET", f"{root}/videos", "list", self.videos),
        ]

    def submit(self, request: Request, params: dict[str, str]) -> Reply:
        body = request.json()
        if refused := _refused(body):
            field, hint = refused
            return self.error("VALIDATION_ERROR", field=field, hint=hint)
        frames = body.get("num_frames", 81)
        job = self.accept(
            self.key_of(request),
            "i2v",
            body.get("prompt", ""),
            seconds=frames / 16,
            fps=16,
            size=(832, 480),
            picture=body["image"],
            body=body,
        )
        return self.answer("submit", "accepted", id=job.id)

    def status(self, request: Request, params: dict[str, str]) -> Reply:
        job = self.owned(self.key_of(request), params["id"])
        if job is None:
            return self.error("NOT_FOUND")
        state = self.state(job)
        return self.answer(
            "status",
            KINDS.get(state, "failed"),
            progress=25 + self.percent(job) * 65 // 100,
            code=self.reason(job) or "GENERATION_FAILED",
            message="internal text of the vendor",
            **self._facts(job),
        )

    def videos(self, request: Request, params: dict[str, str]) -> Reply:
        page = int(request.query.get("page", 1))
        per_page = min(100, int(request.query.get("per_page", 15)))
        key = self.key_of(request)
        done = [
            job
            for job in sorted(self.jobs.values(), key=lambda j: -j.number)
            if job.key == key and self.state(job) == "succeeded"
        ]
        item = load(self.name, "list")["item"]
        shown = done[(page - 1) * per_page : page * per_page]
        return self.answer(
            "list",
            "page",
            items=[item.filled(prompt=j.prompt, **self._facts(j)) for j in shown],
            page=page,
            per_page=per_page,
            total=len(done),
            last_page=max(1, math.ceil(len(done) / per_page)),
            has_more=page * per_page < len(done),
        )

    def _facts(self, job: Job) -> dict[str, Any]:
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(job.created))
        return {
            "id": job.id,
            "video_url": self.video_url(job),
            "thumbnail_url": self.video_url(job).replace(".mp4", ".jpg"),
            "seconds": job.seconds,
            "created_at": created,
        }


def _refused(body: dict[str, Any]) -> tuple[str, str] | None:
    frames = body.get("num_frames", 81)
    guidance = body.get("guidance_scale", 3.5)
    if not isinstance(body.get("image"), str) or not body["image"]:
        return "image", "The image field is required."
    if len(str(body.get("prompt", ""))) > 2000:
        return "prompt", "The prompt must not be longer than 2000 characters."
    if not isinstance(frames, int) or not 17 <= frames <= 161:
        return "num_frames", "The number of frames must be between 17 and 161."
    if frames % 2 == 0:
        return "num_frames", "The number of frames must be odd."
    if not 1 <= guidance <= 10:
        return "guidance_scale", "The guidance scale must be between 1 and 10."
    return None
