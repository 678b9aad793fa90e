"""AI/ML API: Alibaba's Wan models behind ``/v2/video/generations``.

Source: github.com/aimlapi/api-docs @ f14fa72 (2026-08-21), video-models/Alibaba-Cloud and
errors-and-messages. Documented: base64 in ``image_url``; not documented: a list, a cancel,
callbacks, the names in a failed job's ``error``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import Any, ClassVar, Final

from inference.geometry import SHORT_SIDE
from inference.providers.base import (
    ACCOUNT,
    BAD_IMAGE,
    BLOCKED,
    BUSY,
    CUSTOMER,
    HEALTH,
    IN_DOUBT,
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
    decimal,
    optional,
    record,
    text,
)

PATH: Final = "/v2/video/generations"
#: The samples pair 3,900,000 credits with $1.95.
CREDITS_PER_USD: Final = Decimal(2_000_000)

_STATES: Final[Mapping[str, State]] = MappingProxyType(
    {
        "queued": "queued",
        "waiting": "queued",  # older samples
        "generating": "running",
        "active": "running",  # older samples
        "completed": "succeeded",
        "error": "failed",
    }
)
_BOTH = MappingProxyType({"720p": "720p", "1080p": "1080p"})
_WAN_2_6 = WireModel(
    seconds=(5, 10, 15),
    tiers=_BOTH,
    options=frozenset({"negative_prompt", "seed", "prompt_expansion", "shot_type"}),
    audio=frozenset({"generate", "url"}),
    prompt_required=True,
)


class AimlApi(Provider):
    """Base64 pictures; a submit whose answer is lost cannot be found again."""

    name = "aimlapi"
    title = "AI/ML API"
    default_base_url = "https://api.aimlapi.com"
    capabilities = Capabilities(
        picture=PictureNeed("inline", side_min=360, side_max=2000),
        evidence=Evidence.NONE,
        poll_seconds=12.0,  # the samples poll every 10-15 s
    )
    models = MappingProxyType(
        {
            "alibaba/wan-2-7-i2v": WireModel(
                seconds=(5, 10, 15),
                tiers=_BOTH,
                options=frozenset({"negative_prompt", "seed", "prompt_expansion"}),
                audio=frozenset({"generate", "url"}),
                prompt_required=True,
                prompt_max=5000,
            ),
            "alibaba/wan-2-6-i2v": _WAN_2_6,
            "alibaba/wan-2-6-image-to-video-flash": _WAN_2_6,
            "alibaba/wan2.5-i2v-preview": WireModel(
                seconds=(5, 10),
                tiers=MappingProxyType({"480p": "480p", **_BOTH}),
                options=frozenset({"negative_prompt", "seed", "prompt_expansion"}),
                audio=frozenset({"generate"}),
                prompt_required=True,
            ),
            "alibaba/wan2.2-i2v-plus": WireModel(
                seconds=(5,),  # no duration in its schema
                tiers=MappingProxyType({"480p": "480P", "1080p": "1080P"}),
                options=frozenset({"negative_prompt", "seed", "prompt_expansion"}),
                prompt_required=True,
            ),
        }
    )
    #: The envelope has no error name; the HTTP status is the name.
    errors: ClassVar[Mapping[str, ErrorRule]] = MappingProxyType(
        {
            "400": CUSTOMER,
            "401": ACCOUNT,
            "403": ACCOUNT,  # "You've run out of credits"
            "404": UNKNOWN_JOB,
            "413": BAD_IMAGE,
            "422": CUSTOMER,
            "429": BUSY,
            "500": HEALTH,
            "502": IN_DOUBT,
            "503": HEALTH,
            "504": IN_DOUBT,  # "Generation timeout"
        }
    )
    job_errors: ClassVar[Mapping[str, ErrorRule]] = MappingProxyType(
        {
            "GenerationError": HEALTH,
            "ContentModerationError": BLOCKED,  # ours
            "content_blocked": BLOCKED,  # ours
            "invalid_input": CUSTOMER,  # ours
        }
    )

    def canvas(
        self, job: ProviderJob, account: ProviderAccount
    ) -> tuple[int, int] | None:
        if job.model != "alibaba/wan2.5-i2v-preview":
            return None
        # This model has three shapes only; padding keeps the whole picture in view.
        across, down = map(int, _nearest_ratio(job).split(":"))
        short = SHORT_SIDE[job.tier]
        scale = short / min(across, down)
        return round(across * scale / 2) * 2, round(down * scale / 2) * 2

    def write_submit(
        self, job: ProviderJob, model: WireModel, account: ProviderAccount
    ) -> HttpCall:
        body: dict[str, Any] = {
            "model": job.model,
            "prompt": job.prompt,
            "image_url": data_uri(job.image),
            "resolution": model.tiers[job.tier],
            "watermark": False,
        }
        if len(model.seconds) > 1:
            body["duration"] = self.sold_seconds(job, model)
        # Both switches mean the same and expansion is off if either is false.
        body["enhance_prompt"] = job.prompt_expansion
        if job.model == "alibaba/wan-2-7-i2v":
            body["enable_prompt_expansion"] = job.prompt_expansion
        if job.negative_prompt:
            body["negative_prompt"] = job.negative_prompt
        if job.seed is not None:
            body["seed"] = job.seed
        if job.audio_mode == "url":
            body["audio_url"] = job.audio_url
        if model.offers("shot_type"):
            body["shot_type"] = job.shot_type
            body["generate_audio"] = job.audio_mode == "generate"
        if job.model == "alibaba/wan2.5-i2v-preview":
            body["aspect_ratio"] = _nearest_ratio(job)
        return HttpCall(
            "POST",
            account.url(PATH),
            self.bearer(account),
            json={**body, **job.extra},
            timeout_seconds=60,
        )

    def read_submit(self, body: Any, account: ProviderAccount) -> Submitted:
        answer = record(body)
        # Older families say ``generation_id``.
        identity = answer.get("id") or answer["generation_id"]
        return Submitted(text(identity), _usd(answer))

    def write_status(self, ids: Sequence[str], account: ProviderAccount) -> HttpCall:
        return HttpCall(
            "GET",
            account.url(PATH),
            self.bearer(account),
            params={"generation_id": ids[0]},
            idempotent=True,
        )

    def read_status(
        self, body: Any, ids: Sequence[str], account: ProviderAccount
    ) -> dict[str, RemoteStatus]:
        answer = record(body)
        state = _STATES[text(answer["status"])]
        if state == "failed":
            error = answer.get("error")
            error = error if isinstance(error, dict) else {"message": str(error or "")}
            failure = self.failure(
                str(error.get("name") or ""), str(error.get("message") or "")
            )
            return {ids[0]: RemoteStatus("failed", error=failure)}
        video = answer.get("video")
        url = record(video).get("url") if state == "succeeded" and video else None
        return {ids[0]: RemoteStatus(state, video_url=url, cost_usd=_usd(answer))}

    def read_error(self, reply: HttpReply, body: Any) -> WireError | None:
        if not isinstance(body, dict) or "statusCode" not in body:
            return None
        return WireError(str(body["statusCode"]), str(body.get("message") or ""))


def _nearest_ratio(job: ProviderJob) -> str:
    ratios = {"16:9": 16 / 9, "9:16": 9 / 16, "1:1": 1.0}
    aspect = job.width / job.height
    return min(ratios, key=lambda name: abs(ratios[name] - aspect))


def _usd(answer: dict[str, Any]) -> Decimal | None:
    usage = optional(optional(answer.get("meta")).get("usage"))
    if (spent := decimal(usage.get("usd_spent"))) is not None:
        return spent
    used = decimal(usage.get("credits_used"))
    return None if used is None else used / CREDITS_PER_USD
