"""Where a key may stand in a request, and where not."""

from __future__ import annotations

import pytest
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from billing import keys
from billing.authentication import ApiKeyAuthentication, presented_key
from billing.errors import InvalidKey
from tests.billing.factories import Customer


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer KEY"},
        {"authorization": "bearer KEY"},
        {"AUTHORIZATION": "BEARER  KEY "},
        {"Authorization": "KEY"},
        {"x-api-key": "KEY"},
        {"X-Api-Key": " KEY "},
    ],
)
def test_a_key_is_found_wherever_clients_put_it(headers: dict[str, str]) -> None:
    assert presented_key(headers) == "KEY"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Basic KEY"},
        {"Authorization": "Bearer KEY,Bearer KEY"},
        {"x-api-key": "KEY,KEY"},
        {"Authorization": "Bearer KEY", "x-api-key": "KEY"},
        {"Authorization": "Bearer " + "x" * 10_000},
        {"Cookie": "key=KEY"},
    ],
)
def test_no_key_two_keys_and_other_schemes_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidKey):
        presented_key(headers)


def test_where_an_api_says_so_authorization_wins() -> None:
    headers = {"Authorization": "Bearer KEY", "x-api-key": "OTHER"}
    assert presented_key(headers, authorization_wins=True) == "KEY"


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer "])
@pytest.mark.django_db
def test_an_empty_key_is_a_bad_key(value: str) -> None:
    with pytest.raises(InvalidKey):
        keys.authenticate(presented_key({"Authorization": value}))


def test_the_rest_framework_door_lets_a_good_key_in(bob: Customer) -> None:
    _, plaintext = keys.mint(bob.account, "test")
    request = Request(
        APIRequestFactory().get("/", headers={"authorization": f"Bearer {plaintext}"})
    )
    user, credential = ApiKeyAuthentication().authenticate(request)
    assert (user.pk, credential.mode) == (str(bob.id), "test")


def test_the_rest_framework_door_keeps_others_out() -> None:
    request = Request(APIRequestFactory().get("/"))
    with pytest.raises(AuthenticationFailed, match="valid API key"):
        ApiKeyAuthentication().authenticate(request)
    assert ApiKeyAuthentication().authenticate_header(request) == "Bearer"
