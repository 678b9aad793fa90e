"""Is this process alive, and can it serve?

`/healthz` answers without touching anything. `/readyz` asks each dependency. Postgres
with this release's migrations decides: without broker, S3 or workers jobs are still
accepted, and run when they return.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Final

import httpx
import psycopg
import redis
from django.conf import settings
from django.db import DatabaseError, connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse, JsonResponse

from jobs import context, figures, leading, safety
from jobs.models import Worker

PROBE_SECONDS: Final = 2.0
#: Silent for longer, a worker counts as gone: three of its signs of life.
WORKER_SILENT_SECONDS: Final = 30.0


def healthz(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok\n", content_type="text/plain")


def readyz(request: HttpRequest) -> JsonResponse:
    """Name each dependency and how it is; 503 while nothing can be accepted."""
    checks = {name: check() for name, check in CHECKS.items()}
    has_postgres = checks["postgres"]
    is_current = has_postgres and migrations_are_done()
    ready = has_postgres and is_current
    body: dict[str, object] = {"status": "ready" if ready else "unavailable"}
    body |= {name: "ok" if good else "unreachable" for name, good in checks.items()}
    body["migrations"] = (
        "ok" if is_current else "pending" if has_postgres else "unknown"
    )
    body["workers"] = workers_by_queue() if is_current else {}
    body["loops"] = loops() if is_current else {}
    body["safety"] = safety_mode() if is_current else "unknown"
    return JsonResponse(
        body, status=200 if ready else 503, headers={"Cache-Control": "no-store"}
    )


def postgres_answers() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except (DatabaseError, psycopg.Error):
        return False
    return True


@functools.cache
def _migrations_of_this_release() -> frozenset[tuple[str, str]]:
    loader = MigrationLoader(None)
    return frozenset(loader.disk_migrations)


def migrations_are_done() -> bool:
    """Newer ones than ours do no harm: old and new release run side by side."""
    try:
        done = MigrationRecorder(connection).applied_migrations()
    except (DatabaseError, psycopg.Error):
        return False
    return not (_migrations_of_this_release() - done.keys())


def workers_by_queue() -> dict[str, int]:
    """Return how many live workers serve each queue anybody serves."""
    try:
        workers = figures.workers()
    except (DatabaseError, psycopg.Error):
        return {}
    counts: dict[str, int] = {}
    for worker in workers:
        is_alive = worker.silent_seconds <= WORKER_SILENT_SECONDS
        for queue in worker.queues:
            counts[queue] = counts.get(queue, 0) + is_alive
    return dict(sorted(counts.items()))


def loops() -> dict[str, str]:
    """Return how the housekeeper and the poller are: ok, silent or not running."""
    try:
        silences = leading.silences()
    except (DatabaseError, psycopg.Error):
        return {}
    return {name: leading.state_of(silent) for name, silent in silences.items()}


def safety_mode() -> str:
    """Return how pictures are judged: classifier, or prompt_only where nobody does.

    ``classifier_unreachable``: they should be, and no live worker does; jobs wait.
    """
    alive = Now() - timedelta(seconds=WORKER_SILENT_SECONDS)
    try:
        rows = list(
            Worker.objects.filter(seen_at__gt=alive)
            .exclude(safety="")
            .values_list("safety", "queues")
        )
    except (DatabaseError, psycopg.Error):
        return "unknown"
    modes = {mode for mode, _ in rows}
    if safety.PROMPT_ONLY in modes or not (modes or safety.is_on(context.get())):
        return safety.PROMPT_ONLY
    has_judge = any(safety.QUEUE in queues for _, queues in rows)
    return safety.CLASSIFIER if has_judge else "classifier_unreachable"


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
    "broker": redis_answers,
    "s3": s3_answers,
}
