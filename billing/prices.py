"""What something costs: `quote` is pure given its rows; the rest finds the rows.

The price book is append-only. For each model and operation the version counts whose time
came last (of two that start together, the higher); it is stored with what was charged.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import Any, Final

from django.db import connection, transaction
from django.db.models import Max
from django.db.models.functions import Now

from billing.errors import BadRequest, NoPrice
from billing.models import PriceRow

#: A new price is charged by every process this much later at most.
CACHE_SECONDS: Final = 3.0
#: A block is begun when more than this of it is used, in seconds: 81 frames at 16 fps,
#: sold everywhere as a 5 s clip, last 5.0625 s.
BLOCK_GRACE: Final = Fraction(1, 10)


@dataclass(frozen=True)
class Usage:
    """What is to be made, with every default resolved.

    ``seconds`` is the exact length of the clip, ``resolution`` the tier's name in lower
    case. ``premium`` is the option of that name.
    """

    model: str
    operation: str = PriceRow.Operation.VIDEO
    resolution: str = ""
    seconds: Fraction | Decimal | int = 0
    frames: int = 0
    premium: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def all_options(self) -> dict[str, Any]:
        return {**self.options, "premium": self.premium}


@dataclass(frozen=True)
class Price:
    """One line of the price book, as `PriceRow` states it."""

    model: str
    operation: str
    amount_millicredits: int
    version: int
    unit: str = PriceRow.Unit.JOB
    unit_size: int = 1
    prorata: bool = False
    resolution: str = ""
    seconds: Decimal | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    is_surcharge: bool = False

    def fits(self, usage: Usage) -> bool:
        if (self.model, self.operation) != (usage.model, usage.operation):
            return False
        if self.resolution and self.resolution != usage.resolution:
            return False
        if self.seconds is not None and Fraction(self.seconds) != Fraction(
            usage.seconds
        ):
            return False
        wanted = usage.all_options
        return all(wanted.get(name) == value for name, value in self.options.items())

    @property
    def narrowness(self) -> tuple[int, bool, bool]:
        """How special the row's case is; the most special row that fits is charged."""
        return (len(self.options), self.seconds is not None, bool(self.resolution))

    def units(self, usage: Usage) -> Fraction:
        """Return how many units ``usage`` takes; begun ones whole unless prorata."""
        if self.unit == PriceRow.Unit.JOB:
            return Fraction(1)
        by_frame = self.unit == PriceRow.Unit.FRAME
        units = Fraction(usage.frames if by_frame else usage.seconds) / self.unit_size
        if units <= 0:
            raise NoPrice(f"{self.model} is sold by the {self.unit}; none was given")
        if self.unit == PriceRow.Unit.BLOCK:
            return Fraction(max(1, ceil(units - BLOCK_GRACE / self.unit_size)))
        return units if self.prorata else Fraction(ceil(units))

    def amount(self, usage: Usage) -> int:
        """Return milli-credits, a begun one counting whole."""
        return ceil(self.amount_millicredits * self.units(usage))


@dataclass(frozen=True)
class Line:
    """One row's part in a quote."""

    description: str
    amount_millicredits: int


@dataclass(frozen=True)
class Quote:
    amount_millicredits: int
    price_version: int
    lines: tuple[Line, ...]


def quote(usage: Usage, rows: Iterable[Price]) -> Quote:
    """Price ``usage`` by ``rows``: the narrowest that fits, plus fitting surcharges."""
    fitting = [row for row in rows if row.fits(usage)]
    bases = [row for row in fitting if not row.is_surcharge]
    if not bases:
        raise NoPrice(
            f"{usage.model} has no {usage.operation} price for "
            f"{usage.resolution or 'any resolution'}, {float(usage.seconds):g} s"
        )
    base = max(bases, key=lambda row: row.narrowness)
    charged = [base, *(row for row in fitting if row.is_surcharge)]
    lines = tuple(
        Line(_describe(row, row.units(usage)), row.amount(usage)) for row in charged
    )
    return Quote(
        amount_millicredits=sum(line.amount_millicredits for line in lines),
        price_version=base.version,
        lines=lines,
    )


def _describe(row: Price, units: Fraction) -> str:
    what = " ".join(filter(None, (row.model, row.operation, row.resolution)))
    if row.options:
        what += " " + ", ".join(sorted(row.options))
    if row.unit == PriceRow.Unit.JOB:
        return what
    per = f"{row.unit_size} " if row.unit_size > 1 else ""
    unit = {"block": f"begun {per}s", "second": f"{per}s", "frame": f"{per}frames"}
    return f"{what}: {float(units):g} x {unit[row.unit]}"


# --- The book -------------------------------------------------------------------------

Book = Mapping[tuple[str, str], Sequence[Price]]
_cached: tuple[float, Book] | None = None


def current_rows(usage: Usage) -> Sequence[Price]:
    """Return the rows that count now for this model and operation, from a short cache."""
    return _current_book().get((usage.model, usage.operation), ())


def quote_now(usage: Usage) -> Quote:
    """Price ``usage`` by the book as it stands."""
    return quote(usage, current_rows(usage))


def forget() -> None:
    """Drop this process's copy of the book, so that the next quote reads it anew."""
    global _cached
    _cached = None


def _current_book() -> Book:
    global _cached
    cached = _cached
    if cached is not None and time.monotonic() < cached[0]:
        return cached[1]
    book = _read_book()
    _cached = (time.monotonic() + CACHE_SECONDS, book)
    return book


def _read_book() -> Book:
    begun = PriceRow.objects.filter(effective_from__lte=Now())
    return {key: list(map(as_price, rows)) for key, rows in _latest(begun).items()}


def _latest(rows: Iterable[PriceRow]) -> dict[tuple[str, str], list[PriceRow]]:
    """Return of each model and operation the rows of the version that starts last.

    A version starts with its first row: an update may put rows beside those of old.
    """
    versions: dict[tuple[str, str], dict[int, list[PriceRow]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in sorted(rows, key=lambda row: row.pk):
        versions[row.model, row.operation][row.version].append(row)
    return {
        key: max(
            of_key.values(),
            key=lambda rows: (min(row.effective_from for row in rows), rows[0].version),
        )
        for key, of_key in versions.items()
    }


def as_price(row: PriceRow) -> Price:
    return Price(
        model=row.model,
        operation=row.operation,
        amount_millicredits=row.amount_millicredits,
        version=row.version,
        unit=row.unit,
        unit_size=row.unit_size,
        prorata=row.prorata,
        resolution=row.resolution,
        seconds=row.seconds,
        options=row.options,
        is_surcharge=row.is_surcharge,
    )


@transaction.atomic
def publish(
    rows: Sequence[Price], *, effective_from: datetime | None = None
) -> list[PriceRow]:
    """Write the rows as the next version of their model and operation.

    They replace all rows of the version before, from ``effective_from`` on; a time that
    has passed means now. ``version`` of the given rows is not used. Versions count over
    the whole book, so a number alone says what was charged.
    """
    if len({(row.model, row.operation) for row in rows}) != 1:
        raise BadRequest("rows", "must price one model and one operation")
    _lock_book()
    latest: int = PriceRow.objects.aggregate(latest=Max("version"))["latest"] or 0
    is_later = effective_from is not None and effective_from > datetime.now(UTC)
    start = {"effective_from": effective_from} if is_later else {}
    published = [
        PriceRow(**{**_fields(row), "version": latest + 1, **start}) for row in rows
    ]
    PriceRow.objects.bulk_create(published)
    transaction.on_commit(forget)
    return published


def _lock_book() -> None:
    # Two operators at once must not write the same version, nor lose each other's change.
    with connection.cursor() as cursor:
        cursor.execute("LOCK TABLE billing_pricerow IN SHARE ROW EXCLUSIVE MODE")


@transaction.atomic
def add(row: Price, *, effective_from: datetime | None = None) -> list[PriceRow]:
    """Publish a new version that has ``row`` beside what counts today."""
    _lock_book()
    beside = _read_book().get((row.model, row.operation), ())
    return publish([*beside, row], effective_from=effective_from)


@transaction.atomic
def reprice(row: PriceRow, **changes: Any) -> list[PriceRow]:
    """Publish a new version in which only the case of ``row`` differs, by ``changes``.

    The rest is as it counts today, however old ``row`` is; beside a row whose time is
    still to come, as its own version has it.
    """
    effective_from = changes.pop("effective_from", None)
    _lock_book()
    siblings = PriceRow.objects.filter(model=row.model, operation=row.operation)
    if row.effective_from > datetime.now(UTC):
        siblings = siblings.filter(version=row.version)
    else:
        siblings = siblings.filter(effective_from__lte=Now())
    [today] = _latest(siblings).values()
    kept = [as_price(sibling) for sibling in today if not _same_case(sibling, row)]
    at = next((n for n, one in enumerate(today) if _same_case(one, row)), len(kept))
    before = as_price(today[at] if at < len(today) else row)
    kept.insert(at, replace(before, **changes))
    return publish(kept, effective_from=effective_from)


def _same_case(one: PriceRow, other: PriceRow) -> bool:
    return _case(one) == _case(other)


def _case(row: PriceRow) -> tuple[object, ...]:
    return (row.resolution, row.seconds, row.options, row.is_surcharge)


def superseding(row: PriceRow) -> PriceRow | None:
    """Return a row of the next version that will count after this one, if any is set."""
    later = PriceRow.objects.filter(
        model=row.model, operation=row.operation, effective_from__gt=row.effective_from
    )
    return later.order_by("effective_from", "-version").first()


def _fields(row: Price) -> dict[str, Any]:
    return {**vars(row), "options": dict(row.options)}
