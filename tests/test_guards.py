"""What must stay true of the tree as a whole."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from inference.catalogue import MODELS
from inference.registry import PROVIDERS, RUNNERS, provider
from jobs.dialects import DIALECTS

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "diffusers", "transformers", "av", "numpy")


def imported_by(code: str) -> set[str]:
    """Return the heavy packages that are loaded after running ``code`` on its own."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        cwd=ROOT,
        env={"DJANGO_SETTINGS_MODULE": "tests.settings", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(HEAVY) & set(done.stdout.splitlines()[-1].split())


def test_the_web_process_loads_no_torch() -> None:
    code = (
        "import project.asgi\nfrom django.urls import get_resolver\n"
        "len(get_resolver().url_patterns)"
    )
    assert imported_by(code) & {"torch", "diffusers", "transformers"} == set()


def test_a_worker_that_is_not_for_gpus_loads_no_torch() -> None:
    code = "import django; django.setup()\nimport jobs.tasks, jobs.steps"
    assert imported_by(code) & {"torch", "diffusers", "transformers"} == set()


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_has_its_page_pairs_and_tests(name: str) -> None:
    if name != "native":
        assert (ROOT / "jobs" / "dialects" / "docs" / f"{name}.md").exists()
        assert list((ROOT / "tests" / "wire" / name).glob("*.json"))
    tests = [*(ROOT / "tests").rglob(f"test_*{name}*.py")]
    assert tests, f"no tests for {name}"


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_has_a_fake_that_speaks_its_wire_format(name: str) -> None:
    assert (ROOT / "tests" / "fakes" / f"{name}.py").exists()
    assert list((ROOT / "tests" / "fakes" / "wire" / name).glob("*.json"))


def test_every_route_of_the_catalogue_has_something_that_runs_it() -> None:
    for model in MODELS.values():
        for route in model.routes:
            known = RUNNERS if route.kind == "engine" else PROVIDERS
            assert route.runner in known, f"{model.name} by {route.name}"


def test_every_model_can_be_rehearsed() -> None:
    for model in MODELS.values():
        assert any(route.simulates for route in model.routes), model.name


def test_the_operators_page_names_each_providers_credentials() -> None:
    page = (ROOT / "docs" / "operating.md").read_text("utf-8")
    _, _, table = page.partition("| provider | credentials | pictures |")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.partition("\n\n")[0].splitlines()[2:]
    ]
    assert [row[0].strip("`") for row in rows] == sorted(PROVIDERS, key=str.lower)
    for name, told, pictures in rows:
        adapter = provider(name.strip("`"))
        fields = [field.name for field in adapter.credential_fields]
        assert re.findall("`([a-z_]+)`", told) == fields, name
        assert ("URL" in pictures) == (adapter.capabilities.picture.form == "url")
