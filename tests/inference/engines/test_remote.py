"""The remote engine against a small server that speaks the true wire format."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import OpenAI

from inference.contracts import Context, Lora, OutputPlan, RenderRequest
from inference.egress import Egress
from inference.engines.remote import RemoteEngine
from inference.errors import (
    ContentBlocked,
    EngineFailed,
    InputRejected,
    OutageError,
    Stopped,
    Unsupported,
    WeightsMissing,
)
from inference.media.encode import Encoder
from inference.testing import DirectoryStorage, Watcher
from tests.conftest import PHOTOS
from tests.fakes.server import Hangup, Reply, Request, Server


@dataclass
class GpuServer:
    """Takes three polls per video; keeps every call it saw."""

    folder: Path
    size: tuple[int, int] | None = None
    frames: int | None = None
    fail: dict[str, Any] | None = None
    answers: dict[tuple[str, str], Reply | type[Hangup]] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    forms: list[dict[str, str]] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    polls: int = 0
    made: tuple[int, int, int] = (0, 0, 0)

    def handle(self, request: Request) -> Reply:
        what = (request.method, request.path.replace("video_1", "ID"))
        self.calls.append(what)
        self.keys.append(request.headers.get("authorization", ""))
        planned = self.answers.get(what)
        if isinstance(planned, Reply):
            return planned
        if planned is not None:
            raise Hangup
        match what:
            case ("POST", "/v1/videos"):
                return self._create(request)
            case ("GET", "/v1/videos"):
                return Reply(200, {"object": "list", "data": [], "has_more": False})
            case ("GET", "/v1/videos/ID"):
                return self._status()
            case ("GET", "/v1/videos/ID/content"):
                return Reply(200, self._file(), content_type="video/mp4")
            case ("DELETE", "/v1/videos/ID"):
                gone = {"id": "video_1", "object": "video.deleted", "deleted": True}
                return Reply(200, gone)
            case _:
                return Reply(404, {"error": {"message": "no such thing"}})

    def _create(self, request: Request) -> Reply:
        fields, files = request.form()
        self.forms.append(fields)
        self.pictures.append(files["input_reference"].data)
        wide, high = self.size or tuple(map(int, fields["size"].split("x")))
        count = int(fields.get("num_frames", 81))
        self.made = (wide, high, self.frames or count)
        return Reply(200, self._video("queued", 0))

    def _status(self) -> Reply:
        self.polls += 1
        if self.fail is not None:
            return Reply(200, self._video("failed", 50) | {"error": self.fail})
        if self.polls < 3:
            return Reply(200, self._video("in_progress", 40 * self.polls))
        return Reply(200, self._video("completed", 100))

    def _video(self, status: str, progress: int) -> dict[str, Any]:
        return {
            "id": "video_1",
            "object": "video",
            "status": status,
            "progress": progress,
            "created_at": 1700000000,
            "model": "wan",
            "seconds": "1",
            "size": "64x32",
            "error": None,
        }

    def _file(self) -> bytes:
        wide, high, count = self.made
        path = self.folder / "made.mp4"
        with Encoder(path, width=wide, height=high, fps=16) as encoder:
            for index in range(count):
                frame = np.full((high, wide, 3), min(40 + 5 * index, 255), np.uint8)
                encoder.write(frame)
        return path.read_bytes()


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[GpuServer]:
    made = GpuServer(tmp_path)
    server = Server(made.handle)
    server.start()
    made.url = server.url  # type: ignore[attr-defined]  # known only once it listens
    yield made
    server.stop()


def engine(gpu: Any, tmp_path: Path, **row: Any) -> RemoteEngine:
    table = {"farm": {"base_url": gpu.url, "api_key": "secret", "model": "wan"} | row}
    return RemoteEngine("farm", context(tmp_path, table), sleep=lambda _: None)


def context(tmp_path: Path, table: dict[str, Any]) -> Context:
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    return Context(
        storage=DirectoryStorage(tmp_path),
        egress=Egress(),
        workdir=work,
        weights=tmp_path,
        options={"remote_engines": table},
    )


def ask(**changes: Any) -> RenderRequest:
    frames = changes.pop("frames", 7)
    values: dict[str, Any] = {
        "reference": "job_1",
        "model": "wan2.2-i2v",
        "profile": "farm",
        "image": PHOTOS / "astronaut.jpg",
        "width": 64,
        "height": 32,
        "frames": frames,
        "fps": 16,
        "seed": 7,
        "prompt": "the astronaut waves",
        "negative_prompt": "blurry",
        "steps": 4,
        "guidance_scale": 4.0,
        "guidance_scale_2": 3.0,
        "flow_shift": 5.0,
        "output": OutputPlan(64, 32, 16, frames),
    }
    return RenderRequest(**(values | changes))


def clip(engine: RemoteEngine, request: RenderRequest, watcher: Any = None) -> Any:
    watcher = watcher or Watcher()
    return np.stack(
        list(
            engine.frames(
                request,
                on_progress=watcher.on_progress,
                should_stop=watcher.should_stop,
            )
        )
    )


def test_exactly_the_ordered_frames_come_back(gpu: GpuServer, tmp_path: Path) -> None:
    watcher = Watcher()
    made = clip(engine(gpu, tmp_path, flavour="vllm-omni"), ask(frames=7), watcher)
    assert made.shape == (7, 32, 64, 3)
    assert gpu.forms[0]["num_frames"] == "9"  # 4k + 1 made, the tail trimmed
    brightness = made.mean(axis=(1, 2, 3))
    assert abs(brightness - (40 + 5 * np.arange(7))).max() < 4
    fractions = [report.fraction for report in watcher.seen]
    assert fractions == sorted(fractions)
    assert watcher.seen[-1].stage == "decode"
    assert gpu.calls[-1] == ("DELETE", "/v1/videos/ID")
    assert set(gpu.keys) == {"Bearer secret"}
    assert gpu.pictures[0] == (PHOTOS / "astronaut.jpg").read_bytes()
    assert not list((tmp_path / "work").iterdir())


def test_each_server_gets_the_form_it_reads(gpu: GpuServer, tmp_path: Path) -> None:
    plain = {"prompt", "model", "seconds", "size"}
    for flavour in ("openai", "vllm-omni", "sglang", "lightx2v"):
        gpu.polls, gpu.frames = 0, 9
        clip(engine(gpu, tmp_path, flavour=flavour), ask())
    openai, omni, sglang, lightx2v = gpu.forms
    assert openai.keys() == plain
    assert (openai["seconds"], openai["size"]) == ("1", "64x32")
    assert (omni["guidance_scale"], omni["guidance_scale_2"]) == ("3.0", "4.0")
    assert (sglang["guidance_scale"], sglang["guidance_scale_2"]) == ("4.0", "3.0")
    extra = json.loads(sglang["extra_body"])
    assert extra["num_inference_steps"] == 4
    assert extra["seed"] == 7
    assert lightx2v["negative_prompt"] == "blurry"
    assert "extra_body" not in lightx2v
    assert lightx2v["flow_shift"] == "5.0"


def test_the_official_client_understands_the_fake(gpu: Any) -> None:
    """Whoever trusts this server's wire format need not trust this file."""
    client = OpenAI(base_url=f"{gpu.url}/v1", api_key="secret")
    with pytest.warns(DeprecationWarning, match="Sora API"):
        video = client.videos.create(
            prompt="x",
            size="1280x720",
            input_reference=("a.png", b"picture", "image/png"),
        )
    assert (video.id, video.status) == ("video_1", "queued")
    client.close()


def test_the_row_may_or_may_not_end_in_v1(gpu: Any, tmp_path: Path) -> None:
    engine(gpu, tmp_path, base_url=f"{gpu.url}/v1/").setup()
    assert gpu.calls == [("GET", "/v1/videos")]


def test_a_stop_deletes_the_video_over_there(gpu: GpuServer, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        clip(engine(gpu, tmp_path), ask(), Watcher(stop_at=0.3))
    assert gpu.calls[-1] == ("DELETE", "/v1/videos/ID")
    assert ("GET", "/v1/videos/ID/content") not in gpu.calls


def test_a_caller_that_walks_away_deletes_it_too(
    gpu: GpuServer, tmp_path: Path
) -> None:
    frames = engine(gpu, tmp_path, flavour="lightx2v").frames(
        ask(), on_progress=lambda _: None, should_stop=lambda: False
    )
    next(frames)
    frames.close()
    assert gpu.calls[-1] == ("DELETE", "/v1/videos/ID")
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": "server_error", "message": "CUDA out of memory"}, EngineFailed),
        ({"code": "content_policy_violation", "message": "no"}, ContentBlocked),
        (None, EngineFailed),
    ],
)
def test_a_failed_video_says_why(
    error: Any, kind: type[Exception], gpu: GpuServer, tmp_path: Path
) -> None:
    gpu.fail = error or {}
    with pytest.raises(kind):
        clip(engine(gpu, tmp_path), ask())


CREATE = ("POST", "/v1/videos")


@pytest.mark.parametrize(
    ("status", "error", "kind", "permanent"),
    [
        (400, {"message": "bad size"}, EngineFailed, True),
        (400, {"message": "x", "param": "input_reference"}, InputRejected, True),
        (400, {"message": "x", "code": "moderation_blocked"}, ContentBlocked, True),
        (401, {"message": "no key"}, EngineFailed, False),
        (429, {"message": "busy"}, OutageError, False),
        (503, None, OutageError, False),
    ],
)
def test_a_refusal_is_told_apart(
    status: int,
    error: Any,
    kind: type[Exception],
    permanent: bool,
    gpu: GpuServer,
    tmp_path: Path,
) -> None:
    reply = Reply(status, {"error": error}, headers={"Retry-After": "7"})
    gpu.answers[CREATE] = reply
    with pytest.raises(kind) as raised:
        clip(engine(gpu, tmp_path), ask())
    assert raised.value.permanent is permanent  # type: ignore[attr-defined]  # all are RenderErrors
    if kind is OutageError:
        assert raised.value.retry_after_seconds == 7  # type: ignore[attr-defined]  # as above
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "where",
    [CREATE, ("GET", "/v1/videos/ID"), ("GET", "/v1/videos/ID/content")],
)
def test_a_server_that_goes_away_is_an_outage_and_no_failure_of_the_job(
    where: tuple[str, str], gpu: GpuServer, tmp_path: Path
) -> None:
    gpu.answers[where] = Hangup
    with pytest.raises(OutageError) as outage:
        clip(engine(gpu, tmp_path), ask())
    assert not outage.value.counts


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"size": (32, 32)}, "made 32x32, asked for 64x32"),
        ({"frames": 5}, "made 5 frames, 7 were ordered"),
    ],
)
def test_another_video_than_the_one_ordered_is_a_failure(
    changes: dict[str, Any], why: str, gpu: GpuServer, tmp_path: Path
) -> None:
    for name, value in changes.items():
        setattr(gpu, name, value)
    with pytest.raises(EngineFailed, match=why):
        clip(engine(gpu, tmp_path), ask())


@pytest.mark.parametrize("body", [b"", b"not a video"])
def test_an_unreadable_file_is_a_failure(
    body: bytes, gpu: GpuServer, tmp_path: Path
) -> None:
    gpu.answers["GET", "/v1/videos/ID/content"] = Reply(200, body)
    with pytest.raises(EngineFailed, match="unreadable"):
        clip(engine(gpu, tmp_path), ask())


def test_a_file_without_end_is_cut(gpu: GpuServer, tmp_path: Path) -> None:
    over = threading.Event()

    def endless() -> Iterator[bytes]:
        while not over.is_set():
            yield bytes(1024 * 1024)

    gpu.answers["GET", "/v1/videos/ID/content"] = Reply(200, stream=endless())
    made = engine(gpu, tmp_path)
    object.__setattr__(made._context.limits, "video_bytes", 3_000_000)
    with pytest.raises(EngineFailed, match="over 3000000 bytes"):
        clip(made, ask())
    over.set()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"loras": (Lora("a"),)}, "loras"),
        ({"last_image": Path("x.png")}, "last_image"),
        ({"quality": "fast"}, "quality"),
    ],
)
def test_what_the_server_cannot_do_is_refused_by_name(
    changes: dict[str, Any], name: str, gpu: GpuServer, tmp_path: Path
) -> None:
    with pytest.raises(Unsupported) as refused:
        clip(engine(gpu, tmp_path), ask(**changes))
    assert refused.value.field == name
    assert gpu.calls == []


def test_a_row_that_is_not_there_or_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="no remote engine 'farm'"):
        RemoteEngine("farm", context(tmp_path, {}))
    row = {"base_url": "http://127.0.0.1:9", "flavour": "vanilla"}
    with pytest.raises(ValueError, match="one of openai, vllm-omni"):
        RemoteEngine("farm", context(tmp_path, {"farm": row}))
    row = {"base_url": "http://127.0.0.1:9"}
    with pytest.raises(OutageError):
        RemoteEngine("farm", context(tmp_path, {"farm": row})).setup()


def test_the_fingerprint_names_the_server_and_no_key(
    gpu: GpuServer, tmp_path: Path
) -> None:
    made = engine(gpu, tmp_path).fingerprint(ask())
    assert made["engine"] == "remote"
    assert made["model"] == "wan"
    assert "secret" not in str(made)
