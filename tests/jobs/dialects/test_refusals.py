"""Every kind of refusal, said by every dialect."""

from __future__ import annotations

import json

import pytest

from jobs import errors
from jobs.dialects import DIALECTS
from jobs.errors import ApiError
from tests.jobs.dialects import wires

EVERY_KIND: tuple[ApiError, ...] = (
    errors.ApiError("Odd."),
    errors.InvalidRequest("prompt", "Too long."),
    errors.InvalidRequest(None, "Odd."),
    errors.MalformedBody("Not JSON."),
    errors.UnsupportedOption("steps", "motion", ["wan2.2-i2v"]),
    errors.UnknownHost(),
    errors.Unauthenticated(),
    errors.Forbidden("No."),
    errors.InsufficientCredits(required_millicredits=5, available_millicredits=1),
    errors.SpendCapReached("Over the cap."),
    errors.QuotaExhausted("Used up."),
    errors.NotFound(),
    errors.RouteNotFound(),
    errors.MethodNotAllowed(["GET"]),
    errors.NotAcceptableNow("It has ended."),
    errors.IdempotencyInFlight(),
    errors.IdempotencyMismatch(),
    errors.RequestTimeout(),
    errors.PayloadTooLarge("Too large.", field="image"),
    errors.UnsupportedMediaType("XML."),
    errors.RateLimited(retry_after_seconds=3, limit=60),
    errors.ModelUnavailable("sora-2"),
    errors.NotImplementedHere("Not here."),
    errors.InternalError(),
    errors.ServiceUnavailable(),
)


def _kinds(kind: type[ApiError]) -> set[type[ApiError]]:
    return {kind}.union(*map(_kinds, kind.__subclasses__()))


def test_the_list_is_complete() -> None:
    assert {type(error) for error in EVERY_KIND} == _kinds(ApiError)


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
@pytest.mark.parametrize("error", EVERY_KIND, ids=lambda e: type(e).__name__)
def test_a_refusal_is_json_and_keeps_its_kind(dialect: str, error: ApiError) -> None:
    answer = wires.refusal(dialect, error, "/v1/x")
    assert json.loads(json.dumps(answer.body))
    if dialect == "akool":  # its errors ride in a 200 with a code
        assert answer.body["code"] != 1000
        return
    if isinstance(error, errors.NotImplementedHere) and answer.status == 404:
        return  # a path they have and we do not
    assert answer.status // 100 == error.status // 100
    if isinstance(error, errors.Unauthenticated) and dialect != "novita":
        assert answer.status == 401
