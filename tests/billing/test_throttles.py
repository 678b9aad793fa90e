"""How often somebody may ask, with Redis and without."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from billing import keys, throttles
from billing.throttles import Allowance, Bucket
from tests.billing.factories import make_customer

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def rested() -> Iterator[None]:
    throttles._rest.until = 0.0
    yield
    throttles._rest.until = 0.0


def bucket(per_minute: int) -> Bucket:
    return Bucket(f"test-{time.time_ns()}-{next(_numbers)}", per_minute)


def take(*buckets: Bucket, creates: bool = True) -> Allowance:
    return throttles.take_from(buckets, creates=creates)


@pytest.mark.usefixtures("redis_url")
class TestWithRedis:
    def test_a_minutes_requests_may_come_at_once_and_no_more(self) -> None:
        one = bucket(5)
        answers = [take(one) for _ in range(7)]
        assert [answer.allowed for answer in answers] == [True] * 5 + [False] * 2
        assert [answer.remaining for answer in answers] == [4, 3, 2, 1, 0, 0, 0]
        assert answers[-1].limit == 5
        assert 10 <= answers[-1].retry_after <= 12  # a token every 12 s

    def test_tokens_come_back_evenly(self) -> None:
        one = bucket(1200)  # 20 a second
        while take(one).allowed:
            pass
        time.sleep(0.2)
        count = 0
        while take(one).allowed:
            count += 1
        assert 3 <= count <= 8

    def test_two_hundred_at_once_at_a_limit_of_ten_let_ten_through(self) -> None:
        one = bucket(10)
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(lambda _: take(one).allowed, range(200)))
        assert Counter(answers) == {True: 10, False: 190}

    def test_a_refusal_takes_from_no_bucket(self) -> None:
        wide, narrow = bucket(10), bucket(1)
        assert take(wide, narrow).allowed
        assert not take(wide, narrow).allowed
        assert take(wide).remaining == 8

    def test_the_tightest_bucket_is_the_one_shown(self) -> None:
        wide, narrow = bucket(100), bucket(10)
        answer = take(wide, narrow)
        assert (answer.limit, answer.remaining) == (10, 9)

    def test_the_headers_say_limit_rest_and_when_it_is_full(self) -> None:
        headers = take(bucket(60)).headers()
        assert headers["X-RateLimit-Limit"] == "60"
        assert headers["X-RateLimit-Remaining"] == "59"
        assert 0 <= int(headers["X-RateLimit-Reset"]) - time.time() <= 3

    def test_buckets_vanish_by_themselves(self, redis_url: str, settings: Any) -> None:
        from redis import Redis

        one = bucket(5)
        take(one)
        with Redis.from_url(redis_url) as redis:
            assert 0 < redis.ttl(f"{settings.REDIS_PREFIX}rate:{one.name}") <= 120


@pytest.mark.usefixtures("db")
def test_many_keys_of_an_account_share_its_limit() -> None:
    customer = make_customer("bob", plan="free")
    answers = []
    for _ in range(2):
        _, plaintext = keys.mint(customer.account, "test")
        credential = keys.authenticate(plaintext)
        answers += [throttles.take(credential, creates=True) for _ in range(40)]
    assert sum(answer.allowed for answer in answers) in range(60, 63)
    assert answers[0].limit == 60


@pytest.mark.usefixtures("db")
def test_a_key_may_have_a_narrower_limit_of_its_own() -> None:
    row, plaintext = keys.mint(make_customer("bob").account, "test")
    row.requests_per_minute = 2
    row.save(update_fields=["requests_per_minute"])
    credential = keys.authenticate(plaintext)
    allowed = [throttles.take(credential, creates=False).allowed for _ in range(3)]
    assert allowed == [True, True, False]


@pytest.mark.usefixtures("db", "redis_url")
def test_reads_have_four_times_the_number_and_take_nothing_from_the_rest() -> None:
    _, plaintext = keys.mint(make_customer("bob", plan="free").account, "test")
    credential = keys.authenticate(plaintext)
    reads = [throttles.take(credential, creates=False, reads=True) for _ in range(250)]
    assert reads[0].limit == 240
    assert sum(answer.allowed for answer in reads) in range(240, 250)
    assert throttles.take(credential, creates=True).remaining == 59


def test_an_address_that_guesses_keys_is_slowed(redis_url: str) -> None:
    address = f"192.0.2.1-{time.time_ns()}"
    answers = [throttles.take_for_bad_key(address).allowed for _ in range(65)]
    assert answers.count(False) >= 3


def test_a_guesser_does_not_slow_others_whose_addresses_come_mapped(
    redis_url: str,
) -> None:
    now = time.time_ns()
    mine, other = (f"::ffff:10.{now % 250}.{now // 250 % 250}.{n}" for n in (1, 2))
    while throttles.take_for_bad_key(mine).allowed:
        pass
    assert throttles.take_for_bad_key(other).allowed


class TestWithoutRedis:
    @pytest.fixture(autouse=True)
    def nobody_listens(self, settings: Any) -> None:
        settings.REDIS_URL = "redis://127.0.0.1:9/0"

    def test_reads_pass(self) -> None:
        one = bucket(3)
        assert all(take(one, creates=False).allowed for _ in range(10))

    def test_creates_fall_back_to_a_limit_in_this_process(self) -> None:
        one = bucket(3)
        answers = [take(one) for _ in range(5)]
        assert [answer.allowed for answer in answers] == [True] * 3 + [False] * 2
        assert answers[-1].retry_after > 15

    def test_redis_is_left_alone_for_a_while_after_it_failed(self) -> None:
        one = bucket(1000)
        take(one)
        start = time.perf_counter()
        for _ in range(200):
            take(one)
        assert time.perf_counter() - start < 0.1


def test_redis_is_used_again_when_it_is_back(redis_url: str, settings: Any) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:9/0"
    one = bucket(10)
    take(one)
    settings.REDIS_URL = redis_url
    throttles._rest.until = 0.0
    assert take(one).remaining == 9
