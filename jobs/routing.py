"""Which way a video is made: public model → one of its routes, and why.

Route rows are first installed from the catalogue and belong to the operator from then
on. A live key needs a route that can really do the work now; a test key takes the one
that simulates. Rows are cached for a moment, since every request needs them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models.functions import Now

from inference.catalogue import ALIASES, MODELS, PublicModel
from inference.errors import Unsupported
from inference.registry import PROVIDERS
from jobs import outside
from jobs.errors import InvalidRequest, ModelUnavailable
from jobs.models import ModelAlias, Route, Worker
from jobs.requests import JobRequest
from jobs.states import Step

#: Queues whose workers run wherever the platform runs.
STANDARD_QUEUES = ("media", "cpu", "cpu.test", "webhook")
#: How long after its last sign of life a worker's queue still counts as served, so that
#: a restart does not turn customers away.
WORKER_GRACE = timedelta(minutes=10)
CACHE_SECONDS = 5.0


@dataclass(frozen=True)
class Choice:
    """The chosen route as the job keeps it, and what was said about the others."""

    route: Mapping[str, Any]
    reasons: Sequence[str]

    @property
    def first_step(self) -> Step:
        return Step.GENERATE if self.route["kind"] == "engine" else Step.SUBMIT


@dataclass(frozen=True)
class _Table:
    routes: Mapping[str, Sequence[Route]]
    aliases: Mapping[str, str]
    served: frozenset[str]
    read_at: float


_table: _Table | None = None


def install() -> None:
    """Add the catalogue's routes and aliases that are not there yet; change nothing."""
    for model in MODELS.values():
        for rank, spec in enumerate(model.routes):
            Route.objects.get_or_create(
                model=model.name,
                name=spec.name,
                defaults={
                    "kind": spec.kind,
                    "queue": spec.queue,
                    "runner": spec.runner,
                    "profile": spec.profile,
                    "simulates": spec.simulates,
                    "rank": rank,
                },
            )
    for name, target in ALIASES.items():
        ModelAlias.objects.get_or_create(name=name, defaults={"model": target})
    forget()


def forget() -> None:
    """Drop the cached rows (after an edit, and between tests)."""
    global _table
    _table = None


def lookup(name: str) -> PublicModel | None:
    """Return the public model of this name or alias."""
    return MODELS.get(name) or MODELS.get(_rows().aliases.get(name, ""))


def aliases() -> Mapping[str, str]:
    return _rows().aliases


def is_available(model: PublicModel, *, mode: str, plan: str) -> bool:
    return bool(_usable(model, mode=mode, plan=plan)[0])


def choose(
    model: PublicModel,
    *,
    mode: str,
    plan: str,
    request: JobRequest,
    without: Sequence[str] = (),
) -> Choice:
    """Return the route for a new job, or the next one after those in ``without``.

    Chosen by what a route can do, health, rank (the operator's order, cheapest first
    among equals by weight). Raises ModelUnavailable when no enabled route can make it
    now, and InvalidRequest when those there are cannot do what was asked.
    """
    usable, reasons = _usable(model, mode=mode, plan=plan)
    usable = [route for route in usable if route.name not in without]
    reasons += [f"{name}: given up before" for name in without]
    usable = _capable(usable, request, reasons)
    if not usable:
        raise ModelUnavailable(model.name)
    healthy = [route for route in usable if _is_healthy(route)]
    reasons += [f"{r.name}: not healthy now" for r in usable if r not in healthy]
    usable = healthy or usable
    best = min((route.rank, route.cost_microdollars) for route in usable)
    ranked = [r for r in usable if (r.rank, r.cost_microdollars) == best]
    # Load is spread among equals by weight; nothing secret hangs on the choice.
    chosen = random.choices(ranked, [max(r.weight, 1) for r in ranked])[0]  # noqa: S311
    reasons.append(f"{chosen.name}: chosen, rank {chosen.rank}, weight {chosen.weight}")
    return Choice(_stored(chosen), reasons)


def _usable(
    model: PublicModel, *, mode: str, plan: str
) -> tuple[list[Route], list[str]]:
    table = _rows()
    usable, reasons = [], []
    for route in table.routes.get(model.name, ()):
        if route.simulates != (mode == "test"):
            continue
        if not route.is_enabled:
            reasons.append(f"{route.name}: disabled")
        elif route.plans and plan not in route.plans:
            reasons.append(f"{route.name}: not for plan {plan}")
        elif route.kind == Route.Kind.ENGINE and route.queue not in table.served:
            reasons.append(f"{route.name}: no worker serves {route.queue}")
        elif route.kind == Route.Kind.PROVIDER and not _has_account(route.runner):
            reasons.append(f"{route.name}: no usable account at {route.runner}")
        else:
            usable.append(route)
    return usable, reasons


def _capable(
    routes: list[Route], request: JobRequest, reasons: list[str]
) -> list[Route]:
    """Return the routes that can do all that was asked; raise when none of several can."""
    found: list[Route] = []
    refused: Unsupported | None = None
    for route in routes:
        try:
            if route.kind == Route.Kind.PROVIDER:
                outside.check(request, provider=route.runner, wire_model=route.profile)
            found.append(route)
        except Unsupported as error:
            refused = error
            reasons.append(f"{route.name}: {error}")
    if refused is not None and not found:
        raise InvalidRequest(refused.field, refused.public, code=refused.code)
    return found


def _is_healthy(route: Route) -> bool:
    return route.kind == Route.Kind.ENGINE or outside.is_healthy(route.runner)


def _has_account(provider: str) -> bool:
    return provider in PROVIDERS and bool(outside.usable_accounts(provider))


def _stored(route: Route) -> dict[str, Any]:
    return {
        "id": route.pk,
        "name": route.name,
        "kind": route.kind,
        "queue": route.queue,
        "runner": route.runner,
        "profile": route.profile,
        "simulates": route.simulates,
    }


def _rows() -> _Table:
    global _table
    table = _table
    if table is None or time.monotonic() - table.read_at > CACHE_SECONDS:
        routes: dict[str, list[Route]] = {}
        for route in Route.objects.order_by("rank", "name"):
            routes.setdefault(route.model, []).append(route)
        served = set(STANDARD_QUEUES)
        for worker in Worker.objects.filter(seen_at__gt=Now() - WORKER_GRACE):
            served.update(worker.queues)
        table = _table = _Table(
            routes=routes,
            aliases=dict(ModelAlias.objects.values_list("name", "model")),
            served=frozenset(served),
            read_at=time.monotonic(),
        )
    return table
