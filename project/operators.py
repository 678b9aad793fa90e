"""The operators' door: the admin site with a second factor and passwords of their own.

Who has confirmed an authenticator signs in with password and code, always. Who signs in
with a one-time password sees nothing but the page that asks for a new one. Locking out
after failures is django-axes'; django-otp slows guessing of codes and takes each once.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, cast

import qrcode
import qrcode.image.svg
from django import forms
from django.contrib.auth.views import PasswordChangeView
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.safestring import mark_safe
from django_otp import devices_for_user
from django_otp import login as otp_login
from django_otp.forms import OTPAuthenticationFormMixin
from django_otp.plugins.otp_totp.models import TOTPDevice
from unfold.forms import AdminOwnPasswordChangeForm, AuthenticationForm
from unfold.sites import UnfoldAdminSite
from unfold.widgets import BASE_INPUT_CLASSES, UnfoldAdminTextInputWidget

from billing.passwords import has_one_time_password, keep_own_password

#: What somebody with a one-time password may open.
_OPEN_BEFORE_CHANGE = frozenset({"password_change", "logout", "jsi18n"})


class LoginForm(OTPAuthenticationFormMixin, AuthenticationForm):
    """Name, password, and the code of the authenticator for those who have one."""

    otp_token = forms.CharField(
        required=False,
        label="Authenticator code, if you have one",
        widget=forms.TextInput(
            attrs={
                "autocomplete": "one-time-code",
                "inputmode": "numeric",
                "class": " ".join(BASE_INPUT_CLASSES),
            }
        ),
    )
    otp_device = forms.CharField(required=False, widget=forms.HiddenInput)
    otp_challenge = forms.CharField(required=False, widget=forms.HiddenInput)

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean()
        user = self.get_user()
        device = user and next(devices_for_user(user), None)
        if device is not None:
            self.cleaned_data["otp_device"] = device.persistent_id
            self.cleaned_data["otp_challenge"] = ""
            self.clean_otp(user)
        return cleaned


class OwnPasswordForm(AdminOwnPasswordChangeForm):
    """A new password must be new."""

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean()
        new = cleaned.get("new_password1")
        if new and self.user.check_password(new):
            raise ValidationError("The new password must differ from the old one.")
        return cleaned


class CodeForm(forms.Form):
    """A code from the authenticator."""

    code = forms.RegexField(
        r"^\s*\d{6}\s*$",
        label="Code",
        widget=UnfoldAdminTextInputWidget(
            attrs={"autocomplete": "one-time-code", "inputmode": "numeric"}
        ),
    )


class OperatorSite(UnfoldAdminSite):
    """The admin site under `/admin/`."""

    index_title = "Dashboard"

    def has_permission(self, request: HttpRequest) -> bool:
        return bool(super().has_permission(request)) and _is_verified(request)

    def admin_view(
        self, view: Callable[..., Any], cacheable: bool = False
    ) -> Callable[..., Any]:
        checked = super().admin_view(view, cacheable)

        @wraps(checked)
        def own_password_first(
            request: HttpRequest, *args: Any, **kwargs: Any
        ) -> HttpResponseBase:
            match = request.resolver_match
            is_open = match is not None and match.url_name in _OPEN_BEFORE_CHANGE
            if not is_open and has_one_time_password(request.user):
                return HttpResponseRedirect(reverse(f"{self.name}:password_change"))
            answer: HttpResponseBase = checked(request, *args, **kwargs)
            return answer

        return own_password_first

    def extra_urls(self) -> list[URLPattern]:
        return [
            path(
                "second-factor/",
                self.admin_view(self.second_factor),
                name="second_factor",
            )
        ]

    def password_change(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponseBase:
        view = PasswordChangeView.as_view(
            form_class=OwnPasswordForm,
            success_url=reverse(f"{self.name}:password_change_done"),
            extra_context={**self.each_context(request), **(extra_context or {})},
        )
        answer = view(request)
        if request.method == "POST" and isinstance(answer, HttpResponseRedirect):
            keep_own_password(request.user)
        return answer

    def second_factor(self, request: HttpRequest) -> HttpResponseBase:
        """Show a new authenticator's secret until its first code; later, turn it off."""
        device = _device_of(request)
        form = CodeForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            is_allowed, _ = device.verify_is_allowed()
            if is_allowed and device.verify_token(form.cleaned_data["code"].strip()):
                _turn(request, device)
                return HttpResponseRedirect(reverse(f"{self.name}:second_factor"))
            form.add_error("code", "This code is not right, or came too soon.")
        context = {
            **self.each_context(request),
            "title": "Second factor",
            "device": device,
            "form": form,
            "secret": base64.b32encode(device.bin_key).decode(),
            "picture": "" if device.confirmed else _picture(device.config_url),
        }
        return TemplateResponse(request, "zoetrope/second_factor.html", context)


class _MaybeVerified(Protocol):
    """What OTPMiddleware makes of each request's user."""

    def is_verified(self) -> bool: ...


def _is_verified(request: HttpRequest) -> bool:
    """Return whether the session passed the second factor, where the user has one."""
    if cast("_MaybeVerified", request.user).is_verified():
        return True
    return next(devices_for_user(request.user), None) is None


def _device_of(request: HttpRequest) -> TOTPDevice:
    mine = TOTPDevice.objects.filter(user=request.user)
    return (
        mine.filter(confirmed=True).first()
        or mine.first()
        or TOTPDevice.objects.create(
            user=request.user, name="authenticator", confirmed=False
        )
    )


def _turn(request: HttpRequest, device: TOTPDevice) -> None:
    if device.confirmed:
        device.delete()
        return
    device.confirmed = True
    device.save(update_fields=["confirmed"])
    otp_login(request, device)


def _picture(text: str) -> str:
    file = io.BytesIO()
    image = qrcode.make(text, image_factory=qrcode.image.svg.SvgPathImage, border=2)
    image.save(file)
    _, _, drawing = file.getvalue().decode().partition("?>")
    return mark_safe(drawing)  # noqa: S308 - drawn here; the text is only black squares
