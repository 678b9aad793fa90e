"""The supervisor's promises, kept by real processes that are really killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from project import supervisor, watchdog
from project.supervisor import Process, Running, Supervisor, delay_seconds

ROOT = Path(__file__).resolve().parents[2]
SLEEP = ["sleep", "1000"]
OWN = 2  # the supervisor and its watchdog


class Supervised:
    """A running supervisor; ``said`` holds the lines it printed so far."""

    def __init__(self, folder: Path, table: list[dict[str, Any]]) -> None:
        (folder / "table.json").write_text(json.dumps(table))
        self.folder = folder
        self.output = (folder / "output").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.project.supervised", str(folder)],
            cwd=ROOT,
            stdout=self.output,
            env=os.environ | {"TESTED": str(folder)},
        )

    @property
    def said(self) -> list[str]:
        return (self.folder / "output").read_text().splitlines()

    def pids(self, name: str) -> list[int]:
        """Return the pids the process was given, the newest last."""
        start = f"{name} started, pid "
        return [
            int(line.removeprefix(start))
            for line in self.said
            if line.startswith(start)
        ]

    def alive(self) -> list[int]:
        """Return everything that runs in this test's name, supervisor and watchdog too."""
        mark = f"TESTED={self.folder}".encode()
        return [
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdigit()
            and watchdog.stat_of(int(folder.name))
            and mark in watchdog.environment_of(folder)
        ]

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


def until(true: Callable[[], Any], *, seconds: float = 15.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return value


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    made: list[Supervised] = []

    def start(*table: dict[str, Any]) -> Supervised:
        one = Supervised(tmp_path, list(table))
        made.append(one)
        until(lambda: "supervisor runs" in one.said)
        return one

    yield start
    for one in made:
        one.process.kill()
        one.process.wait()
        one.output.close()
        for pid in one.alive():
            os.kill(pid, signal.SIGKILL)


def test_each_restart_of_a_failing_process_waits_longer(supervise):
    stack = supervise({"name": "bad", "argv": ["sh", "-c", "exit 3"]})
    until(lambda: len(stack.pids("bad")) >= 4)
    died = [line for line in stack.said if "died" in line]
    assert died[:3] == [
        "bad died (exit 3); again in 0.2 s",
        "bad died (exit 3); again in 0.4 s",
        "bad died (exit 3); again in 0.8 s",
    ]


def test_the_wait_grows_to_a_limit():
    waits = [delay_seconds(failures) for failures in range(40)]
    assert waits == sorted(waits)
    assert waits[0] == 0.0
    assert waits[-1] == 15.0


def test_a_killed_process_runs_again(supervise):
    stack = supervise({"name": "one", "argv": SLEEP})
    os.kill(stack.pids("one")[0], signal.SIGKILL)
    second = until(lambda: stack.pids("one")[1:])[0]
    assert "one died (SIGKILL); again in 0.2 s" in stack.said
    assert second in stack.alive()


def test_a_process_that_cannot_be_started_again_is_tried_again(supervise):
    stack = supervise({"name": "one", "argv": SLEEP})
    logs = stack.folder / "logs"
    logs.rename(stack.folder / "away")
    os.kill(stack.pids("one")[0], signal.SIGKILL)
    until(lambda: any("not started" in line for line in stack.said))
    (stack.folder / "away").rename(logs)
    second = until(lambda: stack.pids("one")[1:])[0]
    assert second in stack.alive()


def test_a_long_log_is_cut_and_a_deleted_one_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "LOG_CHECK_SECONDS", -1.0)
    told = []
    one = Supervisor(logs=tmp_path, tell=lambda *event: told.append(event))
    one.table = {name: Running(Process(name, [])) for name in ("gone", "long")}
    with (tmp_path / "long.log").open("wb") as log:
        log.truncate(supervisor.LOG_LIMIT_BYTES + 1)
    one._trim_logs()
    assert (tmp_path / "long.log").stat().st_size == 0
    assert (tmp_path / "long.log.1").stat().st_size == supervisor.LOG_LIMIT_BYTES + 1
    assert [name for name, _ in told] == ["gone"]


def test_what_a_dead_process_left_behind_is_gone_before_it_runs_again(supervise):
    # The child leaves its parent's group and session, as a daemon would.
    stack = supervise({"name": "one", "argv": ["sh", "-c", "setsid sleep 1000 & wait"]})
    until(lambda: len(stack.alive()) == OWN + 2)
    before = {*stack.alive()} - {stack.process.pid, watchdog_of(stack)}
    os.kill(stack.pids("one")[0], signal.SIGKILL)
    until(lambda: len(stack.pids("one")) == 2 and len(stack.alive()) == OWN + 2)
    assert before.isdisjoint(stack.alive())


def slow_to_stop(name: str, rank: int, folder: Path) -> dict[str, Any]:
    """A process that takes a moment to stop and then writes down that it has."""
    script = (
        f"trap 'sleep 0.2; echo {name} >> {folder}/order; exit' TERM; sleep 1000 & wait"
    )
    return {"name": name, "argv": ["sh", "-c", script], "rank": rank}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_goes_by_rank_and_leaves_nothing(supervise, tmp_path, number):
    stack = supervise(
        slow_to_stop("database", 9, tmp_path),
        slow_to_stop("web", 0, tmp_path),
        slow_to_stop("worker", 1, tmp_path),
    )
    until(lambda: len(stack.alive()) == OWN + 6)
    assert stack.stop(number) == 0
    assert (tmp_path / "order").read_text().split() == ["web", "worker", "database"]
    assert stack.alive() == []


def test_a_process_is_stopped_by_the_signal_it_wants(supervise, tmp_path):
    script = f"trap 'echo INT > {tmp_path}/got; exit' INT; sleep 1000 & wait"
    stack = supervise(
        # exec: a shell in the background would have SIGINT ignored from the start
        {"name": "one", "argv": ["bash", "-c", script], "stop_signal": "SIGINT"}
    )
    until(lambda: len(stack.alive()) == OWN + 2)
    stack.stop(signal.SIGTERM)
    assert (tmp_path / "got").read_text() == "INT\n"


def test_a_process_that_will_not_stop_is_killed(supervise):
    deaf = ["sh", "-c", "trap '' TERM; sleep 1000 & wait; sleep 1000"]
    stack = supervise({"name": "deaf", "argv": deaf, "stop_seconds": 0.3})
    until(lambda: len(stack.alive()) == OWN + 2)
    assert stack.stop(signal.SIGTERM) == 0
    assert stack.alive() == []


def test_nothing_is_left_after_kill_9_of_the_supervisor(supervise, tmp_path):
    deaf = ["sh", "-c", "trap '' TERM; setsid sleep 1000 & wait; sleep 1000"]
    stack = supervise(
        slow_to_stop("database", 9, tmp_path),
        {"name": "deaf", "argv": deaf, "rank": 1, "stop_seconds": 0.5},
    )
    until(lambda: len(stack.alive()) == OWN + 4)
    stack.process.kill()
    until(lambda: stack.alive() == [])


def test_nothing_is_left_after_kill_9_of_supervisor_and_watchdog(supervise):
    stack = supervise({"name": "one", "argv": SLEEP}, {"name": "two", "argv": SLEEP})
    dog = watchdog_of(stack)
    os.kill(dog, signal.SIGSTOP)  # it cannot help
    stack.process.kill()
    until(lambda: stack.alive() == [dog])


def test_the_stack_outlives_its_watchdog_and_gets_another(supervise):
    # Deaf to its own signal and away from its group: only a watchdog finds it.
    deaf = ["sh", "-c", "trap '' TERM; setsid sleep 1000 & wait; sleep 1000"]
    stack = supervise(
        {"name": "one", "argv": SLEEP},
        {"name": "deaf", "argv": deaf, "stop_seconds": 0.3},
    )
    until(lambda: len(stack.alive()) == OWN + 3)
    dog = watchdog_of(stack)
    os.kill(dog, signal.SIGKILL)
    os.kill(stack.pids("one")[0], signal.SIGKILL)
    until(lambda: len(stack.pids("one")) == 2)
    until(lambda: watchdogs_of(stack) and watchdogs_of(stack) != [dog])
    assert stack.process.poll() is None
    stack.process.kill()
    until(lambda: stack.alive() == [])


def test_a_watchdog_that_dies_last_does_not_spoil_the_stop(supervise):
    stack = supervise({"name": "one", "argv": SLEEP})
    os.kill(watchdog_of(stack), signal.SIGKILL)
    assert stack.stop(signal.SIGTERM) == 0
    assert stack.alive() == []


def watchdog_of(stack: Supervised) -> int:
    [pid] = watchdogs_of(stack)
    return pid


def watchdogs_of(stack: Supervised) -> list[int]:
    argument = f"watchdog.py\0{stack.process.pid}\0"
    return [pid for pid in stack.alive() if argument in command_line(pid)]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()
