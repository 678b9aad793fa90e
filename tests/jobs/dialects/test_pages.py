"""Documentation pages: complete, and true to the code."""

from __future__ import annotations

import pytest

from jobs.dialects import DIALECTS, load_dialect, pages

WRITTEN = sorted(path.stem for path in pages.FOLDER.glob("*.md"))


@pytest.mark.parametrize("name", sorted(set(DIALECTS) - {"native"}))
def test_every_dialect_has_a_page(name: str) -> None:
    assert name in WRITTEN


@pytest.mark.parametrize("name", WRITTEN)
def test_a_page_names_base_url_key_and_differences(name: str) -> None:
    text = pages.page(name)
    for part in ("Base URL", "zoe_test_", "differ", "```python"):
        assert part in text


@pytest.mark.parametrize("name", WRITTEN)
def test_a_page_documents_every_field_of_its_create_call(name: str) -> None:
    text = pages.page(name)
    assert "<!-- fields" not in text
    creates = [r for r in load_dialect(name).routes if r.operation == "create"]
    for field in creates[0].fields:
        assert f"| `{field.name}` |" in text


def test_a_bar_in_a_rule_does_not_break_the_table() -> None:
    from jobs.dialects.base import Field

    assert "a \\| b" in pages.table([Field("x", "string", "a | b")])
