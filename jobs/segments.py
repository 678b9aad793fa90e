"""Parts of a path that hold what a caller calls something: ids, names.

A path with NUL or a lone surrogate in such a place matches nothing, so it is answered
like any other that nobody serves, and no database is asked for what it cannot hold.
"""

from __future__ import annotations

from django.urls import register_converter
from django.urls.converters import StringConverter


class Segment(StringConverter):
    """``<segment:…>``: up to the next slash."""

    regex = r"[^/\x00\ud800-\udfff]+"


class Segments(StringConverter):
    """``<segments:…>``: slashes as well."""

    regex = r"[^\x00\ud800-\udfff]+"


def register() -> None:
    """Make both known to ``path()``; again does no harm."""
    from django.urls.converters import get_converters

    for name, converter in (("segment", Segment), ("segments", Segments)):
        if name not in get_converters():
            register_converter(converter, name)
