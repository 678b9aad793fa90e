"""The life of an API key, and that every bad one fails alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from billing import keys, touches
from billing.errors import BadRequest, InvalidKey, MissingScope, UnknownKey
from billing.models import Account, ApiKey
from tests.billing.factories import Customer, make_customer

pytestmark = pytest.mark.django_db


@dataclass
class Minted:
    row: ApiKey
    plaintext: str


@pytest.fixture
def minted(bob: Customer) -> Minted:
    return Minted(*keys.mint(bob.account, "live"))


def resealed(unchecked: str) -> str:
    """Put a right checksum on a key that somebody made up."""
    return f"{unchecked}_{keys.checksum(unchecked)}"


def test_a_new_key_works_at_once_and_says_whose_it_is(
    bob: Customer, minted: Minted
) -> None:
    credential = keys.authenticate(minted.plaintext)
    assert credential.account_id == bob.id
    assert credential.key_id == minted.row.pk
    assert credential.mode == "live"
    assert credential.plan.max_running == 1
    assert credential.plan.monthly_videos == {"magicoal": 5}


def test_a_key_looks_as_documented(minted: Minted) -> None:
    word, mode, key_id, secret, check = minted.plaintext.split("_")
    assert (word, mode, key_id) == ("zoe", "live", minted.row.pk)
    assert (len(key_id), len(secret), len(check)) == (8, 43, 6)
    assert minted.plaintext.replace("_", "").isalnum()


def test_the_key_itself_is_stored_nowhere(minted: Minted) -> None:
    secret = minted.plaintext.split("_")[3]
    stored = repr(ApiKey.objects.filter(pk=minted.row.pk).values())
    assert secret not in stored
    assert len(bytes(minted.row.digest)) == 32


def test_the_pepper_is_needed_to_recognise_a_key(minted: Minted, settings: Any) -> None:
    settings.API_KEY_PEPPER = "another"
    with pytest.raises(InvalidKey):
        keys.authenticate(minted.plaintext)


def revoked(key: Minted) -> str:
    ApiKey.objects.filter(pk=key.row.pk).update(revoked_at=datetime.now(UTC))
    return key.plaintext


def expired(key: Minted) -> str:
    ApiKey.objects.filter(pk=key.row.pk).update(expires_at=datetime.now(UTC))
    return key.plaintext


def of_a_disabled_account(key: Minted) -> str:
    Account.objects.filter(pk=key.row.account_id).update(is_active=False)
    return key.plaintext


def with_another_secret(key: Minted) -> str:
    return resealed(f"zoe_live_{key.row.pk}_{'a' * 43}")


def with_an_unknown_id(key: Minted) -> str:
    return resealed(f"zoe_live_{'z' * 8}_{key.plaintext.split('_')[3]}")


def with_the_other_mode(key: Minted) -> str:
    return resealed(key.plaintext[:-7].replace("live", "test"))


def with_a_wrong_checksum(key: Minted) -> str:
    return key.plaintext[:-1] + ("0" if key.plaintext[-1] != "0" else "1")


def cut_short(key: Minted) -> str:
    return key.plaintext[:-1]


BAD: list[Callable[[Minted], str]] = [
    revoked,
    expired,
    of_a_disabled_account,
    with_another_secret,
    with_an_unknown_id,
    with_the_other_mode,
    with_a_wrong_checksum,
    cut_short,
    lambda key: "",
    lambda key: " ",
    lambda key: key.plaintext + "\n",
    lambda key: key.plaintext.replace("zoe", "żoe"),
    lambda key: key.plaintext.replace("_", "-"),
    lambda key: "zoe_live_" + "\x00" * 8 + key.plaintext[17:],
    lambda key: "zoe_live_" + "x" * 1_000_000,
]


@pytest.mark.parametrize("spoil", BAD)
def test_every_bad_key_fails_the_same_way(
    minted: Minted, spoil: Callable[[Minted], str]
) -> None:
    with pytest.raises(InvalidKey) as refusal:
        keys.authenticate(spoil(minted))
    assert str(refusal.value) == "A valid API key is required."
    assert refusal.value.args == ("A valid API key is required.",)


@pytest.mark.parametrize("spoil", [with_a_wrong_checksum, cut_short, lambda key: "x"])
def test_a_malformed_key_costs_no_question_to_the_database(
    minted: Minted,
    spoil: Callable[[Minted], str],
    django_assert_num_queries: Any,
) -> None:
    presented = spoil(minted)
    with django_assert_num_queries(0), pytest.raises(InvalidKey):
        keys.authenticate(presented)


@pytest.mark.parametrize(
    "spoil", [revoked, expired, with_another_secret, with_an_unknown_id]
)
def test_a_well_formed_bad_key_always_costs_one_question(
    minted: Minted,
    spoil: Callable[[Minted], str],
    django_assert_num_queries: Any,
) -> None:
    presented = spoil(minted)
    with django_assert_num_queries(1), pytest.raises(InvalidKey):
        keys.authenticate(presented)


def test_a_right_and_a_wrong_id_take_the_same_time(minted: Minted) -> None:
    presented = [with_another_secret(minted), with_an_unknown_id(minted)]
    times: dict[str, list[float]] = {key: [] for key in presented}
    for _ in range(150):
        for key in presented:
            start = time.perf_counter()
            with pytest.raises(InvalidKey):
                keys.authenticate(key)
            times[key].append(time.perf_counter() - start)
    known, unknown = (statistics.median(times[key]) for key in presented)
    # The database finds a row or does not; that is all that differs: about 0.1 ms, under
    # what any network adds.
    assert abs(known - unknown) < 0.002


def test_a_good_key_is_remembered_for_a_moment(
    minted: Minted, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(1):
        keys.authenticate(minted.plaintext)
        keys.authenticate(minted.plaintext)


def test_a_key_revoked_elsewhere_stops_within_five_seconds(
    minted: Minted, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.authenticate(minted.plaintext)
    revoked(minted)
    keys.authenticate(minted.plaintext)
    later = time.monotonic() + 5
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(InvalidKey):
        keys.authenticate(minted.plaintext)


def test_a_remembered_key_still_ends_on_its_second(bob: Customer) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=0.1)
    _, plaintext = keys.mint(bob.account, "live", expires_at=soon)
    keys.authenticate(plaintext)
    time.sleep(0.11)
    with pytest.raises(InvalidKey):
        keys.authenticate(plaintext)


def test_revoking_stops_the_key_here_at_once_and_twice_is_once(
    bob: Customer, minted: Minted
) -> None:
    keys.authenticate(minted.plaintext)
    first = keys.revoke(account_id=bob.id, key_id=minted.row.pk)
    assert keys.revoke(account_id=bob.id, key_id=minted.row.pk).revoked_at == (
        first.revoked_at
    )
    with pytest.raises(InvalidKey):
        keys.authenticate(minted.plaintext)


def test_mallory_cannot_revoke_bobs_key(mallory: Customer, minted: Minted) -> None:
    with pytest.raises(UnknownKey):
        keys.revoke(account_id=mallory.id, key_id=minted.row.pk)
    keys.authenticate(minted.plaintext)


def test_several_keys_live_at_once(bob: Customer, minted: Minted) -> None:
    _, second = keys.mint(bob.account, "live")
    assert keys.authenticate(second).account_id == bob.id
    assert keys.authenticate(minted.plaintext).account_id == bob.id


def test_only_keys_that_work_count_against_how_many_there_may_be(
    bob: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "MAX_KEYS", 2)
    ended, later = (datetime.now(UTC) + timedelta(hours=h) for h in (-1, 1))

    def create() -> ApiKey:
        made, _ = keys.create_key(
            account_id=bob.id, mode="live", scopes=keys.SCOPES, expires_at=later
        )
        return made

    for _ in range(2):
        keys.mint(bob.account, "live", expires_at=ended)
    create()
    second = create()
    with pytest.raises(BadRequest, match="2 working live keys"):
        create()
    keys.revoke(account_id=bob.id, key_id=second.pk)
    create()


def test_scopes_are_checked_under_either_name(bob: Customer) -> None:
    _, plaintext = keys.mint(bob.account, "live", ["magicoal:read"])
    credential = keys.authenticate(plaintext)
    assert credential.scopes == {"jobs:read"}
    credential.require("jobs:read")
    credential.require("magicoal:read")
    with pytest.raises(MissingScope):
        credential.require("jobs:write")
    with pytest.raises(MissingScope):
        credential.require("admin")


@pytest.mark.parametrize("scopes", [[], ["jobs:delete"]])
def test_unknown_or_no_scopes_are_refused(bob: Customer, scopes: list[str]) -> None:
    with pytest.raises(BadRequest):
        keys.mint(bob.account, "live", scopes)


def test_a_keys_use_is_noted_once_a_minute(bob: Customer, minted: Minted) -> None:
    def last_used() -> datetime | None:
        return ApiKey.objects.get(pk=minted.row.pk).last_used_at

    touches.flush()
    keys.authenticate(minted.plaintext)
    assert last_used() is None  # not in the request
    assert touches.flush() == 1
    first = last_used()
    assert first is not None
    keys.authenticate(minted.plaintext)
    assert touches.flush() == 0
    ApiKey.objects.filter(pk=minted.row.pk).update(
        last_used_at=first - timedelta(minutes=2)
    )
    keys.authenticate(minted.plaintext)
    assert touches.flush() == 1


def test_a_refused_keys_use_is_not_noted(minted: Minted) -> None:
    touches.flush()
    with pytest.raises(InvalidKey):
        keys.authenticate(revoked(minted))
    assert touches.flush() == 0


@pytest.mark.django_db(transaction=True)
def test_one_thread_writes_down_what_requests_noted(settings: Any) -> None:
    settings.API_KEY_TOUCH_SECONDS = 0.02
    row, plaintext = keys.mint(make_customer("bob").account, "live")
    keys.authenticate(plaintext)
    writer = touches._writer
    assert writer is not None
    deadline = time.monotonic() + 5
    while ApiKey.objects.get(pk=row.pk).last_used_at is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    settings.API_KEY_TOUCH_SECONDS = 0
    writer.join(5)
    assert not writer.is_alive()
