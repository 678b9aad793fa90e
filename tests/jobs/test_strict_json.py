"""JSON from strangers: what comes through can be kept, and nothing is slow to refuse."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import strict_json
from jobs.errors import InvalidRequest, MalformedBody

MEGABYTE = 2**20
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
    ),
    max_leaves=30,
)


def refused(text: str, where: str = "") -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        strict_json.parse(text, where)
    return caught.value


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@given(values)
def test_whatever_can_be_kept_comes_through_as_it_is(value: Any) -> None:
    text = json.dumps(value)
    if "\\u0000" not in text:
        assert strict_json.parse(text) == value


def test_brackets_inside_texts_do_not_count() -> None:
    prompt = "[{" * 500 + '\\"' + "]," * 20_000
    assert strict_json.parse(json.dumps([prompt, "}"])) == [prompt, "}"]


def test_it_may_be_as_deep_as_said_and_no_deeper() -> None:
    assert strict_json.parse(nested(strict_json.DEPTH_MAX))
    many = ",".join(nested(strict_json.DEPTH_MAX - 1) for _ in range(20))
    assert len(strict_json.parse(f"[{many}]")) == 20
    assert "levels" in refused(nested(strict_json.DEPTH_MAX + 1)).message


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"a": {"b": NaN}}', "a.b"),
        ('{"a": [1, -Infinity]}', "a[1]"),
        ('{"a": 1e400}', "a"),
        ('{"a": "\\u0000"}', "a"),
        ('{"a": ["\\ud800"]}', "a[0]"),
        ('{"a\\u0000": 1}', "field name"),
        ("NaN", None),
        ('{"a": NaN, "a": 1}', None),
        ("{", None),
        (nested(100_000), None),
    ],
)
def test_a_refusal_names_the_field(text: str, field: str | None) -> None:
    error = refused(text)
    assert error.field == field
    assert isinstance(error, MalformedBody) is (field is None)
    inner = "metadata" if field is None else f"metadata.{field}"
    assert refused(text, "metadata").field in (inner, "metadata")


@pytest.mark.parametrize(
    "make",
    [
        lambda size: '{"a": "' + "x[" * (size // 2) + '"}',
        lambda size: "[" + "[]," * (size // 3) + "0]",
        lambda size: "[" + "0," * (size // 2) + "0]",
        lambda size: "[" + '"",' * (size // 3) + "0]",
        lambda size: "[" * 100 + '"' + '\\"' * (size // 2),
        lambda size: "[" * 100 + '"' + "\\n" * (size // 2) + '"',
        lambda size: "[" * 100 + '"' + "x" * size,
        lambda size: "[" * 100 + "]" * size,
        lambda size: '{"a": ' + "9" * size + "}",
        lambda size: '{"a": 0.' + "9" * size + "}",
        lambda size: "{" + '"a":1,' * (size // 6) + '"a":1}',
    ],
)
def test_no_body_is_slow_to_read_or_refuse(make: Callable[[int], str]) -> None:
    text = make(16 * MEGABYTE)
    began = time.process_time()
    with contextlib.suppress(InvalidRequest):
        strict_json.parse(text)
    # A picture of the same size takes 0.05 s; reading each character by hand, 2 s.
    assert time.process_time() - began < 0.5
