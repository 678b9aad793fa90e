"""What engines that draw frames one by one share: stopping and telling how far they are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from inference.contracts import OnProgress, Progress, ShouldStop
from inference.errors import Stopped

if TYPE_CHECKING:
    from inference.contracts import Frame


def check_stop(should_stop: ShouldStop) -> None:
    if should_stop():
        raise Stopped("asked to stop")


def watched(
    frames: Iterator[Frame],
    total: int,
    *,
    on_progress: OnProgress,
    should_stop: ShouldStop,
    begin: float = 0.0,
    stage: str = "draw",
) -> Iterator[Frame]:
    """Yield ``frames``, telling progress from ``begin`` to 1 and stopping when asked."""
    started = time.monotonic()
    for count, frame in enumerate(frames, start=1):
        check_stop(should_stop)
        yield frame
        spent = time.monotonic() - started
        on_progress(
            Progress(
                begin + (1 - begin) * count / total,
                stage,
                eta_seconds=spent / count * (total - count),
            )
        )
