"""A fake of a server that speaks OpenAI's Videos API, with its signed webhooks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from typing import Any

from tests.fakes.bodies import load
from tests.fakes.server import Reply, Request
from tests.fakes.service import FakeService, Job, Route

SIZES = {"720x1280", "1280x720", "1024x1792", "1792x1024"}
STATUS = {
    "queued": "queued",
    "running": "in_progress",
    "succeeded": "completed",
    "failed": "failed",
}


class Fake(FakeService):
    name = "openai_videos"
    words = {
        "429": "rate_limit_exceeded",
        "500": "server_error",
        "503": "unavailable",
        "missing_key": "invalid_api_key",
        "invalid_key": "invalid_api_key",
        "broke": "insufficient_quota",
    }

    def routes(self) -> list[Route]:
        one = "/v1/videos/(?P<id>[^/]+)"
        return [
            ("POST", "/v1/videos", "submit", self.submit),
            ("GET", "/v1/videos", "list", self.list),
            ("GET", one, "status", self.status),
            ("DELETE", one, "delete", self.delete),
            ("GET", f"{one}/content", "content", self.content),
        ]

    def new_id(self) -> str:
        return f"video_{secrets.token_hex(16)}"

    def submit(self, request: Request, params: dict[str, str]) -> Reply:
        fields, files = request.form()
        size = fields.get("size", "720x1280")
        seconds = fields.get("seconds", "4")
        if not fields.get("prompt") or size not in SIZES:
            return self.error("invalid_request_error")
        if not seconds.isdigit() or "input_reference" not in files:
            return self.error("invalid_request_error")
        wide, _, high = size.partition("x")
        job = self.accept(
            self.key_of(request),
            fields.get("model", "sora-2"),
            fields["prompt"],
            seconds=int(seconds),
            size=(int(wide), int(high)),
            sound=True,
            picture=files["input_reference"].data,
            body=dict(fields),
        )
        return Reply(200, self._video(job))

    def status(self, request: Request, params: dict[str, str]) -> Reply:
        job = self.owned(self.key_of(request), params["id"])
        return self.error("not_found") if job is None else Reply(200, self._video(job))

    def content(self, request: Request, params: dict[str, str]) -> Reply:
        job = self.owned(self.key_of(request), params["id"])
        if job is None or self.state(job) != "succeeded":
            return self.error("not_found")
        return self.result(job)

    def delete(self, request: Request, params: dict[str, str]) -> Reply:
        job = self.owned(self.key_of(request), params["id"])
        if job is None:
            return self.error("not_found")
        del self.jobs[job.id]
        return self.answer("delete", "deleted", id=job.id)

    def list(self, request: Request, params: dict[str, str]) -> Reply:
        key, query = self.key_of(request), request.query
        jobs = [job for job in list(self.jobs.values()) if job.key == key]
        jobs.sort(key=lambda j: j.number, reverse=query.get("order", "desc") == "desc")
        after = [index for index, j in enumerate(jobs) if j.id == query.get("after")]
        jobs = jobs[after[0] + 1 :] if after else jobs
        shown = jobs[: int(query.get("limit", 20))]
        return self.answer(
            "list",
            "page",
            items=[self._video(job) for job in shown],
            first_id=shown[0].id if shown else None,
            last_id=shown[-1].id if shown else None,
            has_more=len(jobs) > len(shown),
        )

    def _video(self, job: Job) -> dict[str, Any]:
        state = self.state(job)
        done = int(job.created + self.queued_seconds + self.running_seconds)
        failed = {
            "code": self.reason(job) or "server_error",
            "message": "internal text of the vendor",
        }
        video: dict[str, Any] = load(self.name, "status")["video"].filled(
            id=job.id,
            model=job.model,
            status=STATUS[state],
            progress=self.percent(job),
            created_at=int(job.created),
            completed_at=done if state == "succeeded" else None,
            expires_at=done + 3600 if state == "succeeded" else None,
            prompt=job.prompt,
            seconds=str(int(job.seconds)),
            size="{}x{}".format(*job.size),
            error=failed if state == "failed" else None,
        )
        return video

    def callback(self, job: Job) -> tuple[bytes, dict[str, str]]:
        kind = "failed" if self.state(job) == "failed" else "completed"
        event_id, stamp = f"evt_{secrets.token_hex(8)}", str(int(time.time()))
        event = load(self.name, "callback")["event"].filled(
            event_id=event_id,
            created_at=int(stamp),
            type=f"video.{kind}",
            id=self.new_id() if job.callback == "foreign" else job.id,
        )
        body = json.dumps(event, separators=(",", ":")).encode()
        key = base64.b64decode(self.webhook_secret.removeprefix("whsec_"))
        signed = f"{event_id}.{stamp}.".encode() + body
        mac = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        return body, {
            "webhook-id": event_id,
            "webhook-timestamp": stamp,
            "webhook-signature": f"v1,{mac}",
        }
