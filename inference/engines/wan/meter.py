"""How far a job is and how long it still takes; also where every phase may be stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from inference.contracts import OnProgress, Progress, ShouldStop
from inference.errors import Stopped

#: at most two reports a second: each is a row written
REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class Work:
    """A job's share of each stage, in any one unit (FLOPs)."""

    text: float
    image: float
    denoise: float
    decode: float

    @property
    def total(self) -> float:
        return self.text + self.image + self.denoise + self.decode


class Meter:
    """Counts work done, reports it, and raises Stopped when asked to stop.

    ``settle`` waits for the device, so that what counts as done is done and a stop takes
    effect within the piece of work that was running.
    """

    def __init__(
        self,
        work: Work,
        *,
        on_progress: OnProgress,
        should_stop: ShouldStop,
        settle: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._work, self._on_progress, self._should_stop = (
            work,
            on_progress,
            should_stop,
        )
        self._settle, self._clock = settle, clock
        self._done = 0.0
        self._reported = -REPORT_SECONDS
        self._fraction = 0.0
        self._stage = ""
        self._forwards = 1
        self._warm: tuple[float, int] | None = None
        self.forward_seconds: float | None = None

    def check(self) -> None:
        if self._should_stop():
            raise Stopped("asked to stop")

    def stage(self, name: str) -> None:
        self._stage = name
        self._report(force=True)
        self.check()

    def encoded(self, part: float) -> None:
        """A piece of the picture's encoding is done; ``part`` is 0..1 so far."""
        self._moved(self._work.text + self._work.image * min(part, 1.0))

    def expect(self, forwards: int) -> None:
        """Say how many transformer forwards this job takes."""
        self._forwards = forwards

    def forward(self, done: int) -> None:
        """``done`` of the expected forwards are done."""
        self._settle()
        now = self._clock()
        if self._warm is None:
            # The first forward compiles and fills the allocator: it says little.
            self._warm = (now, done)
        elif done > self._warm[1]:
            self.forward_seconds = (now - self._warm[0]) / (done - self._warm[1])
        before = self._work.text + self._work.image
        self._moved(before + self._work.denoise * done / self._forwards)

    def decoded(self, part: float) -> None:
        before = self._work.total - self._work.decode
        self._moved(before + self._work.decode * min(part, 1.0))

    def _eta(self) -> float | None:
        """Return the seconds left by the measured forward, None before it is known."""
        if not self.forward_seconds:
            return None
        rate = self._work.denoise / self._forwards / self.forward_seconds
        return (self._work.total - self._done) / rate

    def _moved(self, done: float) -> None:
        self._done = max(self._done, done)
        self._report()
        self.check()

    def _report(self, *, force: bool = False) -> None:
        now = self._clock()
        if not force and now - self._reported < REPORT_SECONDS:
            return
        self._reported = now
        self._fraction = max(self._fraction, min(1.0, self._done / self._work.total))
        self._on_progress(Progress(self._fraction, self._stage, self._eta()))
