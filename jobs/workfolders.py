"""Where a step keeps its files: an empty local folder, and the job's prefix in storage."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference.contracts import Context
    from jobs.models import Job


def folder_of(job: Job) -> str:
    """Return the storage prefix of everything that belongs to the job."""
    return f"{job.account_id}/{job.id}"


@contextmanager
def workfolder(world: Context) -> Iterator[Path]:
    """Yield an empty folder that is gone afterwards."""
    world.workdir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=world.workdir))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
