from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from inference.errors import Fault, ProviderError, Unsupported
from inference.providers.base import FindQuery
from tests.inference.providers.samples import (
    PNG,
    make_account,
    make_job,
    provider,
    recorded_reply,
)

ACCOUNT = make_account("https://coals.ai")
COALS = provider("magicoal")


def test_a_submit_is_the_documented_post():
    job = make_job("magicoal", frames=81, guidance_scale=3.5, seed=7)
    call = COALS.build_submit(job, ACCOUNT)
    assert (call.method, call.url) == (
        "POST",
        "https://coals.ai/api/v1/magicoal/generate/i2v",
    )
    assert call.headers == {"Authorization": "Bearer sk-canary-key"}
    assert call.json == {
        "image": "data:image/png;base64," + base64.b64encode(PNG).decode(),
        "prompt": "a quiet street",
        "num_frames": 81,
        "guidance_scale": 3.5,
        "seed": 7,
    }


@pytest.mark.parametrize(
    ("frames", "fps", "sent"),
    [(17, 16, 17), (32, 16, 33), (81, 16, 81), (161, 16, 161), (120, 24, 81)],
)
def test_the_frames_asked_for_are_odd_and_cover_the_clip(frames, fps, sent):
    job = make_job("magicoal", frames=frames, fps=fps)
    assert COALS.build_submit(job, ACCOUNT).json["num_frames"] == sent


def test_a_clip_beyond_161_frames_is_refused():
    with pytest.raises(Unsupported) as refused:
        COALS.build_submit(make_job("magicoal", frames=162), ACCOUNT)
    assert refused.value.field in ("frames", "seconds")


def test_the_documented_accept_gives_id_and_cost():
    submitted = COALS.parse_submit(
        recorded_reply("magicoal", "submit", "accepted"), ACCOUNT
    )
    assert submitted.provider_id == "3f8a2d1b-4c9e-4b7f-8d2a-1f3c5e7a9b0d"
    assert submitted.cost_usd == Decimal("0.50")


@pytest.mark.parametrize(
    ("body", "state", "progress"),
    [
        ("queued", "queued", 0.0),
        ("running", "running", 0.54),
        ("running_stage_word", "running", 0.54),
        ("succeeded", "succeeded", 1.0),
        ("failed", "failed", None),
    ],
)
def test_documented_states_are_read(body, state, progress):
    answer = recorded_reply("magicoal", "status", body)
    status = COALS.parse_status(answer, ["id"], ACCOUNT)["id"]
    assert (status.state, status.progress) == (state, progress)
    if state == "succeeded":
        assert str(status.video_url).startswith("https://coals.ai/storage/videos/")
    if state == "failed":
        assert status.error is not None
        assert status.error.fault is Fault.HEALTH
        assert status.cost_usd == 0


EXPECTED = {
    "VALIDATION_ERROR": Fault.CUSTOMER,
    "BAD_REQUEST": Fault.CUSTOMER,
    "PAYLOAD_TOO_LARGE": Fault.CUSTOMER,
    "RATE_LIMIT_EXCEEDED": Fault.BUSY,
    "UNAUTHORIZED": Fault.ACCOUNT,
    "FORBIDDEN": Fault.ACCOUNT,
    "INSUFFICIENT_CREDITS": Fault.ACCOUNT,
    "QUOTA_EXCEEDED": Fault.ACCOUNT,
    "NOT_FOUND": Fault.HEALTH,
    "SERVER_ERROR": Fault.HEALTH,
}


@pytest.mark.parametrize(("name", "fault"), EXPECTED.items())
def test_each_error_is_somebodys_fault(name, fault):
    with pytest.raises(ProviderError) as refused:
        COALS.parse_submit(recorded_reply("magicoal", "errors", name), ACCOUNT)
    assert refused.value.fault is fault


def test_a_rate_limit_says_how_long_to_wait():
    with pytest.raises(ProviderError) as refused:
        COALS.parse_submit(
            recorded_reply("magicoal", "errors", "RATE_LIMIT_EXCEEDED"), ACCOUNT
        )
    assert refused.value.retry_after_seconds == 30


def test_a_finished_video_of_the_window_is_found_and_never_concludes():
    created = datetime(2026, 3, 3, 14, 22, 11, tzinfo=UTC)
    item = recorded_reply("magicoal", "list", "item").json()
    page = recorded_reply("magicoal", "list", "page").json() | {"data": [item]}
    query = FindQuery(
        "ref", "i2v", "a quiet street", created, created + timedelta(seconds=30)
    )
    found = COALS.read_find(page, query)
    assert found.candidates == (item["uuid"],)
    assert not found.conclusive
    assert found.next_cursor == "2"
    other = FindQuery("ref", "i2v", "another", query.since, query.until)
    assert COALS.read_find(page, other).candidates == ()
