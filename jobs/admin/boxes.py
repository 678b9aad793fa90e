"""Boxes of the admin's forms that take JSON: what is saved has the shape its readers need."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from unfold.widgets import UnfoldAdminTextareaWidget

from billing.plans import plan_codes
from inference.catalogue import MODELS

_WORDS: dict[type, str] = {
    dict: 'one JSON object, such as {"name": 1}',
    list: 'one JSON list, such as ["name"]',
}


class JsonBox(forms.JSONField):
    """One JSON object or list of a model's field; emptied, it holds an empty one.

    ``problem`` says what is wrong with the value, or answers "".
    """

    def __init__(
        self,
        kind: type[dict[str, Any]] | type[list[Any]],
        problem: Callable[[Any], str],
        *,
        help_text: str = "",
    ) -> None:
        super().__init__(
            required=False,
            widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
            help_text=help_text,
        )
        self._kind = kind
        self._problem = problem

    def to_python(self, value: Any) -> Any:
        found = super().to_python(value)
        return self._kind() if found is None else found

    def validate(self, value: Any) -> None:
        if not isinstance(value, self._kind):
            raise ValidationError(f"It must be {_WORDS[self._kind]}.")
        if problem := self._problem(value):
            raise ValidationError(problem)


def names_box(
    known: Callable[[], Iterable[str]], *, what: str, help_text: str
) -> JsonBox:
    """Return a box for a list of names, each of them one of ``known()``."""

    def problem(given: list[Any]) -> str:
        names = sorted(known())
        strangers = [name for name in given if name not in names]
        if not strangers:
            return ""
        return f"There is no {what} {strangers[0]!r}; there are {', '.join(names)}."

    return JsonBox(list, problem, help_text=help_text)


def plans_box() -> JsonBox:
    return names_box(
        plan_codes,
        what="plan",
        help_text='Plan codes, such as ["pro"]; empty: every plan.',
    )


def models_box() -> JsonBox:
    return names_box(
        lambda: MODELS,
        what="public model",
        help_text='Public models, such as ["motion"]; empty: every model.',
    )


def known_model(name: str) -> str:
    """Return the public model's name; refuse others."""
    if name not in MODELS:
        raise ValidationError(f"There is no public model {name!r}.")
    return name
