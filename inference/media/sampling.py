"""A few small pictures of a finished video, evenly spread: what is judged of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from inference.errors import Stopped
from inference.media.frames import read_pictures
from inference.media.probe import UnusableVideo
from inference.media.stills import rgb

if TYPE_CHECKING:
    from inference.contracts import ShouldStop

SAMPLED_FRAMES = 8
#: Longest side of a sample; the classifier looks at 224 pixels.
SAMPLE_SIDE = 384


def sample(
    video: Path, *, frames: int, should_stop: ShouldStop = lambda: False
) -> list[Image.Image]:
    """Return small copies of a few of the video's ``frames``, first and last included.

    All are decoded and only those are converted, so that memory stays flat. Raises
    UnusableVideo when one is not there, and Stopped soon after ``should_stop`` is true.
    """
    spread = np.linspace(0, max(0, frames - 1), min(SAMPLED_FRAMES, max(1, frames)))
    wanted = {round(index) for index in spread}
    images = []
    for index, picture in enumerate(read_pictures(video)):
        if should_stop():
            raise Stopped("stopped while sampling frames")
        if index in wanted:
            images.append(Image.fromarray(rgb(picture, longest=SAMPLE_SIDE)))
    if len(images) < len(wanted):
        raise UnusableVideo(f"{video.name} does not hold its {frames} frames")
    return images
