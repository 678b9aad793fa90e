"""Schemathesis against the running stack: the OpenAPI document keeps its word.

It sends what the document allows and what it forbids, calls without a key, wrong
methods, and chains of calls on what was made and deleted.
"""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.stack import LiveStack

pytestmark = [pytest.mark.stories, pytest.mark.timeout(300)]
CONFIG = Path(__file__).with_name("schemathesis.toml")
OURS = r"^/v1/(jobs|quotes|models|balance|ledger|keys|webhooks|effects)"
#: Cases of each operation beside the fixed ones; a nightly run may want hundreds.
EXAMPLES = 2


def examine(stack: LiveStack, folder: Path, *, paths: str, key: str) -> None:
    """Run every check on the operations under ``paths``; fail with its report."""
    done = subprocess.run(
        [
            *(str(Path(sysconfig.get_path("scripts")) / "st"),),
            *("--config-file", str(CONFIG)),
            *("run", f"{stack.base_url}/schema", "--checks", "all"),
            *("--max-examples", str(EXAMPLES), "--seed", "1", "--no-shrink"),
            *("--suppress-health-check", "all", "--warnings", "off"),
            *("--include-path-regex", paths, "--request-timeout", "30"),
            *("--header", f"Authorization: Bearer {key}"),
        ],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_our_own_api_keeps_its_word(live_stack: LiveStack, tmp_path: Path) -> None:
    key = live_stack.key("test", plan="enterprise")
    examine(live_stack, tmp_path, paths=OURS, key=key)
    live_stack.check_ledger()


def test_the_operator_api_keeps_its_word(live_stack: LiveStack, tmp_path: Path) -> None:
    name = f"examiner-{tmp_path.name}"
    live_stack.manage("createoperator", name)
    made = live_stack.manage("createoperatorkey", name, "--name", "schemathesis")
    key = made.strip().splitlines()[-1]
    examine(live_stack, tmp_path, paths="^/operator/", key=key)
    live_stack.check_ledger()
