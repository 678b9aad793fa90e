"""Reads the recorded bodies under ``wire/`` and fills them in.

Each file says where its bodies come from and when they were read. Inside a body
``"{{name}}"`` stands for a value of any type and ``"…{{name}}…"`` for text; ``values``
are the ones of the original, so ``recorded`` gives the vendor's own example back.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WIRE = Path(__file__).parent / "wire"
_SLOT = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class Body:
    """One recorded answer. ``mark``: D documented, R repository, S client code, I inferred."""

    status: int
    body: Any
    mark: str
    headers: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def filled(self, /, **values: Any) -> Any:
        return fill(self.body, {**self.values, **values})


@functools.cache
def load(provider: str, file: str) -> dict[str, Body]:
    """Return the bodies of ``wire/<provider>/<file>.json`` by name."""
    content = json.loads((WIRE / provider / f"{file}.json").read_text())
    assert content["source"], f"{provider}/{file} names no source"
    assert content["date"], f"{provider}/{file} names no date"
    return {
        name: Body(
            status=entry.get("status", 200),
            body=entry["body"],
            mark=entry["mark"],
            headers=entry.get("headers", {}),
            values=entry.get("values", {}),
        )
        for name, entry in content["bodies"].items()
    }


def recorded(provider: str, file: str, name: str) -> tuple[int, bytes]:
    """Return status and body as the source printed them."""
    body = load(provider, file)[name]
    return body.status, json.dumps(body.filled()).encode()


def fill(template: Any, values: dict[str, Any]) -> Any:
    if isinstance(template, dict):
        return {key: fill(value, values) for key, value in template.items()}
    if isinstance(template, list):
        return [fill(value, values) for value in template]
    if not isinstance(template, str):
        return template
    if whole := _SLOT.fullmatch(template):
        return values[whole[1]]
    return _SLOT.sub(lambda slot: str(values[slot[1]]), template)
