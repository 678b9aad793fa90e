"""Builds what steps may use of the outside world, from the settings, once a process."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from django.conf import settings

from inference import egress
from inference.contracts import Context
from inference.storage import Storage
from jobs.ours import LoraTable


def context() -> Context:
    """Return this process's Context; ``settings.CONTEXT_FACTORY`` names this function."""
    return Context(
        storage=Storage(
            endpoint_url=settings.S3_ENDPOINT_URL,
            public_endpoint_url=settings.S3_PUBLIC_ENDPOINT_URL,
            bucket=settings.S3_BUCKET,
            access_key=settings.S3_ACCESS_KEY,
            secret_key=settings.S3_SECRET_KEY,
            region=settings.S3_REGION,
            prefix=settings.S3_PREFIX,
        ),
        egress=egress.Egress(
            settings.EGRESS_ALLOW_HOSTS,
            deny_hosts=[
                urlsplit(url).hostname or ""
                for url in (
                    settings.PUBLIC_URL,
                    settings.S3_PUBLIC_ENDPOINT_URL,
                    settings.S3_ENDPOINT_URL,
                )
            ],
        ),
        workdir=settings.WORK_DIR,
        weights=settings.WEIGHTS_DIR,
        options={
            "lora_aliases": LoraTable(),
            "lora_sources": settings.LORA_SOURCES,
            "weights_sources": settings.WEIGHTS_SOURCES,
            "weights_s3": {
                "endpoint_url": settings.S3_ENDPOINT_URL,
                "aws_access_key_id": settings.S3_ACCESS_KEY,
                "aws_secret_access_key": settings.S3_SECRET_KEY,
                "region_name": settings.S3_REGION,
            },
            "remote_engines": json.loads(settings.REMOTE_ENGINES),
            "certificate": settings.C2PA_CERTIFICATE,
            "private_key": settings.C2PA_KEY,
            "timestamp_url": settings.C2PA_TIMESTAMP_URL,
            "signing_folder": settings.ZOETROPE_HOME / "signing",
            "safety_required": settings.SAFETY_REQUIRE_CLASSIFIER,
            "safety_threshold": settings.SAFETY_THRESHOLD,
            "upscale_device": settings.UPSCALE_DEVICE,
            "upscale_weights": settings.UPSCALE_WEIGHTS or None,
            "expansion_base_url": settings.EXPANSION_BASE_URL,
            "expansion_model": settings.EXPANSION_MODEL,
            "expansion_api_key": settings.EXPANSION_API_KEY,
            "expansion_budget_seconds": settings.EXPANSION_SECONDS,
        },
    )
