"""A house for a benchmark: real Postgres, Redis and S3 of its own, and web servers.

Everything is under one temporary folder and gone afterwards. Postgres syncs to disk as
in production unless a benchmark asks otherwise.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 120.0
SECRETS = {
    "SECRET_KEY": "benchmarks only, not a secret: 2b9f1c7e4d8a",
    "SECRETS_KEY": "YmVuY2htYXJrcyBvbmx5LCB0aGlydHktdHdvIGJ5dGU=",
    "API_KEY_PEPPER": "benchmarks only",
    "METRICS_TOKEN": "benchmarks only",
    "FLOWER_PASSWORD": "benchmarks only",
}


@contextlib.contextmanager
def services(*, cheap: bool = False) -> Iterator[Path]:
    """Run the services, migrate, and set Django up in this process; give the folder."""
    home = Path(tempfile.mkdtemp(prefix="zoetrope-bench-"))
    command = [sys.executable, "-m", "project.embedded", str(home / "services")]
    command += ["--until-pid", str(os.getpid()), *(["--cheap"] if cheap else [])]
    with (home / "services.log").open("wb") as log:
        host = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        for name in ("postgres", "redis", "s3"):
            os.environ.update(_address(home / "services" / f"{name}.ready", host))
        os.environ.update(SECRETS)
        os.environ |= {
            "ZOETROPE_HOME": str(home),
            "DJANGO_SETTINGS_MODULE": "project.settings",
            "LOG_LEVEL": "INFO",
            "LOG_JSON": "true",
        }
        with (home / "migrate.log").open("wb") as log:
            argv = [sys.executable, "manage.py", "migrate", "--no-input"]
            subprocess.run(argv, cwd=ROOT, stdout=log, stderr=log, check=True)
        import django

        django.setup()
        # Servers log as ever; this process has figures to show.
        logging.getLogger("access").setLevel(logging.WARNING)
        from billing.models import Plan

        # Limits of a plan are not what is measured.
        Plan.objects.update(requests_per_minute=10_000_000, monthly_videos={})
        yield home
    finally:
        _hang_up()
        host.terminate()
        host.wait(30)
        shutil.rmtree(home, ignore_errors=True)


def _hang_up() -> None:
    """Close this process's pool, which else tells the log of each lost connection."""
    from django.apps import apps
    from django.db import connections
    from django.db.backends.postgresql.base import DatabaseWrapper

    if apps.ready:
        for connection in connections.all(initialized_only=True):
            assert isinstance(connection, DatabaseWrapper)
            connection.close()
            connection.close_pool()


def _address(path: Path, host: subprocess.Popen[bytes]) -> dict[str, str]:
    from project import state

    deadline = time.monotonic() + START_SECONDS
    while not path.exists():
        if host.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{path.stem} did not start")
        time.sleep(0.05)
    return state.read(path)


@contextlib.contextmanager
def server(home: Path, *, application: str, probe: str) -> Iterator[int]:
    """Serve ``application`` as `manage.py up` serves the web; give its port."""
    from project import embedded, stack

    port = embedded.free_port()
    command = stack.web_command(port)
    command[-1] = application
    with (home / f"web-{port}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(httpx.TransportError):
                url = f"http://127.0.0.1:{port}{probe}"
                if httpx.get(url, timeout=10, trust_env=False).status_code < 500:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((home / f"web-{port}.log").read_text()[-2000:])
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def customers(count: int, *, prefix: str = "bench") -> list[str]:
    """Make accounts with plenty of credits; return a live key of each."""
    from billing import accounts, keys, ledger

    made = []
    for number in range(count):
        account = accounts.open_account(f"{prefix}-{number}", plan="enterprise")
        ledger.grant(
            account_id=account.pk,
            mode="live",
            reference="bench",
            amount_millicredits=10**11,
        )
        made.append(keys.mint(account, "live")[1])
    return made
