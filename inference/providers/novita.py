"""Novita AI: ``/v3/async/<model>`` and one task-result call for all of them.

Sources: novita.ai/docs (wan-i2v, task-result, webhook, basic-error-code);
novita-client 0.7.1; the sister company PPIO's page of wan2.6-i2v for its nested body.
Base64 pictures are not documented, so pictures go by signed URL. Webhooks carry no
signature: the token in their URL is the only proof, and the answer is read again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
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
    MODEL,
    UNKNOWN_JOB,
    CallbackHint,
    CallbackRefused,
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
    decimal,
    fraction,
    optional,
    record,
    refusal,
    text,
)

_STATES: Final[Mapping[str, State]] = MappingProxyType(
    {
        "TASK_STATUS_QUEUED": "queued",
        "TASK_STATUS_PROCESSING": "running",
        "TASK_STATUS_SUCCEED": "succeeded",
        "TASK_STATUS_SUCCEEDED": "succeeded",  # one PPIO page, in prose
        "TASK_STATUS_FAILED": "failed",
        "TASK_STATUS_UNKNOWN": "unknown",  # npm SDK's enum
    }
)
#: wan-i2v's width and height choose sharpness; the aspect follows the picture.
_LANDSCAPE: Final = MappingProxyType({"480p": (832, 480), "720p": (1280, 720)})
_RESOLUTION = MappingProxyType({"480p": "480P", "720p": "720P", "1080p": "1080P"})
_HD = MappingProxyType({"720p": "720P", "1080p": "1080P"})
_NESTED = frozenset({"negative_prompt", "seed", "prompt_expansion"})
_WAN_2_6_USD = MappingProxyType({"720p": Decimal("0.10"), "1080p": Decimal("0.15")})


class Novita(Provider):
    """Pictures by URL; a webhook per job; no list, no cancel, no delete."""

    name = "novita"
    title = "Novita AI"
    default_base_url = "https://api.novita.ai"
    capabilities = Capabilities(
        picture=PictureNeed("url", side_min=360, side_max=2000),
        evidence=Evidence.CALLBACK_TOKEN,
        callback_per_job=True,
        poll_seconds=10.0,
    )
    models = MappingProxyType(
        {
            "wan-i2v": WireModel(
                seconds=(5,),
                tiers=MappingProxyType({"480p": "480p", "720p": "720p"}),
                options=frozenset(
                    {
                        "negative_prompt",
                        "seed",
                        "steps",
                        "guidance_scale",
                        "flow_shift",
                        "loras",
                        "quality",
                        "safety_checker",
                    }
                ),
                prompt_required=True,
                negative_prompt_max=2000,
            ),
            "wan-2.2-i2v": WireModel(
                seconds=(5, 8),
                tiers=_RESOLUTION,
                options=_NESTED | {"loras"},
            ),
            "wan-2.5-i2v-preview": WireModel(
                seconds=(5, 10),
                tiers=_RESOLUTION,
                options=_NESTED,
                audio=frozenset({"generate", "url"}),
            ),
            "wan2.6-i2v": WireModel(
                seconds=(5, 10, 15),
                tiers=_HD,
                options=_NESTED | {"shot_type"},
                audio=frozenset({"generate", "url"}),
                usd_per_second=_WAN_2_6_USD,
            ),
            "wan2.7-i2v": WireModel(
                seconds=tuple(range(2, 16)),
                tiers=_HD,
                options=_NESTED | {"last_image"},
                audio=frozenset({"generate", "url"}),  # "audio by default"
                prompt_max=5000,
            ),
        }
    )
    errors: ClassVar[Mapping[str, ErrorRule]] = MappingProxyType(
        {
            "INVALID_REQUEST_BODY": CUSTOMER,
            "IMAGE_FILE_EXCEEDS_MAX_SIZE": BAD_IMAGE,
            "INVALID_IMAGE_FORMAT": BAD_IMAGE,
            "IMAGE_EXCEEDS_MAX_RESOLUTION": BAD_IMAGE,
            "INVALID_IMAGE_SIZE": BAD_IMAGE,
            "INVALID_AUDIO_FILE": BAD_AUDIO,
            "ILLEGAL_PROMPT": BLOCKED,
            "ILLEGAL_IMAGE_CONTENT": BLOCKED,
            "API_NOT_FOUND": HEALTH,
            "TASK_NOT_FOUND": UNKNOWN_JOB,
            "BILLING_FAILED": HEALTH,
            "BILLING_AUTH_FAILED": ACCOUNT,
            # Documented with HTTP 400 and, in another copy, 403: the name decides.
            "BILLING_BALANCE_NOT_ENOUGH": ACCOUNT,
            "MISSING_API_KEY": ACCOUNT,  # HTTP 400
            "INVALID_API_KEY": ACCOUNT,
            "FEATURE_NOT_ALLOWED": MODEL,
            "API_NOT_ALLOWED": MODEL,
            "NEED_REAL_NAME_VERIFY": ACCOUNT,
            "RATE_LIMIT_EXCEEDED": BUSY,
            "CREATE_TASK_FAILED": HEALTH,
            "GET_RESULT_FAILED": HEALTH,
            "TASK_FAILED": HEALTH,
        }
    )

    def check_more(self, job: ProviderJob, model: WireModel) -> None:
        if len(job.loras) > 3:
            raise refusal("loras", "takes at most 3 LoRAs")
        for lora in job.loras:
            if not 0 <= lora.scale <= 4:
                raise refusal("loras", "takes LoRA scales from 0 to 4")
            if lora.path_low or lora.scale_low is not None:
                raise refusal("loras", "has one LoRA path and scale each")
        if job.model == "wan-2.2-i2v" and job.tier == "1080p" and job.seconds > 5.125:
            raise refusal("seconds", "makes at most 5 seconds at 1080p")
        if not model.offers("shot_type"):
            return
        if job.shot_type == "multi" and not job.prompt_expansion:
            raise refusal("shot_type", "cuts into shots only with prompt expansion")

    def write_submit(
        self, job: ProviderJob, model: WireModel, account: ProviderAccount
    ) -> HttpCall:
        if job.model == "wan-i2v":
            body = self._wan_2_1(job)
        elif job.model == "wan2.7-i2v":
            body = self._flat(job, model)
        else:
            body = self._nested(job, model)
        if job.callback_url:
            body["extra"] = {"webhook": {"url": job.callback_url}}
        return HttpCall(
            "POST",
            account.url(f"/v3/async/{job.model}"),
            self.bearer(account),
            json={**body, **job.extra},
            timeout_seconds=30,
        )

    def _wan_2_1(self, job: ProviderJob) -> dict[str, Any]:
        width, height = _LANDSCAPE[job.tier]
        if job.is_portrait:
            width, height = height, width
        body: dict[str, Any] = {
            "image_url": self.picture_url(job.image),
            "prompt": job.prompt,
            "width": width,
            "height": height,
            "seed": -1 if job.seed is None else job.seed,
            "enable_safety_checker": job.safety_checker,
            "fast_mode": job.quality == "fast",
        }
        for name in ("steps", "guidance_scale", "flow_shift"):
            if (value := getattr(job, name)) is not None:
                body[name] = value
        if job.negative_prompt:
            body["negative_prompt"] = job.negative_prompt
        if job.loras:
            body["loras"] = _loras(job)
        return body

    def _nested(self, job: ProviderJob, model: WireModel) -> dict[str, Any]:
        source = {"img_url": self.picture_url(job.image)}
        if job.prompt:
            source["prompt"] = job.prompt
        if job.negative_prompt:
            source["negative_prompt"] = job.negative_prompt
        if job.audio_mode == "url" and job.audio_url:
            source["audio_url"] = job.audio_url
        parameters: dict[str, Any] = {
            "resolution": model.tiers[job.tier],
            "duration": self.sold_seconds(job, model),
            "prompt_extend": job.prompt_expansion,
        }
        if job.seed is not None:
            parameters["seed"] = job.seed
        if job.loras:
            parameters["loras"] = _loras(job)
        if model.audio:
            parameters["watermark"] = False
            if job.audio_mode != "url":
                parameters["audio"] = job.audio_mode == "generate"
        if model.offers("shot_type"):
            parameters["shot_type"] = job.shot_type
        return {"input": source, "parameters": parameters}

    def _flat(self, job: ProviderJob, model: WireModel) -> dict[str, Any]:
        body: dict[str, Any] = {
            "image_url": self.picture_url(job.image),
            "resolution": model.tiers[job.tier],
            "duration": self.sold_seconds(job, model),
            "prompt_extend": job.prompt_expansion,
            "watermark": False,
        }
        if job.prompt:
            body["prompt"] = job.prompt
        if job.negative_prompt:
            body["negative_prompt"] = job.negative_prompt
        if job.seed is not None:
            body["seed"] = job.seed
        if job.last_image is not None:
            body["last_frame_url"] = self.picture_url(job.last_image)
        if job.audio_mode == "url":
            body["driving_audio_url"] = job.audio_url
        return body

    def read_submit(self, body: Any, account: ProviderAccount) -> Submitted:
        return Submitted(text(record(body)["task_id"]))

    def write_status(self, ids: Sequence[str], account: ProviderAccount) -> HttpCall:
        return HttpCall(
            "GET",
            account.url("/v3/async/task-result"),
            self.bearer(account),
            params={"task_id": ids[0]},
            idempotent=True,
        )

    def read_status(
        self, body: Any, ids: Sequence[str], account: ProviderAccount
    ) -> dict[str, RemoteStatus]:
        answer = record(body)
        task = record(answer["task"])
        state = _STATES[text(task["status"])]
        if state == "failed":
            # ``reason`` is free text; some of it starts with a name of the table.
            reason = str(task.get("reason") or "")
            name = reason.partition(":")[0].strip()
            return {ids[0]: RemoteStatus("failed", error=self.failure(name, reason))}
        videos = answer.get("videos") or []
        url = text(videos[0]["video_url"]) if state == "succeeded" and videos else None
        return {
            ids[0]: RemoteStatus(
                state,
                fraction(task.get("progress_percent")),
                url,
                notes=_notes(answer.get("extra")),
            )
        }

    def parse_callback(
        self, body: bytes, headers: Mapping[str, str], account: ProviderAccount
    ) -> CallbackHint:
        try:
            event = record(json.loads(body))
            if event["event_type"] != "ASYNC_TASK_RESULT":
                raise CallbackRefused("novita: not a task result")
            task = record(record(event["payload"])["task"])
            return CallbackHint(text(task["task_id"]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CallbackRefused(f"novita: unreadable callback: {error}") from error

    def read_error(self, reply: HttpReply, body: Any) -> WireError | None:
        # Clients of this service treat anything but exactly 200 as a failure.
        if reply.status == 200 or not isinstance(body, dict) or "reason" not in body:
            return None
        return WireError(str(body["reason"]), str(body.get("message") or ""))


def _loras(job: ProviderJob) -> list[dict[str, Any]]:
    return [{"path": lora.path, "scale": lora.scale} for lora in job.loras]


def _notes(extra: Any) -> dict[str, Any]:
    seed = decimal(optional(extra).get("seed"))  # a numeric string
    return {} if seed is None else {"seed": int(seed)}
