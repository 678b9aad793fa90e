"""Flower with its figures behind its password too: `celery -A project.flower flower`.

Flower 2.2.0 asks for the password on its pages and its API, but answers `/metrics` to
anybody (flower/views/monitor.py). A liveness probe stays open: it says "OK" and no more.
"""

from __future__ import annotations

from flower.urls import handlers
from flower.views.monitor import Metrics
from tornado.web import authenticated

from project.celery import app as app


class GuardedMetrics(Metrics):
    # Its own get is a coroutine; what tornado's guard returns is awaited like it.
    get = authenticated(Metrics.get)


def guard() -> None:
    """Put the guarded view in the place of Flower's own; Flower reads this list once."""
    for place, handler in enumerate(handlers):
        if isinstance(handler, tuple) and handler[1] is Metrics:
            handlers[place] = (handler[0], GuardedMetrics)


guard()
