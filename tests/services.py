"""Real Postgres, Redis and S3 for one test run, started when a test first needs them.

All xdist workers of a run share one set, run by `python -m project.embedded`, which
lives until the controlling pytest process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from project import state

HOME_VARIABLE = "ZOETROPE_TESTS_HOME"
ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60.0
PROGRAM = [sys.executable, "-m", "project.embedded"]


def claim_home() -> None:
    """Choose this run's folder, before xdist hands the environment to its workers."""
    name = f"zoetrope-tests-{os.getpid()}"
    os.environ.setdefault(HOME_VARIABLE, str(Path(tempfile.gettempdir()) / name))
    os.environ["ZOETROPE_HOME"] = os.environ[HOME_VARIABLE] + "/home"


def home() -> Path:
    return Path(os.environ[HOME_VARIABLE])


def owner_pid() -> int:
    return int(home().name.rpartition("-")[2])


def wait_for(service: str) -> dict[str, str]:
    """Return the service's address once it is ready; start the services if need be."""
    ready = home() / "services" / f"{service}.ready"
    deadline = time.monotonic() + START_SECONDS
    while not ready.exists():
        host = start()
        if time.monotonic() > deadline or not is_alive(host):
            log = (home() / "host.log").read_text()
            raise RuntimeError(f"{service} did not start:\n{log}")
        time.sleep(0.02)
    return state.read(ready)


def start() -> int:
    """Start the services unless another worker of this run has; return the host's pid."""
    home().mkdir(parents=True, exist_ok=True)
    with (home() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = home() / "host.pid"
        if path.exists():
            return int(path.read_text())
        remove_leftovers()
        with (home() / "host.log").open("wb") as log:
            folder = str(home() / "services")
            host = subprocess.Popen(
                [*PROGRAM, folder, "--until-pid", str(owner_pid()), "--cheap"],
                cwd=ROOT,
                env={k: v for k, v in os.environ.items() if not is_address(k)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        host.returncode = 0  # nobody waits for it: it outlives this worker
        path.write_text(str(host.pid))
        return host.pid


def is_address(name: str) -> bool:
    return name in {"DATABASE_URL", "REDIS_URL", "S3_ENDPOINT_URL"}


def stop() -> None:
    """Stop the services of this run and wait until they are gone."""
    path = home() / "host.pid"
    if path.exists():
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(int(path.read_text()))
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            select.select([handle], [], [], 20)
            os.close(handle)
    shutil.rmtree(home(), ignore_errors=True)


def remove_leftovers() -> None:
    """Remove the folders of runs that were killed together with their host."""
    for folder in home().parent.glob("zoetrope-tests-*"):
        pid = folder.name.rpartition("-")[2]
        if pid.isdigit() and not is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
