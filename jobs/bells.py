"""Bells: telling workers that a queue may have work. Losing one loses nothing.

The job's row is the outbox; a bell only saves waiting for the housekeeper's next round.
So ringing never delays or fails a request: a thread publishes, its queue is short, and
after the broker failed it rests while the housekeeper rings.
"""

from __future__ import annotations

import queue
import threading
import time

import structlog
from celery import current_app
from django.conf import settings
from django.db import transaction
from kombu.exceptions import OperationalError

log = structlog.get_logger()

TASK = "jobs.ring"


class _Ringer:
    """One publishing thread per process, started by the first bell."""

    def __init__(self) -> None:
        self._bells: queue.Queue[str] = queue.Queue(settings.BELL_QUEUE_SIZE)
        self._rest_until = 0.0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ring(self, name: str) -> None:
        if time.monotonic() < self._rest_until:
            return
        try:
            self._bells.put_nowait(name)
        except queue.Full:
            return
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._run, name="bells", daemon=True
                    )
                    self._thread.start()

    def _run(self) -> None:
        while True:
            name = self._bells.get()
            try:
                publish(name)
            except (OperationalError, OSError) as error:
                self._rest_until = time.monotonic() + settings.BELL_REST_SECONDS
                log.warning("bell_failed", queue=name, error=str(error))
                self._empty()

    def _empty(self) -> None:
        while True:
            try:
                self._bells.get_nowait()
            except queue.Empty:
                return


_ringer: _Ringer | None = None


def publish(name: str) -> None:
    """Send one bell now; raises kombu's OperationalError when the broker is away."""
    current_app.send_task(TASK, args=[name], queue=name, ignore_result=True)


def ring(*names: str) -> None:
    """Ring each queue once this transaction has committed (at once outside of one)."""
    for name in names:
        if name:
            transaction.on_commit(lambda name=name: _ring_now(name))  # type: ignore[misc]


def ring_after(name: str, seconds: float) -> None:
    """Ring the queue in a moment, once for however many ask meanwhile."""
    with _timers_lock:
        if name in _timers:
            return
        timer = threading.Timer(seconds, _ring_at_last, args=(name,))
        timer.daemon = True
        _timers.add(name)
    timer.start()


_timers: set[str] = set()
_timers_lock = threading.Lock()


def _ring_at_last(name: str) -> None:
    with _timers_lock:
        _timers.discard(name)
    _ring_now(name)


def _ring_now(name: str) -> None:
    global _ringer
    if _ringer is None:
        _ringer = _Ringer()
    _ringer.ring(name)
