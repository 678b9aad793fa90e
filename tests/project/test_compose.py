"""docker-compose.yml holds the whole stack, asks for every secret and opens no door.

Read as text and YAML only: these tests need no Docker.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings

from inference.catalogue import MODELS
from project import stack
from project.supervisor import Process
from tests.project.test_settings import variables_read

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXAMPLE = (ROOT / ".env.example").read_text()
SECRETS = [
    "SECRET_KEY",
    "SECRETS_KEY",
    "API_KEY_PEPPER",
    "METRICS_TOKEN",
    "FLOWER_PASSWORD",
    "S3_SECRET_KEY",
    "POSTGRES_PASSWORD",
    "REDIS_PASSWORD",
]
OURS = [name for name, s in SERVICES.items() if s["image"].startswith("zoetrope-")]


def processes_of_the_stack(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    served = next(name for name in MODELS if stack.gpu_queues([name]))
    monkeypatch.setattr(settings, "GPU_MODELS", [served], raising=False)
    monkeypatch.setattr(settings, "SAFETY_REQUIRE_CLASSIFIER", True)
    return stack.processes(port=8000, flower_port=5555, env={})


def test_every_process_of_the_stack_has_a_service(monkeypatch):
    names = {process.name for process in processes_of_the_stack(monkeypatch)}
    assert {"worker-gpu", "worker-safety"} <= names
    services = {"postgres", "redis", "s3", "migrate"}
    assert set(SERVICES) == names | services


def test_each_service_runs_the_process_of_its_name():
    for name in OURS:
        expected = {
            "migrate": ["prepare"],
            "worker-gpu": ["worker_gpu", "--no-log-files"],
        }.get(name, ["process", name])
        assert SERVICES[name]["command"] == expected


def test_every_queue_of_the_stack_has_a_worker_service(monkeypatch):
    processes_of_the_stack(monkeypatch)
    for worker in stack.workers():
        assert worker.queues
        assert f"worker-{worker.name}" in SERVICES


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_may_be_missing(name):
    used = re.findall(r"\$\{" + name + r"\b([^}]*)\}", TEXT)
    assert used
    assert set(used) == {f":?set {name} in .env"}
    assert re.search(rf"^{name}=$", EXAMPLE, re.MULTILINE)


def test_no_secret_has_a_value_here():
    for line in TEXT.splitlines():
        given = re.match(r"\s*(\w*(?:PASSWORD|SECRET|TOKEN|KEY|PEPPER)\w*):(.*)", line)
        if given and given[1] != "S3_ACCESS_KEY":
            assert re.fullmatch(r" \$\{\w+:\?[^}]+\}|", given[2]), line


def test_every_setting_reaches_the_containers():
    for name in OURS:
        environment = set(SERVICES[name]["environment"])
        # Where it listens is each server's own; WORK_DIR is the image's.
        private = {"PORT", "WEB_HOST", "FLOWER_HOST", "FLOWER_PORT", "WORK_DIR"}
        assert variables_read() - environment - private == set()


def test_only_loopback_is_published():
    published = [port for s in SERVICES.values() for port in s.get("ports", [])]
    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert not any("network_mode" in service for service in SERVICES.values())
    assert not any(service.get("privileged") for service in SERVICES.values())


def test_every_image_is_pinned_to_a_version():
    dockerfile = (ROOT / "Dockerfile").read_text()
    bases = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    images = [service["image"] for service in SERVICES.values()]
    for image in [*images, *(base for base in bases if base != "app")]:
        _, _, tag = image.partition(":")
        assert tag
        assert tag != "latest"
    assert set(re.findall(r"-r (\S+)", dockerfile)) == {
        "requirements/base.txt",
        "requirements/gpu.txt",
    }


def test_databases_keep_their_data_on_volumes():
    assert "postgres:/var/lib/postgresql" in SERVICES["postgres"]["volumes"]
    assert "redis:/data" in SERVICES["redis"]["volumes"]
    assert "s3:/data" in SERVICES["s3"]["volumes"]
    assert {"postgres", "redis", "s3"} <= set(COMPOSE["volumes"])


def test_redis_writes_down_and_never_forgets_work():
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


def test_every_service_but_the_one_shot_is_watched_and_started_again():
    for name, service in SERVICES.items():
        if name == "migrate":
            assert "restart" not in service
        else:
            assert service["healthcheck"]["test"]
            assert service["restart"] == "unless-stopped"


def test_nothing_of_ours_starts_before_the_database_is_migrated():
    for name in set(OURS) - {"migrate"}:
        condition = SERVICES[name]["depends_on"]["migrate"]["condition"]
        assert condition == "service_completed_successfully"


def test_what_needs_torch_is_off_by_default_and_has_an_image_of_its_own():
    off = {n: s["profiles"] for n, s in SERVICES.items() if s.get("profiles")}
    assert off == {"worker-gpu": ["gpu"], "worker-safety": ["safety"]}
    for name in OURS:
        image = "gpu" if name in off else "app"
        assert SERVICES[name]["image"] == f"zoetrope-{image}:${{RELEASE:-local}}"
        if name in off:
            assert SERVICES[name]["build"]["target"] == "gpu"


def test_whoever_decides_that_a_picture_is_judged_sees_the_weights_the_judge_has():
    for name in ("web", "worker-media", "worker-safety"):
        assert "${WEIGHTS_DIR:-weights}:/weights" in SERVICES[name]["volumes"]


def test_the_image_is_made_of_nothing_but_the_code():
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = set(re.findall(r"^COPY (\S+) \S+$", dockerfile, re.MULTILINE))
    code = {"manage.py", "requirements", "project", "billing", "inference", "jobs"}
    assert allowed == code | {"docs"}  # web serves them
    assert {name.split("/")[0] for name in copied} == allowed
