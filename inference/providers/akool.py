"""Akool image2Video v4: business codes inside HTTP 200, many ids per status call.

Sources: docs.akool.com (image2video, webhook, usage, error-code) and
github.com/AKOOL-Official/akool-image-to-video-demo @ e22667c. Pictures go by URL. Which
field says why an item failed, and the code for "Pro plan needed", are not documented.
The clientId and clientSecret of an account also open its callbacks.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import Any, ClassVar, Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from inference.providers.account_settings import PRICE
from inference.providers.base import (
    ACCOUNT,
    BLOCKED,
    BUSY,
    CUSTOMER,
    HEALTH,
    MODEL,
    UNKNOWN_JOB,
    CallbackHint,
    CallbackRefused,
    Capabilities,
    CredentialField,
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
    record,
    text,
)

ROOT: Final = "/api/open/v4/image2Video"
_STATES: Final[Mapping[int, State]] = MappingProxyType(
    {1: "queued", 2: "running", 3: "succeeded", 4: "failed"}
)
_AUDIO_TYPE: Final = MappingProxyType({"generate": 1, "url": 2, "none": 3})


class Akool(Provider):
    """Pictures by URL; signed callbacks; deletes its copies; no seed, no cancel, no list."""

    name = "akool"
    title = "Akool"
    default_base_url = "https://openapi.akool.com"
    credential_fields = (
        CredentialField("client_id", "Client ID (callbacks)"),
        CredentialField("client_secret", "Client secret = API key"),
    )
    own_settings = MappingProxyType({"usd_per_credit": PRICE})
    capabilities = Capabilities(
        picture=PictureNeed("url"),
        evidence=Evidence.CALLBACK_TOKEN,
        delete=True,
        callback_per_job=True,
        callback_signed=True,
        status_batch=50,  # no limit is documented; ours
        poll_seconds=10.0,
    )
    models = MappingProxyType(
        {
            "image2Video": WireModel(
                seconds=(5, 10),
                tiers=MappingProxyType({"720p": "720p", "1080p": "1080p", "4k": "4k"}),
                options=frozenset({"negative_prompt", "prompt_expansion", "premium"}),
                audio=frozenset({"generate", "url"}),
                prompt_required=True,
                negative_prompt_max=2000,
            )
        }
    )
    errors: ClassVar[Mapping[str, ErrorRule]] = MappingProxyType(
        {
            "1003": CUSTOMER,  # parameter error
            "1005": BUSY,  # too frequent
            "1006": ACCOUNT,  # credits insufficient
            "1104": ACCOUNT,  # likewise, seen by others
            "1008": UNKNOWN_JOB,  # content does not exist
            "1009": MODEL,  # no permission; also what an account without Pro plan gets
            "1015": HEALTH,  # create video error
            "1101": ACCOUNT,  # invalid authorization
            "1102": ACCOUNT,  # authorization empty
            "1109": ACCOUNT,  # invalid API key
            "1200": ACCOUNT,  # account banned
        }
    )
    job_errors: ClassVar[Mapping[str, ErrorRule]] = MappingProxyType(
        {"content_blocked": BLOCKED, "invalid_input": CUSTOMER}  # ours
    )

    def write_submit(
        self, job: ProviderJob, model: WireModel, account: ProviderAccount
    ) -> HttpCall:
        body: dict[str, Any] = {
            "image_url": self.picture_url(job.image),
            "prompt": job.prompt,
            "negative_prompt": job.negative_prompt,
            "extend_prompt": job.prompt_expansion,
            "resolution": model.tiers[job.tier],
            "audio_type": _AUDIO_TYPE[job.audio_mode],
            "video_length": self.sold_seconds(job, model),
            "is_premium_model": job.premium,
        }
        if job.audio_mode == "url":
            body["audio_url"] = job.audio_url
        if job.callback_url:
            body["webhookurl"] = job.callback_url  # lower-case u, here only
        return self._call(
            account, "/createBySourcePrompt", {**body, **job.extra}, idempotent=False
        )

    def read_submit(self, body: Any, account: ProviderAccount) -> Submitted:
        data = record(record(body)["data"])
        return Submitted(text(data["_id"]), _usd(data, account))

    def write_status(self, ids: Sequence[str], account: ProviderAccount) -> HttpCall:
        # A POST that reads; the ids are one comma-joined string, never an array.
        return self._call(
            account, "/resultsByIds", {"_ids": ",".join(ids)}, idempotent=True
        )

    def read_status(
        self, body: Any, ids: Sequence[str], account: ProviderAccount
    ) -> dict[str, RemoteStatus]:
        items = map(record, record(record(body)["data"])["result"])
        return {text(item["_id"]): self._item(item, account) for item in items}

    def _item(self, item: dict[str, Any], account: ProviderAccount) -> RemoteStatus:
        state = _STATES[item["status"]]
        if state == "failed":
            key = str(item.get("error_code") or "")
            failure = self.failure(key, str(item.get("error_msg") or ""))
            return RemoteStatus("failed", error=failure)
        url = item.get("video_url") if state == "succeeded" else None
        return RemoteStatus(state, video_url=url or None, cost_usd=_usd(item, account))

    def build_delete(self, provider_id: str, account: ProviderAccount) -> HttpCall:
        return self._call(account, "/delbyids", {"_ids": provider_id}, idempotent=True)

    def parse_delete(self, reply: HttpReply, account: ProviderAccount) -> bool:
        if not super().parse_delete(reply, account):
            return False
        body = reply.json()
        data = body.get("data") if isinstance(body, dict) else None
        kept = data.get("noPermissionItems") if isinstance(data, dict) else None
        return not kept

    def parse_callback(
        self, body: bytes, headers: Mapping[str, str], account: ProviderAccount
    ) -> CallbackHint:
        """Check the SHA-1 signature, then open the AES-CBC envelope.

        The signature covers no clock window, so a replayed callback verifies; it is
        only a hint, and the state is read again before anything changes.
        """
        client_id, secret = account.secret("client_id"), account.secret("client_secret")
        try:
            envelope = record(json.loads(body))
            sealed = text(envelope["dataEncrypt"])
            parts = (
                client_id,
                text(envelope["timestamp"]),
                text(envelope["nonce"]),
                sealed,
            )
            given = text(envelope["signature"])
            expected = hashlib.sha1("".join(sorted(parts)).encode()).hexdigest()  # noqa: S324 - the vendor's algorithm
            if not hmac.compare_digest(expected.encode(), given.encode()):
                raise CallbackRefused("akool: wrong signature")
            event = record(json.loads(_open(sealed, client_id, secret)))
            return CallbackHint(text(event["_id"]), finished=event["status"] in (3, 4))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CallbackRefused(f"akool: unreadable callback: {error}") from error

    def read_error(self, reply: HttpReply, body: Any) -> WireError | None:
        if not isinstance(body, dict) or not isinstance(body.get("code"), int):
            return None
        if body["code"] == 1000:
            return None
        return WireError(str(body["code"]), str(body.get("msg") or ""))

    def rule_for(self, reply: HttpReply, body: Any) -> tuple[ErrorRule, str] | None:
        refusal = super().rule_for(reply, body)
        # Errors ride in HTTP 200, so the status cannot classify an unknown code.
        if refusal is None or reply.status != 200:
            return refusal
        wire = self.read_error(reply, body)
        if wire is not None and wire.key not in self.errors:
            return HEALTH, refusal[1]
        return refusal

    def _call(
        self, account: ProviderAccount, path: str, body: Any, *, idempotent: bool
    ) -> HttpCall:
        return HttpCall(
            "POST",
            account.url(ROOT + path),
            {"x-api-key": account.secret("client_secret")},
            json=body,
            timeout_seconds=30,
            idempotent=idempotent,
        )


def _open(sealed: str, client_id: str, secret: str) -> bytes:
    """Return the plaintext of a callback: AES-CBC, the key's length picks the variant."""
    try:
        data = base64.b64decode(sealed, validate=True)
    except binascii.Error as error:
        raise ValueError("dataEncrypt is not base64") from error
    cipher = Cipher(algorithms.AES(secret.encode()), modes.CBC(client_id.encode()))
    decryptor = cipher.decryptor()
    padded = decryptor.update(data) + decryptor.finalize()
    unpadder = PKCS7(128).unpadder()
    return unpadder.update(padded) + unpadder.finalize()


def _usd(item: Mapping[str, Any], account: ProviderAccount) -> Decimal | None:
    """Return the deduction in USD; what a credit costs is the operator's contract."""
    price = decimal(account.settings.get("usd_per_credit"))
    deducted = decimal(item.get("deduction_credit"))
    return None if price is None or deducted is None else price * deducted
