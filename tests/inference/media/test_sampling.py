"""Which pictures of a finished file are looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inference.errors import Stopped
from inference.media.encode import Encoder
from inference.media.probe import UnusableVideo
from inference.media.sampling import sample


def clip(folder: Path, *, frames: int, width: int = 64, height: int = 48) -> Path:
    """Write a clip that goes from black to white."""
    path = folder / "clip.mp4"
    with Encoder(path, width=width, height=height, fps=16) as encoder:
        for level in np.linspace(0, 255, frames):
            encoder.write(np.full((height, width, 3), round(level), np.uint8))
    return path


@pytest.mark.parametrize("frames", [1, 5, 8, 81])
def test_samples_reach_evenly_from_the_first_frame_to_the_last(
    tmp_path: Path, frames: int
) -> None:
    images = sample(clip(tmp_path, frames=frames), frames=frames)
    levels = [float(np.asarray(image).mean()) for image in images]
    wanted = np.linspace(0, 255, min(8, frames)) if frames > 1 else [0]
    assert levels == pytest.approx(list(wanted), abs=5)


def test_samples_are_small(tmp_path: Path) -> None:
    images = sample(clip(tmp_path, frames=9, width=1280, height=720), frames=9)
    assert {image.size for image in images} == {(384, 216)}


def test_a_file_that_lacks_frames_is_not_judged_by_the_others(tmp_path: Path) -> None:
    with pytest.raises(UnusableVideo, match="9 frames"):
        sample(clip(tmp_path, frames=5), frames=9)


def test_it_stops_when_asked(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        sample(clip(tmp_path, frames=5), frames=5, should_stop=lambda: True)
