"""One process by its name, its health by its name, and what comes before all of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from jobs import leading
from jobs.models import Worker
from project import alive, stack, wiring

ROOT = Path(__file__).resolve().parents[2]


class Replaced(Exception):
    """Stands for the moment at which another program takes our place."""


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    calls: list[tuple[list[str], dict[str, str]]] = []

    def execve(path: str, argv: list[str], env: dict[str, str]) -> None:
        assert path == argv[0]
        calls.append((argv, env))
        raise Replaced

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(os, "chdir", lambda path: None)
    return calls


@pytest.mark.parametrize("name", ["web", "worker-media", "worker-cpu-test", "poller"])
def test_a_process_runs_what_the_stack_runs(replaced, name):
    with pytest.raises(Replaced):
        call_command("process", name)
    table = stack.processes(port=8000, flower_port=5555, env={})
    (expected,) = (list(one.argv) for one in table if one.name == name)
    assert replaced[0][0] == expected


def test_flower_gets_its_password_by_environment_only(replaced, settings):
    with pytest.raises(Replaced):
        call_command("process", "flower")
    argv, env = replaced[0]
    assert env["FLOWER_BASIC_AUTH"].endswith(f":{settings.FLOWER_PASSWORD}")
    assert settings.FLOWER_PASSWORD not in " ".join(argv)
    assert env["PATH"] == os.environ["PATH"]


def test_an_unknown_process_is_refused_with_the_names_there_are():
    with pytest.raises(CommandError, match=r"worker-medla is none of web, .*flower"):
        call_command("process", "worker-medla")


def test_a_gpu_worker_without_models_says_what_to_set(settings):
    settings.GPU_MODELS = []
    with pytest.raises(CommandError, match="GPU_MODELS"):
        call_command("process", "worker-gpu")


def test_tls_that_no_named_proxy_ends_stops_the_web_process(settings, replaced):
    settings.HTTPS = True
    settings.TRUSTED_PROXIES = []
    with pytest.raises(Exception, match="TRUSTED_PROXIES"):
        call_command("process", "web", skip_checks=False)
    assert replaced == []


# ---------------------------------------------------------------- is it alive


@pytest.fixture
def asked_here(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `project.alive` ask the test database."""
    facts = connection.get_connection_params()
    names = ("host", "port", "user", "password", "dbname")
    given = {name: facts[name] for name in names if facts.get(name)}
    url = psycopg.conninfo.make_conninfo("", **given)
    monkeypatch.setenv("DATABASE_URL", url)


def report(name: str, *, silent_seconds: float = 0.0) -> None:
    host = socket.gethostname()
    seen = timezone.now() - timedelta(seconds=silent_seconds)
    Worker.objects.create(name=f"{name}@{host}", queues=[], doing=[])
    Worker.objects.filter(name=f"{name}@{host}").update(seen_at=seen)


def test_a_worker_that_reports_is_alive(asked_here):
    report("media")
    assert alive.what_is_wrong("worker-media") == ""


def test_a_silent_worker_is_not(asked_here):
    report("cpu", silent_seconds=90)
    report("cpu-test")
    assert alive.what_is_wrong("worker-cpu").startswith("silent for 9")


def test_a_worker_of_another_host_proves_nothing(asked_here):
    Worker.objects.create(name="media@elsewhere", queues=[], doing=[])
    assert "not reported" in alive.what_is_wrong("worker-media")


def test_of_several_gpu_workers_the_most_silent_decides(asked_here):
    report("gpu-0")
    assert alive.what_is_wrong("worker-gpu") == ""
    report("gpu-1", silent_seconds=90)
    assert "silent" in alive.what_is_wrong("worker-gpu")


@pytest.mark.parametrize(
    ("name", "lock"),
    list(leading.LOCKS.items()),
)
def test_a_loop_is_alive_while_somebody_holds_its_lock(asked_here, name, lock):
    assert alive.what_is_wrong(name) == "nobody holds its lock"
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [lock])
    try:
        assert alive.what_is_wrong(name) == ""
    finally:
        connection.close()


def test_without_postgres_no_worker_counts_as_alive(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://zoetrope@127.0.0.1:9/zoetrope")
    assert alive.what_is_wrong("worker-media").startswith("Postgres: ")


def test_asking_for_a_page_starts_neither_django_nor_psycopg():
    code = (
        "import sys; from project import alive; wrong = alive.what_is_wrong('web');"
        "print(wrong, 'django' in sys.modules, 'psycopg' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PORT": "9"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "refused" in done.stdout
    assert done.stdout.endswith("False False\n")


# ------------------------------------------------------------- what comes first


def test_prepare_makes_the_bucket_and_says_so(
    transactional_db: None, s3_address: dict[str, str], settings: Any
) -> None:
    settings.S3_BUCKET = f"prepared-{uuid.uuid4().hex[:12]}"
    for _ in range(2):
        said = StringIO()
        call_command("prepare", stdout=said)
        assert said.getvalue().endswith("database and bucket are ready\n")
    assert list(wiring.context().storage.list()) == []


def test_prepare_says_what_it_waited_for_in_vain(transactional_db, settings):
    settings.S3_ENDPOINT_URL = "http://127.0.0.1:9"
    with pytest.raises(CommandError, match="S3 was not ready after 0 s"):
        call_command("prepare", "--wait=0", stdout=StringIO())
