"""Filters whose choices are known, not read from all the rows there are.

Django's own filter over a plain column asks for its distinct values, which reads the
whole table on each page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.http import HttpRequest

from jobs import safety
from jobs.models import Worker
from jobs.routing import STANDARD_QUEUES

if TYPE_CHECKING:
    from django.db.models import QuerySet

MODES = ("live", "test")


def one_of(
    column: str, choices: Iterable[str] | Callable[[], Iterable[str]]
) -> type[admin.SimpleListFilter]:
    """Return a filter by ``column`` with these choices."""

    class OneOf(admin.SimpleListFilter):
        title = column.rpartition("__")[2].replace("_", " ")
        parameter_name = column

        def lookups(
            self, request: HttpRequest, model_admin: Any
        ) -> list[tuple[str, str]]:
            known = choices() if callable(choices) else choices
            return [(choice, choice) for choice in known]

        def queryset(
            self, request: HttpRequest, queryset: QuerySet[Any]
        ) -> QuerySet[Any]:
            wanted = self.value()
            return queryset if wanted is None else queryset.filter(**{column: wanted})

    return OneOf


def known_queues() -> list[str]:
    served = Worker.objects.values_list("queues", flat=True)
    known = {*STANDARD_QUEUES, safety.QUEUE}
    return sorted(known.union(*served))
