"""Builds what steps may use of the outside world, from the settings, once a process."""

from __future__ import annotations

from urllib.parse import urlsplit

from django.conf import settings

from inference import egress
from inference.contracts import Context
from inference.storage import Storage


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
            deny_hosts=[urlsplit(settings.PUBLIC_URL).hostname or ""],
        ),
        workdir=settings.WORK_DIR,
        weights=settings.WEIGHTS_DIR,
        options={},
    )
