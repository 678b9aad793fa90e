"""Stops process groups in order; as a program, does so when its supervisor has died.

Run by the supervisor with a pipe on standard input: each line is a group that has
started. The pipe's end without a `bye` means the supervisor was killed; then everything
still alive is stopped in the order the supervisor would have taken. Standard library
only: this file also runs by itself, without the project on its path.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Final

MARK: Final = "ZOETROPE_PROCESS"  # in the environment of all a process ever starts
KILL_SECONDS: Final = 5.0
# After a kill -9 everything has had its signal at once, Redis too, and workers may wait
# for it in vain: they get no time to finish long work. Their jobs' leases run out.
EMERGENCY_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Group:
    """A process that leads a group, with all it has started."""

    name: str
    pgid: int
    rank: int
    stop_signal: int
    stop_seconds: float
    mark: str

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


def stop_in_order(
    groups: Iterable[Group],
    *,
    between: Callable[[], None] = lambda: None,
    tell: Callable[[str, str], None] = lambda name, event: None,
) -> None:
    """Stop the groups by rank: the signal first, SIGKILL when its time is over.

    ``between`` runs while waiting, for a parent to collect its children.
    """
    for _, members in groupby(sorted(groups, key=lambda one: one.rank), rank_of):
        left = list(members)
        for group in left:
            _signal([group.pgid], group.stop_signal)
        started = time.monotonic()
        while left:
            between()
            seconds = time.monotonic() - started
            for group in list(left):
                alive = leader_alive(group)
                if not alive or seconds > group.stop_seconds:
                    kill_rest(group, between=between)
                    how = "killed" if alive else "stopped"
                    tell(group.name, f"{how} after {seconds:.1f} s")
                    left.remove(group)
            if left:
                time.sleep(0.02)


def rank_of(group: Group) -> int:
    return group.rank


def kill_rest(group: Group, *, between: Callable[[], None] = lambda: None) -> None:
    """Kill what is left of a group and of all that it ever started."""
    deadline = time.monotonic() + KILL_SECONDS
    while (pids := members(group)) and time.monotonic() < deadline:
        _signal(pids, signal.SIGKILL)
        time.sleep(0.01)
        between()


def leader_alive(group: Group) -> bool:
    stat = stat_of(group.pgid)
    return stat is not None and stat[2] == group.pgid


def members(group: Group) -> list[int]:
    """Return the live processes of the group, and those that carry its mark.

    The mark finds who left the group; the group finds who overwrote its environment
    (Postgres and Redis do, to show a title in `ps`).
    """
    mark = f"{MARK}={group.mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        stat = stat_of(int(folder.name))
        if stat is None:
            continue
        if stat[2] == group.pgid or mark in environment_of(folder):
            found.append(int(folder.name))
    return found


def stat_of(pid: int) -> tuple[str, int, int] | None:
    """Return (state, parent, group) of a process that is not a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in brackets, may hold anything.
    state, parent, pgid = text.rpartition(")")[2].split()[:3]
    return None if state in "ZX" else (state, int(parent), int(pgid))


def environment_of(folder: Path) -> list[bytes]:
    try:
        return (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: dict[str, Group] = {}
    for line in sys.stdin:
        if line == "bye\n":
            return
        group = Group(**json.loads(line))
        seconds = min(group.stop_seconds, EMERGENCY_SECONDS)
        groups[group.name] = replace(group, stop_seconds=seconds)
    stop_in_order(groups.values())


if __name__ == "__main__":
    main()
