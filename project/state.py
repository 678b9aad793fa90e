"""What one copy of Zoetrope keeps under ZOETROPE_HOME: its secrets and its addresses.

`secrets.json` is made once and kept: losing it makes stored secrets unreadable and API
keys worthless. `stack.json` says where the embedded services of this copy listen, so
that any other command finds them. Both are readable by their owner only.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Final

SECRET_NAMES: Final = (
    "SECRET_KEY",
    "SECRETS_KEY",
    "API_KEY_PEPPER",
    "METRICS_TOKEN",
    "FLOWER_PASSWORD",
    "POSTGRES_PASSWORD",
    "REDIS_PASSWORD",
    "S3_SECRET_KEY",
)


def home() -> Path:
    """Return ZOETROPE_HOME, by default `.data` beside manage.py."""
    default = Path(__file__).resolve().parent.parent / ".data"
    return Path(os.environ.get("ZOETROPE_HOME") or default).expanduser().resolve()


def local_secrets(folder: Path) -> dict[str, str]:
    """Return this copy's own secrets, made on the first call.

    Several processes may come first together: whoever links the file first wins.
    """
    path = folder / "secrets.json"
    known = read(path)
    missing = [name for name in SECRET_NAMES if name not in known]
    if not missing:
        return known
    folder.mkdir(parents=True, exist_ok=True)
    made = known | {name: new_secret(name) for name in missing}
    if known:
        write(path, made)
        return made
    draft = _draft(path, made)
    try:
        os.link(draft, path)
    except FileExistsError:
        return read(path)
    finally:
        draft.unlink()
    return made


def new_secret(name: str) -> str:
    if name == "SECRETS_KEY":  # a Fernet key: 32 bytes, URL-safe base64
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_urlsafe(48 if name == "SECRET_KEY" else 32)


def addresses(folder: Path) -> dict[str, str]:
    """Return the environment that the running embedded services stand for."""
    return read(folder / "stack.json")


def read(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return {str(name): str(value) for name, value in content.items()}


def write(path: Path, content: dict[str, str]) -> None:
    """Replace the file in one step, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _draft(path, content).replace(path)


def _draft(path: Path, content: dict[str, str]) -> Path:
    # mkstemp makes the file with mode 0600
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        json.dump(content, file, indent=1)
    return Path(name)
