"""Keeps a table of processes running: start, restart with backoff, stop in order.

Nothing outlives the supervisor. Each process leads its own group and session, so that
Ctrl-C reaches the supervisor alone, and each gets its own stop signal from the kernel
when the supervisor dies (PR_SET_PDEATHSIG). `project/watchdog.py`, a process of its own,
then stops in order what is left, group by group and by a mark in the environment. It is
watched in turn: should it die, the next one is told of all that runs.

Must run in the main thread of a process without other threads: the kernel ties the
death signal to the thread that forked.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Final, Protocol

from project import watchdog

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WATCHED: Final = {signal.SIGCHLD, *STOP_SIGNALS}
STABLE_SECONDS: Final = 10.0  # who ran so long starts again without delay
LOG_LIMIT_BYTES: Final = 20 * 1024 * 1024
LOG_CHECK_SECONDS: Final = 60.0

libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Process:
    """One line of the table. Lower ``rank`` stops earlier; equal ranks stop together."""

    name: str
    argv: Sequence[str]
    rank: int = 0
    env: Mapping[str, str] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 30.0  # then SIGKILL
    user: int | None = None  # uid and gid to run under, when we are root
    cwd: Path | None = None
    once: bool = False  # it is meant to end, and is not started again


class Tell(Protocol):
    def __call__(self, name: str, event: str) -> None: ...


@dataclass
class Running:
    process: Process
    child: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    start_at: float = 0.0  # when to start it again
    stopping: bool = False
    exit_code: int | None = None  # of one that was to run once


def delay_seconds(failures: int) -> float:
    """Return the pause before start number ``failures`` + 1: 0.2 s doubling to 15 s."""
    return float(min(0.2 * 2 ** min(failures - 1, 10), 15.0)) if failures else 0.0


def set_death_signal(number: int) -> None:
    if libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


class Stopped(Exception):
    """Somebody asked us to stop, by a signal or by ``until``."""


class Supervisor:
    """With ``logs`` each process writes to its file there, without where we write."""

    def __init__(
        self,
        *,
        logs: Path | None,
        tell: Tell,
        until: Callable[[], bool] = lambda: False,
    ) -> None:
        self.logs = logs
        self.tell = tell
        self.until = until
        self.mark = secrets.token_hex(8)
        self.table: dict[str, Running] = {}
        self._logs_checked = time.monotonic()
        self._parent = os.getpid()
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._watchdogs_died = 0
        self._watchdog_at = 0.0  # when to start the next one

    def __enter__(self) -> Supervisor:
        if self.logs:
            self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._start_watchdog()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._watchdog is not None:
            self._tell_watchdog(b"bye\n")
            assert self._watchdog.stdin is not None
            self._watchdog.stdin.close()
            self._watchdog.wait()
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._old_mask)

    # --- for the caller ---------------------------------------------------------------
    def start(self, *processes: Process) -> None:
        for process in processes:
            self.table[process.name] = Running(process)
            self._spawn(self.table[process.name])

    def pid(self, name: str) -> int | None:
        child = self.table[name].child
        return child.pid if child else None

    def wait_for(self, ready: Callable[[], bool], *, what: str, seconds: float) -> None:
        """Keep everything running until ``ready()``; TimeoutError when it takes longer."""
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} was not ready after {seconds:.0f} s")
            self.tick(0.05)

    def run_once(self, process: Process, *, seconds: float) -> None:
        """Run a process to its end; RuntimeError with its last lines when it fails."""
        self.start(replace(process, once=True))
        one = self.table[process.name]
        self.wait_for(
            lambda: one.exit_code is not None, what=process.name, seconds=seconds
        )
        del self.table[process.name]
        if one.exit_code != 0:
            path = self.log_path(process.name)
            end = last_lines(path) if path else ""
            raise RuntimeError(f"{process.name} failed:\n{end}")

    def run(self) -> None:
        """Keep everything running until somebody asks us to stop."""
        while True:
            self.tick(1.0)

    def tick(self, seconds: float) -> None:
        """Sleep at most so long, then do what is due. Raises Stopped when asked to."""
        due = [one.start_at for one in self._waiting()]
        pause = min([seconds, *(at - time.monotonic() for at in due)])
        got = signal.sigtimedwait(WATCHED, max(pause, 0.0))
        if got is not None and got.si_signo in STOP_SIGNALS:
            raise Stopped(signal.Signals(got.si_signo).name)
        if self.until():
            raise Stopped("the process we run for has ended")
        self._reap()
        for one in self._waiting():
            if time.monotonic() >= one.start_at:
                self._spawn_again(one)
        if self._watchdog is None and time.monotonic() >= self._watchdog_at:
            self._start_watchdog()
        self._trim_logs()

    def stop(self, *names: str) -> None:
        """Stop these processes (all, when none is named), lowest rank first."""
        chosen = [self.table[name] for name in names or tuple(self.table)]
        for one in chosen:
            one.stopping = True
        # A second Ctrl-C must not cut the ordered stop short: signals stay blocked.
        watchdog.stop_in_order(
            [self._group(one) for one in chosen if one.child],
            between=self._reap,
            tell=self.tell,
        )
        for one in chosen:
            del self.table[one.process.name]

    # --- inside -----------------------------------------------------------------------
    def _waiting(self) -> list[Running]:
        """Return those that are to be started again."""
        return [
            one
            for one in self.table.values()
            if one.child is None and one.exit_code is None
        ]

    def _spawn_again(self, one: Running) -> None:
        try:
            self._spawn(one)
        except OSError as error:  # no room for its log, no process to be had
            one.failures += 1
            pause = delay_seconds(one.failures)
            one.start_at = time.monotonic() + pause
            self.tell(
                one.process.name, f"not started ({error}); again in {pause:.1f} s"
            )

    def _spawn(self, one: Running) -> None:
        process = one.process
        path = self.log_path(process.name)
        with path.open("ab") if path else contextlib.nullcontext() as log:
            one.child = self._popen(process, log)
        one.started_at = time.monotonic()
        self._tell_watchdog(self._group(one).line())
        self.tell(process.name, f"started, pid {one.child.pid}")

    def _start_watchdog(self) -> None:
        self._watchdog = subprocess.Popen(
            [sys.executable, "-S", "-E", watchdog.__file__, str(self._parent)],
            stdin=subprocess.PIPE,
            bufsize=0,  # what a dead one did not take is not kept for its pipe's end
            start_new_session=True,
            cwd="/",
        )
        for one in self.table.values():
            if one.child:
                self._tell_watchdog(self._group(one).line())

    def _tell_watchdog(self, line: bytes) -> None:
        """Write to the watchdog; one that has just died is replaced, and told then."""
        if self._watchdog and self._watchdog.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._watchdog.stdin.write(line)

    def _watchdog_ended(self, code: int) -> None:
        assert self._watchdog is not None
        assert self._watchdog.stdin is not None
        self._watchdog.returncode = code  # so that Popen does not wait for it again
        self._watchdog.stdin.close()
        self._watchdog = None
        self._watchdogs_died += 1
        pause = delay_seconds(self._watchdogs_died)
        self._watchdog_at = time.monotonic() + pause
        self.tell("watchdog", f"died; again in {pause:.1f} s")

    def _popen(
        self, process: Process, log: IO[bytes] | None
    ) -> subprocess.Popen[bytes]:
        argv, death_signal = list(process.argv), process.stop_signal
        if process.user is not None:
            argv = as_user(process.user, argv, death_signal=death_signal)

        def before_exec() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            set_death_signal(death_signal)
            if os.getppid() != self._parent:  # it died before the line above
                os._exit(1)

        return subprocess.Popen(
            argv,
            env={**os.environ, **process.env, watchdog.MARK: self._mark_of(process)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=process.cwd,
            start_new_session=True,
            preexec_fn=before_exec,  # one thread only, see above
        )

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._watchdog and self._watchdog.pid == pid:
                self._watchdog_ended(os.waitstatus_to_exitcode(status))
            for one in self.table.values():
                if one.child and one.child.pid == pid:
                    self._ended(one, os.waitstatus_to_exitcode(status))

    def _ended(self, one: Running, code: int) -> None:
        assert one.child is not None
        one.child.returncode = code  # so that Popen does not wait for it again
        group, one.child = self._group(one), None
        if one.stopping:
            return
        # What it left behind may hold its port or its files.
        watchdog.kill_rest(group)
        if one.process.once:
            one.exit_code = code
            return
        if time.monotonic() - one.started_at > STABLE_SECONDS:
            one.failures = 0
        one.failures += 1
        pause = delay_seconds(one.failures)
        one.start_at = time.monotonic() + pause
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
        self.tell(one.process.name, f"died ({how}); again in {pause:.1f} s")

    def _group(self, one: Running) -> watchdog.Group:
        assert one.child is not None
        return watchdog.Group(
            name=one.process.name,
            pgid=one.child.pid,
            rank=one.process.rank,
            stop_signal=one.process.stop_signal,
            stop_seconds=one.process.stop_seconds,
            mark=self._mark_of(one.process),
        )

    def _mark_of(self, process: Process) -> str:
        return f"{self.mark}:{process.name}"

    def log_path(self, name: str) -> Path | None:
        return self.logs / f"{name}.log" if self.logs else None

    def _trim_logs(self) -> None:
        """Keep each log below its limit: the older part moves to `NAME.log.1`."""
        if time.monotonic() - self._logs_checked < LOG_CHECK_SECONDS:
            return
        self._logs_checked = time.monotonic()
        for name in self.table:
            if path := self.log_path(name):
                try:
                    _trim(path)
                except OSError as error:
                    self.tell(name, f"keeps its log as it is: {error}")


def _trim(path: Path) -> None:
    if path.stat().st_size > LOG_LIMIT_BYTES:
        path.with_suffix(".log.1").write_bytes(path.read_bytes())
        os.truncate(path, 0)  # its writer appends, so it goes on at the start


def as_user(
    uid: int, argv: Sequence[str], *, death_signal: signal.Signals
) -> list[str]:
    """Return the command that runs ``argv`` as this user although we are root.

    It keeps the right to pass through folders that only root may enter (a checkout under
    /root, say). setpriv sets the death signal again, which a change of user clears.
    """
    rights = "+dac_override,+dac_read_search"
    return [
        "setpriv",
        f"--reuid={uid}",
        f"--regid={uid}",
        "--clear-groups",
        f"--inh-caps={rights}",
        f"--ambient-caps={rights}",
        f"--pdeathsig={death_signal.name.removeprefix('SIG')}",
        "--",
        *argv,
    ]


def last_lines(path: Path, count: int = 20) -> str:
    """Return the end of a log, to show why a process does not come up."""
    try:
        text: Any = path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-count:])
