"""What an operator may set for an account: names, and what each value must be.

A value that is none of this would break where it is used, after a submit went out or for
every account at once; so it is refused where it is entered, and an account that has one
all the same takes no jobs and says why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from inference.geometry import SHORT_SIDE

POLL_SECONDS_MAX: Final = 3600.0
SECONDS_MAX: Final = 600
_SIZE = re.compile(r"[1-9]\d{1,4}x[1-9]\d{1,4}")


@dataclass(frozen=True)
class Setting:
    """One option: what its value must be, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


def problem(given: Any, known: Mapping[str, Setting]) -> str:
    """Say what is wrong with an account's settings, or answer ""."""
    if not isinstance(given, dict):
        return 'they must be a JSON object, such as {"poll_seconds": 10}'
    for name, value in given.items():
        if name not in known:
            return f"there is no '{name}'; there are {', '.join(sorted(known))}"
        if not known[name].fits(value):
            return f"'{name}' must be {known[name].words}"
    return ""


def _is_number(value: Any, *, least: float, most: float = math.inf) -> bool:
    """Return whether it is a JSON number, or a text that is one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return False
    return math.isfinite(number) and least <= number <= most


def _is_interval(value: Any) -> bool:
    is_plain = not isinstance(value, str)
    return is_plain and value != 0 and _is_number(value, least=0, most=POLL_SECONDS_MAX)


def _of_tiers(value: Any, fits: Callable[[Any], bool]) -> bool:
    """Return whether it is an object from tiers to what ``fits``."""
    return isinstance(value, dict) and all(
        tier in SHORT_SIDE and fits(one) for tier, one in value.items()
    )


def _is_length(value: Any) -> bool:
    return type(value) is int and 1 <= value <= SECONDS_MAX


def _is_size(value: Any) -> bool:
    return isinstance(value, str) and bool(_SIZE.fullmatch(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable()


def _list_of(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(map(fits, value))


SWITCH: Final = Setting("true or false", lambda value: isinstance(value, bool))
INTERVAL: Final = Setting(
    f"a number of seconds above 0, at most {POLL_SECONDS_MAX:g}", _is_interval
)
PRICE: Final = Setting("a price of 0 or more", lambda value: _is_number(value, least=0))
PRICES: Final = Setting(
    f'prices by tier ({", ".join(SHORT_SIDE)}), such as {{"720p": 0.1}}',
    lambda value: _of_tiers(value, PRICE.fits),
)
LENGTHS: Final = Setting(
    "a list of whole seconds, such as [4, 8, 12]",
    lambda value: _list_of(value, _is_length),
)
SIZES: Final = Setting(
    f'sizes by tier ({", ".join(SHORT_SIDE)}), such as {{"720p": "1280x720"}}',
    lambda value: bool(value) and _of_tiers(value, _is_size),
)
TEXT: Final = Setting("text of printable ASCII characters", _is_text)
NAMES: Final = Setting(
    'a list of names, such as ["sora-2"]', lambda value: _list_of(value, _is_text)
)

#: What every adapter heeds; one that has more of its own adds them.
COMMON: Final[Mapping[str, Setting]] = {
    "idempotency_key": SWITCH,
    "callbacks": SWITCH,
    "poll_seconds": INTERVAL,
    "usd_per_second": PRICES,
}
