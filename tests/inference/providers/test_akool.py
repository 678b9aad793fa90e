from __future__ import annotations

import json
from decimal import Decimal

import pytest

from inference.errors import Fault, ProviderError, Unsupported
from inference.providers.base import CallbackRefused
from tests.fakes.bodies import load, recorded
from tests.inference.providers.samples import (
    make_account,
    make_job,
    provider,
    recorded_reply,
    reply,
)

ACCOUNT = make_account("https://openapi.akool.com", usd_per_credit="0.04")
AKOOL = provider("akool")


def test_a_submit_is_the_documented_post():
    job = make_job(
        "akool",
        tier="4k",
        frames=240,
        fps=24,
        negative_prompt="blur",
        prompt_expansion=True,
        premium=True,
        audio_mode="url",
        audio_url="https://files.example/a.mp3",
        callback_url="https://us.example/cb/token-1",
    )
    call = AKOOL.build_submit(job, ACCOUNT)
    assert call.url == (
        "https://openapi.akool.com/api/open/v4/image2Video/createBySourcePrompt"
    )
    assert call.headers == {"x-api-key": "0123456789abcdef0123456789abcdef"}
    assert call.json == {
        "image_url": "https://files.example/first.png",
        "prompt": "a quiet street",
        "negative_prompt": "blur",
        "extend_prompt": True,
        "resolution": "4k",
        "audio_type": 2,
        "audio_url": "https://files.example/a.mp3",
        "video_length": 10,
        "is_premium_model": True,
        "webhookurl": "https://us.example/cb/token-1",
    }


@pytest.mark.parametrize(("mode", "number"), [("generate", 1), ("none", 3)])
def test_sound_is_a_number(mode, number):
    sent = AKOOL.build_submit(make_job("akool", audio_mode=mode), ACCOUNT).json
    assert sent["audio_type"] == number


def test_a_seed_the_customer_chose_is_refused_and_one_we_drew_is_left_out():
    with pytest.raises(Unsupported) as refused:
        AKOOL.build_submit(make_job("akool", seed=7), ACCOUNT)
    assert refused.value.field == "seed"
    drawn = make_job("akool", seed=7, unasked=frozenset({"seed"}))
    assert "seed" not in AKOOL.build_submit(drawn, ACCOUNT).json


def test_the_documented_accept_gives_id_and_cost_by_the_operators_price():
    submitted = AKOOL.parse_submit(
        recorded_reply("akool", "submit", "accepted"), ACCOUNT
    )
    assert submitted.provider_id == "6891711f21de0a5a8a8fc2d1"
    assert submitted.cost_usd == Decimal("1.00")


def test_many_ids_go_as_one_comma_joined_string():
    call = AKOOL.build_status(["a", "b", "c"], ACCOUNT)
    assert (call.method, call.json) == ("POST", {"_ids": "a,b,c"})
    assert call.idempotent


def test_one_answer_tells_the_state_of_many_and_what_is_missing_is_unknown():
    item = load("akool", "status")["item"]
    failed = load("akool", "status")["item_failed"]
    items = [
        item.filled(id="q", status=1, video_url=""),
        item.filled(id="r", status=2, video_url=""),
        item.filled(id="s", status=3),
        failed.filled(id="f"),
    ]
    body = load("akool", "status")["results"].filled(items=items)
    answer = reply(200, json.dumps(body).encode())
    states = AKOOL.parse_status(answer, ["q", "r", "s", "f", "gone"], ACCOUNT)
    assert {one: status.state for one, status in states.items()} == {
        "q": "queued",
        "r": "running",
        "s": "succeeded",
        "f": "failed",
        "gone": "unknown",
    }
    assert states["s"].video_url == "https://cdn.example/v.mp4"


def test_content_that_does_not_exist_makes_every_id_unknown():
    answer = recorded_reply("akool", "errors", "1008")
    states = AKOOL.parse_status(answer, ["a", "b"], ACCOUNT)
    assert {status.state for status in states.values()} == {"unknown"}


EXPECTED = {
    "1003": Fault.CUSTOMER,
    "1005": Fault.BUSY,
    "1006": Fault.ACCOUNT,
    "1104": Fault.ACCOUNT,
    "1008": Fault.HEALTH,
    "1009": Fault.MODEL,
    "1015": Fault.HEALTH,
    "1101": Fault.ACCOUNT,
    "1102": Fault.ACCOUNT,
    "1109": Fault.ACCOUNT,
    "1200": Fault.ACCOUNT,
    "9999": Fault.HEALTH,
}


@pytest.mark.parametrize(("name", "fault"), EXPECTED.items())
def test_each_code_inside_http_200_is_somebodys_fault(name, fault):
    with pytest.raises(ProviderError) as refused:
        AKOOL.parse_submit(recorded_reply("akool", "errors", name), ACCOUNT)
    assert refused.value.fault is fault


def test_a_kept_item_is_not_deleted():
    kept = recorded_reply("akool", "delete", "deleted")
    assert AKOOL.parse_delete(kept, ACCOUNT) is False
    gone = {"code": 1000, "msg": "OK", "data": {"successIds": ["a"]}}
    assert AKOOL.parse_delete(reply(200, json.dumps(gone).encode()), ACCOUNT) is True


def test_the_callback_vector_opens():
    _, body = recorded("akool", "callback", "envelope")
    hint = AKOOL.parse_callback(body, {}, ACCOUNT)
    assert hint.provider_id == "64dd90f9f0b6684651e90d60"
    assert hint.finished


@pytest.mark.parametrize("part", ["signature", "dataEncrypt", "timestamp", "nonce"])
def test_a_callback_changed_in_any_part_is_refused(part):
    envelope = json.loads(recorded("akool", "callback", "envelope")[1])
    value = envelope[part]
    envelope[part] = value + 1 if isinstance(value, int) else "A" + value[1:]
    with pytest.raises(CallbackRefused):
        AKOOL.parse_callback(json.dumps(envelope).encode(), {}, ACCOUNT)


def test_another_accounts_callback_is_refused():
    _, body = recorded("akool", "callback", "envelope")
    other = make_account()
    other = type(other)(
        "other", other.base_url, {**other.credentials, "client_id": "cid_9999999999ab"}
    )
    with pytest.raises(CallbackRefused):
        AKOOL.parse_callback(body, {}, other)
