"""The demo: one real photo through the public HTTP API of a real stack, shown live.

A stack that already runs from this ZOETROPE_HOME is used and left running; otherwise
one is started for the demo and stopped after it.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from inference.catalogue import MODELS
from project import state
from project.supervisor import set_death_signal

ROOT: Final = Path(__file__).resolve().parent.parent
PHOTO: Final = ROOT / "tests" / "photos" / "astronaut.jpg"
MANAGE: Final = (sys.executable, str(ROOT / "manage.py"))
CREDITS: Final = 1000
POLL_SECONDS: Final = 0.5
JOB_SECONDS: Final = 1800.0
WARM_SECONDS: Final = 180.0
BAR_WIDTH: Final = 30

Say = Callable[[str], None]


class DemoFailed(Exception):
    """The demo came to no video; the message says why."""


@contextmanager
def stack(home: Path, say: Say, *, env: dict[str, str]) -> Iterator[str]:
    """Give the URL of a running stack, started here if none runs."""
    url = running(home)
    if url:
        say(f"using the stack that already serves {url}")
        yield url
        return
    up = subprocess.Popen(
        [*MANAGE, "up", "--stop-with-parent"],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches us, and we stop it in order
    )
    try:
        yield wait_for_ready(up, say)
    finally:
        up.terminate()
        assert up.stdout is not None
        for line in up.stdout:
            say(without_time(line))
        up.wait()


def without_time(line: str) -> str:
    """Cut the seconds that `up` counts from its own start; ours come before."""
    return re.sub(r"^ *[\d.]+ s  ", "", line.rstrip())


@dataclass(frozen=True)
class Fake:
    """A local stand-in for an outside provider, and what it knows us by."""

    base_url: str
    credentials: dict[str, str]

    @property
    def host(self) -> str:
        return self.base_url.partition("://")[2].partition("/")[0]


@contextmanager
def fake_of(provider: str) -> Iterator[Fake]:
    """Run the provider's local fake, which speaks its true wire format."""
    process = subprocess.Popen(
        # Small videos, which finishing enlarges: the fake draws them on this machine.
        [sys.executable, "-m", "tests.fakes", provider, "--json", "--side=640"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: set_death_signal(signal.SIGTERM),
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise DemoFailed(f"there is no fake of {provider!r}")
        yield Fake(**json.loads(line))
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@dataclass(frozen=True)
class Ask:
    """What to send to show a provider, and the route it needs beside the catalogue's."""

    model: str
    fields: dict[str, str] = field(default_factory=dict)
    route: str = ""


# Any server that speaks the OpenAI Videos format: the catalogue cannot know its models.
ASKS: Final = {
    "openai_videos": Ask(
        "wan2.7-i2v", {"seconds": "4", "resolution": "720p"}, "wan2.7-i2v=sora-2"
    )
}


def ask_for(provider: str) -> Ask:
    """Return how to ask for the first public model that this provider can make."""
    if provider in ASKS:
        return ASKS[provider]
    for model in MODELS.values():
        if any(route.runner == provider for route in model.routes):
            return Ask(model.name)
    raise DemoFailed(f"no model is made by {provider!r}")


def add_provider(env: dict[str, str], provider: str, fake: Fake, route: str) -> None:
    """Enter the account as an operator would."""
    done = subprocess.run(
        [
            *MANAGE,
            "addprovider",
            provider,
            "--name=demo",
            f"--base-url={fake.base_url}",
            *([f"--route={route}"] if route else []),
        ],
        input=json.dumps(fake.credentials),
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise DemoFailed(f"addprovider failed:\n{done.stderr}")


def remove_provider(env: dict[str, str], provider: str) -> None:
    """Switch the account off: its address is dead once the fake has ended."""
    argv = [*MANAGE, "addprovider", provider, "--name=demo", "--off"]
    subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, check=False)


def running(home: Path) -> str | None:
    url = state.addresses(home).get("PUBLIC_URL")
    try:
        alive = url and _answers(f"{url}/healthz")
    except httpx.TransportError:
        return None  # the file is left over from a stack that was killed
    return url if alive else None


def serves(url: str, model: str) -> bool:
    """Return whether a running stack has workers that make the model."""
    from project.stack import gpu_queues

    told = httpx.get(f"{url}/readyz", timeout=10, trust_env=False).json()
    return all(told["workers"].get(queue) for queue in gpu_queues([model]))


def _answers(url: str) -> bool:
    return httpx.get(url, timeout=2, trust_env=False).status_code == httpx.codes.OK


def wait_for_ready(up: subprocess.Popen[str], say: Say) -> str:
    assert up.stdout is not None
    for line in up.stdout:
        say(without_time(line))
        if line.startswith("ready"):
            return line.split()[1]
    raise DemoFailed("the stack did not start; its last lines are above")


def new_key(env: dict[str, str]) -> str:
    """Make a live account with credits; return its API key."""
    command = ["createaccount", "demo", "--mode", "live", "--credits", str(CREDITS)]
    done = subprocess.run(
        [*MANAGE, *command],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise DemoFailed(f"createaccount failed:\n{done.stderr}")
    return done.stdout.strip().splitlines()[-1]


def submit(
    client: httpx.Client, photo: Path, fields: dict[str, str], say: Say
) -> dict[str, Any]:
    """Order the video; wait for a GPU worker, which warms up before it takes jobs."""
    deadline = time.monotonic() + WARM_SECONDS
    is_told = False
    while True:
        with photo.open("rb") as image:
            answer = client.post(
                "/v1/jobs",
                data=fields,
                files={"image": (photo.name, image, "image/jpeg")},
            )
        is_busy = answer.status_code in {429, 503}
        if not is_busy or time.monotonic() > deadline:
            return body_of(answer)
        if not is_told:
            say(f"waiting for a worker of {fields['model']} to warm up")
            is_told = True
        # Not more often: the demo's account is on the free plan.
        time.sleep(max(2.0, float(answer.headers.get("Retry-After", 0))))


def body_of(answer: httpx.Response) -> dict[str, Any]:
    if answer.is_error:
        raise DemoFailed(
            f"{answer.request.url} said {answer.status_code}: {answer.text}"
        )
    body: dict[str, Any] = answer.json()
    return body


def follow(
    client: httpx.Client, job_id: str, show: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Poll the job to its end, showing each state; DemoFailed unless it succeeded."""
    deadline = time.monotonic() + JOB_SECONDS
    while True:
        answer = client.get(f"/v1/jobs/{job_id}")
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            time.sleep(float(answer.headers.get("Retry-After", 1)))
            continue
        job = body_of(answer)
        show(job)
        if job["status"] == "succeeded":
            return job
        if job["status"] in {"failed", "canceled"}:
            raise DemoFailed(f"the job {job['status']}: {job['error']}")
        if time.monotonic() > deadline:
            raise DemoFailed(f"the job took longer than {JOB_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)


def download(url: str, path: Path) -> int:
    """Fetch the signed URL as any customer would, without a key; return its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with (
        httpx.stream("GET", url, timeout=60, trust_env=False) as answer,
        part.open("wb") as file,
    ):
        if answer.is_error:
            raise DemoFailed(f"the signed URL said {answer.status_code}")
        for chunk in answer.iter_bytes():
            file.write(chunk)
    part.rename(path)
    return path.stat().st_size


def line_of(job: dict[str, Any]) -> str:
    """Return status, step and a bar, as one line."""
    share = float(job["progress"] or 0)
    done = round(share * BAR_WIDTH)
    bar = "#" * done + "." * (BAR_WIDTH - done)
    where = job["stage"] or job["step"] or ""
    return f"{job['status']:<9} {where:<9} [{bar}] {share:4.0%}"
