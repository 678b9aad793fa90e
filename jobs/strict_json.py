"""JSON from outside, read into plain values that everything behind can hold.

No NUL, lone surrogates, NaN, endless numbers, deep nesting or crowds of values come
through; a refusal names the field where there is one. The cost grows with the length of
the text alone, and what would be slow to read is refused before it is read.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Final

from jobs.errors import InvalidRequest, MalformedBody

#: Deeper than any request of any dialect; Python's own parser gives up near 1,000.
DEPTH_MAX: Final = 64
#: Entries of objects and lists together; the longest request has a few hundred.
VALUES_MAX: Final = 10_000
#: Quotation marks, also escaped ones: two for each text, and some in long prompts.
QUOTES_MAX: Final = 100_000
#: A picture of 12 MB as base64 has 250,000 where slashes are escaped, as PHP does.
ESCAPES_MAX: Final = 500_000
#: Decimal digits of the longest integer taken: 64-bit seeds have 20.
DIGITS_MAX: Final = 40
#: Characters of the longest fraction taken: some languages print them exactly.
FRACTION_MAX: Final = 400

# Possessive, and content with the text's end for the last quotation mark: nothing is
# ever tried twice, and nothing is kept to go back to.
_TEXT: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKET: Final = re.compile(r"[\[\]{}]")


def parse(text: str, where: str = "") -> Any:
    """Return the JSON value in ``text``; of repeated keys the last one counts.

    ``where`` names the field that carried the text, if one did. Raises InvalidRequest
    naming a field, or MalformedBody.
    """
    _check_shape(text, where)
    unusable: list[_Unusable] = []

    def refuse(reason: str) -> _Unusable:
        unusable.append(_Unusable(reason))
        return unusable[-1]

    def integer(digits: str) -> int | _Unusable:
        if len(digits) > DIGITS_MAX:
            return refuse(f"Must have at most {DIGITS_MAX} digits.")
        return int(digits)

    def fraction(digits: str) -> float | _Unusable:
        if len(digits) > FRACTION_MAX:
            return refuse(f"Must have at most {FRACTION_MAX} digits.")
        value = float(digits)
        return value if math.isfinite(value) else refuse("Is out of range.")

    try:
        value = json.loads(
            text,
            parse_constant=lambda name: refuse(f"{name} is not valid JSON."),
            parse_int=integer,
            parse_float=fraction,
        )
    except (ValueError, RecursionError) as error:
        raise _refusal(where, "This is not valid JSON.") from error
    # Only an escape can bring in what UTF-8 or a text may not hold; most have none.
    if unusable or "\\u" in text:
        _check(value, where)
    if unusable:  # in a place that another value took
        raise _refusal(where, unusable[0].reason)
    return value


def check_text(value: str, where: str) -> None:
    """Refuse what a database or an encoder would stumble over."""
    if "\x00" in value:
        raise _refusal(where, "Must not contain NUL characters.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _refusal(where, "Must be valid Unicode text.") from error


@dataclass(frozen=True)
class _Unusable:
    """Stands where a number was that cannot be taken, until its field is known."""

    reason: str


def _refusal(where: str, reason: str) -> InvalidRequest:
    return InvalidRequest(where, reason) if where else MalformedBody(reason)


def _check_shape(text: str, where: str) -> None:
    # A cheap upper bound first, which nearly every request keeps to.
    opened = text.count("[") + text.count("{")
    if opened <= DEPTH_MAX and text.count(",") <= VALUES_MAX:
        return
    if text.count('"') > QUOTES_MAX or text.count("\\") > ESCAPES_MAX:
        raise _refusal(where, "Has too many values.")
    bare = _TEXT.sub("", text)
    if any(bare.count(mark) > VALUES_MAX for mark in ",[]{}"):
        raise _refusal(where, f"Has more than {VALUES_MAX:,} values.")
    depth = 0
    for bracket in _BRACKET.findall(bare):
        depth += 1 if bracket in "[{" else -1
        if depth > DEPTH_MAX:
            raise _refusal(where, f"Nested deeper than {DEPTH_MAX} levels.")


def _check(value: Any, where: str) -> None:
    match value:
        case str():
            check_text(value, where)
        case _Unusable():
            raise _refusal(where, value.reason)
        case dict():
            for name, item in value.items():
                check_text(name, where or "field name")
                _check(item, f"{where}.{name}" if where else name)
        case list():
            for place, item in enumerate(value):
                _check(item, f"{where}[{place}]")
        case _:
            pass  # other numbers and literals hold nothing harmful
