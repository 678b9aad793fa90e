"""Finds the API key in a request's headers and says whose it is.

A key comes as `Authorization: Bearer KEY`, as `Authorization: KEY` or as
`x-api-key: KEY`; never in the query. Every way of not having a good one is the same
InvalidKey.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed

from billing import keys
from billing.errors import InvalidKey

if TYPE_CHECKING:
    from rest_framework.request import Request

    from billing.keys import Credential

#: No key is longer; more is not worth looking at.
MAX_HEADER: Final = 200


def presented_key(
    headers: Mapping[str, str], *, authorization_wins: bool = False
) -> str:
    """Return the key in the headers (names in any case), or raise InvalidKey.

    Two keys are refused, except that with ``authorization_wins`` an x-api-key beside
    an Authorization is not looked at: some APIs document it so.
    """
    named = {name.lower(): value for name, value in headers.items()}
    authorization = named.get("authorization")
    api_key = named.get("x-api-key")
    if authorization is not None and (api_key is None or authorization_wins):
        return _bare(authorization)
    if authorization is not None or api_key is None:
        raise InvalidKey
    return _single(api_key)


def authenticate(
    headers: Mapping[str, str], *, authorization_wins: bool = False
) -> Credential:
    """Return whose key the headers carry, or raise InvalidKey."""
    return keys.authenticate(
        presented_key(headers, authorization_wins=authorization_wins)
    )


def _bare(authorization: str) -> str:
    words = _single(authorization).split(" ", 1)
    if len(words) == 1:
        return words[0]
    if words[0].lower() != "bearer":
        raise InvalidKey
    return words[1].strip()


def _single(value: str) -> str:
    # A header sent twice arrives as one with a comma, which no key contains.
    if len(value) > MAX_HEADER or "," in value:
        raise InvalidKey
    return value.strip()


@dataclass(frozen=True)
class KeyUser:
    """What DRF calls the user: the account a key stands for."""

    credential: Credential
    is_authenticated: bool = True
    is_active: bool = True

    @property
    def pk(self) -> str:
        return str(self.credential.account_id)


class ApiKeyAuthentication(BaseAuthentication):
    """DRF's door: `request.user` is a KeyUser, `request.auth` its Credential."""

    def authenticate(self, request: Request) -> tuple[KeyUser, Credential]:
        try:
            credential = authenticate(request.headers)
        except InvalidKey as error:
            raise AuthenticationFailed(str(error)) from error
        return KeyUser(credential), credential

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"
