"""A worker that looks for its next bell as soon as a task ends.

With `worker_disable_prefetch` the worker's loop asks Redis for a bell only while a thread
is free, and only when the loop turns. A thread that ends does not turn it: bells would
wait for the loop's next timer, up to a second after every job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.concurrency.thread import TaskPool

if TYPE_CHECKING:
    from kombu.asynchronous import Hub


class WakingPool(TaskPool):
    """Threads of which each that becomes free turns the worker's loop."""

    #: kombu's own "current loop" is None for good once Redis was away.
    loop: Hub | None = None

    def on_apply(self, *args: Any, **options: Any) -> Any:
        result = super().on_apply(*args, **options)
        result.f.add_done_callback(self._wake)
        return result

    def _wake(self, _: object) -> None:
        if self.loop is not None:
            self.loop.call_soon(_nothing)


class WakingStep(bootsteps.Step):
    """Gives a worker of threads the waking kind of them."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **options: Any) -> None:
        # All steps are made before the first one, the pool's, makes anything.
        if parent.pool_cls is TaskPool:
            parent.pool_cls = WakingPool
        super().__init__(parent, **options)

    def create(self, parent: Any) -> None:
        if isinstance(parent.pool, WakingPool):
            parent.pool.loop = parent.hub


def _nothing() -> None:
    pass
