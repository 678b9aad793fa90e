"""The documentation page of each dialect: its text, with field tables from the code."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.dialects import load_dialect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.dialects.base import Field

FOLDER = Path(__file__).with_name("docs")
#: A line that stands for the field table of one route.
_MARK = re.compile(r"^<!-- fields (?P<method>[A-Z]+) (?P<path>\S+) -->$", re.M)


@cache
def page(name: str) -> str:
    """Return the dialect's page as Markdown. Raises KeyError for an unknown dialect."""
    dialect = load_dialect(name)
    tables: dict[tuple[str, str], str] = {
        (r.method, r.path): table(r.fields) for r in dialect.routes
    }
    text = (FOLDER / f"{name}.md").read_text("utf-8")
    return _MARK.sub(lambda mark: tables[mark["method"], mark["path"]], text)


def table(fields: Sequence[Field]) -> str:
    """Return the fields as a Markdown table."""
    lines = ["| field | type | required | rule | default | meaning |", "|---" * 6 + "|"]
    for field in fields:
        required = "yes" if field.required else ""
        cells = (field.type, required, field.rule, field.default, field.meaning)
        plain = " | ".join(cell.replace("|", "\\|") for cell in cells)
        lines.append(f"| `{field.name}` | {plain} |")
    return "\n".join(lines)
