"""Notes when API keys were last used, off the request's path.

A request only adds the key's id to a set. One thread of the process empties it every
API_KEY_TOUCH_SECONDS and writes each key's `last_used_at` at most once a minute.
"""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Final

import structlog
from django.conf import settings
from django.db import DatabaseError, connection
from django.db.models import Q
from django.db.models.functions import Now

from billing.models import ApiKey

TOUCH_AFTER: Final = timedelta(minutes=1)

logger = structlog.get_logger(__name__)
_used: set[str] = set()
_lock = threading.Lock()
_writer: threading.Thread | None = None


def note(key_id: str) -> None:
    """Remember that the key was used just now."""
    if key_id in _used:  # true for nearly every request, and needs no lock
        return
    with _lock:
        _used.add(key_id)
        _start_writer()


def flush() -> int:
    """Write what was noted; return the number of keys whose timestamp moved."""
    with _lock:
        used = sorted(_used)
        _used.clear()
    if not used:
        return 0
    stale = Q(last_used_at__isnull=True) | Q(last_used_at__lt=Now() - TOUCH_AFTER)
    return ApiKey.objects.filter(stale, pk__in=used).update(last_used_at=Now())


def _start_writer() -> None:
    global _writer
    if settings.API_KEY_TOUCH_SECONDS and (_writer is None or not _writer.is_alive()):
        _writer = threading.Thread(target=_write, name="key-touches", daemon=True)
        _writer.start()


def _write() -> None:
    while settings.API_KEY_TOUCH_SECONDS:
        time.sleep(settings.API_KEY_TOUCH_SECONDS)
        try:
            flush()
        except DatabaseError:
            # A lost timestamp harms nobody; the next use is noted again.
            logger.warning("key_use_not_noted", exc_info=True)
        finally:
            connection.close()
