"""What the tests of providers speak about: an account, a job, a recorded answer."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from inference import registry
from inference.providers.base import (
    HttpReply,
    Picture,
    Provider,
    ProviderAccount,
    ProviderJob,
)
from tests.fakes import FakeService
from tests.fakes.bodies import load, recorded

PROVIDERS = tuple(registry.PROVIDERS)
CREDENTIALS = {
    "api_key": "sk-canary-key",
    "client_id": "cid_0123456789ab",
    "client_secret": "0123456789abcdef0123456789abcdef",
    "webhook_secret": "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
}


def provider(name: str) -> Provider:
    return registry.provider(name)


def make_png(size: tuple[int, int] = (64, 48), colour: str = "teal") -> bytes:
    target = io.BytesIO()
    Image.new("RGB", size, colour).save(target, "PNG")
    return target.getvalue()


PNG = make_png()


def make_account(
    base_url: str = "https://vendor.example", **settings: Any
) -> ProviderAccount:
    return ProviderAccount("main", base_url, CREDENTIALS, settings)


def account_at(fake: FakeService, **settings: Any) -> ProviderAccount:
    """An account whose keys are the ones the fake signs with."""
    credentials = {
        "api_key": "sk-test",
        "client_id": fake.client_id,
        "client_secret": fake.client_secret,
        "webhook_secret": fake.webhook_secret,
    }
    return ProviderAccount("main", fake.url, credentials, settings)


def make_job(name: str, model: str = "", **changes: Any) -> ProviderJob:
    """The plainest job the first (or named) model of provider ``name`` takes."""
    adapter = provider(name)
    model = model or next(iter(adapter.models))
    facts = adapter.models[model]
    last = Picture(PNG, url="https://files.example/last.png")
    values: dict[str, Any] = {
        "reference": "attempt-1",
        "model": model,
        "image": Picture(PNG, url="https://files.example/first.png"),
        "last_image": last if facts.last_image_required else None,
        "tier": next(iter(facts.tiers)),
        "width": 832,
        "height": 480,
        "frames": 2 * 16,
        "fps": 16,
        "prompt": "a quiet street",
        **changes,
    }
    return ProviderJob(**values)


def reply(status: int, body: bytes, **headers: str) -> HttpReply:
    return HttpReply(status, {n.replace("_", "-"): v for n, v in headers.items()}, body)


def recorded_reply(name: str, file: str, body: str) -> HttpReply:
    """The vendor's own example, as its source printed it."""
    status, content = recorded(name, file, body)
    headers = {k.lower(): v for k, v in load(name, file)[body].headers.items()}
    return HttpReply(status, headers, content)
