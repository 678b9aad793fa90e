"""Typed readers of wire fields, shared by the dialects.

A reader is declared once and does two things: it reads its field out of a body, and its
``row`` is that field's line in the documentation. Whatever a client sends, a reader
answers a value of its type or raises InvalidRequest naming the wire field.

    PROMPT = fields.text("prompt", longest=2000, canonical="prompt")
    FRAMES = fields.integer("num_frames", low=17, high=161, default=81)

    body = fields.object_of(wire.body)
    PROMPT.find(body)      # str | None
    FRAMES.take(body)      # int: the default, or a refusal when there is none

Dots in a name walk into objects: ``parameters.seed``. JSON null counts as absent.
Numeric strings are taken as numbers (forms and query strings have nothing else, and
several vendors' own samples send them); true and false are never numbers.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from inference.egress import check_url
from inference.errors import InputRejected
from jobs import pictures
from jobs.dialects.base import Field
from jobs.errors import InvalidRequest, MalformedBody
from jobs.requests import SEED_MAX

if TYPE_CHECKING:
    from jobs.requests import Picture, PictureRules

T = TypeVar("T")
Body = Mapping[str, Any]
Convert = Callable[[str, Any], T]

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER = re.compile(
    r"[+-]?([0-9]{1,19}(\.[0-9]{0,19})?|\.[0-9]{1,19})([eE][+-]?[0-9]{1,2})?"
)
_WORDS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class Reader(Generic[T]):
    """Reads one field and documents it."""

    row: Field
    convert: Convert[T]
    default: T | None = None
    blank_is_absent: bool = False
    #: further values that mean "not given", such as a seed of -1
    absent_values: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        return self.row.name

    def is_given(self, body: Body) -> bool:
        value = lookup(body, self.name)
        return value is not None and not (self.blank_is_absent and _is_blank(value))

    def find(self, body: Body) -> T | None:
        """Return the value, the default when absent, or None when there is none."""
        if not self.is_given(body):
            if self.row.required:
                raise missing(self.name)
            return self.default
        value = self.convert(self.name, lookup(body, self.name))
        return self.default if value in self.absent_values else value

    def take(self, body: Body) -> T:
        """Return the value or the default; an absent field without one is refused."""
        value = self.find(body)
        if value is None:
            raise missing(self.name)
        return value


#: the code of a refusal because a required field is absent
MISSING = "missing_field"


def missing(name: str) -> InvalidRequest:
    return InvalidRequest(name, "This field is required.", code=MISSING)


def object_of(body: object) -> dict[str, Any]:
    """Return the body of a create call; an empty one has no fields."""
    if body is None:
        return {}
    if not isinstance(body, dict):
        raise MalformedBody("The body must be a JSON object.")
    return body


def lookup(body: Body, name: str) -> Any:
    """Return the value at a dotted ``name``, or None when any part of it is absent."""
    value: Any = body
    parts = name.split(".")
    for depth, part in enumerate(parts):
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise InvalidRequest(".".join(parts[:depth]), "Must be an object.")
        value = value.get(part)
    return value


def rows(*readers: Reader[Any]) -> tuple[Field, ...]:
    """Return the documentation table of ``readers``."""
    return tuple(reader.row for reader in readers)


@contextmanager
def wire_names(readers: Sequence[Reader[Any]], **others: str) -> Iterator[None]:
    """Let a refusal from JobRequest.build name the wire field instead of ours.

    ``others`` maps further canonical names (dots as ``__``) to wire names.
    """
    names = {
        canonical: reader.name
        for reader in readers
        for canonical in reader.row.canonical.split()
    } | {canonical.replace("__", "."): wire for canonical, wire in others.items()}
    try:
        yield
    except InvalidRequest as refused:
        if refused.field in names:
            wire = names[refused.field]
            refused.message = refused.message.replace(f"'{refused.field}'", f"'{wire}'")
            refused.field = wire
        raise


# ------------------------------------------------------------------- the types


def text(
    name: str,
    *,
    longest: int | None = None,
    shortest: int = 0,
    default: str | None = None,
    required: bool = False,
    rule: str = "",
    meaning: str = "",
    canonical: str = "",
    blank_is_absent: bool = False,
) -> Reader[str]:
    def convert(field: str, value: Any) -> str:
        if not isinstance(value, str):
            raise InvalidRequest(field, "Must be a string.")
        if longest is not None and len(value) > longest:
            raise InvalidRequest(
                field, f"At most {longest} characters, got {len(value)}."
            )
        if len(value) < shortest:
            raise InvalidRequest(field, f"At least {shortest} characters.")
        return value

    said = rule or (f"at most {longest} characters" if longest else "")
    row = _row(
        name, "string", said, default, required, meaning, canonical,
        maxLength=longest, minLength=shortest or None,
    )  # fmt: skip
    return Reader(row, convert, default, blank_is_absent)


def integer(
    name: str,
    *,
    low: int | None = None,
    high: int | None = None,
    choices: Sequence[int] = (),
    default: int | None = None,
    required: bool = False,
    rule: str = "",
    meaning: str = "",
    canonical: str = "",
    blank_is_absent: bool = False,
    odd: bool = False,
) -> Reader[int]:
    def convert(field: str, value: Any) -> int:
        number = _integer_of(field, value)
        if choices and number not in choices:
            raise InvalidRequest(field, f"Must be one of {_listed(choices)}.")
        _bounded(field, number, low, high)
        if odd and number % 2 == 0:
            raise InvalidRequest(field, "Must be an odd number.")
        return number

    said = rule or _listed(choices) or _span(low, high) + (", odd" if odd else "")
    row = _row(
        name, "integer", said, default, required, meaning, canonical,
        minimum=low, maximum=high, enum=list(choices) or None,
    )  # fmt: skip
    return Reader(row, convert, default, blank_is_absent)


def seed(
    name: str,
    *,
    high: int = 2**63 - 1,
    random: int | None = None,
    rule: str = "",
    meaning: str = "",
) -> Reader[int]:
    """Return a reader of a seed; ``random`` is the value that asks for any.

    Seeds over our own range are folded into it, so the same one still gives the same video.
    """
    wide = integer(name, low=0 if random is None else min(0, random), high=high)

    def convert(field: str, value: Any) -> int:
        given = wide.convert(field, value)
        return given if given == random else given % (SEED_MAX + 1)

    said = rule or wide.row.rule
    row = _row(
        name, "integer", said, None, required=False, meaning=meaning, canonical="seed"
    )
    row = dataclasses.replace(row, default="random", schema=wide.row.schema)
    absent = () if random is None else (random,)
    return Reader(row, convert, absent_values=absent)


def number(
    name: str,
    *,
    low: float | None = None,
    high: float | None = None,
    default: float | None = None,
    required: bool = False,
    rule: str = "",
    meaning: str = "",
    canonical: str = "",
) -> Reader[float]:
    def convert(field: str, value: Any) -> float:
        amount = _number_of(field, value)
        _bounded(field, amount, low, high)
        return amount

    row = _row(
        name, "number", rule or _span(low, high), default, required, meaning, canonical,
        minimum=low, maximum=high,
    )  # fmt: skip
    return Reader(row, convert, default)


def boolean(
    name: str,
    *,
    default: bool | None = None,
    required: bool = False,
    rule: str = "",
    meaning: str = "",
    canonical: str = "",
) -> Reader[bool]:
    def convert(field: str, value: Any) -> bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _WORDS:
            return _WORDS[value.lower()]
        raise InvalidRequest(field, "Must be true or false.")

    row = _row(name, "boolean", rule, default, required, meaning, canonical)
    return Reader(row, convert, default)


def choice(
    name: str,
    choices: Sequence[str],
    *,
    default: str | None = None,
    required: bool = False,
    any_case: bool = False,
    blank_is_absent: bool = False,
    rule: str = "",
    meaning: str = "",
    canonical: str = "",
) -> Reader[str]:
    """Return a reader of one of ``choices``, spelled as there.

    With ``any_case`` the letter case of what the client sent does not matter.
    """

    def convert(field: str, value: Any) -> str:
        if isinstance(value, str):
            for known in choices:
                if value == known or (any_case and value.lower() == known.lower()):
                    return known
        raise InvalidRequest(field, f"Must be one of {_listed(choices)}.")

    row = _row(
        name, "string", rule or _listed(choices), default, required, meaning, canonical,
        enum=None if any_case else list(choices),
    )  # fmt: skip
    return Reader(row, convert, default, blank_is_absent)


def picture(
    name: str,
    *,
    required: bool = False,
    rules: PictureRules | None = None,
    https_only: bool = False,
    rule: str = "",
    meaning: str = "",
    canonical: str = "image",
    blank_is_absent: bool = False,
) -> Reader[Picture]:
    """Return a reader of a picture: a URL, a data URI or bare base64.

    ``rules`` are applied to pictures that come as bytes; put them on the JobRequest as
    well, so that fetched ones meet them when the job is prepared.
    """

    def convert(field: str, value: Any) -> Picture:
        found = pictures.from_text(field, value)
        if https_only and found.url is not None:
            _require_https(field, found.url)
        if rules is not None:
            check_picture(field, found, rules)
        return found

    said = rule or "URL, data URI or base64"
    row = _row(
        name,
        "string",
        said,
        None,
        required=required,
        meaning=meaning,
        canonical=canonical,
    )
    return Reader(row, convert, None, blank_is_absent)


def check_picture(field: str, found: Picture, rules: PictureRules) -> None:
    """Refuse a picture that came as bytes and breaks ``rules``."""
    if found.data is None or found.size is None or found.format is None:
        return
    width, height = found.size
    broken = rules.broken_by(
        width=width,
        height=height,
        size_bytes=len(found.data),
        format=found.format,
        has_alpha=found.has_alpha,
    )
    if broken is not None:
        code, message = broken
        raise InvalidRequest(field, message, code=code)


def url(
    name: str,
    *,
    required: bool = False,
    https_only: bool = False,
    rule: str = "",
    meaning: str = "",
    canonical: str = "",
    longest: int = 4096,
) -> Reader[str]:
    """Return a reader of an address we are to call; a blank one counts as absent.

    Its form is checked here, where it leads when it is called. What we post to, such as
    a webhook, must be https.
    """
    kind = "https URL" if https_only else "http(s) URL"

    def convert(field: str, value: Any) -> str:
        if not isinstance(value, str):
            raise InvalidRequest(field, f"Must be a string: an {kind}.")
        address = value.strip()
        if len(address) > longest:
            raise InvalidRequest(field, f"At most {longest} characters.")
        pictures.from_url(field, address)
        if https_only:
            _require_https(field, address)
        return address

    row = _row(
        name, "string", rule or kind, None, required, meaning, canonical,
        format="uri", maxLength=longest,
    )  # fmt: skip
    return Reader(row, convert, None, blank_is_absent=True)


def items(
    name: str,
    each: Convert[T],
    *,
    longest: int,
    kind: str = "array",
    required: bool = False,
    rule: str = "",
    meaning: str = "",
    canonical: str = "",
) -> Reader[tuple[T, ...]]:
    """Return a reader of a list; ``each`` converts one element, named ``name[0]``."""

    def convert(field: str, value: Any) -> tuple[T, ...]:
        if not isinstance(value, (list, tuple)):
            raise InvalidRequest(field, "Must be an array.")
        if len(value) > longest:
            raise InvalidRequest(field, f"At most {longest} entries.")
        return tuple(each(f"{field}[{place}]", one) for place, one in enumerate(value))

    row = _row(
        name, kind, rule or f"at most {longest}", None, required, meaning, canonical,
        maxItems=longest if kind == "array" else None,
    )  # fmt: skip
    return Reader(row, convert, None)


# ------------------------------------------------------------------- the parts


def _require_https(field: str, address: str) -> None:
    try:
        check_url(address, https_only=True)
    except InputRejected as refused:
        raise InvalidRequest(field, str(refused)) from refused


def _integer_of(field: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    # Encoders without integers write 5 as 5.0.
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    raise InvalidRequest(field, "Must be an integer.")


def _number_of(field: str, value: Any) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            amount = float(value)
        except OverflowError:
            amount = math.inf
        if math.isfinite(amount):
            return amount
    raise InvalidRequest(field, "Must be a number.")


def _bounded(field: str, value: float, low: float | None, high: float | None) -> None:
    if (low is not None and value < low) or (high is not None and value > high):
        if low is None:
            raise InvalidRequest(field, f"Must be at most {high}.")
        if high is None:
            raise InvalidRequest(field, f"Must be at least {low}.")
        raise InvalidRequest(field, f"Must be between {low} and {high}.")


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _listed(choices: Sequence[object]) -> str:
    return ", ".join(map(str, choices))


def _span(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "" if low is None else f"at least {low}"
    return f"{low} to {high}"


def _row(
    name: str,
    kind: str,
    rule: str,
    default: object,
    required: bool,
    meaning: str,
    canonical: str,
    **schema: object,
) -> Field:
    row = Field(
        name=name,
        type=kind,
        rule=rule,
        required=required,
        meaning=meaning,
        canonical=canonical,
        schema={word: value for word, value in schema.items() if value is not None},
    )
    if default is None:
        return row
    said = str(default).lower() if isinstance(default, bool) else str(default)
    return dataclasses.replace(row, default=said)
