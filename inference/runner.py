"""The steps of one video, each a function: prepare, generate, finish.

They know files, engines and storage, and nothing of accounts, money or queues. Whoever
calls them decides what a failure means; all of them raise RenderError only.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inference import registry
from inference.errors import InputRejected
from inference.media import images
from inference.media.finish import finish

if TYPE_CHECKING:
    from inference.contracts import (
        Artifact,
        Context,
        Engine,
        OnProgress,
        RenderRequest,
        ShouldStop,
    )


@dataclass(frozen=True)
class PreparedImage:
    """A clean picture in storage: upright RGB PNG."""

    key: str
    width: int
    height: int
    sha256: str


def prepare(
    source: str | bytes,
    context: Context,
    *,
    key: str,
    folder: Path,
    field: str = "image",
) -> PreparedImage:
    """Fetch (a URL) or take (bytes) a customer's picture and store it, cleaned.

    Raises InputRejected naming ``field`` when it cannot be used.
    """
    limits = context.limits
    if isinstance(source, str):
        data = context.egress.fetch(
            source, max_bytes=limits.image_bytes, accept="image/*", field=field
        )
    else:
        data = source
    target = folder / f"{field}.png"
    try:
        header = images.clean(data, target, limits)
    except InputRejected as refused:
        raise InputRejected(str(refused), field=field, code=refused.code) from refused
    stored = context.storage.put_file(key, target, content_type="image/png")
    return PreparedImage(key, header.width, header.height, stored.sha256)


def generate_and_finish(
    request: RenderRequest,
    engine: Engine,
    context: Context,
    *,
    key: str,
    folder: Path,
    on_progress: OnProgress,
    should_stop: ShouldStop,
) -> Artifact:
    """Make the frames and deliver the file in one pass, without a copy in between."""
    frames = engine.frames(request, on_progress=on_progress, should_stop=should_stop)
    return finish(frames, request.output, context, key=key, folder=folder)


def engine_for(request: RenderRequest, runner: str, context: Context) -> Engine:
    """Return the engine that ``runner`` names, set up for the request's profile."""
    return registry.engine(runner, request.profile, context)


@contextmanager
def workfolder(context: Context) -> Iterator[Path]:
    """Yield an empty folder that is gone afterwards."""
    context.workdir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=context.workdir))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
