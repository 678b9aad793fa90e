"""Any server that speaks OpenAI's Videos API: ``/v1/videos`` as multipart forms.

Sources: openai (PyPI) 3.52.0, litellm 1.106.2, captured wire forms. The result is read
from ``/content`` with the account's key. Account settings, since servers differ:
``seconds`` (lengths sold, default 4, 8, 12), ``sizes`` (tier → landscape size),
``models`` (further model names), ``sound`` (the server makes sound), ``pictures_exact``
(false: any picture size is taken).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, ClassVar, Final

from inference.providers.account_settings import LENGTHS, NAMES, SWITCH
from inference.providers.account_settings import SIZES as SIZES_BY_TIER
from inference.providers.base import (
    ACCOUNT,
    API_KEY,
    BAD_IMAGE,
    BLOCKED,
    BUSY,
    CUSTOMER,
    HEALTH,
    UNKNOWN_JOB,
    CallbackHint,
    CallbackRefused,
    Capabilities,
    CredentialField,
    ErrorRule,
    Evidence,
    FilePart,
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
    fraction,
    optional,
    record,
    text,
)

_STATES: Final[Mapping[str, State]] = MappingProxyType(
    {
        "queued": "queued",
        "in_progress": "running",
        "completed": "succeeded",
        "failed": "failed",
    }
)
#: tier → landscape size; portrait is the same turned over
SIZES: Final = MappingProxyType(
    {"480p": "1280x720", "720p": "1280x720", "1080p": "1792x1024"}
)
SECONDS: Final = (4, 8, 12)
WEBHOOK_TOLERANCE_SECONDS: Final = 300


class OpenAIVideos(Provider):
    """Pictures as an upload; a list with prompts; delete; account-wide signed webhooks."""

    name = "openai_videos"
    title = "OpenAI Videos compatible"
    default_base_url = "https://api.openai.com"
    credential_fields = (
        API_KEY,
        CredentialField("webhook_secret", "Webhook secret (whsec_…)", required=False),
    )
    own_settings = MappingProxyType(
        {
            "seconds": LENGTHS,
            "sizes": SIZES_BY_TIER,
            "models": NAMES,
            "sound": SWITCH,
            "pictures_exact": SWITCH,
        }
    )
    capabilities = Capabilities(
        picture=PictureNeed(
            "upload", media_types=("image/png", "image/jpeg", "image/webp")
        ),
        evidence=Evidence.TASK_LIST,
        delete=True,
        callback_signed=True,
        poll_seconds=10.0,
    )
    models = MappingProxyType(
        {
            name: WireModel(
                seconds=SECONDS,
                tiers=tiers,
                audio=frozenset({"generate"}),
                prompt_required=True,
            )
            for name, tiers in (
                (
                    "sora-2",
                    MappingProxyType({"480p": "1280x720", "720p": "1280x720"}),
                ),
                ("sora-2-pro", SIZES),
            )
        }
    )
    errors: ClassVar[Mapping[str, ErrorRule]] = MappingProxyType(
        {
            "invalid_request_error": CUSTOMER,
            "invalid_api_key": ACCOUNT,
            "authentication_error": ACCOUNT,
            "permission_error": ACCOUNT,
            "insufficient_quota": ACCOUNT,
            "billing_hard_limit_reached": ACCOUNT,
            "rate_limit_exceeded": BUSY,
            "rate_limit_error": BUSY,
            "not_found": UNKNOWN_JOB,
            "not_found_error": UNKNOWN_JOB,
            "video_not_found": UNKNOWN_JOB,
            "model_not_found": HEALTH,
            "invalid_image": BAD_IMAGE,
            "image_format_unsupported": BAD_IMAGE,
            "image_size_invalid": BAD_IMAGE,
            "image_alpha_unsupported": BAD_IMAGE,
            "image_too_large": BAD_IMAGE,
            "moderation_blocked": BLOCKED,
            "content_policy_violation": BLOCKED,
            "content_blocked": BLOCKED,
            "invalid_input": CUSTOMER,
            "server_error": HEALTH,
        }
    )

    def model(self, name: str, account: ProviderAccount) -> WireModel:
        """Return the facts of a model; other servers' models come from the settings."""
        given, known = account.settings, self.models.get(name)
        if known is None and name not in given.get("models", (name,)):
            return super().model(name, account)
        sound = given.get("sound", known is not None)
        lengths = given.get("seconds", known.seconds if known else SECONDS)
        return WireModel(
            seconds=tuple(sorted(int(length) for length in lengths)),
            tiers=MappingProxyType(
                dict(given.get("sizes", known.tiers if known else SIZES))
            ),
            audio=frozenset({"generate"}) if sound else frozenset(),
            prompt_required=True,
        )

    def canvas(
        self, job: ProviderJob, account: ProviderAccount
    ) -> tuple[int, int] | None:
        # "input_reference must match size": servers refuse other pictures.
        if not account.settings.get("pictures_exact", True):
            return None
        wide, high = self._size(job, self.model(job.model, account))
        return wide, high

    def _size(self, job: ProviderJob, model: WireModel) -> tuple[int, int]:
        wide, _, high = model.tiers[job.tier].partition("x")
        long, short = sorted((int(wide), int(high)), reverse=True)
        return (short, long) if job.is_portrait else (long, short)

    def write_submit(
        self, job: ProviderJob, model: WireModel, account: ProviderAccount
    ) -> HttpCall:
        wide, high = self._size(job, model)
        suffix = job.image.media_type.partition("/")[2]
        return HttpCall(
            "POST",
            _url(account, "/v1/videos"),
            self.bearer(account),
            form={
                "prompt": job.prompt,
                "model": job.model,
                "seconds": str(self.sold_seconds(job, model)),
                "size": f"{wide}x{high}",
                **{name: str(value) for name, value in job.extra.items()},
            },
            files={
                "input_reference": FilePart(
                    f"input.{suffix}", job.image.media_type, job.image.data
                )
            },
            timeout_seconds=60,
        )

    def read_submit(self, body: Any, account: ProviderAccount) -> Submitted:
        return Submitted(text(record(body)["id"]))

    def write_status(self, ids: Sequence[str], account: ProviderAccount) -> HttpCall:
        return HttpCall(
            "GET",
            _url(account, f"/v1/videos/{ids[0]}"),
            self.bearer(account),
            idempotent=True,
        )

    def read_status(
        self, body: Any, ids: Sequence[str], account: ProviderAccount
    ) -> dict[str, RemoteStatus]:
        video = record(body)
        state = _STATES[text(video["status"])]
        if state == "failed":
            error = optional(video.get("error"))
            failure = self.failure(
                str(error.get("code") or ""), str(error.get("message") or "")
            )
            return {ids[0]: RemoteStatus("failed", error=failure)}
        done = state == "succeeded"
        return {
            ids[0]: RemoteStatus(
                state,
                fraction(video.get("progress")),
                _url(account, f"/v1/videos/{ids[0]}/content") if done else None,
                self.bearer(account) if done else {},
            )
        }

    def build_delete(self, provider_id: str, account: ProviderAccount) -> HttpCall:
        return HttpCall(
            "DELETE",
            _url(account, f"/v1/videos/{provider_id}"),
            self.bearer(account),
            idempotent=True,
        )

    def build_find(self, query: FindQuery, account: ProviderAccount) -> HttpCall:
        params = {"limit": "100", "order": "desc"}
        if query.cursor:
            params["after"] = query.cursor
        return HttpCall(
            "GET",
            _url(account, "/v1/videos"),
            self.bearer(account),
            params=params,
            idempotent=True,
        )

    def read_find(self, body: Any, query: FindQuery) -> Found:
        listing = record(body)
        candidates, last, past_window = [], None, False
        for item in map(record, listing["data"]):
            last = text(item["id"])
            # ``created_at`` counts whole seconds, rounded down.
            created = datetime.fromtimestamp(int(item["created_at"]), UTC)
            since = query.since.replace(microsecond=0)
            past_window = past_window or created < since
            mine = item.get("model") == query.model
            # Older servers leave the prompt out; then time and model must do.
            words = item.get("prompt")
            mine = mine and (words is None or query.prompt in (None, words))
            if mine and since <= created <= query.until and last not in query.known_ids:
                candidates.append(last)
        more = bool(listing.get("has_more")) and not past_window
        return Found(
            tuple(candidates),
            conclusive=not more,
            next_cursor=last if more else None,
        )

    def parse_callback(
        self, body: bytes, headers: Mapping[str, str], account: ProviderAccount
    ) -> CallbackHint:
        self._verify(body, headers, account)
        try:
            event = record(json.loads(body))
            if event["type"] not in ("video.completed", "video.failed"):
                raise CallbackRefused(f"openai: an event of type {event['type']!r}")
            return CallbackHint(text(record(event["data"])["id"]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CallbackRefused(f"openai: unreadable callback: {error}") from error

    def _verify(
        self, body: bytes, headers: Mapping[str, str], account: ProviderAccount
    ) -> None:
        """Check the Standard Webhooks signature: HMAC-SHA256 over id.timestamp.body."""
        try:
            stamp = headers["webhook-timestamp"]
            signed = f"{headers['webhook-id']}.{stamp}.".encode() + body
            given = headers["webhook-signature"].split()
            secret = account.credentials["webhook_secret"].removeprefix("whsec_")
            key = base64.b64decode(secret, validate=True)
            age = abs(time.time() - int(stamp))
        except (KeyError, ValueError, binascii.Error) as error:
            raise CallbackRefused("openai: not a signed webhook") from error
        if age > WEBHOOK_TOLERANCE_SECONDS:
            raise CallbackRefused("openai: a webhook from another time")
        expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256))
        if not any(
            hmac.compare_digest(one.removeprefix("v1,").encode(), expected)
            for one in given
        ):
            raise CallbackRefused("openai: wrong signature")

    def read_error(self, reply: HttpReply, body: Any) -> WireError | None:
        if reply.status < 400 or not isinstance(body, dict):
            return None
        error = body.get("error")
        if not isinstance(error, dict):
            return None
        message = str(error.get("message") or "")
        # ``code`` is the finer name; ``type`` stands where there is none.
        code, kind = str(error.get("code") or ""), str(error.get("type") or "")
        if code in self.errors:
            return WireError(code, message)
        if reply.status == 404:
            return WireError("not_found", message)
        # These mean the same whatever the type says ("invalid_request_error" mostly).
        if reply.status in (401, 402, 403, 409, 429):
            return WireError(code, message)
        return WireError(kind if kind in self.errors else code, message)


def _url(account: ProviderAccount, path: str) -> str:
    """Return the address of ``path``; base URLs are written with and without ``/v1``."""
    return account.base_url.rstrip("/").removesuffix("/v1") + path
