"""coals.ai MagiCoal: Wan 2.2 image-to-video at 16 fps, billed at submit, refunded on failure.

Source: coals.ai/docs/magicoal (i2v, status, videos, errors, rate-limits). The failed
status body and the names of most errors are not documented; what stands for them here
is marked "ours" and meant to be corrected in this file alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any, ClassVar, Final

from inference.providers.base import (
    ACCOUNT,
    BAD_IMAGE,
    BLOCKED,
    BUSY,
    CUSTOMER,
    HEALTH,
    UNKNOWN_JOB,
    Capabilities,
    ErrorRule,
    Evidence,
    FindQuery,
    Found,
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
    decimal,
    fraction,
    optional,
    record,
    refusal,
    text,
)

FPS: Final = 16
FRAMES_MIN: Final = 17
FRAMES_MAX: Final = 161
#: "1 credit = $0.01"
USD_PER_CREDIT: Final = Decimal("0.01")

_STATES: Final[Mapping[str, State]] = MappingProxyType(
    {
        "queued": "queued",
        "generating": "running",
        # The status page shows the stage's words in ``status`` as well.
        "generating_image": "running",
        "uploading_image": "running",
        "generating_video": "running",
        "saving": "running",
        "completed": "succeeded",
        "failed": "failed",
    }
)


class MagiCoal(Provider):
    """Base64 pictures; a list of finished videos; no cancel, no delete, no callbacks."""

    name = "magicoal"
    title = "coals.ai MagiCoal"
    default_base_url = "https://coals.ai"
    capabilities = Capabilities(
        picture=PictureNeed("inline", side_max=4096),
        # The list holds finished videos only: it can prove that a job exists, never
        # that it does not.
        evidence=Evidence.TASK_LIST,
        poll_seconds=4.0,  # "every 3-5 s", no faster than 3
        statuses_per_second=10.0,
        submits_per_second=2.0,
    )
    models = MappingProxyType(
        {
            "i2v": WireModel(
                seconds=(FRAMES_MAX // FPS,),
                tiers=MappingProxyType({"480p": "480p"}),
                options=frozenset({"guidance_scale", "seed"}),
                usd_per_clip=Decimal("0.50"),
            )
        }
    )
    errors: ClassVar[Mapping[str, ErrorRule]] = MappingProxyType(
        {
            "VALIDATION_ERROR": CUSTOMER,
            "RATE_LIMIT_EXCEEDED": BUSY,
            # ours, from here on
            "UNAUTHORIZED": ACCOUNT,
            "FORBIDDEN": ACCOUNT,
            "INSUFFICIENT_CREDITS": ACCOUNT,
            "QUOTA_EXCEEDED": ACCOUNT,
            "NOT_FOUND": UNKNOWN_JOB,
            "PAYLOAD_TOO_LARGE": BAD_IMAGE,
            "CONTENT_BLOCKED": BLOCKED,
            "INVALID_INPUT": CUSTOMER,
            "SERVER_ERROR": HEALTH,
        }
    )

    def frames(self, job: ProviderJob) -> int:
        """Return the odd number of frames at 16 fps that covers the job."""
        frames = max(FRAMES_MIN, math.ceil(job.seconds * FPS - 1e-6))
        return frames + 1 - frames % 2

    def check_more(self, job: ProviderJob, model: WireModel) -> None:
        if self.frames(job) > FRAMES_MAX:
            raise refusal("frames", f"makes at most {FRAMES_MAX} frames")
        if job.guidance_scale is not None and not 1 <= job.guidance_scale <= 10:
            raise refusal("guidance_scale", "takes guidance from 1 to 10")

    def write_submit(
        self, job: ProviderJob, model: WireModel, account: ProviderAccount
    ) -> HttpCall:
        body: dict[str, Any] = {
            "image": data_uri(job.image),
            "num_frames": self.frames(job),
        }
        if job.prompt:
            body["prompt"] = job.prompt
        if job.guidance_scale is not None:
            body["guidance_scale"] = job.guidance_scale
        if job.seed is not None:
            body["seed"] = job.seed
        return HttpCall(
            "POST",
            account.url("/api/v1/magicoal/generate/i2v"),
            self.bearer(account),
            json={**body, **job.extra},
            timeout_seconds=60,
        )

    def read_submit(self, body: Any, account: ProviderAccount) -> Submitted:
        data = record(record(body)["data"])
        return Submitted(text(data["uuid"]), _usd(data.get("credits_charged")))

    def write_status(self, ids: Sequence[str], account: ProviderAccount) -> HttpCall:
        return HttpCall(
            "GET",
            account.url(f"/api/v1/magicoal/status/{ids[0]}"),
            self.bearer(account),
            idempotent=True,
        )

    def read_status(
        self, body: Any, ids: Sequence[str], account: ProviderAccount
    ) -> dict[str, RemoteStatus]:
        data = record(record(body)["data"])
        state = _STATES[text(data["status"])]
        if data.get("done") is True and state in ("queued", "running"):
            state = "succeeded" if data.get("video_url") else "failed"
        if state == "failed":
            error = optional(data.get("error"))
            return {
                ids[0]: RemoteStatus(
                    "failed",
                    error=self.failure(
                        str(error.get("code") or ""), str(error.get("message") or "")
                    ),
                    cost_usd=Decimal(0),  # "refunded by itself on failure"
                )
            }
        return {
            ids[0]: RemoteStatus(
                state,
                fraction(data.get("progress")),
                data.get("video_url") if state == "succeeded" else None,
                cost_usd=_usd(data.get("credits_charged")),
            )
        }

    def build_find(self, query: FindQuery, account: ProviderAccount) -> HttpCall:
        return HttpCall(
            "GET",
            account.url("/api/v1/magicoal/videos"),
            self.bearer(account),
            params={"per_page": "100", "page": query.cursor or "1"},
            idempotent=True,
        )

    def read_find(self, body: Any, query: FindQuery) -> Found:
        listing = record(body)
        candidates, past_window = [], False
        for item in map(record, listing["data"]):
            created = datetime.fromisoformat(text(item["created_at"]))
            past_window = past_window or created < query.since
            mine = query.prompt in (None, item.get("prompt", ""))
            mine = mine and item.get("type") == "i2v"
            in_time = query.since <= created <= query.until
            if mine and in_time and item["uuid"] not in query.known_ids:
                candidates.append(text(item["uuid"]))
        meta = record(listing.get("meta") or {})
        following = None
        if meta.get("has_more") and not past_window:
            following = str(int(meta["current_page"]) + 1)
        return Found(tuple(candidates), conclusive=False, next_cursor=following)

    def read_error(self, reply: HttpReply, body: Any) -> WireError | None:
        if not isinstance(body, dict) or body.get("success") is not False:
            return None
        error = body.get("error")
        if isinstance(error, str):  # the form of the vendor's older services
            return WireError("", error)
        error = error if isinstance(error, dict) else {}
        return WireError(str(error.get("code") or ""), str(error.get("message") or ""))


def _usd(credits_charged: Any) -> Decimal | None:
    charged = decimal(credits_charged)
    return None if charged is None else charged * USD_PER_CREDIT
