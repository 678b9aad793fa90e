"""`GET /metrics`: what Postgres knows of this installation, for Prometheus.

The figures are of the whole installation, whichever process answers: scrape one. They
are gauges; those named ``…_last_hour`` count events of the last hour. An answer is kept
for a few seconds, so that any number of scrapers costs one set of queries.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from billing import figures as money
from jobs import figures, leading
from jobs.routing import STANDARD_QUEUES
from project.health import WORKER_SILENT_SECONDS
from project.stack import gpu_queues

if TYPE_CHECKING:
    from prometheus_client.core import Metric

KEPT_SECONDS: Final = 5.0
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def metrics(request: HttpRequest) -> HttpResponse:
    """Answer a scrape that carries METRICS_TOKEN as its bearer token."""
    if request.method not in ("GET", "HEAD"):
        return HttpResponse(status=405, headers={"Allow": "GET, HEAD"})
    given = request.headers.get("Authorization", "").encode()
    wanted = f"Bearer {settings.METRICS_TOKEN}".encode()
    if not hmac.compare_digest(given, wanted):
        return HttpResponse(status=401, headers={"WWW-Authenticate": "Bearer"})
    try:
        text = _kept.text()
    except (OperationalError, InterfaceError):
        return HttpResponse(status=503, headers={"Retry-After": "5"})
    return HttpResponse(text, content_type=CONTENT_TYPE)


class _Kept:
    """The last answer, made anew when it is older than KEPT_SECONDS."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._text = b""
        self._until = 0.0

    def text(self) -> bytes:
        with self._lock:
            if time.monotonic() >= self._until:
                self._text = generate_latest(REGISTRY)
                self._until = time.monotonic() + KEPT_SECONDS
            return self._text

    def forget(self) -> None:
        self._until = 0.0


_kept = _Kept()


class Figures(Collector):
    """Asks the database when scraped, not when registered."""

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        for section in SECTIONS:
            yield from section()


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"zoetrope_{name}", text, labels=labels)


def _queues() -> Iterator[Metric]:
    ready = _gauge("queue_ready_jobs", "Jobs a worker could claim now.", "queue")
    oldest = _gauge(
        "queue_oldest_seconds", "How long the first of them has waited.", "queue"
    )
    for row in figures.queues():
        ready.add_metric([row.queue], row.ready)
        oldest.add_metric([row.queue], max(0.0, float(row.oldest_seconds)))
    yield from (ready, oldest)


def _active() -> Iterator[Metric]:
    labels = ("step", "status", "mode")
    jobs = _gauge("jobs_active", "Jobs that have not ended.", *labels)
    claimed = _gauge("jobs_claimed", "Of these: held by a worker.", *labels)
    waiting = _gauge(
        "jobs_without_slot", "Of these: waiting for their account's slot.", *labels
    )
    for row in figures.active():
        names = [row.step, row.status, row.mode]
        jobs.add_metric(names, row.jobs)
        claimed.add_metric(names, row.claimed)
        waiting.add_metric(names, row.without_slot)
    yield from (jobs, claimed, waiting)


def _ended() -> Iterator[Metric]:
    ended: dict[tuple[str, str, str], int] = {}
    failed: dict[tuple[str, str], int] = {}
    for row in figures.ended():
        key = (row.status, row.mode, row.model)
        ended[key] = ended.get(key, 0) + row.jobs
        if row.status == "failed":
            cause = (row.code or "unknown", row.mode)
            failed[cause] = failed.get(cause, 0) + row.jobs
    jobs = _gauge("jobs_ended_last_hour", "Jobs that ended.", "status", "mode", "model")
    for key, count in sorted(ended.items()):
        jobs.add_metric(list(key), count)
    failures = _gauge("failures_last_hour", "Failed jobs, by reason.", "code", "mode")
    for cause, count in sorted(failed.items()):
        failures.add_metric(list(cause), count)
    yield from (jobs, failures)


def _steps() -> Iterator[Metric]:
    seconds = _gauge(
        "step_seconds",
        "Quantiles of how long steps took that went well, last hour.",
        *("step", "route", "quantile"),
    )
    total = _gauge("step_seconds_sum_last_hour", "Time spent in them.", "step", "route")
    for row in figures.step_durations():
        for quantile, value in zip(("0.5", "0.9", "0.99"), row.quantiles, strict=True):
            seconds.add_metric([row.step, row.route, quantile], value)
        total.add_metric([row.step, row.route], float(row.seconds))
    tried = _gauge(
        "attempts_last_hour", "Claims that ended, by how.", "step", "outcome", "code"
    )
    for row in figures.attempts():
        tried.add_metric([row.step, row.outcome, row.code], row.attempts)
    yield from (seconds, total, tried)


def _money() -> Iterator[Metric]:
    credits = _gauge("credits", "What customers have.", "mode", "book")
    frozen = _gauge("wallets_frozen", "Wallets that refuse holds.", "mode")
    for wallet in money.wallets():
        for book, amount in (
            ("available", wallet.available_millicredits),
            ("held", wallet.held_millicredits),
            ("debt", wallet.debt_millicredits),
        ):
            credits.add_metric([wallet.mode, book], amount / 1000)
        frozen.add_metric([wallet.mode], wallet.frozen)
    count = _gauge("open_holds", "Holds neither captured nor released.", "mode")
    held = _gauge("open_holds_credits", "What they hold.", "mode")
    oldest = _gauge("open_holds_oldest_seconds", "Age of the oldest.", "mode")
    for hold in money.open_holds():
        count.add_metric([hold.mode], hold.count)
        held.add_metric([hold.mode], hold.millicredits / 1000)
        oldest.add_metric([hold.mode], hold.oldest_seconds)
    moves = _gauge("movements_last_hour", "Movements of credits.", "mode", "kind")
    moved = _gauge(
        "credits_moved_last_hour",
        "Credits moved: capture is revenue, refund what was given back after it.",
        *("mode", "kind"),
    )
    for movement in money.moved():
        moves.add_metric([movement.mode, movement.kind], movement.count)
        moved.add_metric([movement.mode, movement.kind], movement.millicredits / 1000)
    yield from (credits, frozen, count, held, oldest, moves, moved)


def _webhooks() -> Iterator[Metric]:
    due = figures.webhooks()
    for name, text, value in (
        ("webhooks_due", "Deliveries due, to addresses that answer.", due.pending),
        ("webhook_lag_seconds", "How late the first of them is.", due.lag_seconds),
        ("webhook_lanes_open", "Addresses left alone for failing.", due.lanes_open),
        (
            "webhooks_waiting",
            "Deliveries waiting for their next try.",
            figures.webhook_retries(),
        ),
    ):
        gauge = _gauge(name, text)
        gauge.add_metric([], max(0.0, float(value)))
        yield gauge


def _workers() -> Iterator[Metric]:
    # A worker that ends takes its row along: what nobody serves must still be told as 0.
    expected = (*STANDARD_QUEUES, *gpu_queues(settings.GPU_MODELS))
    alive = dict.fromkeys(expected, 0)
    silent = _gauge("worker_silent_seconds", "Since its last sign of life.", "worker")
    busy = _gauge("worker_claims", "Claims it holds.", "worker")
    progress = _gauge(
        "worker_progress", "How far a claim is, 0 to 1.", "worker", "step", "job"
    )
    for row in figures.workers():
        silent.add_metric([row.name], float(row.silent_seconds))
        is_alive = row.silent_seconds <= WORKER_SILENT_SECONDS
        for queue in row.queues:
            alive[queue] = alive.get(queue, 0) + is_alive
        doing = row.doing if is_alive else []
        busy.add_metric([row.name], len(doing))
        for claim in doing:
            progress.add_metric(
                [row.name, claim["step"], claim["job"]], claim["progress"]
            )
    workers = _gauge("workers_alive", "Workers that serve a queue.", "queue")
    for queue, count in sorted(alive.items()):
        workers.add_metric([queue], count)
    yield from (workers, silent, busy, progress)
    for name, unheard in leading.silences().items():
        running = _gauge(f"{name}_running", f"1 while a {name} leads and is heard.")
        running.add_metric([], leading.is_alive(unheard))
        yield running


def _providers() -> Iterator[Metric]:
    labels = ("provider", "account")
    usable = _gauge("provider_usable", "1 while jobs may go to it.", *labels)
    failures = _gauge("provider_failures_in_row", "Failed calls in a row.", *labels)
    jobs = _gauge("provider_jobs", "Jobs it has at present.", *labels)
    poll = _gauge("provider_poll_seconds", "Between looks at each job.", *labels)
    since = _gauge("provider_ok_age_seconds", "Since a call went well.", *labels)
    for row in figures.providers():
        names = [row.provider, row.name]
        usable.add_metric(names, row.is_usable)
        failures.add_metric(names, row.failures_in_row)
        jobs.add_metric(names, row.jobs)
        poll.add_metric(names, row.poll_seconds)
        if row.since_ok_seconds is not None:
            since.add_metric(names, float(row.since_ok_seconds))
    yield from (usable, failures, jobs, poll, since)


def _incidents() -> Iterator[Metric]:
    incidents = _gauge("incidents_open", "What waits for a person.", "kind")
    for row in figures.incidents():
        incidents.add_metric([row.kind], row.incidents)
    yield incidents


SECTIONS: Final[tuple[Callable[[], Iterator[Metric]], ...]] = (
    *(_queues, _active, _ended, _steps, _money),
    *(_webhooks, _workers, _providers, _incidents),
)

REGISTRY: Final = CollectorRegistry()
REGISTRY.register(Figures())
