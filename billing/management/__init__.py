"""What the management commands share: reading credits and days."""

from __future__ import annotations

from argparse import ArgumentTypeError
from decimal import Decimal, InvalidOperation


def credits_argument(text: str) -> Decimal:
    """Read credits with at most three decimals: the ledger keeps thousandths."""
    try:
        credits = Decimal(text)
    except InvalidOperation as error:
        raise ArgumentTypeError(f"{text!r} is not a number of credits") from error
    if not credits.is_finite() or credits < 0 or credits > 10**12:
        raise ArgumentTypeError(f"{text!r} is not a number of credits")
    if credits * 1000 % 1:
        raise ArgumentTypeError("credits have at most three decimals")
    return credits


def days_argument(text: str) -> int:
    """Read for how many days credits live: at least one, at most ten years."""
    is_number = text.isascii() and text.isdigit() and len(text) <= 4
    if not is_number or not 1 <= int(text) <= 3650:
        raise ArgumentTypeError(f"{text!r} is not from 1 to 3650 days")
    return int(text)
