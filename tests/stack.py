"""The whole stack as its users run it, `manage.py up`, for stories and faults."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psycopg
from redis import Redis

from inference.storage import Storage
from project import state
from project.embedded import free_port

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = Path(__file__).parent / "photos"
START_SECONDS = 180.0
T = TypeVar("T")

#: Faults are the same at any speed; tests use seconds where production uses minutes.
FAST = {
    "LEASE_SECONDS": "6",
    "HEARTBEAT_SECONDS": "1",
    "REAP_EVERY_SECONDS": "1",
    "RING_EVERY_SECONDS": "1",
    "BELL_REST_SECONDS": "1",
    "WEB_WORKERS": "1",
    "BAD_KEYS_PER_MINUTE": "10000",  # the tests' callers share one address
    "LOG_LEVEL": "INFO",
}


@dataclass
class LiveStack:
    """A running stack; ``base_url`` is its web process."""

    home: Path
    process: subprocess.Popen[str]
    base_url: str
    env: dict[str, str]
    _clerk: subprocess.Popen[str] | None = field(default=None, repr=False)

    # ------------------------------------------------------------------ customers

    def key(
        self, mode: str = "live", *, plan: str = "enterprise", credits: int = 10_000
    ) -> str:
        """Make an account; return its API key."""
        name = f"acct-{time.monotonic_ns()}"
        args = ["createaccount", name, "--plan", plan, "--mode", mode]
        if mode == "live" and credits:
            args += ["--credits", str(credits)]
        return self.manage(*args).strip().splitlines()[-1]

    def client(self, key: str, **options: Any) -> httpx.Client:
        return httpx.Client(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=30,
            trust_env=False,
            **options,
        )

    def manage(self, *args: str, check: bool = True, stdin: str = "") -> str:
        """Run a management command beside the stack; return what it printed.

        One process serves all calls: to start Django for each takes longer than most.
        """
        if self._clerk is None or self._clerk.poll() is not None:
            self._clerk = subprocess.Popen(
                [sys.executable, "-m", "tests.clerk"],
                # No pool: a connection in it would outlive a restart of Postgres.
                env=self.env | {"DATABASE_POOL": "0"},
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._clerk.stdin is not None
        assert self._clerk.stdout is not None
        print(json.dumps([args, stdin]), file=self._clerk.stdin, flush=True)
        answer = self._clerk.stdout.readline()
        assert answer, f"the process that runs {args} is gone"
        code, printed = json.loads(answer)
        if check and code != 0:
            raise AssertionError(printed)
        return str(printed)

    def wait_for_job(
        self, client: httpx.Client, job_id: str, *, seconds: float = 60
    ) -> dict[str, Any]:
        """Poll the native API until the job has ended; return it."""

        def ended() -> dict[str, Any] | None:
            job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
            done = job["status"] in ("succeeded", "failed", "canceled")
            return job if done else None

        return wait_until(ended, seconds=seconds, what=f"job {job_id} to end")

    # ------------------------------------------------------------------- insides

    def sql(self, query: str, *args: Any) -> list[tuple[Any, ...]]:
        url = state.addresses(self.home)["DATABASE_URL"]
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(query, args)
            return cursor.fetchall() if cursor.description else []

    def storage(self) -> Storage:
        address = state.addresses(self.home)
        return Storage(
            endpoint_url=address["S3_ENDPOINT_URL"],
            bucket="zoetrope",
            access_key=address["S3_ACCESS_KEY"],
            secret_key=address["S3_SECRET_KEY"],
        )

    def redis(self) -> Redis:
        return Redis.from_url(state.addresses(self.home)["REDIS_URL"])

    def pid(self, name: str) -> int:
        """Return the process id under which ``name`` was last started."""
        log = (self.home / "up.log").read_text()
        found = re.findall(rf"{re.escape(name)} started, pid (\d+)", log)
        assert found, f"{name} was never started:\n{log}"
        return int(found[-1])

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        pid = self.pid(name)
        os.kill(pid, number)
        return pid

    def wait_restarted(self, name: str, old_pid: int, *, seconds: float = 30) -> int:
        return wait_until(
            lambda: pid if (pid := self.pid(name)) != old_pid else None,
            seconds=seconds,
            what=f"{name} to be started again",
        )

    def forget_routes(self) -> None:
        """Wait until no process works by provider accounts or routes it read before."""
        from jobs.routing import CACHE_SECONDS

        time.sleep(CACHE_SECONDS)

    def pauses(self, jobs: list[str]) -> list[float]:
        """Return the seconds for which the engine's worker did nothing between them."""
        rows = self.sql(
            "SELECT extract(epoch FROM started_at - before)::float8 FROM ("
            " SELECT started_at, lag(ended_at) OVER (ORDER BY started_at) AS before"
            " FROM jobs_attempt WHERE step = 'generate' AND job_id = ANY(%s::uuid[])"
            ") AS attempts WHERE before IS NOT NULL ORDER BY 1",
            jobs,
        )
        return [pause for (pause,) in rows]

    def check_ledger(self) -> None:
        self.manage("check_ledger")

    def stop(self) -> None:
        if self._clerk is not None:
            self._clerk.communicate(timeout=10)  # the end of its input ends it
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)


def start(home: Path, **extra: str) -> LiveStack:
    """Start a stack of its own under ``home`` on free ports; wait until it serves."""
    home.mkdir(parents=True, exist_ok=True)
    given = ("PATH", "HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME")
    env = {name: os.environ[name] for name in given if name in os.environ}
    # Not fixed ones: the web server shares its port with another run's (SO_REUSEPORT).
    ports = {"PORT": str(free_port()), "FLOWER_PORT": str(free_port())}
    env |= {"ZOETROPE_HOME": str(home), **ports}
    # Chosen here, so that one copy of Zoetrope may read what another signed.
    storage = free_port()
    state.write(home / "ports.json", {"s3": str(storage)})
    may_reach = [extra.pop("EGRESS_ALLOW_HOSTS", ""), f"127.0.0.1:{storage}"]
    env |= FAST | extra | {"EGRESS_ALLOW_HOSTS": ",".join(filter(None, may_reach))}
    log = home / "up.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "manage.py"), "up", "--stop-with-parent"],
            env=env,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )

    def ready() -> str | None:
        if process.poll() is not None:
            raise AssertionError(f"the stack ended:\n{log.read_text()}")
        found = re.search(r"^ready +(http://\S+)", log.read_text(), re.MULTILINE)
        return found[1] if found else None

    url = wait_until(ready, seconds=START_SECONDS, what=f"the stack ({log})")
    return LiveStack(home, process, url, env)


def wait_until(
    found: Callable[[], T | None], *, seconds: float, what: str, every: float = 0.1
) -> T:
    """Return the first answer that is not None (or false)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := found():
            return answer
        time.sleep(every)
    raise AssertionError(f"waited {seconds:g} s for {what}")


class PhotoServer:
    """Serves the test photos on loopback, as a customer's own site would."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        outer = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, directory=str(PHOTOS), **kwargs)

            def log_message(self, *_: Any) -> None:
                outer.requests.append(self.path)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def url(self, name: str = "chelsea.jpg") -> str:
        return f"http://{self.host}/{name}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
