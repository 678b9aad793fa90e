"""The engine behind test keys: any model's video at once, the still merely animated.

Exact size, rate and length, but drawn at 480p at most and enlarged, and with fewer
different pictures where there would be many, so that even a long 1080p clip takes
seconds. Tokens in the prompt rehearse trouble: ``[[test:fail=CODE]]`` fails with that
code, ``[[test:blocked]]`` is refused as unsafe, ``[[test:delay=SECONDS]]`` begins so much
later, during which the job is running and no worker is held: anybody may ask for it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL
from PIL import Image

from inference.engines.base import watched
from inference.errors import ContentBlocked, NotYet, RenderError
from inference.geometry import Size, fit_area
from inference.media.animation import animate
from inference.media.frames import load_fitted

if TYPE_CHECKING:
    from inference.contracts import (
        Context,
        Frame,
        OnProgress,
        RenderRequest,
        ShouldStop,
    )

VERSION = "1"
DRAWN_PIXELS = 480 * 854
#: Delivered pixels with a picture of their own: two seconds of drawing on two cores.
#: Beyond it pictures are shown twice, or up to four times.
FRESH_PIXELS = 250 * 1280 * 720
REPEATS_MAX = 4
DELAY_SECONDS_MAX = 3600.0
_TOKEN = re.compile(r"\[\[\s*test\s*:\s*(\w+)\s*(?:=\s*([\w.-]{1,64})\s*)?\]\]")


@dataclass(frozen=True)
class Script:
    """What the tokens of a prompt ask for, and the prompt without them."""

    prompt: str
    fail_code: str | None = None
    is_blocked: bool = False
    delay_seconds: float = 0.0


def read_script(prompt: str) -> Script:
    """Return the script in ``prompt``; a token that says nothing known is ignored.

    >>> read_script("a cat [[test:delay=2]][[test:fail=out_of_memory]]")
    Script(prompt='a cat', fail_code='out_of_memory', is_blocked=False, delay_seconds=2.0)
    """
    told = dict(_TOKEN.findall(prompt))
    try:
        delay = float(told.get("delay") or 0)
    except ValueError:
        delay = 0.0
    return Script(
        prompt=_TOKEN.sub("", prompt).strip(),
        fail_code=told.get("fail") or None,
        is_blocked="blocked" in told,
        delay_seconds=min(max(delay, 0.0), DELAY_SECONDS_MAX)
        if math.isfinite(delay)
        else 0.0,
    )


class RehearsalEngine:
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
        script = read_script(request.prompt)
        rest = script.delay_seconds - request.running_seconds
        if rest > 0:
            raise NotYet("rehearsed by the prompt", retry_after_seconds=rest)
        if script.is_blocked:
            raise ContentBlocked("rehearsed by the prompt")
        if script.fail_code:
            raise RenderError(
                "rehearsed by the prompt",
                code=script.fail_code,
                permanent=True,
                public=f"Rehearsed failure: {script.fail_code}.",
            )
        yield from watched(
            _drawn(request, script.prompt),
            request.output.frames,
            on_progress=on_progress,
            should_stop=should_stop,
        )

    def fingerprint(self, request: RenderRequest) -> Mapping[str, str]:
        return {"engine": f"rehearsal {VERSION}", "pillow": PIL.__version__}


def _drawn(request: RenderRequest, prompt: str) -> Iterator[Frame]:
    width, height, total = request.width, request.height, request.output.frames
    small = Size(width, height)
    if small.pixels > DRAWN_PIXELS:
        small = fit_area(width / height, area=DRAWN_PIXELS, multiple=2)
    repeats = min(math.ceil(width * height * total / FRESH_PIXELS), REPEATS_MAX)
    count = math.ceil(total / repeats)
    drawn = animate(
        request.image,
        width=small.width,
        height=small.height,
        frames=count,
        fps=max(1, round(request.fps / repeats)),
        prompt=prompt,
        seed=request.seed,
        cuts=request.shot_type == "multi",
    )
    if request.last_image is not None:
        drawn = _into(drawn, request.last_image, small, count)
    shown = 0
    for frame in drawn:
        picture = frame
        if (small.width, small.height) != (width, height):
            picture = np.asarray(
                Image.fromarray(frame).resize(
                    (width, height), Image.Resampling.BILINEAR
                )
            )
        again = min(repeats, total - shown)
        shown += again
        yield from itertools.repeat(picture, again)


def _into(
    frames: Iterator[Frame], last_image: Path, size: Size, total: int
) -> Iterator[Frame]:
    """Yield ``frames`` turning into the last picture over their second half."""
    last = load_fitted(last_image, size.width, size.height)
    end = Image.fromarray(last)
    for index, frame in enumerate(frames):
        share = max(0.0, 2 * index / max(total - 1, 1) - 1)
        if share == 0.0:
            yield frame
        else:
            yield np.asarray(Image.blend(Image.fromarray(frame), end, share))
