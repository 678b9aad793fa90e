"""Operators themselves: users, second factors, sign-ins, and what everybody did."""

from __future__ import annotations

from typing import Any

from axes import admin as axes_admin
from axes.models import AccessAttempt, AccessFailureLog, AccessLog
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django_otp.plugins.otp_totp.models import TOTPDevice
from unfold.admin import ModelAdmin
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from billing.admin import NoDelete, ReadOnly
from billing.passwords import make_one_time

for replaced in (
    User,
    Group,
    TOTPDevice,
    AccessAttempt,
    AccessLog,
    AccessFailureLog,
):
    if admin.site.is_registered(replaced):
        admin.site.unregister(replaced)


@admin.register(User)
class UserAdmin(NoDelete, DjangoUserAdmin, ModelAdmin):  # type: ignore[type-arg]
    """Operators and members. A password set here by somebody else is one-time."""

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "is_staff", "is_active", "last_login")

    def save_model(
        self, request: HttpRequest, obj: User, form: Any, change: Any
    ) -> None:
        super().save_model(request, obj, form, change)
        if not change:
            make_one_time(obj)

    def user_change_password(
        self, request: HttpRequest, id: str, form_url: str = ""
    ) -> HttpResponse:
        answer: HttpResponse = super().user_change_password(request, id, form_url)
        is_done = request.method == "POST" and isinstance(answer, HttpResponseRedirect)
        if is_done and id != str(request.user.pk):
            make_one_time(User.objects.get(pk=id))
        return answer


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, ModelAdmin):
    """Who may do what: rights are given to groups."""

    list_display = ("name", "people")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Group]:
        return super().get_queryset(request).annotate(people=Count("user"))

    @admin.display(description="people", ordering="people")
    def people(self, group: Group) -> int:
        return int(getattr(group, "people", 0))


@admin.register(TOTPDevice)
class SecondFactorAdmin(ModelAdmin):
    """Who has an authenticator. Deleting one lets its owner in by password alone."""

    list_display = ("user", "name", "confirmed", "throttling_failure_count")
    list_select_related = ("user",)
    search_fields = ("user__username",)
    fields = readonly_fields = (
        "user",
        "name",
        "confirmed",
        "throttling_failure_timestamp",
        "throttling_failure_count",
    )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False


@admin.register(LogEntry)
class AuditAdmin(ReadOnly, ModelAdmin):
    """Who did what, when and why. Nobody edits it."""

    list_display = (
        "action_time",
        "user",
        "content_type",
        "object_repr",
        "what_and_why",
    )
    list_filter = ("action_flag", "content_type")
    list_select_related = ("user", "content_type")
    search_fields = ("user__username", "object_id", "object_repr", "change_message")
    date_hierarchy = "action_time"
    show_full_result_count = False

    @admin.display(description="what and why")
    def what_and_why(self, entry: LogEntry) -> str:
        return entry.get_change_message() or entry.get_action_flag_display()


@admin.register(AccessAttempt)
class AccessAttemptAdmin(axes_admin.AccessAttemptAdmin, ModelAdmin):
    """Failed sign-ins that count towards a lock; deleting them unlocks."""

    show_full_result_count = False


@admin.register(AccessLog)
class AccessLogAdmin(axes_admin.AccessLogAdmin, ModelAdmin):
    show_full_result_count = False


@admin.register(AccessFailureLog)
class AccessFailureLogAdmin(axes_admin.AccessFailureLogAdmin, ModelAdmin):
    show_full_result_count = False
