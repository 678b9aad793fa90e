"""A place to do whole jobs in one process: real Postgres and S3, files over loopback."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from inference.egress import Egress
from inference.media.probe import VideoFacts, probe
from jobs import claims, context, tasks
from jobs.claims import Held
from jobs.models import Job
from jobs.states import Status

QUEUES = ("media", "safety", "cpu", "cpu.test")
PHOTO = Path(__file__).parents[1] / "photos" / "chelsea.jpg"


class FileServer:
    """A customer's own site: serves one folder on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

        serve = functools.partial(Handler, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def url(self, name: str) -> str:
        return f"http://{self.host}/{name}"

    def put(self, name: str, data: bytes) -> str:
        (self.folder / name).write_bytes(data)
        return self.url(name)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[FileServer]:
    folder = tmp_path / "site"
    folder.mkdir()
    server = FileServer(folder)
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def world(
    s3: str, site: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """The process's context, with folders of its own, allowed to reach ``site``."""
    made = dataclasses.replace(
        context.get.__wrapped__(),
        egress=Egress(allow_hosts=[site.host]),
        workdir=tmp_path / "work",
        weights=tmp_path / "weights",
    )
    monkeypatch.setattr(context, "get", lambda: made)
    return made


def work(job: Job) -> Job:
    """Do the job's steps as its workers would, until it has ended."""
    for _ in range(8):
        job.refresh_from_db()
        if Status(job.status).is_terminal:
            return job
        for queue in QUEUES:
            claim = claims.claim_next(queue, worker="test")
            if claim is not None:
                tasks._do(Held(claim))
    raise AssertionError(f"{job} is still {job.status} at {job.step}")


def download(job: Job, folder: Path) -> Path:
    path = folder / f"{job.pk}.mp4"
    context.get().storage.get_file(job.output["key"], path)
    return path


def facts(path: Path) -> VideoFacts:
    return probe(path, depth="all")


def frames(path: Path, *, width: int = 96) -> list[np.ndarray]:
    """Return the frames, small, as grey pictures of 0..255."""
    with av.open(str(path)) as video:
        return [
            np.asarray(
                Image.fromarray(frame.to_ndarray(format="rgb24"))
                .convert("L")
                .resize((width, width * 2 // 3)),
                np.float32,
            )
            for frame in video.decode(video=0)
        ]


def stored(job: Job) -> list[str]:
    """Return every key in storage under the job's folder."""
    folder = f"{job.account_id}/{job.pk}/"
    return [found.key for found in context.get().storage.list(folder)]
