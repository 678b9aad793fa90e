"""The run's own Postgres, Redis and S3: real, started lazily, gone with the run."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import redis
from django.conf import settings
from django.db import connection

from project import watchdog
from project.embedded import Ports, free_port
from tests import services
from tests.stack import wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.django_db
def test_the_database_is_postgres_18():
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version_num")
        assert cursor.fetchone()[0].startswith("18")


def test_redis_answers(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        assert client.ping()


def test_a_stored_object_comes_back(s3):
    client = boto3.client(
        "s3",
        endpoint_url=settings.S3_ENDPOINT_URL,
        aws_access_key_id=settings.S3_ACCESS_KEY,
        aws_secret_access_key=settings.S3_SECRET_KEY,
        region_name=settings.S3_REGION,
    )
    client.put_object(Bucket=settings.S3_BUCKET, Key=f"{s3}hello", Body=b"hello")
    got = client.get_object(Bucket=settings.S3_BUCKET, Key=f"{s3}hello")
    assert got["Body"].read() == b"hello"
    client.close()


def embedded_for(
    pid: int, home: Path, *, ready: str = "redis", **env: str
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "project.embedded", str(home), "--cheap"]
    given = {k: v for k, v in os.environ.items() if not services.is_address(k)}
    host = subprocess.Popen(
        [*command, "--until-pid", str(pid)],
        cwd=ROOT,
        env=given | {"ZOETROPE_HOME": str(home)} | env,
        stderr=subprocess.DEVNULL,
    )
    wait_until((home / f"{ready}.ready").exists, seconds=90, what=ready)
    return host


def running(home: Path) -> list[int]:
    """Return the processes that carry this folder in command line or environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and watchdog.stat_of(int(folder.name)):
            try:
                texts = [
                    (folder / name).read_bytes() for name in ("cmdline", "environ")
                ]
            except OSError:
                continue
            if any(str(home).encode() in text for text in texts):
                found.append(int(folder.name))
    return found


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[bytes]]:
    """A process in the place of pytest, to be killed."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def test_the_services_end_with_a_killed_owner(owner, tmp_path):
    home = tmp_path / "services"
    # A company's proxy knows nothing of this machine's own loopback.
    nowhere = "http://127.0.0.1:9"
    host = embedded_for(owner.pid, home, ready="s3", HTTP_PROXY=nowhere)
    assert len(running(home)) >= 4
    owner.kill()
    owner.wait()
    host.wait(20)
    assert running(home) == []
    assert not home.exists()


def test_the_services_end_with_their_killed_host(owner, tmp_path):
    home = tmp_path / "services"
    host = embedded_for(owner.pid, home)
    host.kill()
    host.wait()
    wait_until(lambda: not running(home), seconds=20, what="the watchdog")


TAKES_A_PORT = """
import pathlib, sys
from project.embedded import Ports
print(Ports(pathlib.Path(sys.argv[1])).take("web", int(sys.argv[2])), flush=True)
sys.stdin.read()
"""


def test_copies_that_start_at_once_get_different_ports(tmp_path):
    port = free_port()
    copies = [
        subprocess.Popen(
            [sys.executable, "-c", TAKES_A_PORT, str(tmp_path / name), str(port)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in ("one", "two")
    ]
    given = [int((copy.stdout or io.BytesIO()).readline()) for copy in copies]
    assert port in given
    assert len(set(given)) == 2
    copies[given.index(port)].kill()
    copies[given.index(port)].communicate()
    assert Ports(tmp_path / "three").take("web", port) == port
    for copy in copies:
        copy.kill()
        copy.communicate()


def test_a_run_that_needs_no_service_starts_none(tmp_path):
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*pytest_here, "tests/project/test_supervisor.py", "-k", "wait_grows"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != services.HOME_VARIABLE}
        | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout
    assert list(tmp_path.iterdir()) == []
