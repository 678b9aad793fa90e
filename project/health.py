"""Is this process alive, and can it serve?

`/healthz` answers without touching anything. `/readyz` asks each dependency. Only
Postgres decides: without Redis or S3 jobs are still accepted, and run when they return.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import httpx
import psycopg
import redis
from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse

PROBE_SECONDS: Final = 2.0


def healthz(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok\n", content_type="text/plain")


def readyz(request: HttpRequest) -> JsonResponse:
    checks = {name: check() for name, check in CHECKS.items()}
    body = {"status": "ready" if checks["postgres"] else "unavailable"}
    body |= {name: "ok" if good else "unreachable" for name, good in checks.items()}
    return JsonResponse(body, status=200 if checks["postgres"] else 503)


def postgres_answers() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except (DatabaseError, psycopg.Error):
        return False
    return True


def redis_answers() -> bool:
    client = redis.Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=PROBE_SECONDS,
        socket_connect_timeout=PROBE_SECONDS,
    )
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def s3_answers() -> bool:
    """Any answer will do: unsigned, it is a refusal."""
    try:
        httpx.head(settings.S3_ENDPOINT_URL, timeout=PROBE_SECONDS, trust_env=False)
    except httpx.HTTPError:
        return False
    return True


CHECKS: Final[dict[str, Callable[[], bool]]] = {
    "postgres": postgres_answers,
    "redis": redis_answers,
    "s3": s3_answers,
}
