"""Another system sells through the running stack: from an account to a paid video."""

from __future__ import annotations

import secrets
from pathlib import Path

import httpx
import pytest

from tests.faults.test_first_video import QUICK
from tests.stack import LiveStack
from tests.stories.test_openapi import examine

pytestmark = [pytest.mark.stories, pytest.mark.timeout(300)]


@pytest.fixture
def operator_key(live_stack: LiveStack) -> str:
    name = f"olga-{secrets.token_hex(4)}"
    live_stack.manage("createoperator", name)
    made = live_stack.manage("createoperatorkey", name, "--name", "shop")
    return made.strip().splitlines()[-1]


def test_a_shop_sells_credits_and_its_customer_gets_a_video(
    live_stack: LiveStack, operator_key: str
) -> None:
    with httpx.Client(
        base_url=f"{live_stack.base_url}/operator/v1",
        headers={"authorization": f"Bearer {operator_key}"},
        trust_env=False,
        timeout=30,
    ) as shop:
        reference = secrets.token_hex(8)
        body = {"name": "Customer 1", "plan": "pro", "reference": reference}
        account = shop.post("/accounts", json=body).json()["id"]
        paid = {"payment_id": f"pay-{reference}", "credits": 20}
        for _ in range(2):
            shop.post(f"/accounts/{account}/grants", json=paid).raise_for_status()
        key = shop.post(f"/accounts/{account}/keys", json={}).json()["key"]
        with live_stack.client(key) as customer:
            job = customer.post("/v1/jobs", json=QUICK).json()
            done = live_stack.wait_for_job(customer, job["id"])
        assert done["status"] == "succeeded"
        [used] = shop.get(f"/accounts/{account}/usage").json()["data"]
        assert (used["jobs"], used["succeeded"]) == (1, 1)
        assert used["charged_credits"] == done["credits"]["charged"]
        money = shop.get(f"/accounts/{account}").json()["live"]
        assert money["available_credits"] == 20 - used["charged_credits"]


def test_the_operator_api_keeps_its_word(
    live_stack: LiveStack, operator_key: str, tmp_path: Path
) -> None:
    examine(live_stack, tmp_path, paths=r"^/operator/v1/", key=operator_key)
    live_stack.check_ledger()
