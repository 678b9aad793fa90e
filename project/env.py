"""Read typed values from the environment, or say which variable is wrong.

An unset or empty variable gives the default; without a default it raises
ImproperlyConfigured naming the variable. A value that cannot be read always raises.
"""

from __future__ import annotations

import base64
import os
from typing import Final

from django.core.exceptions import ImproperlyConfigured

TRUE: Final = frozenset({"1", "true", "yes", "on"})
FALSE: Final = frozenset({"0", "false", "no", "off"})


def text(name: str, default: str | None = None) -> str:
    value = os.environ.get(name, "").strip()
    if value:
        return value
    if default is None:
        raise ImproperlyConfigured(f"The environment variable {name} must be set.")
    return default


def spare_loopback_the_proxy() -> None:
    """Have this process and its children reach this machine without ``HTTP_PROXY``."""
    names = ("no_proxy", "NO_PROXY")  # whoever reads both prefers the first
    known = [given for name in names if (given := os.environ.get(name))]
    spared = ",".join(dict.fromkeys([*known, "127.0.0.1,localhost,::1"]))
    for name in names:
        os.environ[name] = "*" if "*" in known else spared


def integer(name: str, default: int | None = None, *, minimum: int = 0) -> int:
    value = text(name, None if default is None else str(default))
    try:
        number = int(value)
    except ValueError as error:
        raise ImproperlyConfigured(
            f"{name} must be a whole number, not {value!r}."
        ) from error
    if number < minimum:
        raise ImproperlyConfigured(f"{name} must be at least {minimum}, not {number}.")
    return number


def number(
    name: str, default: float | None = None, *, minimum: float | None = 0.0
) -> float:
    value = text(name, None if default is None else str(default))
    try:
        result = float(value)
    except ValueError as error:
        raise ImproperlyConfigured(
            f"{name} must be a number, not {value!r}."
        ) from error
    if minimum is not None and not result >= minimum:
        raise ImproperlyConfigured(f"{name} must be at least {minimum}, not {value}.")
    return result


def boolean(name: str, default: bool | None = None) -> bool:
    value = text(name, None if default is None else str(default)).lower()
    if value in TRUE:
        return True
    if value in FALSE:
        return False
    raise ImproperlyConfigured(f"{name} must be true or false, not {value!r}.")


def words(name: str, default: str = "") -> list[str]:
    """Return the comma-separated parts, without blanks."""
    return [part for part in map(str.strip, text(name, default).split(",")) if part]


def pairs(name: str) -> dict[str, str]:
    """Return the table written as ``key=value, key=value``."""
    table = {}
    for entry in words(name):
        key, equals, value = entry.partition("=")
        if not (key and equals and value):
            raise ImproperlyConfigured(f"{name}: {entry!r} is not name=value.")
        table[key] = value
    return table


def webhook_secret(name: str, default: str | None = None) -> str:
    """Return a secret of Standard Webhooks: 24 to 64 bytes in base64, after ``whsec_``."""
    value = text(name, default)
    if not value:
        return value
    try:
        # Not the URL-safe alphabet: the receiver's library would read another key.
        size = len(base64.b64decode(value.removeprefix("whsec_"), validate=True))
    except ValueError:
        size = 0
    if not 24 <= size <= 64:
        raise ImproperlyConfigured(
            f"{name} must be whsec_ and then 24 to 64 bytes in standard base64 (with + "
            "and /, padded by =)."
        )
    return value
