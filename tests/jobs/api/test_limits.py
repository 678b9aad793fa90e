"""How often somebody may ask, by key, account and address; whose address counts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connections
from django.test import Client

from billing import keys, operator_keys, throttles
from jobs.models import Job
from tests.factories import make_account, make_key
from tests.jobs.api.test_native import PICTURE

PROXY = "192.0.2.10"
ELSEWHERE = "198.51.100.7"


@pytest.fixture(autouse=True)
def fresh_buckets(redis_url: str, settings: Any) -> Iterator[None]:
    throttles._rest.until = 0.0
    # Buckets outlive a test; a prefix of its own makes them new.
    settings.REDIS_PREFIX = f"limits-{time.monotonic_ns()}:"
    # Few, so that a slow machine does not get tokens back on the way.
    settings.BAD_KEYS_PER_MINUTE = 4
    yield
    throttles._rest.until = 0.0


def get(path: str, *, key: str = "", peer: str = ELSEWHERE, **headers: str) -> Any:
    given = {"Authorization": f"Bearer {key}"} if key else {}
    return Client(raise_request_exception=False).get(
        path, headers={**given, **headers}, REMOTE_ADDR=peer
    )


def use_up_bad_keys(**options: str) -> list[int]:
    return [get("/v1/jobs", **options).status_code for _ in range(6)]


@pytest.mark.django_db
class TestAddresses:
    def test_an_address_that_guesses_keys_is_told_to_wait(self) -> None:
        assert set(use_up_bad_keys()) == {401, 429}
        refused = get("/v1/jobs")
        assert refused.status_code == 429
        assert 1 <= int(refused["Retry-After"]) <= 15
        assert refused["X-RateLimit-Limit"] == "4"
        assert refused.json()["code"] == "rate_limited"
        # In the shape of the API that was asked, and for every API together.
        told = get("/api/v1/tasks/x").json()
        assert told["code"] == "Throttling.RateQuota"

    def test_a_good_key_from_there_still_works(self) -> None:
        key = make_key(make_account("alice", credits=1))
        use_up_bad_keys()
        assert get("/v1/jobs", key=key).status_code == 200

    def test_another_address_is_not_slowed(self) -> None:
        use_up_bad_keys()
        assert get("/v1/jobs", peer="198.51.100.8").status_code == 401

    def test_one_customers_ipv6_network_counts_as_one(self) -> None:
        for number in range(6):
            get("/v1/jobs", peer=f"2001:db8::{number:x}")
        assert get("/v1/jobs", peer="2001:db8::ffff").status_code == 429
        assert get("/v1/jobs", peer="2001:db8:0:1::1").status_code == 401

    def test_a_forged_forwarded_header_gives_no_new_address(self) -> None:
        answers = [
            get("/v1/jobs", **{"X-Forwarded-For": f"203.0.113.{number}"}).status_code
            for number in range(6)
        ]
        assert answers[-1] == 429

    def test_a_proxy_of_ours_is_believed(self, settings: Any) -> None:
        settings.TRUSTED_PROXIES = ["192.0.2.0/24"]
        caller = {"X-Forwarded-For": "203.0.113.1"}
        use_up_bad_keys(peer=PROXY, **caller)
        assert get("/v1/jobs", peer=PROXY, **caller).status_code == 429
        other = {"X-Forwarded-For": "203.0.113.2"}
        assert get("/v1/jobs", peer=PROXY, **other).status_code == 401

    def test_what_the_caller_put_before_the_proxys_word_does_not_count(
        self, settings: Any
    ) -> None:
        settings.TRUSTED_PROXIES = [PROXY, "192.0.2.11"]
        answers = []
        for number in range(6):
            forged = f"10.0.0.{number}, 203.0.113.1, 192.0.2.11"
            caller = {"X-Forwarded-For": forged}
            answers.append(get("/v1/jobs", peer=PROXY, **caller).status_code)
        assert answers[-1] == 429


@pytest.mark.django_db
class TestOperators:
    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(throttles, "OPERATOR_REQUESTS_PER_MINUTE", 3)

    @pytest.fixture
    def olga(self) -> Any:
        return get_user_model().objects.create_superuser("olga")

    def test_a_key_that_asks_too_often_is_told_when_to_come_back(
        self, olga: Any
    ) -> None:
        _, key = operator_keys.mint(olga, name="shop")
        answers = [get("/operator/v1/accounts", key=key) for _ in range(5)]
        assert [a.status_code for a in answers] == [200, 200, 200, 429, 429]
        assert [a["X-RateLimit-Remaining"] for a in answers] == list("21000")
        refused = answers[-1]
        assert 1 <= int(refused["Retry-After"]) <= 20
        assert refused["X-RateLimit-Limit"] == "3"
        assert refused["Content-Type"] == "application/problem+json"
        problem = refused.json()
        assert (problem["status"], problem["code"]) == (429, "rate_limited")
        assert f"after {refused['Retry-After']} seconds" in problem["detail"]
        _, other = operator_keys.mint(olga, name="till")
        assert get("/operator/v1/accounts", key=other).status_code == 200

    def test_what_it_may_not_do_counts_as_well(self) -> None:
        clerk = get_user_model().objects.create_user("clerk", is_staff=True)
        _, key = operator_keys.mint(clerk, name="shop")
        answers = [get("/operator/v1/accounts", key=key) for _ in range(5)]
        assert [a.status_code for a in answers] == [403, 403, 403, 429, 429]

    def test_guessing_an_operators_key_counts_as_guessing_any(self) -> None:
        guesses = [get("/operator/v1/accounts").status_code for _ in range(6)]
        assert guesses == [401] * 4 + [429] * 2
        assert get("/v1/jobs").status_code == 429
        assert get("/operator/v1/accounts", peer="198.51.100.8").status_code == 401

    def test_without_redis_reads_go_on_and_writes_keep_the_limit(
        self, olga: Any, settings: Any
    ) -> None:
        settings.REDIS_URL = "redis://127.0.0.1:9/0"
        _, key = operator_keys.mint(olga, name="shop")
        reads = [get("/operator/v1/accounts", key=key).status_code for _ in range(5)]
        assert reads == [200] * 5
        client = Client(headers={"Authorization": f"Bearer {key}"})
        writes = [
            client.post(
                "/operator/v1/accounts",
                {"name": f"a{number}", "plan": "free"},
                content_type="application/json",
            ).status_code
            for number in range(5)
        ]
        assert writes == [201] * 3 + [429] * 2


@pytest.mark.django_db(transaction=True)
def test_200_reads_at_once_at_a_limit_of_40_let_40_through() -> None:
    row, key = keys.mint(make_account("alice", credits=1), "live")
    row.requests_per_minute = 10  # reads have four times the number
    row.save(update_fields=["requests_per_minute"])
    gate = threading.Barrier(20)

    def ask(_: int) -> list[Any]:
        gate.wait()
        try:
            return [get("/v1/balance", key=key) for _ in range(10)]
        finally:
            connections.close_all()

    with ThreadPoolExecutor(20) as pool:
        answers = [answer for some in pool.map(ask, range(20)) for answer in some]
    passed = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(passed) + len(refused) == 200
    # A token comes back every 1.5 s, and this machine may be slow.
    assert 40 <= len(passed) <= 52
    assert {answer["X-RateLimit-Limit"] for answer in answers} == {"40"}
    assert all(1 <= int(answer["Retry-After"]) <= 2 for answer in refused)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("method", "path", "body", "limit"),
    [
        ("GET", "/v3/async/task-result?task_id=x", None, 240),
        ("HEAD", "/v1/balance", None, 240),
        ("POST", "/api/open/v4/image2Video/resultsByIds", {"_ids": "x"}, 240),
        ("POST", "/v1/quotes", {}, 60),
        ("POST", "/v1/jobs/x/cancel", None, 60),
        ("DELETE", "/v1/videos/x", None, 60),
    ],
)
def test_reads_are_counted_apart(
    method: str, path: str, body: Any, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    take = throttles.take_from

    def note(buckets: Any, *, creates: bool) -> throttles.Allowance:
        counted.extend(bucket.per_minute for bucket in buckets)
        return take(buckets, creates=creates)

    monkeypatch.setattr(throttles, "take_from", note)
    _, key = keys.mint(make_account("bob", plan="free"), "live")
    Client().generic(
        method,
        path,
        b"" if body is None else json.dumps(body),
        content_type="application/json",
        headers={"Authorization": f"Bearer {key}"},
    )
    assert counted == [limit]


@pytest.mark.django_db
class TestWithoutRedis:
    @pytest.fixture(autouse=True)
    def nobody_listens(self, settings: Any) -> None:
        settings.REDIS_URL = "redis://127.0.0.1:9/0"

    @pytest.fixture
    def key(self) -> str:
        row, key = keys.mint(make_account("alice", credits=100), "live")
        row.requests_per_minute = 2
        row.save(update_fields=["requests_per_minute"])
        return key

    def test_reads_go_on(self, key: str) -> None:
        assert [get("/v1/jobs", key=key).status_code for _ in range(5)] == [200] * 5

    def test_creates_keep_a_limit(self, key: str) -> None:
        client = Client(headers={"Authorization": f"Bearer {key}"})
        body = {"image": PICTURE, "seconds": 1}
        answers = [
            client.post("/v1/jobs", body, content_type="application/json").status_code
            for _ in range(4)
        ]
        assert answers == [202, 202, 429, 429]
        assert Job.objects.count() == 2
