"""A fake of Akool's image2Video v4: codes in HTTP 200, many ids, encrypted callbacks."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from typing import Any

from Crypto.Cipher import AES
from Crypto.Util.Padding import pad

from tests.fakes.bodies import load
from tests.fakes.server import Reply, Request
from tests.fakes.service import FakeService, Job, Route

SIZES = {"720p": (1280, 720), "1080p": (1920, 1080), "4k": (3840, 2160)}
CREDITS = {
    5: {"720p": 20, "1080p": 25, "4k": 30},
    10: {"720p": 40, "1080p": 50, "4k": 60},
}
STATUS = {"queued": 1, "running": 2, "succeeded": 3, "failed": 4}


class Fake(FakeService):
    name = "akool"
    words = {
        "429": "1005",
        "500": "1015",
        "503": "9999",
        "missing_key": "1102",
        "invalid_key": "1109",
        "broke": "1006",
    }

    def routes(self) -> list[Route]:
        root = "/api/open/v4/image2Video"
        return [
            ("POST", f"{root}/createBySourcePrompt", "submit", self.submit),
            ("POST", f"{root}/resultsByIds", "status", self.results),
            ("POST", f"{root}/delbyids", "delete", self.delete),
            ("POST", "/api/open/v3/getToken", "token", self.token),
        ]

    def key_of(self, request: Request) -> str:
        return super().key_of(request) or request.headers.get("x-api-key", "")

    def new_id(self) -> str:
        return secrets.token_hex(12)

    def token(self, request: Request, params: dict[str, str]) -> Reply:
        pair = request.json()
        if pair.get("clientId") != self.client_id:
            return self.error("1101")
        return self.answer("submit", "token", token=pair.get("clientSecret", ""))

    def submit(self, request: Request, params: dict[str, str]) -> Reply:
        body = request.json()
        if not _complete(body):
            return self.error("1003")
        job = self.accept(
            self.key_of(request),
            "image2Video",
            body["prompt"],
            seconds=body["video_length"],
            fps=24,
            size=SIZES[body["resolution"]],
            sound=body["audio_type"] in (1, 2),
            picture=body["image_url"],
            callback_url=body.get("webhookurl") or None,
            body=body,
        )
        return self.answer("submit", "accepted", **_facts(job), status=1)

    def results(self, request: Request, params: dict[str, str]) -> Reply:
        asked = request.json().get("_ids")
        if not isinstance(asked, str):
            return Reply(200, {"code": 1003, "msg": "Failed to get results"})
        key = self.key_of(request)
        found = [self.owned(key, one) for one in asked.split(",")]
        items = [self._item(job) for job in found if job is not None]
        if not items:
            return self.error("1008")
        return self.answer("status", "results", items=items)

    def _item(self, job: Job) -> dict[str, Any]:
        state = self.state(job)
        kind = "item_failed" if state == "failed" else "item"
        item: dict[str, Any] = load(self.name, "status")[kind].filled(
            **_facts(job),
            status=STATUS[state],
            update_time=int(self.now() * 1000),
            seconds=job.seconds,
            video_url=self.video_url(job) if state == "succeeded" else "",
            message=self.reason(job) or "internal text of the vendor",
        )
        return item

    def delete(self, request: Request, params: dict[str, str]) -> Reply:
        key, gone, kept = self.key_of(request), [], []
        for one in str(request.json().get("_ids", "")).split(","):
            job = self.owned(key, one)
            if job is not None and self.state(job) in ("succeeded", "failed"):
                del self.jobs[one]
                gone.append(one)
                continue
            busy = "video resource is processing, please try again later"
            kept.append({"_id": one, "msg": busy if job else "no permission"})
        return self.answer("delete", "deleted", deleted=gone, kept=kept)

    def callback(self, job: Job) -> tuple[bytes, dict[str, str]]:
        state = self.state(job)
        event = load(self.name, "callback")["event"].filled(
            id=self.new_id() if job.callback == "foreign" else job.id,
            status=STATUS[state],
            url=self.video_url(job) if state == "succeeded" else "",
        )
        text = json.dumps(event, separators=(",", ":")).encode()
        cipher = AES.new(
            self.client_secret.encode(), AES.MODE_CBC, self.client_id.encode()
        )
        sealed = base64.b64encode(cipher.encrypt(pad(text, 16))).decode()
        stamp, nonce = int(time.time() * 1000), str(secrets.randbelow(10_000))
        parts = sorted([self.client_id, str(stamp), nonce, sealed])
        envelope = load(self.name, "callback")["envelope"].filled(
            signature=hashlib.sha1("".join(parts).encode()).hexdigest(),
            sealed=sealed,
            timestamp=stamp,
            nonce=nonce,
        )
        return json.dumps(envelope).encode(), {}


def _complete(body: dict[str, Any]) -> bool:
    return (
        isinstance(body.get("image_url"), str)
        and body["image_url"].startswith("http")
        and bool(body.get("prompt"))
        and body.get("resolution") in SIZES
        and body.get("audio_type") in (1, 2, 3)
        and (body["audio_type"] != 2 or bool(body.get("audio_url")))
        and body.get("video_length") in (5, 10)
    )


def _facts(job: Job) -> dict[str, Any]:
    body = job.body
    return {
        "id": job.id,
        "create_time": int(job.created * 1000),
        "webhook_url": body.get("webhookurl", ""),
        "credits": CREDITS[body["video_length"]][body["resolution"]],
        **{
            name: body.get(name, "")
            for name in (
                "resolution",
                "image_url",
                "prompt",
                "negative_prompt",
                "extend_prompt",
                "audio_type",
                "audio_url",
                "effect_code",
            )
        },
    }
