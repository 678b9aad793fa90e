"""A fake of DashScope's asynchronous video synthesis."""

from __future__ import annotations

import math
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from tests.fakes.bodies import load
from tests.fakes.server import Reply, Request
from tests.fakes.service import FakeService, Job, Route

BEIJING = timezone(timedelta(hours=8))
SIZES = {"480P": (832, 480), "720P": (1280, 720), "1080P": (1920, 1080)}
LENGTHS: dict[str, set[int]] = {
    "wan2.7-i2v": set(range(2, 16)),
    "wan2.6-i2v": {5, 10, 15},
    "wan2.6-i2v-flash": {5, 10, 15},
    "wan2.5-i2v-preview": {5, 10},
    "wan2.2-i2v-plus": {5},
    "wan2.2-i2v-flash": {5},
    "wanx2.1-i2v-plus": {5},
    "wanx2.1-i2v-turbo": {3, 4, 5},
    "wanx2.1-kf2v-plus": {5},
    "wan2.2-kf2v-flash": {5},
}
TASK_STATUS = {
    "queued": "PENDING",
    "running": "RUNNING",
    "succeeded": "SUCCEEDED",
    "failed": "FAILED",
    "canceled": "CANCELED",
}


class Fake(FakeService):
    name = "dashscope"
    words = {
        "429": "Throttling.RateQuota",
        "500": "InternalError",
        "503": "ServiceUnavailable",
        "missing_key": "InvalidApiKey",
        "invalid_key": "InvalidApiKey",
        "broke": "Arrearage",
    }

    def routes(self) -> list[Route]:
        create = "/api/v1/services/aigc/(video-generation|image2video)/video-synthesis"
        tasks = "/api/v1/tasks"
        return [
            ("POST", create, "submit", self.submit),
            ("GET", f"{tasks}/?", "list", self.list),
            ("GET", f"{tasks}/(?P<id>[^/]+)", "status", self.status),
            ("POST", f"{tasks}/(?P<id>[^/]+)/cancel", "cancel", self.cancel),
        ]

    def submit(self, request: Request, params: dict[str, str]) -> Reply:
        if request.headers.get("x-dashscope-async") != "enable":
            return self.error("AccessDenied")
        body = request.json()
        source, how = body.get("input", {}), body.get("parameters", {})
        model = body.get("model")
        if not model:
            return self.error("BadRequest.EmptyModel")
        if model not in LENGTHS:
            return self.error("ModelNotFound")
        if not source:
            return self.error("BadRequest.EmptyInput")
        picture = _picture(source)
        if (
            not picture
            or how.get("duration", 5) not in LENGTHS[model]
            or how.get("resolution", "720P") not in SIZES
            or not 0 <= how.get("seed", 0) <= 2147483647
        ):
            return self.error("InvalidParameter")
        if ("kf2v" in model) != ("image2video/" in request.path):
            return self.error("InvalidURL")
        job = self.accept(
            self.key_of(request),
            model,
            source.get("prompt", ""),
            seconds=how.get("duration", 5),
            fps=24 if "2.5" in model else 30,
            size=SIZES[how.get("resolution", "720P")],
            sound=how.get("audio", "2.6" in model or "2.5" in model or "2.7" in model),
            picture=picture,
            seed=how.get("seed", 0),
            body=body,
        )
        return self.answer("submit", "accepted", id=job.id, request_id=_request_id())

    def status(self, request: Request, params: dict[str, str]) -> Reply:
        job = self.owned(self.key_of(request), params["id"])
        if job is None:
            return self.answer(
                "status", "unknown", id=params["id"], request_id=_request_id()
            )
        created = job.created
        reply = self.answer(
            "status",
            self.state(job),
            id=job.id,
            request_id=_request_id(),
            submitted=_local(created),
            scheduled=_local(created + self.queued_seconds),
            ended=_local(created + self.queued_seconds + self.running_seconds),
            prompt=job.prompt,
            video_url=self.video_url(job),
            seconds=job.seconds,
            sr=min(job.size),
            code=self.reason(job) or "InternalError",
            message="internal text of the vendor",
        )
        if self.state(job) == "succeeded" and job.body["parameters"]["prompt_extend"]:
            # Documented for this case; the recorded body is of the other.
            reply.body["output"]["actual_prompt"] = f"{job.prompt}, in fine detail"
        return reply

    def cancel(self, request: Request, params: dict[str, str]) -> Reply:
        job = self.owned(self.key_of(request), params["id"])
        if job is None or self.state(job) != "queued":
            return self.error("UnsupportedOperation")
        job.canceled = True
        return self.answer("cancel", "canceled", request_id=_request_id())

    def list(self, request: Request, params: dict[str, str]) -> Reply:
        query, key = request.query, self.key_of(request)
        since, until = _moment(query.get("start_time")), _moment(query.get("end_time"))
        found = [
            job
            for job in sorted(self.jobs.values(), key=lambda j: -j.number)
            if job.key == key
            and (since is None or job.created >= since)
            and (until is None or job.created <= until)
            and query.get("model_name", job.model) == job.model
            and query.get("status", TASK_STATUS[self.state(job)])
            == TASK_STATUS[self.state(job)]
        ]
        size = int(query.get("page_size", 10))
        page = int(query.get("page_no", 1))
        shown = found[(page - 1) * size : page * size]
        return self.answer(
            "list",
            "page",
            items=[self._listed(job) for job in shown],
            total=len(found),
            total_page=max(1, math.ceil(len(found) / size)),
            page_no=page,
            page_size=size,
            request_id=_request_id(),
        )

    def _listed(self, job: Job) -> Any:
        return load(self.name, "list")["item"].filled(
            created_ms=int(job.created * 1000),
            model=job.model,
            status=TASK_STATUS[self.state(job)],
            id=job.id,
            request_id=_request_id(),
        )


def _picture(source: dict[str, Any]) -> str:
    for medium in source.get("media", []):
        if medium.get("type") == "first_frame":
            return str(medium.get("url", ""))
    return str(source.get("img_url") or source.get("first_frame_url") or "")


def _request_id() -> str:
    return str(uuid.uuid4())


def _local(moment: float) -> str:
    local = datetime.fromtimestamp(moment, BEIJING)
    return local.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _moment(text: str | None) -> float | None:
    if not text:
        return None
    local = datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=BEIJING)
    return local.astimezone(UTC).timestamp()
