"""Stand-ins that keep the contracts: for tests, and for rendering without services."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

import numpy as np

from inference.contracts import Context, Limits, Progress
from inference.egress import Egress
from inference.engines.base import watched
from inference.errors import RenderError
from inference.storage import KeyTaken, Listed, ObjectMissing, Storage, Stored

if TYPE_CHECKING:
    from inference.contracts import Frame, OnProgress, RenderRequest, ShouldStop

_BLOCK = 1024 * 1024


class DirectoryStorage(Storage):
    """The storage contract on a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put_file(
        self, key: str, path: Path, *, content_type: str = "application/octet-stream"
    ) -> Stored:
        with path.open("rb") as source:
            return self._put(key, iter(lambda: source.read(_BLOCK), b""))

    def put_bytes(
        self, key: str, data: bytes, *, content_type: str = "application/octet-stream"
    ) -> Stored:
        return self._put(key, iter([data]))

    def _put(self, key: str, blocks: Iterator[bytes]) -> Stored:
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        hasher = hashlib.sha256()
        part = target.with_name(target.name + ".part")
        with part.open("wb") as file:
            for block in blocks:
                hasher.update(block)
                file.write(block)
        stored = Stored(key, part.stat().st_size, hasher.hexdigest())
        with contextlib.closing(_Gone(part)):
            if target.exists():
                if self.stat(key) != stored:
                    raise KeyTaken(f"{key} holds something else")
                return stored
            part.rename(target)
        return stored

    def stat(self, key: str) -> Stored | None:
        path = self._path(key)
        if not path.is_file():
            return None
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Stored(key, path.stat().st_size, digest)

    def get_file(self, key: str, path: Path) -> None:
        shutil.copyfile(self._existing(key), path)

    def open(self, key: str) -> tuple[int, Iterator[bytes]]:
        path = self._existing(key)
        return path.stat().st_size, iter([path.read_bytes()])

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._path(key).unlink(missing_ok=True)

    def list(self, prefix: str = "") -> Iterator[Listed]:
        found = (path for path in self._folder.rglob("*") if path.is_file())
        keys = sorted(path.relative_to(self._folder).as_posix() for path in found)
        for key in keys:
            if key.startswith(prefix):
                facts = self._path(key).stat()
                changed = datetime.fromtimestamp(facts.st_mtime, UTC)
                yield Listed(key, facts.st_size, changed)

    def presign(
        self,
        key: str,
        *,
        seconds: int,
        filename: str | None = None,
        inline: bool = True,
        content_type: str | None = None,
        method: Literal["GET", "HEAD"] = "GET",
    ) -> str:
        return f"file://{quote(str(self._path(key)))}"

    def check(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        if key.startswith("/") or ".." in Path(key).parts:
            raise ValueError(f"{key!r} is no key")
        return self._folder / key

    def _existing(self, key: str) -> Path:
        path = self._path(key)
        if not path.is_file():
            raise ObjectMissing(f"nothing is stored under {key}")
        return path


class _Gone:
    """Removes a file on close."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def close(self) -> None:
        self._path.unlink(missing_ok=True)


@dataclass
class FakeEngine:
    """Makes frames of one colour, each a little brighter, or fails as told.

    ``error`` is raised after ``fail_after`` frames. ``calls`` holds the requests seen.
    """

    colour: tuple[int, int, int] = (40, 80, 120)
    error: RenderError | None = None
    fail_after: int = 0
    calls: list[RenderRequest] = field(default_factory=list)
    is_set_up: bool = False

    def setup(self) -> None:
        self.is_set_up = True

    def frames(
        self,
        request: RenderRequest,
        *,
        on_progress: OnProgress,
        should_stop: ShouldStop,
    ) -> Iterator[Frame]:
        self.calls.append(request)
        return watched(
            self._solid(request),
            request.output.frames,
            on_progress=on_progress,
            should_stop=should_stop,
        )

    def _solid(self, request: RenderRequest) -> Iterator[Frame]:
        for index in range(request.output.frames):
            if self.error is not None and index >= self.fail_after:
                raise self.error
            frame = np.empty((request.height, request.width, 3), np.uint8)
            frame[:] = np.minimum(np.array(self.colour) + index, 255)
            yield frame

    def fingerprint(self, request: RenderRequest) -> Mapping[str, str]:
        return {"engine": "fake", "colour": json.dumps(self.colour)}


@dataclass
class Watcher:
    """Records progress; ``stop_at`` makes ``should_stop`` true from that fraction on."""

    stop_at: float | None = None
    seen: list[Progress] = field(default_factory=list)

    def on_progress(self, progress: Progress) -> None:
        self.seen.append(progress)

    def should_stop(self) -> bool:
        if self.stop_at is None:
            return False
        return bool(self.seen) and self.seen[-1].fraction >= self.stop_at


def local_context(
    folder: Path, *, weights: Path | None = None, limits: Limits | None = None
) -> Context:
    """Return a Context that keeps everything under ``folder`` and reaches nothing private."""
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    return Context(
        storage=DirectoryStorage(folder / "storage"),
        egress=Egress(),
        workdir=work,
        weights=weights or folder / "weights",
        limits=limits or Limits(),
    )
