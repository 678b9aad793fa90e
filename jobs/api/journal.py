"""The access log: one line per call, and the ids that every other line of it carries.

A line names method, path template, status, milliseconds, account, key id and job; never
a key, a header, a body or the address as it was typed. Prompts only with LOG_PROMPTS.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from django.conf import settings

from jobs.dialects.base import JobView

if TYPE_CHECKING:
    from billing.keys import Credential
    from jobs.dialects.base import WireRequest

log = structlog.get_logger("access")


@dataclass
class Entry:
    """The line of one call, while it is being answered."""

    status: int = 500


@contextmanager
def call(wire: WireRequest, *, dialect: str, path: str) -> Iterator[Entry]:
    """Write the line of one call; what is logged meanwhile names the same request."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request=wire.request_id)
    entry, began = Entry(), time.perf_counter()
    try:
        yield entry
    finally:
        log.info(
            "call",
            method=wire.method,
            path=path,
            dialect=dialect,
            status=entry.status,
            ms=round((time.perf_counter() - began) * 1000, 1),
        )
        structlog.contextvars.clear_contextvars()


def who(credential: Credential) -> None:
    """Name the caller in every further line."""
    structlog.contextvars.bind_contextvars(
        account=str(credential.account_id), key=credential.key_id
    )


def what(result: object) -> None:
    """Name the job in every further line."""
    if isinstance(result, JobView):
        words: dict[str, Any] = {"job": result.native_id}
        if settings.LOG_PROMPTS:
            words["prompt"] = result.request.prompt
        structlog.contextvars.bind_contextvars(**words)
