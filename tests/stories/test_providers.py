"""Jobs that go out of the house, on the running stack.

The loop: for each of the seven services we can buy from, the "provider" is our own
endpoint of that wire format, called with a test key. So a live job goes native API →
adapter → HTTP → dialect → rehearsal → its result back through egress → finishing.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet

from project import state
from tests.factories import png
from tests.fakes import start
from tests.stack import LiveStack, wait_until
from tests.stories import samples

pytestmark = pytest.mark.stories

PICTURE = base64.b64encode(png(160, 120)).decode()
#: provider → what a customer asks for so that it goes there alone
ASKED: dict[str, dict[str, Any]] = {
    "magicoal": {"model": "wan2.2-i2v", "frames": 17},
    "aimlapi": {"model": "alibaba/wan2.5-i2v-preview", "seconds": 2},
    "sinancode": {"model": "wan2.6-i2v", "seconds": 2},
    "novita": {"model": "wan2.1-i2v"},
    "akool": {"model": "akool-i2v", "seconds": 5},
    "dashscope": {"model": "wan2.2-i2v-flash", "seconds": 2},
    "openai_videos": {"model": "wan2.2-i2v-plus", "seconds": 2},
}
#: Only these routes of models that several could make.
_ONE_ROUTE_EACH = """
UPDATE jobs_route SET is_enabled = false
 WHERE (model = 'wan2.6-i2v' AND name IN ('dashscope', 'novita'))
    OR (model = 'wan2.2-i2v-plus' AND name = 'dashscope')
"""
_OPENAI_ROUTE = """
INSERT INTO jobs_route (model, name, kind, queue, runner, profile, simulates,
                        is_enabled, rank, weight, plans, cost_microdollars,
                        gpu_second_microdollars)
VALUES ('wan2.2-i2v-plus', 'openai_videos', 'provider', 'provider.openai_videos',
        'openai_videos', 'sora-2', false, true, 0, 100, '[]', 0, 0)
"""


def enter(
    stack: LiveStack, provider: str, base_url: str, credentials: dict[str, str]
) -> None:
    arguments = ["addprovider", provider, f"--base-url={base_url}"]
    stack.manage(*arguments, stdin=json.dumps(credentials))


def enter_at_once(
    stack: LiveStack, providers: Iterable[str], base_url: str, credentials: object
) -> None:
    """Enter an account at each; a command for each would take its time."""
    fernet = Fernet(state.local_secrets(stack.home)["SECRETS_KEY"])
    sealed = "fernet:" + fernet.encrypt(json.dumps(credentials).encode()).decode()
    settings = json.dumps({"poll_seconds": 0.5, "callbacks": False})
    for provider in providers:
        stack.sql(
            "INSERT INTO jobs_provideraccount (provider, name, base_url, credentials,"
            " settings, is_enabled, weight, failures_in_row, last_error)"
            " VALUES (%s, 'loop', %s, %s, %s::jsonb, true, 100, 0, '')",
            provider,
            base_url,
            sealed,
            settings,
        )


@pytest.fixture
def no_accounts_left(live_stack: LiveStack) -> Iterator[None]:
    """Leave the stack as others expect it: nobody makes the closed models."""
    yield
    live_stack.sql("UPDATE jobs_provideraccount SET is_enabled = false")
    live_stack.sql("DELETE FROM jobs_route WHERE name = 'openai_videos'")
    live_stack.sql("UPDATE jobs_route SET is_enabled = true")
    live_stack.forget_routes()


def create(client: httpx.Client, **options: Any) -> str:
    body = {"image": PICTURE, "prompt": "push in", "resolution": "480p", **options}
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


@pytest.mark.timeout(400)
def test_all_seven_adapters_are_served_by_our_own_endpoints(
    live_stack: LiveStack, no_accounts_left: None, tmp_path: Path
) -> None:
    live_stack.sql(_ONE_ROUTE_EACH)
    live_stack.sql(_OPENAI_ROUTE)
    key = live_stack.key("test")
    credentials = {"api_key": key, "client_id": "loop", "client_secret": key}
    enter_at_once(live_stack, ASKED, live_stack.base_url, credentials)
    live_stack.forget_routes()
    customer = live_stack.key()
    with live_stack.client(customer) as client:
        jobs = {
            provider: create(
                client,
                **{"resolution": "720p"} if provider in ("akool", "sinancode") else {},
                **asked,
            )
            for provider, asked in ASKED.items()
        }
        for provider, job_id in jobs.items():
            job = live_stack.wait_for_job(client, job_id, seconds=200)
            why = live_stack.sql(
                "SELECT error_detail, route ->> 'name' FROM jobs_job WHERE id = %s",
                job_id,
            )
            assert job["status"] == "succeeded", (provider, why)
            assert job["simulated"] is False
            assert job["credits"]["charged"] == job["credits"]["quoted"] > 0
            video = httpx.get(job["video"]["url"], trust_env=False).content
            facts = samples.facts(video, tmp_path)
            assert facts.frames == job["parameters"]["frames"], provider
            assert facts.fps == job["parameters"]["fps"]
    # Each was made by a test job of ours that came in by that provider's format.
    inner = live_stack.sql(
        "SELECT outside.route ->> 'runner', inside.dialect, inside.mode"
        "  FROM jobs_job outside JOIN jobs_job inside"
        "    ON outside.provider_job_id IN (inside.public_id, inside.id::text)"
        " WHERE outside.id = ANY(%s::uuid[]) ORDER BY 1",
        list(jobs.values()),
    )
    assert inner == [
        (name, "openai" if name == "openai_videos" else name, "test")
        for name in sorted(ASKED)
    ]
    live_stack.check_ledger()


def test_a_job_finds_its_way_by_a_callback(
    live_stack: LiveStack, no_accounts_left: None
) -> None:
    """The provider calls our web process, which has the poller look at once."""
    with start("novita", video_side=64, queued_seconds=1, running_seconds=1) as fake:
        enter(live_stack, "novita", fake.url, {"api_key": "sk-test"})
        live_stack.sql(
            "UPDATE jobs_provideraccount SET settings = '{\"poll_seconds\": 600}'"
        )
        live_stack.forget_routes()
        with live_stack.client(live_stack.key()) as client:
            job_id = create(client, **ASKED["novita"])
            job = live_stack.wait_for_job(client, job_id, seconds=60)
        assert job["status"] == "succeeded", job["error"]
        wait_until(lambda: fake.callbacks, seconds=5, what="the callback")
        assert {status for _, status in fake.callbacks} == {200}
