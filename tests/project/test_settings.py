"""Settings say what is missing, and every variable is documented."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import global_settings
from django.core.exceptions import ImproperlyConfigured

from inference.errors import InputRejected
from project import embedded, env, state, wiring

ROOT = Path(__file__).resolve().parents[2]
SECRETS = ["SECRET_KEY", "SECRETS_KEY", "API_KEY_PEPPER", "METRICS_TOKEN"]
ELSEWHERE = {
    "DATABASE_URL": "postgresql://user:word@db.example/zoetrope",
    "REDIS_URL": "redis://redis.example/0",
    "S3_ENDPOINT_URL": "https://s3.example",
    "S3_SECRET_KEY": "given",
    "FLOWER_PASSWORD": "given",
    **dict.fromkeys(SECRETS, "given"),
}


def load_settings(
    variables: dict[str, str], home: Path, show: str = ""
) -> subprocess.CompletedProcess[str]:
    code = f"from project import settings; print({show})"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "ZOETROPE_HOME": str(home), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def variables_read() -> set[str]:
    source = (ROOT / "project" / "settings.py").read_text()
    return set(re.findall(r'(?:env\.\w+|_service|_secret)\(\s*"(\w+)"', source))


def test_every_variable_stands_in_the_example():
    read = variables_read()
    compose = (ROOT / "docker-compose.yml").read_text()
    composed = set(re.findall(r"\$\{(\w+)", compose))
    documented = set(
        re.findall(r"^#? ?(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    )
    assert (read | composed) - documented == set()
    assert documented - read - composed == {"ZOETROPE_HOME"}


def test_every_variable_changes_something():
    """What nobody reads promises a limit that is not there."""
    path = ROOT / "project" / "settings.py"
    source = path.read_text()
    names = re.findall(
        r"^(\w+) = (?:env\.\w+|_service|_secret)\(", source, re.MULTILINE
    )
    assert len(names) > 50
    code = "".join(
        file.read_text()
        for package in ("project", "jobs", "billing", "inference")
        for file in (ROOT / package).rglob("*.py")
        if file != path
    )
    unread = {
        name
        for name in names
        if not hasattr(global_settings, name)  # Django reads it
        and not name.startswith("AXES_")
        and not re.search(rf"\bsettings\.{name}\b", code)
        and len(re.findall(rf'(?<!")\b{name}\b', source)) == 1
    }
    assert unread == set()


@pytest.mark.parametrize("name", [*SECRETS, "S3_SECRET_KEY", "FLOWER_PASSWORD"])
def test_a_missing_secret_stops_the_start_and_is_named(name, tmp_path):
    given = {key: value for key, value in ELSEWHERE.items() if key != name}
    done = load_settings(given, tmp_path)
    assert done.returncode != 0
    assert f"The environment variable {name} must be set." in done.stderr


@pytest.mark.parametrize(
    "secret",
    ["given", "whsec_", "whsec_" + "ab-_" * 8, "whsec_" + "abcd" * 4, "é" * 40],
)
def test_a_secret_the_operators_receiver_could_not_read_stops_the_start(
    secret, monkeypatch
):
    monkeypatch.setenv("OPERATOR_WEBHOOK_SECRET", secret)
    with pytest.raises(ImproperlyConfigured, match="OPERATOR_WEBHOOK_SECRET"):
        env.webhook_secret("OPERATOR_WEBHOOK_SECRET")


@pytest.mark.parametrize("secret", ["ab+/" * 8, "whsec_" + "ab+/" * 8 + "YQ=="])
def test_a_secret_of_standard_webhooks_is_taken(secret, monkeypatch):
    monkeypatch.setenv("OPERATOR_WEBHOOK_SECRET", secret)
    assert env.webhook_secret("OPERATOR_WEBHOOK_SECRET") == secret


def test_former_secret_keys_are_given_to_django(tmp_path):
    given = {**ELSEWHERE, "SECRET_KEY_FALLBACKS": "older, oldest"}
    done = load_settings(given, tmp_path / "home", "settings.SECRET_KEY_FALLBACKS")
    assert done.stdout == "['older', 'oldest']\n", done.stderr


@pytest.mark.parametrize("name", ["api", "files", "s3"])
def test_nobody_has_webhooks_posted_to_our_own_hosts(name, settings):
    settings.PUBLIC_URL = "https://api.zoetrope.example"
    settings.S3_PUBLIC_ENDPOINT_URL = "https://files.zoetrope.example"
    settings.S3_ENDPOINT_URL = "https://s3.zoetrope.example:8333"
    with pytest.raises(InputRejected, match="this service"):
        wiring.context().egress.post(f"https://{name}.zoetrope.example/", b"", {})


def test_with_everything_given_nothing_is_made(tmp_path):
    done = load_settings(ELSEWHERE, tmp_path / "home", "settings.DATABASES")
    assert done.returncode == 0, done.stderr
    assert "db.example" in done.stdout
    assert not (tmp_path / "home").exists()


def test_embedded_secrets_are_made_once_and_private(tmp_path):
    first = load_settings({}, tmp_path, "settings.SECRET_KEY, settings.API_KEY_PEPPER")
    again = load_settings({}, tmp_path, "settings.SECRET_KEY, settings.API_KEY_PEPPER")
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600


def test_a_value_of_the_wrong_kind_is_named(monkeypatch):
    monkeypatch.setenv("LEASE_SECONDS", "soon")
    with pytest.raises(ImproperlyConfigured, match=r"LEASE_SECONDS.*'soon'"):
        env.number("LEASE_SECONDS", 90.0)
    monkeypatch.setenv("DEBUG", "maybe")
    with pytest.raises(ImproperlyConfigured, match=r"DEBUG.*'maybe'"):
        env.boolean("DEBUG")
    monkeypatch.setenv("PORT", "-1")
    with pytest.raises(ImproperlyConfigured, match=r"PORT.*at least 1"):
        env.integer("PORT", minimum=1)


def test_services_that_run_elsewhere_are_not_started(tmp_path, monkeypatch):
    for name in embedded.GIVEN_BY.values():
        monkeypatch.setenv(name, ELSEWHERE[name])
    home = tmp_path / "home"
    assert embedded.services(home, embedded.Ports(home)) == []
    assert not home.exists()


def test_only_what_is_missing_is_embedded(tmp_path, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", ELSEWHERE["DATABASE_URL"])
    monkeypatch.setenv("S3_ENDPOINT_URL", ELSEWHERE["S3_ENDPOINT_URL"])
    monkeypatch.delenv("REDIS_URL", raising=False)
    made = embedded.services(tmp_path, embedded.Ports(tmp_path))
    assert [service.name for service in made] == ["redis"]


def test_ports_are_kept_while_free_and_replaced_when_taken(tmp_path):
    ports = embedded.Ports(tmp_path)
    port = ports.take("redis")
    ports.save()
    assert embedded.Ports(tmp_path).take("redis") == port
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert embedded.Ports(tmp_path).take("redis") != port


def test_half_written_state_is_never_read(tmp_path):
    state.write(tmp_path / "stack.json", {"a": "1"})
    state.write(tmp_path / "stack.json", {"a": "2"})
    assert state.read(tmp_path / "stack.json") == {"a": "2"}
    assert [path.name for path in tmp_path.iterdir()] == ["stack.json"]


def test_a_table_is_read_from_one_line(monkeypatch):
    monkeypatch.setenv("A_TABLE", "a=s3://b/c, d=hub:e/f@main")
    assert env.pairs("A_TABLE") == {"a": "s3://b/c", "d": "hub:e/f@main"}
    monkeypatch.setenv("A_TABLE", "a")
    with pytest.raises(ImproperlyConfigured, match="A_TABLE: 'a' is not name=value"):
        env.pairs("A_TABLE")


@pytest.mark.parametrize(
    ("given", "spared"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"NO_PROXY": ".corp.example"}, ".corp.example,127.0.0.1,localhost,::1"),
        (
            {"no_proxy": "a.example", "NO_PROXY": "b.example"},
            "a.example,b.example,127.0.0.1,localhost,::1",
        ),
        ({"NO_PROXY": "*"}, "*"),
    ],
)
def test_loopback_is_spared_the_proxy_beside_what_the_operator_spares(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], spared: str
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")  # so that it is put back
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    env.spare_loopback_the_proxy()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == spared
