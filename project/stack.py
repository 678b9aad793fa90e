"""The processes of the whole stack, one table, and the order they start and stop in."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Final, Protocol

import httpx
from django.conf import settings

from inference.catalogue import MODELS
from jobs import safety
from project import embedded, env, state, wiring
from project.supervisor import Process, Supervisor, last_lines

ROOT: Final = Path(__file__).resolve().parent.parent
START_SECONDS: Final = 120.0

# Stopped from the lowest rank up; the embedded services have the highest ranks.
RANK_WEB, RANK_WORKER, RANK_POLLER, RANK_HOUSEKEEPER, RANK_FLOWER = range(5)


@dataclass(frozen=True)
class Worker:
    """One worker process: the queues it listens to and how many tasks it runs at once."""

    name: str
    queues: tuple[str, ...]
    threads: int


def workers() -> list[Worker]:
    """Return the workers of this machine.

    One for GPU_MODELS is there if any are named, one for the picture classifier if its
    weights are there or SAFETY_REQUIRE_CLASSIFIER demands it.
    """
    providers = tuple(f"provider.{name}" for name in settings.PROVIDERS)
    gpu = gpu_queues(settings.GPU_MODELS)
    return [
        *([Worker("gpu", gpu, 1)] if gpu else []),
        *([Worker("safety", (safety.QUEUE,), 1)] if screens() else []),
        Worker("media", ("media",), settings.MEDIA_THREADS),
        Worker("cpu", ("cpu",), settings.CPU_THREADS),
        Worker("cpu-test", ("cpu.test",), settings.CPU_TEST_THREADS),
        Worker("provider", providers, settings.PROVIDER_THREADS),
        Worker("webhook", ("webhook",), settings.WEBHOOK_THREADS),
    ]


def screens() -> bool:
    """Return whether jobs of this installation go by the safety worker."""
    return safety.is_on(wiring.context())


def gpu_queues(models: Iterable[str]) -> tuple[str, ...]:
    """Return the queues of the GPU families that make these public models."""
    queues = {
        route.queue
        for model in models
        for route in (MODELS[model].routes if model in MODELS else ())
        if route.queue.startswith("gpu.")
    }
    return tuple(sorted(queues))


def processes(*, port: int, flower_port: int, env: dict[str, str]) -> list[Process]:
    """Return everything but the services, in starting order."""
    drain = settings.STOP_SECONDS

    def manage(name: str, rank: int) -> Process:
        argv = [sys.executable, str(ROOT / "manage.py"), name]
        return Process(name, argv, rank, env, cwd=ROOT)

    return [
        Process("web", web_command(port), RANK_WEB, env, stop_seconds=drain, cwd=ROOT),
        manage("housekeeper", RANK_HOUSEKEEPER),
        *(
            Process(
                f"worker-{worker.name}",
                worker_command(worker),
                RANK_WORKER,
                env,
                stop_seconds=drain,
                cwd=ROOT,
            )
            for worker in workers()
        ),
        manage("poller", RANK_POLLER),
        Process(
            "flower",
            [script("celery"), "-A", "project.flower", "flower"],
            RANK_FLOWER,
            env | flower_environment(flower_port),
            stop_seconds=5.0,
            cwd=ROOT,
        ),
    ]


def script(name: str) -> str:
    return str(Path(sysconfig.get_path("scripts")) / name)


def web_command(port: int) -> list[str]:
    return [
        script("granian"),
        "--interface=asginl",
        f"--host={settings.WEB_HOST}",
        f"--port={port}",
        f"--workers={settings.WEB_WORKERS}",
        "--no-ws",
        "--respawn-failed-workers",
        f"--workers-kill-timeout={settings.STOP_SECONDS:.0f}",
        "--log-level=warning",
        "project.asgi:application",
    ]


def worker_command(worker: Worker) -> list[str]:
    return [
        script("celery"),
        "-A",
        "project.celery",
        "worker",
        "--pool=threads",
        f"--concurrency={worker.threads}",
        f"--queues={','.join(worker.queues)}",
        f"--hostname={worker.name}@%h",
        "--without-mingle",  # it asks the other workers for what only they remember
        "--without-gossip",
        f"--loglevel={settings.LOG_LEVEL}",
    ]


def flower_environment(port: int) -> dict[str, str]:
    # By environment, not by argument: everybody may read a command line.
    return {
        "FLOWER_ADDRESS": settings.FLOWER_HOST,
        "FLOWER_PORT": str(port),
        "FLOWER_BASIC_AUTH": f"{settings.FLOWER_USER}:{settings.FLOWER_PASSWORD}",
        "FLOWER_ENABLE_EVENTS": "true",
        "FLOWER_TASKS_COLUMNS": "name,uuid,state,args,kwargs,worker,received,started",
    }


def gpu_processes(devices: Sequence[str]) -> list[Process]:
    """Return one worker per device for GPU_MODELS; without devices, one on the CPU."""
    queues = gpu_queues(settings.GPU_MODELS)

    def on(device: str) -> Process:
        return Process(
            f"worker-gpu-{device or 'cpu'}",
            worker_command(Worker(f"gpu-{device or 'cpu'}", queues, 1)),
            RANK_WORKER,
            {"CUDA_VISIBLE_DEVICES": device} if device else {},
            stop_seconds=settings.STOP_SECONDS,
            cwd=ROOT,
        )

    return [on(device) for device in devices or [""]]


class Say(Protocol):
    def __call__(self, line: str) -> None: ...


class AlreadyRunning(Exception):
    """Another stack runs from this ZOETROPE_HOME."""


def run(home: Path, say: Say, *, on_ready: Callable[[str], None]) -> None:
    """Run the whole stack until a signal; ``on_ready`` gets its URL once it serves.

    Raises AlreadyRunning, RuntimeError or TimeoutError when it cannot start, with what
    the process concerned said last; Stopped (from the supervisor) at its end.
    """
    env.spare_loopback_the_proxy()
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        try:
            flock(lock, LOCK_EX | LOCK_NB)
        except BlockingIOError as error:
            url = state.addresses(home).get("PUBLIC_URL", "an unknown address")
            raise AlreadyRunning(f"a stack of {home} already serves {url}") from error
        _run(home, say, on_ready=on_ready)


def _run(home: Path, say: Say, *, on_ready: Callable[[str], None]) -> None:
    ports = embedded.Ports(home)
    port = ports.take("web", settings.PORT)
    flower_port = ports.take("flower", settings.FLOWER_PORT)
    services = embedded.services(home, ports)
    try:
        with Supervisor(
            logs=home / "logs", tell=lambda name, event: say(f"{name} {event}")
        ) as supervisor:
            supervisor.start(*(service.process() for service in services))
            url = settings.GIVEN_PUBLIC_URL or f"http://127.0.0.1:{port}"
            addresses = {"PUBLIC_URL": url}
            for service in services:
                addresses |= service.environment()
            # By this file, not by environment: any later command reads it as well, and
            # a DATABASE_URL in the environment means that nothing is ours.
            state.write(home / "stack.json", addresses)
            given = {"ZOETROPE_HOME": str(home), "PORT": str(port)}
            wait_for_services(supervisor, services, "postgres")
            say("bringing the database up to date")
            migrate(supervisor, given)
            wait_for_services(supervisor, services)
            say("starting web and workers")
            supervisor.start(*processes(port=port, flower_port=flower_port, env=given))
            web = f"http://{local(settings.WEB_HOST)}:{port}"
            flower = f"http://{local(settings.FLOWER_HOST)}:{flower_port}"
            wait_for(supervisor, "web", lambda: answers(f"{web}/readyz", 200))
            wait_for(supervisor, "flower", lambda: answers(flower, 401))
            say(f"flower  {flower}  ({flower_login(home)})")
            on_ready(url)
            supervisor.run()
    finally:
        (home / "stack.json").unlink(missing_ok=True)
        for service in services:
            service.tidy()


def wait_for_services(
    supervisor: Supervisor, services: list[embedded.Service], *names: str
) -> None:
    """Wait for the named services, or for all."""
    for service in services:
        if names and service.name not in names:
            continue
        wait_for(supervisor, service.name, service.ready)


def wait_for(supervisor: Supervisor, name: str, ready: Callable[[], bool]) -> None:
    """Wait until that process is ready; RuntimeError with its last lines otherwise."""
    try:
        supervisor.wait_for(ready, what=name, seconds=START_SECONDS)
    except TimeoutError as error:
        path = supervisor.log_path(name)
        end = last_lines(path) if path else ""
        raise RuntimeError(f"{error}:\n{end}") from error


def migrate(supervisor: Supervisor, env: dict[str, str]) -> None:
    argv = [sys.executable, str(ROOT / "manage.py"), "migrate", "--no-input"]
    supervisor.run_once(Process("migrate", argv, env=env, cwd=ROOT), seconds=600)


def flower_login(home: Path) -> str:
    """Return the user and where the password is."""
    known = state.local_secrets(home).get("FLOWER_PASSWORD")
    place = f"{home}/secrets.json" if known == settings.FLOWER_PASSWORD else "yours"
    return f"user {settings.FLOWER_USER}, password {place}"


def local(host: str) -> str:
    """Return an address of this machine for one that stands for all of them."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104


def answers(url: str, status: int) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == status
    except httpx.TransportError:
        return False
