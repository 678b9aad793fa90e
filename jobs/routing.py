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
from jobs import ours, outside
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
        return first_step(self.route)


def first_step(route: Mapping[str, Any]) -> Step:
    """Return the step with which a prepared job begins on this route."""
    return Step.GENERATE if route["kind"] == "engine" else Step.SUBMIT


@dataclass(frozen=True)
class _Table:
    routes: Mapping[str, Sequence[Route]]
    aliases: Mapping[str, str]
    served: frozenset[str]
    providers: _Providers
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
    """Return whether some route could take a job; a moment old for providers."""
    usable, _ = _usable(model, mode=mode, plan=plan, providers=_rows().providers)
    return bool(usable)


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
    providers = _Providers()
    usable, reasons = _usable(model, mode=mode, plan=plan, providers=providers)
    usable = [route for route in usable if route.name not in without]
    reasons += [f"{name}: given up before" for name in without]
    usable = _capable(usable, request, reasons, providers)
    if not usable:
        raise ModelUnavailable(model.name)
    usable = _preferred(usable, providers, reasons)
    best = min((route.rank, route.cost_microdollars) for route in usable)
    ranked = [r for r in usable if (r.rank, r.cost_microdollars) == best]
    # Load is spread among equals by weight; nothing secret hangs on the choice.
    chosen = random.choices(ranked, [max(r.weight, 1) for r in ranked])[0]  # noqa: S311
    reasons.append(f"{chosen.name}: chosen, rank {chosen.rank}, weight {chosen.weight}")
    return Choice(_stored(chosen), reasons)


class _Providers:
    """How the providers are doing, each asked once per choice."""

    def __init__(self) -> None:
        self._known: dict[str, outside.Standing] = {}

    def __getitem__(self, name: str) -> outside.Standing:
        if name not in self._known:
            self._known[name] = outside.standing(name)
        return self._known[name]


def _usable(
    model: PublicModel, *, mode: str, plan: str, providers: _Providers
) -> tuple[list[Route], list[str]]:
    table = _rows()
    usable, reasons = [], []
    for route in table.routes.get(model.name, ()):
        if route.simulates != (mode == "test"):
            continue
        if reason := _why_not(route, plan, table, providers):
            reasons.append(f"{route.name}: {reason}")
        else:
            usable.append(route)
    return usable, reasons


def _why_not(route: Route, plan: str, table: _Table, providers: _Providers) -> str:
    """Say why this route takes no job of the plan, or answer ""."""
    if not route.is_enabled:
        return "disabled"
    if route.plans and plan not in route.plans:
        return f"not for plan {plan}"
    if route.kind == Route.Kind.ENGINE:
        served = route.queue in table.served
        return "" if served else f"no worker serves {route.queue}"
    if route.runner not in PROVIDERS:
        return f"no provider is called {route.runner}"
    doing = providers[route.runner]
    return "" if doing.usable else doing.reason


def _capable(
    routes: list[Route],
    request: JobRequest,
    reasons: list[str],
    providers: _Providers,
) -> list[Route]:
    """Return the routes that can do all that was asked; raise when none of several can."""
    found: list[Route] = []
    refused: Unsupported | None = None
    for route in routes:
        try:
            if route.kind == Route.Kind.PROVIDER:
                outside.check(
                    request,
                    provider=route.runner,
                    wire_model=route.profile,
                    accounts=providers[route.runner].usable,
                )
            else:
                ours.check(request, runner=route.runner, profile=route.profile)
            found.append(route)
        except Unsupported as error:
            refused = error
            reasons.append(f"{route.name}: {error}")
    if refused is not None and not found:
        raise InvalidRequest(refused.field, refused.public, code=refused.code)
    return found


def _preferred(
    routes: list[Route], providers: _Providers, reasons: list[str]
) -> list[Route]:
    """Return the routes to choose from: healthy with room, else healthy, else all."""
    for verdict, quality in (
        ("not healthy now", "is_healthy"),
        ("full now", "has_room"),
    ):
        good = [
            route
            for route in routes
            if route.kind == Route.Kind.ENGINE
            or getattr(providers[route.runner], quality)
        ]
        if good:
            reasons += [f"{r.name}: {verdict}" for r in routes if r not in good]
            routes = good
    return routes


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
            providers=_Providers(),
            read_at=time.monotonic(),
        )
    return table
