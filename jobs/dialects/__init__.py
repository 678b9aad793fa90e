"""The table of dialects: an eighth one is its file and one line here."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.dialects.base import Dialect

#: name → module that holds ``DIALECT``
DIALECTS: dict[str, str] = {
    "native": "jobs.dialects.native",
    "magicoal": "jobs.dialects.magicoal",
    "aimlapi": "jobs.dialects.aimlapi",
    "sinancode": "jobs.dialects.sinancode",
    "novita": "jobs.dialects.novita",
    "akool": "jobs.dialects.akool",
    "dashscope": "jobs.dialects.dashscope",
    "openai": "jobs.dialects.openai",
}


@cache
def load_dialect(name: str) -> Dialect:
    dialect: Dialect = import_module(DIALECTS[name]).DIALECT
    return dialect
