"""A GPU server elsewhere behind the engine contract: whoever speaks OpenAI's Videos API.

vLLM-Omni, SGLang-Diffusion and LightX2V serve Wan that way, where several GPUs per clip
or quantised kernels matter more than our own options. The profile names a row of
``options["remote_engines"]``: ``base_url``, ``model``, ``api_key``, ``flavour`` and
``poll_seconds``. The servers agree on the calls and differ in what they add to them; a
``Flavour`` says how. The finished file is fetched, decoded, checked and trimmed; frames
come from its H.264, so they have been compressed once.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

import av
import httpx

from inference.contracts import Progress
from inference.errors import (
    ContentBlocked,
    EngineFailed,
    InputRejected,
    OutageError,
    Stopped,
    Unsupported,
    WeightsMissing,
)
from inference.geometry import vae_frames
from inference.media.frames import read_frames

if TYPE_CHECKING:
    from inference.contracts import (
        Context,
        Frame,
        OnProgress,
        RenderRequest,
        ShouldStop,
    )

POLL_SECONDS: Final = 1.0
#: how soon a stop is noticed between two polls
SLICE_SECONDS: Final = 0.2
#: the share of the work that is the server's; the rest is fetching and decoding
MADE: Final = 0.95
_AWAY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_BLOCKED: Final = frozenset(
    {"moderation_blocked", "content_policy_violation", "content_blocked"}
)


@dataclass(frozen=True)
class Flavour:
    """What a server takes beside the standard form.

    ``swapped``: its ``guidance_scale`` is the low-noise stage's and ``guidance_scale_2``
    the high-noise one's, the other way round than diffusers (vLLM-Omni, videos_api.md).
    ``extra_body``: further options are read from a JSON field of that name.
    """

    extended: bool = True
    swapped: bool = False
    extra_body: bool = False


FLAVOURS: Final[Mapping[str, Flavour]] = MappingProxyType(
    {
        "openai": Flavour(extended=False),
        "vllm-omni": Flavour(swapped=True),
        "sglang": Flavour(extra_body=True),
        "lightx2v": Flavour(),
    }
)


@dataclass(frozen=True)
class Server:
    """One row of the operator's table."""

    base_url: str
    model: str = ""
    api_key: str = ""
    flavour: str = "openai"
    poll_seconds: float = POLL_SECONDS
    timeout_seconds: float = 60.0

    @property
    def root(self) -> str:
        """The address before ``/v1``: rows are written with and without it."""
        return self.base_url.rstrip("/").removesuffix("/v1")


class RemoteEngine:
    def __init__(
        self,
        profile: str,
        context: Context,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._name, self._context, self._sleep = profile, context, sleep
        row = context.options.get("remote_engines", {}).get(profile)
        if row is None:
            raise WeightsMissing(f"no remote engine '{profile}' is configured here")
        self._server = row if isinstance(row, Server) else Server(**row)
        if self._server.flavour not in FLAVOURS:
            known = ", ".join(FLAVOURS)
            raise ValueError(f"flavour {self._server.flavour!r}: one of {known}")
        self._flavour = FLAVOURS[self._server.flavour]

    def setup(self) -> None:
        """Ask the server for its list of videos; raise OutageError when it is away."""
        with _Link(self._name, self._server) as link:
            link.call("GET", "/v1/videos", params={"limit": "1"})

    def frames(
        self,
        request: RenderRequest,
        *,
        on_progress: OnProgress,
        should_stop: ShouldStop,
    ) -> Generator[Frame, None, None]:
        self._check(request)
        with _Link(self._name, self._server) as link:
            video_id = self._submit(link, request)
            target = self._context.workdir / f"{self._name}-{video_id}.mp4"
            try:
                self._wait(link, video_id, on_progress, should_stop)
                link.fetch(video_id, target, self._context.limits.video_bytes)
                on_progress(Progress(MADE, "decode"))
                yield from self._decoded(target, request, should_stop)
            finally:
                target.unlink(missing_ok=True)
                # Stops a running job and frees the server's disk after a finished one.
                with contextlib.suppress(OutageError, EngineFailed):
                    link.call("DELETE", f"/v1/videos/{video_id}")

    def fingerprint(self, request: RenderRequest) -> Mapping[str, str]:
        """What is known: the rest is the server's."""
        return {
            "engine": "remote",
            "server": urlsplit(self._server.root).netloc,
            "flavour": self._server.flavour,
            "model": self._server.model,
        }

    def _check(self, request: RenderRequest) -> None:
        if request.loras:
            raise Unsupported("This server takes no LoRAs.", field="loras")
        if request.last_image is not None:
            raise Unsupported("This server takes no last image.", field="last_image")
        if request.quality == "fast":
            raise Unsupported("This server has no fast mode.", field="quality")

    def _submit(self, link: _Link, request: RenderRequest) -> str:
        reply = link.call(
            "POST",
            "/v1/videos",
            data=self._form(request),
            files={
                "input_reference": (
                    "image.png",
                    request.image.read_bytes(),
                    "image/png",
                )
            },
        )
        video_id = reply.get("id")
        if not isinstance(video_id, str) or "/" in video_id or not video_id:
            raise EngineFailed(f"{self._name}: answered without an id")
        return video_id

    def _form(self, request: RenderRequest) -> dict[str, str]:
        frames = vae_frames(request.output.frames)
        form: dict[str, Any] = {
            "prompt": request.prompt or " ",  # required, and not allowed to be empty
            "seconds": str(max(1, round(request.output.frames / request.fps))),
            "size": f"{request.width}x{request.height}",
        }
        if self._server.model:
            form["model"] = self._server.model
        if self._flavour.extended:
            high, low = request.guidance_scale, request.guidance_scale_2
            if self._flavour.swapped and low is not None:
                high, low = low, high
            extra = {
                "width": request.width,
                "height": request.height,
                "num_frames": frames,
                "fps": request.fps,
                "seed": request.seed,
                "negative_prompt": request.negative_prompt or None,
                "num_inference_steps": request.steps,
                "guidance_scale": high,
                "guidance_scale_2": low,
                "flow_shift": request.flow_shift,
            }
            extra = {k: v for k, v in extra.items() if v is not None}
            form |= extra
            if self._flavour.extra_body:
                form["extra_body"] = json.dumps(extra)
        return {name: str(value) for name, value in form.items()}

    def _wait(
        self,
        link: _Link,
        video_id: str,
        on_progress: OnProgress,
        should_stop: ShouldStop,
    ) -> None:
        started = time.monotonic()
        while True:
            reply = link.call("GET", f"/v1/videos/{video_id}")
            status = reply.get("status")
            if status == "completed":
                return
            if status not in {"queued", "in_progress"}:
                raise self._failure(reply)
            done = _share(reply.get("progress"))
            spent = time.monotonic() - started
            left = spent / done - spent if done > 0 else None
            on_progress(Progress(MADE * done, "generate", left))
            self._rest(should_stop)

    def _rest(self, should_stop: ShouldStop) -> None:
        rested = 0.0
        while rested < self._server.poll_seconds:
            if should_stop():
                raise Stopped("asked to stop")
            slice_seconds = min(SLICE_SECONDS, self._server.poll_seconds - rested)
            self._sleep(slice_seconds)
            rested += slice_seconds
        if should_stop():
            raise Stopped("asked to stop")

    def _failure(self, reply: Mapping[str, Any]) -> Exception:
        error = reply.get("error")
        error = error if isinstance(error, dict) else {}
        message = f"{self._name}: {error.get('message') or reply.get('status')}"
        if error.get("code") in _BLOCKED:
            return ContentBlocked(message)
        return EngineFailed(message)

    def _decoded(
        self, target: Path, request: RenderRequest, should_stop: ShouldStop
    ) -> Generator[Frame, None, None]:
        wanted, given = request.output.frames, 0
        try:
            for frame in read_frames(target):
                high, wide = frame.shape[:2]
                if (wide, high) != (request.width, request.height):
                    raise EngineFailed(
                        f"{self._name}: made {wide}x{high}, "
                        f"asked for {request.width}x{request.height}"
                    )
                if should_stop():
                    raise Stopped("asked to stop")
                given += 1
                yield frame
                if given == wanted:
                    return
        except (av.FFmpegError, IndexError) as error:
            raise EngineFailed(f"{self._name}: an unreadable file: {error}") from error
        raise EngineFailed(f"{self._name}: made {given} frames, {wanted} were ordered")


class _Link:
    """The calls of one job: its own connections, closed with it."""

    def __init__(self, name: str, server: Server) -> None:
        key = server.api_key
        self._name = name
        self._client = httpx.Client(
            base_url=server.root,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(server.timeout_seconds, connect=10.0),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def call(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        with self._errors():
            reply = self._client.request(method, path, **how)
            if reply.status_code >= 300:
                raise self._refused(reply)
            try:
                body = reply.json() if reply.content else {}
            except ValueError as error:
                raise EngineFailed(f"{self._name}: answered no JSON") from error
        return body if isinstance(body, dict) else {}

    @contextlib.contextmanager
    def _errors(self) -> Generator[None, None, None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise OutageError(f"{self._name} does not answer: {error}") from error

    def _refused(self, reply: httpx.Response) -> Exception:
        status = reply.status_code
        error = _error_in(reply)
        text = f"{self._name}: {status} {error.get('message') or reply.text[:200]}"
        if status in _AWAY:
            return OutageError(text, retry_after_seconds=_retry_after(reply))
        if error.get("code") in _BLOCKED:
            return ContentBlocked(text)
        if error.get("param") == "input_reference":
            return InputRejected("The picture cannot be used.", field="image")
        # A refused form is our mistake or the operator's: other routes may do better.
        return EngineFailed(text, permanent=status in {400, 413, 415, 422})

    def fetch(self, video_id: str, target: Path, limit: int) -> None:
        size = 0
        with (
            self._errors(),
            self._client.stream("GET", f"/v1/videos/{video_id}/content") as reply,
            target.open("wb") as file,
        ):
            if reply.status_code != 200:
                reply.read()
                raise self._refused(reply)
            for block in reply.iter_bytes(1024 * 1024):
                size += file.write(block)
                if size > limit:
                    raise EngineFailed(f"{self._name}: a file of over {limit} bytes")


def _share(progress: object) -> float:
    number = progress if isinstance(progress, int | float) else 0
    return min(max(number / 100, 0.0), 1.0)


def _retry_after(reply: httpx.Response) -> float | None:
    given = reply.headers.get("retry-after", "")
    return float(given) if given.isdigit() else None


def _error_in(reply: httpx.Response) -> dict[str, Any]:
    try:
        error = reply.json().get("error")
    except (ValueError, AttributeError):
        return {}
    return error if isinstance(error, dict) else {}
