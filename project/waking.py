"""A worker that looks for its next bell as soon as a task ends.

With `worker_disable_prefetch` the worker's loop asks Redis for a bell only while a thread
is free, and only when the loop turns. A thread that ends does not turn it: bells would
wait for the loop's next timer, up to a second after every job.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.concurrency.thread import TaskPool
from kombu.asynchronous import get_event_loop


class WakingPool(TaskPool):
    """Threads of which each that becomes free turns the worker's loop."""

    def on_apply(self, *args: Any, **options: Any) -> Any:
        result = super().on_apply(*args, **options)
        result.f.add_done_callback(_wake)
        return result


class WakingStep(bootsteps.Step):
    """Gives a worker of threads the waking kind of them; comes before it makes any."""

    def __init__(self, parent: Any, **options: Any) -> None:
        if parent.pool_cls is TaskPool:
            parent.pool_cls = WakingPool
        super().__init__(parent, **options)


def _wake(_: object) -> None:
    if (loop := get_event_loop()) is not None:
        loop.call_soon(_nothing)


def _nothing() -> None:
    pass
