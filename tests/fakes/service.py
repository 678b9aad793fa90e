"""What all fake services share: jobs that age, scripted faults, results, callbacks.

A provider's fake adds its routes and its recorded bodies. Faults come from three places:
``service.script(...)`` in the same process, ``POST /__fake__/script`` from another, and
tokens in a prompt, ``[[fake:PLACE=KIND]]`` or ``[[fake:PLACE=KIND*TIMES]]``.

Places and kinds
  submit, status, cancel, delete, list
            429, 500, 503 (the vendor's own bodies); 502, html, garbage, empty (not its own);
            slow:SECONDS, drip; lost (does it, then hangs up), refuse (hangs up);
            error:NAME (any body of wire/<provider>/errors.json)
  end       never, fail, fail:NAME (a reason, where the vendor's format has one)
  result    404, 403, html, empty, huge (3 GB), notvideo, truncated, damaged, damaged-sound,
            slow, redirect
  callback  none, duplicate, early, forged, foreign
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import re
import secrets
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from tests.fakes import videos
from tests.fakes.bodies import load
from tests.fakes.server import Hangup, Reply, Request, Server, drip

HUGE_BYTES = 3 * 1024**3
State = Literal["queued", "running", "succeeded", "failed", "canceled"]
_TOKEN = re.compile(r"\[\[fake:(\w+)=([\w:.\-]+)(?:\*(\d+))?\]\]")


@dataclass
class Job:
    """One accepted job. Times are the service's own seconds."""

    id: str
    key: str
    model: str
    created: float
    prompt: str = ""
    seconds: float = 5.0
    fps: int = 30
    size: tuple[int, int] = (1280, 720)
    sound: bool = False
    picture: str | bytes = b""
    callback_url: str | None = None
    body: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    end: str = "succeed"
    result: str = "ok"
    callback: str = "once"
    canceled: bool = False
    number: int = 0


@dataclass
class Fault:
    place: str
    kind: str
    times: int = 1
    retry_after: str | None = None


@dataclass(frozen=True)
class Call:
    """A call the service received: what it was about and how it was answered."""

    place: str
    method: str
    path: str
    status: int  # 0: hung up
    headers: dict[str, str]
    body: bytes


Route = tuple[str, str, str, Callable[[Request, dict[str, str]], Reply]]


class FakeService:
    """One provider's API on loopback. Use as a context manager, or ``start`` and ``stop``."""

    name: ClassVar[str]
    #: the vendor's own words for the faults above: "429", "500", "503", "missing_key",
    #: "invalid_key", "broke" → a name in errors.json
    words: ClassVar[dict[str, str]]

    def __init__(
        self,
        *,
        port: int = 0,
        queued_seconds: float = 0.1,
        running_seconds: float = 0.2,
        video_side: int = 192,
        statuses_per_second: float | None = None,
        callback_retry_seconds: float = 0.2,
        calls_kept: int = 20_000,
        client_id: str = "fake_client_0001",
        client_secret: str = "fake0secret0fake0secret0fake0sec",
        webhook_secret: str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
        webhook_url: str | None = None,
    ) -> None:
        self.queued_seconds = queued_seconds
        self.running_seconds = running_seconds
        self.video_side = video_side
        self.statuses_per_second = statuses_per_second
        self.callback_retry_seconds = callback_retry_seconds
        self.client_id, self.client_secret = client_id, client_secret
        self.webhook_secret, self.webhook_url = webhook_secret, webhook_url
        self.jobs: dict[str, Job] = {}
        self.calls: deque[Call] = deque(maxlen=calls_kept)
        self.counts: Counter[str] = Counter()
        #: scripted faults by place, counted as their calls arrive
        self.faults_met: Counter[str] = Counter()
        self.callbacks: list[tuple[str, int]] = []  # (job id, HTTP status or 0)
        self._faults: list[Fault] = []
        self._token_uses: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._skew = 0.0
        self._allowance = 0.0
        self._refilled = time.monotonic()
        self._undelivered: list[Job] = []
        self._stopping = threading.Event()
        self._routes = [
            (method, re.compile(path), place, handle)
            for method, path, place, handle in self.routes()
        ]
        self._server = Server(self._handle, port=port)
        self._courier = threading.Thread(target=self._deliver_all, daemon=True)

    # ------------------------------------------------------------ a provider's part

    def routes(self) -> list[Route]:
        raise NotImplementedError

    def key_of(self, request: Request) -> str:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return key if scheme == "Bearer" else ""

    def callback(self, job: Job) -> tuple[bytes, dict[str, str]]:
        """Return the body and headers of the callback about ``job``."""
        raise NotImplementedError

    def callback_retries(self) -> int:
        return 5

    def new_id(self) -> str:
        return str(uuid.uuid4())

    # ------------------------------------------------------------ running

    @property
    def url(self) -> str:
        return self._server.url

    def start(self) -> FakeService:
        self._server.start()
        self._courier.start()
        return self

    def stop(self) -> None:
        self._stopping.set()
        self._server.stop()
        self._courier.join(5)

    def __enter__(self) -> FakeService:
        return self if self._courier.is_alive() else self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def now(self) -> float:
        return time.time() + self._skew

    def advance(self, seconds: float) -> None:
        """Let the service's clock jump, so that tests need not wait."""
        self._skew += seconds

    def script(
        self, place: str, kind: str, times: int = 1, retry_after: str | None = None
    ) -> None:
        """Make the next ``times`` calls of ``place`` go wrong."""
        with self._lock:
            self._faults.append(Fault(place, str(kind), times, retry_after))

    def calls_to(self, place: str) -> list[Call]:
        return [call for call in list(self.calls) if call.place == place]

    # ------------------------------------------------------------ jobs

    def accept(self, key: str, model: str, prompt: str, **facts: Any) -> Job:
        job = Job(self.new_id(), key, model, self.now(), prompt, **facts)
        job.seed = job.seed or secrets.randbelow(2**31)
        job.number = next(self._numbers)
        for place, kind, _ in _TOKEN.findall(prompt):
            if place in ("end", "result", "callback"):
                setattr(job, place, kind)
        with self._lock:
            for place in ("end", "result", "callback"):
                if fault := self._next_fault(place):
                    setattr(job, place, fault.kind)
            self.jobs[job.id] = job
            if job.callback_url or self.webhook_url:
                if job.callback == "early":
                    self._post(job)
                if job.callback != "none":
                    self._undelivered.append(job)
        return job

    def state(self, job: Job) -> State:
        age = self.now() - job.created
        if job.canceled:
            return "canceled"
        if age < self.queued_seconds:
            return "queued"
        if age < self.queued_seconds + self.running_seconds or job.end == "never":
            return "running"
        return "failed" if job.end.startswith("fail") else "succeeded"

    def percent(self, job: Job) -> int:
        state = self.state(job)
        if state in ("succeeded", "queued"):
            return 100 if state == "succeeded" else 0
        ran = self.now() - job.created - self.queued_seconds
        return min(99, max(1, int(100 * ran / max(self.running_seconds, 0.001))))

    def reason(self, job: Job) -> str:
        """Return NAME of an end of ``fail:NAME``."""
        return job.end.partition(":")[2]

    def owned(self, key: str, job_id: str) -> Job | None:
        job = self.jobs.get(job_id)
        return job if job is not None and job.key == key else None

    def video_url(self, job: Job) -> str:
        return f"{self.url}/files/{job.id}.mp4"

    def error(self, name: str, /, **values: Any) -> Reply:
        """Return the vendor's own error ``name``, or what ``words`` calls so."""
        body = load(self.name, "errors")[self.words.get(name, name)]
        values = {"request_id": str(uuid.uuid4()), "time": _iso(self.now()), **values}
        return Reply(body.status, body.filled(**values), dict(body.headers))

    def answer(self, file: str, name: str, /, **values: Any) -> Reply:
        body = load(self.name, file)[name]
        return Reply(body.status, body.filled(**values), dict(body.headers))

    # ------------------------------------------------------------ a call

    def _handle(self, request: Request) -> Reply:
        if request.path.startswith("/__fake__/"):
            return self._control(request)
        place, status = "unknown", 0
        try:
            if request.path.startswith("/files/"):
                place = "result"
                job_id = request.path.removeprefix("/files/").removesuffix(".mp4")
                reply = self.result(self.jobs.get(job_id))
            else:
                place, handle, params = self._route(request)
                reply = self._guarded(request, place, handle, params)
            status = reply.status
            return reply
        finally:
            self.counts[place] += 1
            self.calls.append(
                Call(
                    place,
                    request.method,
                    request.path,
                    status,
                    request.headers,
                    request.body,
                )
            )

    def _route(
        self, request: Request
    ) -> tuple[str, Callable[[Request, dict[str, str]], Reply], dict[str, str]]:
        for method, pattern, place, handle in self._routes:
            if method == request.method and (found := pattern.fullmatch(request.path)):
                return place, handle, found.groupdict()
        nothing = Reply(404, b"<html>404 Not Found</html>", content_type="text/html")
        return "unknown", lambda _request, _params: nothing, {}

    def _guarded(
        self,
        request: Request,
        place: str,
        handle: Callable[[Request, dict[str, str]], Reply],
        params: dict[str, str],
    ) -> Reply:
        if place in ("unknown", "token"):
            return handle(request, params)
        key = self.key_of(request)
        if not key:
            return self.error("missing_key")
        if "invalid" in key:
            return self.error("invalid_key")
        if "broke" in key and place == "submit":
            return self.error("broke")
        if place == "status" and not self._within_rate():
            reply = self.error("429")
            reply.headers["Retry-After"] = "1"
            return reply
        fault = self._fault_for(request, place)
        if fault is None:
            return handle(request, params)
        return self._faulty(fault, request, handle, params)

    def _fault_for(self, request: Request, place: str) -> Fault | None:
        with self._lock:
            if fault := self._next_fault(place):
                return fault
        haystack = request.body.decode("utf-8", "replace")
        if place != "submit":
            haystack = " ".join(
                job.prompt
                for job in self._named_jobs(request)
                if "[[fake:" in job.prompt
            )
        for token in _TOKEN.finditer(haystack):
            where, kind, times = token.groups()
            if where != place:
                continue
            # The words before it tell equal tokens of different prompts apart.
            uses = haystack[max(0, token.start() - 40) : token.end()]
            if times and self._token_uses[uses] >= int(times):
                continue
            self._token_uses[uses] += 1
            return Fault(place, kind)
        return None

    def _named_jobs(self, request: Request) -> Iterator[Job]:
        told = f"{request.path} {' '.join(request.query.values())} "
        told += request.body.decode("utf-8", "replace")
        for word in re.findall(r"[\w\-]{8,}", told):
            if word in self.jobs:
                yield self.jobs[word]

    def _next_fault(self, place: str) -> Fault | None:
        for fault in self._faults:
            if fault.place == place and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def _faulty(
        self,
        fault: Fault,
        request: Request,
        handle: Callable[[Request, dict[str, str]], Reply],
        params: dict[str, str],
    ) -> Reply:
        self.faults_met[fault.place] += 1
        kind, _, detail = fault.kind.partition(":")
        if kind == "refuse":
            raise Hangup
        if kind == "lost":
            handle(request, params)
            raise Hangup
        if kind == "slow":
            self._stopping.wait(float(detail or 1))
            return handle(request, params)
        if kind == "drip":
            whole = handle(request, params)
            body = whole.encoded()
            whole.stream, whole.length = drip(body, every_seconds=0.05), len(body)
            return whole
        if kind == "garbage":
            return Reply(200, b"\x00\xff{]not json", content_type="application/json")
        if kind == "empty":
            return Reply(200, b"")
        if kind == "html":
            return Reply(200, b"<html>hello</html>", content_type="text/html")
        if kind in ("502", "504"):
            page = f"<html><h1>{kind} from a proxy</h1></html>".encode()
            return Reply(int(kind), page, content_type="text/html")
        reply = self.error(detail if kind == "error" else kind)
        if fault.retry_after is not None:
            reply.headers["Retry-After"] = fault.retry_after
        return reply

    def _within_rate(self) -> bool:
        if self.statuses_per_second is None:
            return True
        with self._lock:
            moment = time.monotonic()
            gained = (moment - self._refilled) * self.statuses_per_second
            self._allowance = min(
                self._allowance + gained, max(1.0, self.statuses_per_second)
            )
            self._refilled = moment
            if self._allowance < 1:
                return False
            self._allowance -= 1
            return True

    # ------------------------------------------------------------ results

    def result(self, job: Job | None) -> Reply:
        """Return the video of ``job``, or what its script says instead."""
        if job is None or self.state(job) != "succeeded":
            return Reply(404, b"not found", content_type="text/plain")
        kind = job.result
        if kind in ("404", "403"):
            return Reply(int(kind), b"<Error/>", content_type="application/xml")
        if kind == "html":
            return Reply(200, b"<html>expired</html>", content_type="text/html")
        if kind == "redirect":
            return Reply(302, headers={"Location": "http://169.254.169.254/latest"})
        if kind == "empty":
            return Reply(200, b"", content_type="video/mp4")
        if kind == "notvideo":
            noise = secrets.token_bytes(100_000)
            return Reply(200, noise, content_type="video/mp4")
        if kind == "huge":
            return Reply(
                200, content_type="video/mp4", stream=_zeros(), length=HUGE_BYTES
            )
        video = self.video(job)
        if kind == "truncated":
            return Reply(200, video[: len(video) // 2], content_type="video/mp4")
        if kind == "damaged":
            return Reply(200, videos.damaged(video), content_type="video/mp4")
        if kind == "damaged-sound":
            spoilt = videos.with_damaged_sound(video)
            return Reply(200, spoilt, content_type="video/mp4")
        if kind == "slow":
            dripped = drip(video, every_seconds=0.2)
            return Reply(
                200, content_type="video/mp4", stream=dripped, length=len(video)
            )
        return Reply(200, video, content_type="video/mp4")

    def video(self, job: Job) -> bytes:
        wide, high = job.size
        if self.video_side:
            scale = self.video_side / max(wide, high)
            wide, high = max(16, round(wide * scale)), max(16, round(high * scale))
        return videos.make(
            self._picture(job),
            seconds=job.seconds,
            fps=job.fps,
            size=(wide, high),
            sound=job.sound,
        )

    def _picture(self, job: Job) -> bytes:
        if isinstance(job.picture, bytes):
            return job.picture
        if job.picture.startswith("http"):
            with contextlib.suppress(OSError, ValueError):
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                with opener.open(job.picture, timeout=5) as response:
                    job.picture = response.read(50_000_000)
            return job.picture if isinstance(job.picture, bytes) else b""
        with contextlib.suppress(ValueError):
            job.picture = base64.b64decode(job.picture.rpartition(",")[2])
        return job.picture if isinstance(job.picture, bytes) else b""

    # ------------------------------------------------------------ callbacks

    def _deliver_all(self) -> None:
        while not self._stopping.wait(0.02):
            with self._lock:
                due = [j for j in self._undelivered if self._is_over(j)]
                for job in due:
                    self._undelivered.remove(job)
            for job in due:
                for _ in range(3 if job.callback == "duplicate" else 1):
                    self._post(job, retries=self.callback_retries())

    def _is_over(self, job: Job) -> bool:
        return self.state(job) in ("succeeded", "failed")

    def _post(self, job: Job, retries: int = 0) -> None:
        url = job.callback_url or self.webhook_url or ""
        body, headers = self.callback(job)
        if job.callback == "forged":
            body = body.replace(b'"signature": "', b'"signature": "0')
            headers = {
                name: value.replace("v1,", "v1,AAAA") for name, value in headers.items()
            }
        for attempt in range(retries + 1):
            status = _post(url, body, headers)
            self.callbacks.append((job.id, status))
            if 200 <= status < 300 or self._stopping.is_set():
                return
            self._stopping.wait(self.callback_retry_seconds * 2**attempt)

    # ------------------------------------------------------------ control

    def _control(self, request: Request) -> Reply:
        order = request.json()
        match request.path.removeprefix("/__fake__/"):
            case "script":
                self.script(**order)
            case "advance":
                self.advance(float(order["seconds"]))
            case "settings":
                for name, value in order.items():
                    if name not in (
                        "queued_seconds",
                        "running_seconds",
                        "statuses_per_second",
                        "webhook_url",
                        "video_side",
                    ):
                        return Reply(400, {"unknown": name})
                    setattr(self, name, value)
            case "jobs":
                listed = [
                    {"id": j.id, "prompt": j.prompt, "state": self.state(j)}
                    for j in list(self.jobs.values())
                ]
                return Reply(200, listed)
            case "calls":
                return Reply(200, dict(self.counts))
            case _:
                return Reply(404, {})
        return Reply(200, {"ok": True})


def _post(url: str, body: bytes, headers: dict[str, str]) -> int:
    """Send one callback; return the receiver's status, 0 when it cannot be reached."""
    address = urlsplit(url)
    kind = (
        http.client.HTTPSConnection
        if address.scheme == "https"
        else http.client.HTTPConnection
    )
    connection = kind(address.hostname or "", address.port, timeout=5)
    path = address.path + (f"?{address.query}" if address.query else "")
    try:
        headers = {"Content-Type": "application/json", **headers}
        connection.request("POST", path or "/", body, headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _zeros() -> Iterator[bytes]:
    """Yield 3 GB that begin like an MP4."""
    head = b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom"
    yield head
    chunk, left = bytes(1024 * 1024), HUGE_BYTES - len(head)
    while left > 0:
        yield chunk[: min(left, len(chunk))]
        left -= len(chunk)


def _iso(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + "Z"
