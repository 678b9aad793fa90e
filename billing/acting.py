"""What operators do by hand: each act asks for a reason, runs once, and is written down.

An admin that lists ``acts`` gets a button per act on each object's page and an entry in
the list's action menu. Both lead to a page that says what will happen and asks why. The
act and its line in the history (who, what, why) commit together. Two acts on one row
follow each other: the second finds what the first has left.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import LogEntry
from django.core.exceptions import ObjectDoesNotExist, PermissionDenied
from django.db import connection, transaction
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from unfold.admin import ModelAdmin
from unfold.enums import ActionVariant
from unfold.widgets import UnfoldAdminTextareaWidget

#: Acts on more rows than this at once are refused: that would be a script's work.
BULK_MAX = 200
#: The advisory locks, by row, of acts that are being done.
ACT_LOCK = 7_263_005


class ReasonForm(forms.Form):
    """Why it is done. Acts that need more values extend it."""

    reason = forms.CharField(
        max_length=300,
        min_length=3,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        help_text="Kept for good beside your name; for money it is on the statement.",
    )


@dataclass(frozen=True)
class Deed:
    """One act as it was asked for: who, why, and the form's other values."""

    user: Any
    reason: str
    values: Mapping[str, Any]

    @property
    def actor(self) -> str:
        return str(self.user.get_username())


class Refused(Exception):
    """The act cannot be done to this row; the message says why."""


@dataclass(frozen=True)
class Act:
    """Something an operator may do to a row.

    ``run`` does it and returns what was done, in words. It may raise Refused, or one of
    ``refusals``; then nothing is changed and the operator reads the message.
    """

    name: str
    label: str
    explains: str
    run: Callable[[Any, Deed], str]
    form: type[ReasonForm] = ReasonForm
    icon: str = ""
    is_dangerous: bool = False
    #: Django permission; empty: to change rows of this model.
    permission: str = ""
    #: False: not on several rows at once.
    in_bulk: bool = True
    refusals: tuple[type[Exception], ...] = field(default=())
    #: Values the form starts with, from the row.
    initial: Callable[[Any], Mapping[str, Any]] | None = None
    #: Whether the button is of use to this row; None: always.
    fits: Callable[[Any], bool] | None = None


class ActingAdmin(ModelAdmin):
    """A ModelAdmin with ``acts``."""

    acts: ClassVar[Sequence[Act]] = ()
    actions_detail: Sequence[str] = ()

    def __init__(self, model: type[Model], site: admin.AdminSite) -> None:
        for act in self.acts:
            setattr(self, act.name, self._page_of(act))
        self.actions_detail = (*type(self).actions_detail, *self._names)
        super().__init__(model, site)

    @property
    def _names(self) -> list[str]:
        return [act.name for act in self.acts]

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        found: dict[str, Any] = super().get_actions(request)
        for act in self.acts:
            if act.in_bulk and self._may(request, act):
                found[act.name] = (self._bulk_of(act), act.name, act.label)
        return found

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        found: list[Any] = super().get_actions_detail(request, object_id)
        prefix = f"{self.opts.app_label}_{self.opts.model_name}_"
        acts = {prefix + act.name: act for act in self.acts}
        picky = any(act.fits for act in self.acts)
        row = self.get_object(request, str(object_id)) if picky else None
        return [
            shown
            for shown in found
            if (act := acts.get(shown.action_name)) is None
            or (
                self._may(request, act)
                and (act.fits is None or row is None or act.fits(row))
            )
        ]

    def _may(self, request: HttpRequest, act: Act) -> bool:
        name = f"{self.opts.app_label}.change_{self.opts.model_name}"
        return bool(request.user.has_perm(act.permission or name))

    def _page_of(self, act: Act) -> Callable[..., HttpResponse]:
        def page(request: HttpRequest, object_id: str) -> HttpResponse:
            row = self.get_object(request, object_id)
            if row is None:
                raise Http404
            return self._act(request, act, [row])

        variant = ActionVariant.DANGER if act.is_dangerous else ActionVariant.DEFAULT
        words = {
            "short_description": act.label,
            "url_path": act.name.replace("_", "-"),
            "icon": act.icon,
            "variant": variant,
            "attrs": {},
        }
        for name, value in words.items():
            setattr(page, name, value)
        return page

    def _bulk_of(self, act: Act) -> Callable[..., HttpResponse | None]:
        def bulk(
            _: ModelAdmin, request: HttpRequest, queryset: QuerySet[Any]
        ) -> HttpResponse | None:
            rows = list(queryset[: BULK_MAX + 1])
            if len(rows) > BULK_MAX:
                self.message_user(
                    request, f"At most {BULK_MAX} rows at once.", messages.ERROR
                )
                return None
            return self._act(request, act, rows)

        return bulk

    def _act(self, request: HttpRequest, act: Act, rows: list[Any]) -> HttpResponse:
        if not self._may(request, act):
            raise PermissionDenied
        is_answer = request.method == "POST" and "reason" in request.POST
        initial = dict(act.initial(rows[0])) if act.initial else None
        form = act.form(request.POST if is_answer else None, initial=initial)
        if not (is_answer and form.is_valid()):
            return self._ask(request, act, rows, form)
        values = dict(form.cleaned_data)
        deed = Deed(request.user, values.pop("reason"), values)
        for row in rows:
            self._do(request, act, row, deed)
        return HttpResponseRedirect(self._back(rows))

    def _do(self, request: HttpRequest, act: Act, row: Any, deed: Deed) -> None:
        refusals: tuple[type[Exception], ...] = (Refused, *act.refusals)
        try:
            with transaction.atomic():
                row = _taken(row)
                done = act.run(row, deed)
                self.log_change(
                    request, row, f"{act.label}: {done} Reason: {deed.reason}"
                )
        except refusals as refused:
            self.message_user(request, f"{row}: {refused}", messages.ERROR)
        else:
            self.message_user(request, f"{row}: {done}", messages.SUCCESS)

    def _back(self, rows: list[Any]) -> str:
        name = f"{self.admin_site.name}:{self.opts.app_label}_{self.opts.model_name}"
        if len(rows) == 1 and _is_there(rows[0]):
            return reverse(f"{name}_change", args=[rows[0].pk])
        return reverse(f"{name}_changelist")

    def _ask(
        self, request: HttpRequest, act: Act, rows: list[Any], form: ReasonForm
    ) -> HttpResponse:
        request.current_app = self.admin_site.name
        return TemplateResponse(
            request,
            "billing/act.html",
            {
                **self.admin_site.each_context(request),
                "title": act.label,
                "act": act,
                "opts": self.opts,
                "rows": rows,
                "form": form,
                "checkbox": ACTION_CHECKBOX_NAME,
                "is_bulk": "action" in request.POST,
                "back": self._back(rows),
            },
        )


class ReasonedModelForm(forms.ModelForm):  # type: ignore[type-arg]
    """A model's form that also asks why."""

    reason = forms.CharField(
        max_length=300,
        min_length=3,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        help_text="Kept in the history beside your name.",
    )


class ReasonedAdmin(ActingAdmin):
    """A ModelAdmin whose every saved form says why; the history keeps it."""

    form = ReasonedModelForm

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Put the reason last, in a box of its own."""
        given = super().get_fieldsets(request, obj)
        kept = [
            (name, {**options, "fields": _without_reason(options["fields"])})
            for name, options in given
        ]
        may_edit = (
            self.has_change_permission(request, obj)
            if obj
            else self.has_add_permission(request)
        )
        return [*kept, (None, {"fields": ["reason"]})] if may_edit else kept

    def construct_change_message(
        self, request: HttpRequest, form: Any, formsets: Any, add: bool = False
    ) -> Any:
        told = super().construct_change_message(request, form, formsets, add)
        reason = form.cleaned_data["reason"]
        changed = LogEntry(change_message=json.dumps(told)).get_change_message()
        return f"{changed} Reason: {reason}"


def _taken(row: Any) -> Any:
    """Return the row as it is now, kept from other acts until this one commits.

    The page it was chosen on may be old: another operator, or the same form sent twice.
    """
    with connection.cursor() as cursor:
        # Not the row's own lock: money takes the wallet's lock before a job's, and an act
        # that did it the other way round would meet it in a deadlock.
        cursor.execute(
            "SELECT pg_advisory_xact_lock(%s, hashtext(%s))",
            [ACT_LOCK, f"{row._meta.label}:{row.pk}"],
        )
    try:
        return type(row)._default_manager.get(pk=row.pk)
    except ObjectDoesNotExist as gone:
        raise Refused("It is gone.") from gone


def _is_there(row: Any) -> bool:
    """Return whether the row has a page to go back to: some acts delete theirs."""
    return bool(type(row)._default_manager.filter(pk=row.pk).exists())


def _without_reason(names: Sequence[Any]) -> list[Any]:
    return [name for name in names if name != "reason"]
