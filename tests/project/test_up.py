"""`manage.py up` as its users run it: what it prints, survives and leaves behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from project import embedded, watchdog
from tests import stack
from tests.stack import LiveStack, wait_until

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(300),
]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[LiveStack]:
    """A stack of this test's own, started while its default port is taken."""
    with socket.socket() as other:
        port = embedded.free_port()
        other.bind(("127.0.0.1", port))
        other.listen()
        running = stack.start(tmp_path, PORT=str(port))
        assert running.base_url != f"http://127.0.0.1:{port}"
    yield running
    running.process.kill()
    running.process.wait()
    wait_until(lambda: not alive(running), seconds=60, what="the watchdog")


def alive(running: LiveStack) -> list[int]:
    """Return every process of this stack: its folder is in all their environments."""
    mark = f"ZOETROPE_HOME={running.home}".encode()
    return [
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit()
        and watchdog.stat_of(int(folder.name))
        and (mark in watchdog.environment_of(folder) or names_home(folder, running))
    ]


def names_home(folder: Path, running: LiveStack) -> bool:
    # Postgres and Redis overwrite their environment, but keep or show their folder.
    try:
        return str(running.home).encode() in (folder / "cmdline").read_bytes()
    except OSError:
        return False


def serves(running: LiveStack) -> bool:
    try:
        return httpx.get(f"{running.base_url}/healthz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_it_mends_itself_and_stops_in_order(up):
    ready = httpx.get(f"{up.base_url}/readyz", timeout=10).json()
    assert ready["status"] == "ready"
    assert {ready["postgres"], ready["broker"], ready["s3"]} == {"ok"}

    web = up.kill("web")
    up.wait_restarted("web", web)
    wait_until(lambda: serves(up), seconds=30, what="web to serve again")

    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(90) == 0
    log = (up.home / "up.log").read_text()
    ends = [
        line.split()[2]
        for line in log.splitlines()
        if " stopped after " in line or " killed after " in line
    ]
    order = [name for name in ends if not name.startswith("worker")]
    assert order == [
        "web",
        "poller",
        "housekeeper",
        "flower",
        "postgres",
        "s3",
        "redis",
    ]
    workers = [name for name in ends if name.startswith("worker")]
    assert len(workers) >= 5
    assert ends[1 : 1 + len(workers)] == workers
    assert alive(up) == []


def test_kill_9_of_it_leaves_nothing_running(up):
    flower = httpx.get(flower_url(up), timeout=10)
    assert flower.status_code == 401

    again = subprocess.run(
        [sys.executable, str(stack.ROOT / "manage.py"), "up"],
        env=up.env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert again.returncode != 0
    assert f"already serves {up.base_url}" in again.stderr

    assert len(alive(up)) > 10
    os.kill(up.process.pid, signal.SIGKILL)
    up.process.wait()
    wait_until(lambda: not alive(up), seconds=60, what="everything to be gone")


def flower_url(running: LiveStack) -> str:
    log = (running.home / "up.log").read_text()
    found = re.search(r"^.* flower  (http://\S+)", log, re.MULTILINE)
    assert found
    return found[1]
