"""The engine that needs no model: a camera moves over the still, on any CPU.

Which moves, the prompt's words decide; the seed decides what they leave open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import PIL

from inference.engines.base import watched
from inference.media.animation import animate

if TYPE_CHECKING:
    from inference.contracts import (
        Context,
        Frame,
        OnProgress,
        RenderRequest,
        ShouldStop,
    )

#: Grows when the same request gives other frames than before.
VERSION = "3"


class MotionEngine:
    def __init__(self, profile: str, context: Context) -> None:
        self._profile = profile

    def setup(self) -> None:
        """Need nothing."""

    def frames(
        self,
        request: RenderRequest,
        *,
        on_progress: OnProgress,
        should_stop: ShouldStop,
    ) -> Iterator[Frame]:
        frames = animate(
            request.image,
            width=request.width,
            height=request.height,
            frames=request.output.frames,
            fps=request.fps,
            prompt=request.prompt,
            seed=request.seed,
            cuts=request.shot_type == "multi",
        )
        return watched(
            frames,
            request.output.frames,
            on_progress=on_progress,
            should_stop=should_stop,
        )

    def fingerprint(self, request: RenderRequest) -> Mapping[str, str]:
        return {"engine": f"motion {VERSION}", "pillow": PIL.__version__}
