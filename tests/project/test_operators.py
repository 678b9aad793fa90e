"""Operators' sign-in: lockout, one-time passwords, the second factor, cookies, headers."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.test import Client
from django_otp.oath import totp
from django_otp.plugins.otp_totp.models import TOTPDevice

from billing.passwords import has_one_time_password

pytestmark = pytest.mark.django_db
PASSWORD = "correct horse battery staple"


@pytest.fixture
def olga(db: None) -> Any:
    return get_user_model().objects.create_superuser("olga", password=PASSWORD)


@pytest.fixture(autouse=True)
def five_guesses(settings: Any) -> None:
    settings.AXES_FAILURE_LIMIT = 5


def sign_in(client: Client, name: str, password: str, token: str = "") -> Any:
    form = {"username": name, "password": password, "otp_token": token}
    return client.post("/admin/login/?next=/admin/", {**form, "next": "/admin/"})


def is_in(client: Client) -> bool:
    return client.get("/admin/jobs/job/").status_code == 200


def code_of(device: TOTPDevice, steps: int = 0) -> str:
    number = totp(device.bin_key, device.step, device.t0, device.digits, steps)
    return f"{number:06}"


def test_an_operator_signs_in_and_out(client: Client, olga: Any) -> None:
    assert not is_in(client)
    assert sign_in(client, "olga", PASSWORD).status_code == 302
    assert is_in(client)
    client.post("/admin/logout/")
    assert not is_in(client)


def test_guessing_locks_the_door_also_for_the_right_password(
    client: Client, olga: Any
) -> None:
    for _ in range(5):
        sign_in(client, "olga", "wrong")
    answer = sign_in(client, "olga", PASSWORD)
    assert answer.status_code == 429
    assert not is_in(client)


def test_a_one_time_password_opens_only_the_page_that_changes_it(
    client: Client,
) -> None:
    out = io.StringIO()
    call_command("createoperator", "olga", stdout=out)
    once = out.getvalue().strip().splitlines()[-1]
    sign_in(client, "olga", once)
    answer = client.get("/admin/jobs/job/")
    assert (answer.status_code, answer["Location"]) == (302, "/admin/password_change/")
    assert client.get("/admin/password_change/").status_code == 200

    form = {"old_password": once, "new_password1": once, "new_password2": once}
    assert client.post("/admin/password_change/", form).status_code == 200
    assert not is_in(client)

    form |= {"new_password1": PASSWORD, "new_password2": PASSWORD}
    assert client.post("/admin/password_change/", form).status_code == 302
    assert is_in(client)
    client.post("/admin/logout/")
    sign_in(client, "olga", once)
    assert not is_in(client)
    sign_in(client, "olga", PASSWORD)
    assert is_in(client)


def test_a_password_set_by_somebody_else_is_one_time(client: Client, olga: Any) -> None:
    ben = get_user_model().objects.create_user("ben", password="x", is_staff=True)
    sign_in(client, "olga", PASSWORD)
    form = {"password1": PASSWORD + "!", "password2": PASSWORD + "!"}
    answer = client.post(f"/admin/auth/user/{ben.pk}/password/", form)
    assert answer.status_code == 302
    assert has_one_time_password(ben)
    assert not has_one_time_password(olga)


def test_with_an_authenticator_the_password_alone_is_not_enough(
    client: Client, olga: Any
) -> None:
    device = TOTPDevice.objects.create(user=olga, name="phone", confirmed=True)
    page = sign_in(client, "olga", PASSWORD)
    assert page.status_code == 200
    assert "OTP token" in page.content.decode()
    assert not is_in(client)
    assert sign_in(client, "olga", PASSWORD, code_of(device)).status_code == 302
    assert is_in(client)


def test_a_code_is_taken_once(client: Client, olga: Any) -> None:
    device = TOTPDevice.objects.create(user=olga, name="phone", confirmed=True)
    code = code_of(device)
    sign_in(client, "olga", PASSWORD, code)
    client.post("/admin/logout/")
    sign_in(client, "olga", PASSWORD, code)
    assert not is_in(client)


def test_guessed_codes_slow_the_next_one_down(client: Client, olga: Any) -> None:
    device = TOTPDevice.objects.create(user=olga, name="phone", confirmed=True)
    wrong = "000000" if code_of(device) != "000000" else "111111"
    for _ in range(3):
        sign_in(client, "olga", PASSWORD, wrong)
    page = sign_in(client, "olga", PASSWORD, code_of(device))
    assert "temporarily disabled" in page.content.decode()
    assert not is_in(client)


def test_a_session_from_before_the_authenticator_must_pass_it(
    client: Client, olga: Any
) -> None:
    sign_in(client, "olga", PASSWORD)
    assert is_in(client)
    TOTPDevice.objects.create(user=olga, name="phone", confirmed=True)
    assert not is_in(client)


def test_an_authenticator_is_turned_on_by_its_first_code_and_off_by_another(
    client: Client, olga: Any
) -> None:
    sign_in(client, "olga", PASSWORD)
    page = client.get("/admin/second-factor/").content.decode()
    assert "<svg" in page
    device = TOTPDevice.objects.get(user=olga)
    assert not device.confirmed
    client.post("/admin/second-factor/", {"code": code_of(device)})
    device.refresh_from_db()
    assert device.confirmed
    assert is_in(client)
    page = client.get("/admin/second-factor/").content.decode()
    assert "<svg" not in page
    client.post("/admin/second-factor/", {"code": code_of(device, 1)})
    assert not TOTPDevice.objects.filter(user=olga).exists()


def test_the_way_back_after_signing_in_stays_here(client: Client, olga: Any) -> None:
    form = {"username": "olga", "password": PASSWORD, "otp_token": ""}
    answer = client.post(
        "/admin/login/?next=https://evil.example/",
        {**form, "next": "https://evil.example/"},
    )
    assert "evil" not in answer["Location"]


def test_posts_without_a_csrf_token_are_refused(olga: Any) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(olga, backend="django.contrib.auth.backends.ModelBackend")
    url = f"/admin/auth/user/{olga.pk}/change/"
    assert client.post(url, {"username": "mallory"}).status_code == 403


def test_cookies_and_headers_of_the_admin(client: Client, olga: Any) -> None:
    answer = sign_in(client, "olga", PASSWORD)
    cookie = answer.cookies["sessionid"]
    assert cookie["httponly"]
    assert cookie["samesite"] == "Lax"
    page = client.get("/admin/")
    assert page["X-Frame-Options"] == "DENY"
    assert page["X-Content-Type-Options"] == "nosniff"
    assert page["Referrer-Policy"] == "same-origin"
    assert "object-src 'none'" in page["Content-Security-Policy"]
    assert "no-store" in page["Cache-Control"]
