"""Alibaba DashScope (Model Studio, Bailian): asynchronous tasks, kept for 24 hours.

Sources: alibabacloud.com/help/en/model-studio (image-to-video API reference,
manage-asynchronous-tasks, error-code); dashscope 2.0.2 for the field names of the
first-and-last-frame and 2.7 forms. Every body carries a request_id; a failed task and an
unknown id are HTTP 200.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any, ClassVar, Final

from inference.providers.account_settings import TEXT
from inference.providers.base import (
    ACCOUNT,
    BAD_IMAGE,
    BLOCKED,
    BUSY,
    CUSTOMER,
    HEALTH,
    MODEL,
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
    record,
    refusal,
    text,
)

_STATES: Final[Mapping[str, State]] = MappingProxyType(
    {
        "PENDING": "queued",
        "SUSPENDED": "queued",  # in the SDK's enum only
        "RUNNING": "running",
        "SUCCEEDED": "succeeded",
        "FAILED": "failed",
        "CANCELED": "failed",
        "UNKNOWN": "unknown",
    }
)
#: Times of queries and answers are local to Beijing and name no zone.
BEIJING: Final = timezone(timedelta(hours=8))
LIST_PAGE: Final = 100

_I2V: Final = "/api/v1/services/aigc/video-generation/video-synthesis"
_KF2V: Final = "/api/v1/services/aigc/image2video/video-synthesis"
_ALL = MappingProxyType({"480p": "480P", "720p": "720P", "1080p": "1080P"})
_HD = MappingProxyType({"720p": "720P", "1080p": "1080P"})
_SD = MappingProxyType({"480p": "480P", "720p": "720P"})
_BASIC = frozenset({"negative_prompt", "seed", "prompt_expansion"})
_SOUND = frozenset[Any]({"generate", "url"})
_USD_2_6 = MappingProxyType({"720p": Decimal("0.10"), "1080p": Decimal("0.15")})


def _old(tiers: Mapping[str, str], *seconds: int, kf: bool = False) -> WireModel:
    return WireModel(
        seconds=seconds or (5,),
        tiers=MappingProxyType(dict(tiers)),
        options=_BASIC | ({"last_image"} if kf else set()),
        last_image_required=kf,
        prompt_max=800,
    )


class DashScope(Provider):
    """Pictures as data URIs; a task list; cancel while PENDING; no delete, no callbacks."""

    name = "dashscope"
    title = "Alibaba DashScope"
    default_base_url = "https://dashscope-intl.aliyuncs.com"
    own_settings = MappingProxyType({"workspace": TEXT})
    capabilities = Capabilities(
        picture=PictureNeed("inline", side_min=360, side_max=2000),
        evidence=Evidence.TASK_LIST,
        cancel=True,
        poll_seconds=10.0,
        statuses_per_second=15.0,  # "20 QPS per account"; room for the list and cancels
        list_shows_prompts=False,
    )
    models = MappingProxyType(
        {
            "wan2.7-i2v": WireModel(
                seconds=tuple(range(2, 16)),
                tiers=_HD,
                options=_BASIC | {"last_image"},
                audio=_SOUND,
                prompt_max=5000,
            ),
            "wan2.6-i2v": WireModel(
                seconds=(5, 10, 15),
                tiers=_HD,
                options=_BASIC | {"shot_type"},
                audio=_SOUND,
                usd_per_second=_USD_2_6,
            ),
            "wan2.6-i2v-flash": WireModel(
                seconds=(5, 10, 15),
                tiers=_HD,
                options=_BASIC | {"shot_type"},
                audio=_SOUND,
            ),
            "wan2.5-i2v-preview": WireModel(
                seconds=(5, 10), tiers=_ALL, options=_BASIC, audio=_SOUND
            ),
            "wan2.2-i2v-plus": _old({"480p": "480P", "1080p": "1080P"}),
            "wan2.2-i2v-flash": _old(_SD),
            "wanx2.1-i2v-plus": _old({"720p": "720P"}),
            "wanx2.1-i2v-turbo": _old(_SD, 3, 4, 5),
            "wanx2.1-kf2v-plus": _old({"720p": "720P"}, kf=True),
            "wan2.2-kf2v-flash": _old(_ALL, kf=True),
        }
    )
    #: A name also stands for its dotted children: Throttling.RateQuota is Throttling.
    errors: ClassVar[Mapping[str, ErrorRule]] = MappingProxyType(
        {
            "InvalidParameter": CUSTOMER,
            "InvalidParameter.DataInspection": BAD_IMAGE,  # media could not be read
            "DataInspectionFailed": BLOCKED,
            "IPInfringementSuspect": BLOCKED,
            "BadRequest": CUSTOMER,
            "InvalidURL": HEALTH,  # it could not read our link: not the customer's doing
            "Arrearage": ACCOUNT,
            "InvalidApiKey": ACCOUNT,
            "AccessDenied": ACCOUNT,
            "AccessDenied.Unpurchased": MODEL,
            "ModelNotFound": HEALTH,
            "Model.NotExist": HEALTH,
            "UnsupportedOperation": CUSTOMER,  # a cancel that comes too late
            "Throttling": BUSY,
            "InternalError": HEALTH,
            "ServiceUnavailable": HEALTH,
        }
    )

    def check_more(self, job: ProviderJob, model: WireModel) -> None:
        if not model.offers("shot_type"):
            return
        if job.shot_type == "multi" and not job.prompt_expansion:
            raise refusal("shot_type", "cuts into shots only with prompt expansion")

    def write_submit(
        self, job: ProviderJob, model: WireModel, account: ProviderAccount
    ) -> HttpCall:
        parameters: dict[str, Any] = {
            "resolution": model.tiers[job.tier],
            "prompt_extend": job.prompt_expansion,
            "watermark": False,
        }
        if len(model.seconds) > 1:
            parameters["duration"] = self.sold_seconds(job, model)
        if model.offers("shot_type"):
            parameters["shot_type"] = job.shot_type
        if model.audio and job.model != "wan2.7-i2v" and job.audio_mode != "url":
            parameters["audio"] = job.audio_mode == "generate"
        if job.seed is not None:
            parameters["seed"] = job.seed
        source = self._pictures(job, model)
        if job.prompt:
            source["prompt"] = job.prompt
        if job.negative_prompt:
            source["negative_prompt"] = job.negative_prompt
        path = _KF2V if model.last_image_required else _I2V
        headers = {**self._headers(account), "X-DashScope-Async": "enable"}
        return HttpCall(
            "POST",
            account.url(path),
            headers,
            json={
                "model": job.model,
                "input": source,
                "parameters": {**parameters, **job.extra},
            },
            timeout_seconds=60,
        )

    def _pictures(self, job: ProviderJob, model: WireModel) -> dict[str, Any]:
        """Return the part of ``input`` that names pictures and sound, in its three forms."""
        first = data_uri(job.image)
        last = data_uri(job.last_image) if job.last_image else None
        if model.last_image_required:
            return {"first_frame_url": first, "last_frame_url": last}
        if job.model != "wan2.7-i2v":
            source: dict[str, Any] = {"img_url": first}
            if job.audio_mode == "url":
                source["audio_url"] = job.audio_url
            return source
        media = [{"type": "first_frame", "url": first}]
        if last:
            media.append({"type": "last_frame", "url": last})
        if job.audio_mode == "url" and job.audio_url:
            media.append({"type": "driving_audio", "url": job.audio_url})
        return {"media": media}

    def _headers(self, account: ProviderAccount) -> dict[str, str]:
        headers = self.bearer(account)
        if workspace := account.settings.get("workspace"):
            headers["X-DashScope-WorkSpace"] = str(workspace)
        return headers

    def read_submit(self, body: Any, account: ProviderAccount) -> Submitted:
        return Submitted(text(record(record(body)["output"])["task_id"]))

    def write_status(self, ids: Sequence[str], account: ProviderAccount) -> HttpCall:
        return HttpCall(
            "GET",
            account.url(f"/api/v1/tasks/{ids[0]}"),
            self._headers(account),
            idempotent=True,
        )

    def read_status(
        self, body: Any, ids: Sequence[str], account: ProviderAccount
    ) -> dict[str, RemoteStatus]:
        output = record(record(body)["output"])
        status = text(output["task_status"])
        state = _STATES[status]
        if state == "failed":
            code = str(output.get("code") or status)
            failure = self.failure(code, str(output.get("message") or ""))
            return {ids[0]: RemoteStatus("failed", error=failure)}
        notes = {
            "prompt": output.get("orig_prompt"),
            "expanded_prompt": output.get("actual_prompt"),
        }
        return {
            ids[0]: RemoteStatus(
                state,
                video_url=output.get("video_url") if state == "succeeded" else None,
                notes={name: words for name, words in notes.items() if words},
            )
        }

    def build_cancel(self, provider_id: str, account: ProviderAccount) -> HttpCall:
        return HttpCall(
            "POST",
            account.url(f"/api/v1/tasks/{provider_id}/cancel"),
            self._headers(account),
            idempotent=True,
        )

    def build_find(self, query: FindQuery, account: ProviderAccount) -> HttpCall:
        """Ask for the model's tasks of the window; the list shows no prompts.

        A candidate is confirmed by a status call whose ``notes["prompt"]`` is ours.
        """
        # Whole seconds on the wire, so a second of room on both sides.
        since = query.since - timedelta(seconds=1)
        until = query.until + timedelta(seconds=1)
        return HttpCall(
            "GET",
            account.url("/api/v1/tasks/"),
            self._headers(account),
            params={
                "start_time": since.astimezone(BEIJING).strftime("%Y%m%d%H%M%S"),
                "end_time": until.astimezone(BEIJING).strftime("%Y%m%d%H%M%S"),
                "model_name": query.model,
                "page_no": query.cursor or "1",
                "page_size": str(LIST_PAGE),
            },
            idempotent=True,
        )

    def read_find(self, body: Any, query: FindQuery) -> Found:
        listing = record(body)
        candidates = []
        for item in map(record, listing["data"]):
            created = datetime.fromtimestamp(int(item["gmt_create"]) / 1000, UTC)
            in_time = query.since <= created <= query.until
            mine = item.get("model_name") == query.model
            if in_time and mine and item["task_id"] not in query.known_ids:
                candidates.append(text(item["task_id"]))
        page = int(listing.get("page_no") or 1)
        more = page < int(listing.get("total_page") or 1)
        return Found(
            tuple(candidates),
            conclusive=not more,
            next_cursor=str(page + 1) if more else None,
        )

    def read_error(self, reply: HttpReply, body: Any) -> WireError | None:
        if not isinstance(body, dict) or not body.get("code"):
            return None
        return WireError(str(body["code"]), str(body.get("message") or ""))
