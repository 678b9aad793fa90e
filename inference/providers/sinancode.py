"""Sinancode: Bailian's wan2-image-to-video resold under ``/v1/generate`` and ``/v1/tasks``.

Source: docs.sinancode.com (i2v page, get-task). No page documents refused requests or
the values of ``error_code``; the names here are ours, in the vocabulary of the task
object, and the HTTP status decides where no name is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Final

from inference.providers.base import (
    ACCOUNT,
    BAD_AUDIO,
    BAD_IMAGE,
    BLOCKED,
    BUSY,
    CUSTOMER,
    HEALTH,
    UNKNOWN_JOB,
    Capabilities,
    ErrorRule,
    Evidence,
    HttpCall,
    HttpReply,
    PictureNeed,
    Provider,
    ProviderAccount,
    ProviderJob,
    RemoteStatus,
    State,
    Submitted,
    WireError,
    WireModel,
    data_uri,
    record,
    refusal,
    text,
)

_STATES: Final[Mapping[str, State]] = MappingProxyType(
    {
        "pending": "queued",
        "processing": "running",
        "completed": "succeeded",
        "failed": "failed",
    }
)


class Sinancode(Provider):
    """Base64 pictures of 360 to 2000 pixels a side; no list, cancel, delete or callback."""

    name = "sinancode"
    title = "Sinancode"
    default_base_url = "https://api.sinancode.com"
    capabilities = Capabilities(
        picture=PictureNeed(
            "inline", side_min=360, side_max=2000, size_bytes_max=10_000_000
        ),
        evidence=Evidence.NONE,
        poll_seconds=10.0,
    )
    models = MappingProxyType(
        {
            "wan2.6-i2v": WireModel(
                seconds=(5, 10, 15),
                tiers=MappingProxyType({"720p": "720P", "1080p": "1080P"}),
                options=frozenset(
                    {"negative_prompt", "seed", "prompt_expansion", "shot_type"}
                ),
                # "audio_url: only wan2.5-i2v-preview supports it", which it does not sell.
                audio=frozenset({"generate"}),
            )
        }
    )
    errors: ClassVar[Mapping[str, ErrorRule]] = MappingProxyType(
        {
            "invalid_parameter": CUSTOMER,
            "invalid_input": CUSTOMER,
            "invalid_image": BAD_IMAGE,
            "image_format_unsupported": BAD_IMAGE,
            "image_size_invalid": BAD_IMAGE,
            "image_alpha_unsupported": BAD_IMAGE,
            "image_too_large": BAD_IMAGE,
            "invalid_audio": BAD_AUDIO,
            "content_blocked": BLOCKED,
            "DataInspectionFailed": BLOCKED,  # Bailian's own name, passed through
            "InvalidParameter": CUSTOMER,  # likewise
            "unauthorized": ACCOUNT,
            "insufficient_credits": ACCOUNT,
            "insufficient_balance": ACCOUNT,
            "not_found": UNKNOWN_JOB,
            "task_not_found": UNKNOWN_JOB,
            "rate_limit_exceeded": BUSY,
            "generation_failed": HEALTH,
            "internal_error": HEALTH,
        }
    )

    def check_more(self, job: ProviderJob, model: WireModel) -> None:
        # "shot_type acts only if prompt_extend": alone it would be ignored.
        if job.shot_type == "multi" and not job.prompt_expansion:
            raise refusal("shot_type", "cuts into shots only with prompt expansion")

    def write_submit(
        self, job: ProviderJob, model: WireModel, account: ProviderAccount
    ) -> HttpCall:
        body: dict[str, Any] = {
            "model": job.model,
            "image_url": data_uri(job.image),
            "duration": self.sold_seconds(job, model),
            "resolution": model.tiers[job.tier],
            "prompt_extend": job.prompt_expansion,
            "shot_type": job.shot_type,
            "audio": job.audio_mode == "generate",
            "watermark": False,
        }
        if job.prompt:
            body["prompt"] = job.prompt
        if job.negative_prompt:
            body["negative_prompt"] = job.negative_prompt
        if job.seed is not None:
            body["seed"] = job.seed
        return HttpCall(
            "POST",
            account.url("/v1/generate/bailian/wan2-image-to-video"),
            self.bearer(account),
            json={**body, **job.extra},
            timeout_seconds=60,
        )

    def read_submit(self, body: Any, account: ProviderAccount) -> Submitted:
        return Submitted(text(record(body)["task_id"]))

    def write_status(self, ids: Sequence[str], account: ProviderAccount) -> HttpCall:
        return HttpCall(
            "GET",
            account.url(f"/v1/tasks/{ids[0]}"),
            self.bearer(account),
            idempotent=True,
        )

    def read_status(
        self, body: Any, ids: Sequence[str], account: ProviderAccount
    ) -> dict[str, RemoteStatus]:
        task = record(body)
        state = _STATES[text(task["status"])]
        if state == "failed":
            failure = self.failure(
                str(task.get("error_code") or ""), str(task.get("error_msg") or "")
            )
            return {ids[0]: RemoteStatus("failed", error=failure)}
        url = _video(task.get("result")) if state == "succeeded" else None
        return {ids[0]: RemoteStatus(state, video_url=url)}

    def read_error(self, reply: HttpReply, body: Any) -> WireError | None:
        if reply.status < 400 or not isinstance(body, dict):
            return None
        code = body.get("error_code")
        if code is None and "error_msg" not in body:
            return None
        return WireError(str(code or ""), str(body.get("error_msg") or ""))


def _video(result: Any) -> str | None:
    """Return the first video of ``result``: URL strings, or objects in newer answers."""
    for item in result or ():
        if isinstance(item, str):
            return item
        if isinstance(item, dict) and item.get("type", "video") == "video":
            return text(item["url"])
    return None
