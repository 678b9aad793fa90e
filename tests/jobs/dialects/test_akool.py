"""Akool's dialect: its pages and its demo, errors in HTTP 200, the sealed webhook."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from inference.catalogue import MODELS
from jobs.dialects.akool import DIALECT, new_id, sealed, show_batch, show_models
from jobs.dialects.base import (
    CreateMany,
    EffectsPage,
    EffectView,
    Event,
    ManyJobs,
    ManyResult,
    ModelView,
    Operation,
    WireRequest,
)
from jobs.errors import (
    ApiError,
    InsufficientCredits,
    InvalidRequest,
    Unauthenticated,
)
from jobs.requests import JobRequest, Sound
from tests.jobs.dialects import wires
from tests.wire import pairs

V4 = "/api/open/v4"
CREATE = f"{V4}/image2Video/createBySourcePrompt"
BATCH = f"{CREATE}/batch"
OTHER = "https://example.com/another.jpg"
SOUND = "https://example.com/a.mp3"
GOOD: dict[str, Any] = {
    "image_url": wires.PHOTO_URL,
    "prompt": "waves",
    "negative_prompt": "fog",
    "resolution": "720p",
    "audio_type": 3,
    "video_length": 5,
}
MANY: dict[str, Any] = {
    "image_url": wires.PHOTO_URL,
    "prompt": "waves",
    "resolution": "720p",
    "video_length": 5,
}


def create(**changes: Any) -> JobRequest:
    return wires.created("akool", CREATE, {**GOOD, **changes})


def batch(**changes: Any) -> tuple[JobRequest, ...]:
    command = wires.send("akool", "POST", BATCH, {**MANY, **changes})
    assert isinstance(command, CreateMany)
    return command.requests


@pytest.mark.parametrize("name", pairs.names("akool"))
def test_it_reads_and_writes_what_is_documented(name: str) -> None:
    pairs.check("akool", name)


@pytest.mark.parametrize(
    "change",
    [
        {"image_url": OTHER},
        {"prompt": "rain"},
        {"negative_prompt": "snow"},
        {"negative_prompt": ""},
        {"extend_prompt": True},
        {"resolution": "1080p"},
        {"resolution": "4k"},
        {"audio_type": 1},
        {"audio_type": 2, "audio_url": SOUND},
        {"video_length": 10},
        {"is_premium_model": True},
        {"effect_code": "squish"},
        {"webhookurl": "https://hooks.example.com/in"},
    ],
)
def test_each_field_changes_the_job(change: dict[str, Any]) -> None:
    assert create(**change).fingerprint() != create().fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"image_url": OTHER},
        {"prompt": "rain"},
        {"negative_prompt": "snow"},
        {"extend_prompt": True},
        {"resolution": "4k"},
        {"generate_audio": True},
        {"audio_type": 1},
        {"audio_type": 2, "audio_url": SOUND},
        {"video_length": 10},
        {"is_premium_model": True},
        {"effect_code": "squish"},
        {"webhookurl": "https://hooks.example.com/in"},
        {"model_name": "motion"},
        {"model_name": "wan2.7-i2v", "last_image_url": OTHER},
    ],
)
def test_each_batch_field_changes_the_jobs(change: dict[str, Any]) -> None:
    assert batch(**change)[0].fingerprint() != batch()[0].fingerprint()


def test_a_batch_makes_as_many_jobs_as_it_counts() -> None:
    assert [len(batch(count=n)) for n in (1, 10)] == [1, 10]
    assert len(batch()) == 1


@pytest.mark.parametrize("field", [*GOOD])
def test_a_required_field_that_is_missing_is_named(field: str) -> None:
    refused = wires.refused(
        lambda: wires.created("akool", CREATE, wires.without(GOOD, field))
    )
    answer = wires.refusal("akool", refused)
    assert (answer.status, answer.body["code"]) == (200, 1003)
    assert field in answer.body["msg"]


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("image_url", ""),
        ("image_url", "http://10.0.0.1/a.jpg"),
        ("prompt", " "),
        ("prompt", "x" * 2001),
        ("negative_prompt", 5),
        ("extend_prompt", "maybe"),
        ("resolution", "480p"),
        ("audio_type", 4),
        ("video_length", 7),
        ("is_premium_model", 3),
        ("webhookurl", "ftp://example.com/"),
        ("webhookurl", "http://hooks.example.com/in"),
    ],
)
def test_a_wrong_field_is_code_1003_and_named(field: str, wrong: object) -> None:
    refused = wires.refused(lambda: create(**{field: wrong}))
    answer = wires.refusal("akool", refused)
    assert (answer.status, answer.body["code"]) == (200, 1003)
    assert field in answer.body["msg"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"count": 0}, "count"),
        ({"count": 11}, "count"),
        ({"model_name": "nobody"}, "model_name"),
        ({"last_image_url": OTHER}, "last_image_url"),
        ({"resolution": "8k"}, "resolution"),
        ({"video_length": 6}, "video_length"),
    ],
)
def test_a_wrong_batch_field_is_named(change: dict[str, Any], field: str) -> None:
    assert wires.refused(lambda: batch(**change)).field == field


def test_own_sound_needs_its_address() -> None:
    assert wires.refused(lambda: create(audio_type=2)).field == "audio_url"
    assert create(audio_type="2", audio_url=SOUND).audio == Sound("url", SOUND)


def test_a_prompt_may_be_missing_only_beside_an_effect() -> None:
    body = wires.without(GOOD, "prompt") | {"effect_code": "squish"}
    assert wires.created("akool", CREATE, body).effect == "squish"


def test_an_effect_leaves_the_customers_words_in_the_answer() -> None:
    request = create(effect_code="squish").replace(prompt="the effect's own words")
    record = _record(pairs.view_of({"id": "a", "status": "queued"}, request))
    assert (record["prompt"], record["effect_code"]) == ("waves", "squish")


def _record(view: Any) -> dict[str, Any]:
    route = wires.route_of("akool", "POST", CREATE)
    record: dict[str, Any] = route.render(view, WireRequest("POST", CREATE)).body[
        "data"
    ]
    return record


def test_a_refunded_job_shows_no_deduction() -> None:
    view = pairs.view_of({"id": "a", "status": "failed", "refunded_millicredits": 9})
    assert _record(view)["deduction_credit"] == 0


def test_ids_look_like_theirs() -> None:
    ids = {new_id() for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch("[0-9a-f]{24}", one) for one in ids)


# ------------------------------------------------------------------ many at once


@pytest.mark.parametrize(
    "body",
    [
        {"_ids": ["a", "b"]},
        {"ids": "a"},
        {"_ids": ""},
        {"_ids": " , "},
        {"_ids": 5},
        {"_ids": ",".join(map(str, range(101)))},
        None,
    ],
)
def test_ids_that_are_no_string_of_ids_fail_in_their_words(body: object) -> None:
    path = f"{V4}/image2Video/resultsByIds"
    refused = wires.refused(lambda: wires.send("akool", "POST", path, body))
    answer = wires.refusal("akool", refused)
    assert answer.body == {"code": 1003, "msg": "Failed to get results"}


def test_ids_are_read_once_each_and_in_order() -> None:
    path = f"{V4}/image2Video/resultsByIds"
    read = wires.send("akool", "POST", path, {"_ids": " b,a ,b,"})
    assert read == ManyJobs(("b", "a"))


def test_a_batch_of_which_nothing_was_accepted_is_refused() -> None:
    short = InsufficientCredits(required_millicredits=1, available_millicredits=0)
    with pytest.raises(InsufficientCredits):
        show_batch(ManyResult(jobs=[], errors={"0": short}), WireRequest("POST", BATCH))


def test_a_batch_accepted_in_part_lists_both_kinds() -> None:
    short = InsufficientCredits(required_millicredits=1, available_millicredits=0)
    view = pairs.view_of({"id": "a", "status": "queued"}, batch(count=2)[0])
    result = ManyResult(jobs=[view], errors={"1": short})
    data = show_batch(result, WireRequest("POST", BATCH)).body["data"]
    assert [item["batch_count"] for item in data["successList"]] == [2]
    assert [item["code"] for item in data["errorList"]] == [1006]


def test_effects_are_listed_as_documented() -> None:
    made = datetime(2026, 1, 1, tzinfo=UTC)
    effect = EffectView("dolly", "Dolly", created_at=made, preview_url="https://p/v")
    route = wires.route_of("akool", "GET", f"{V4}/image2Video/effects")
    page = EffectsPage(effects=[effect], total=12)
    data = route.render(page, WireRequest("GET", route.path)).body["data"]
    assert data["count"] == 12
    [one] = data["result"]
    assert one.keys() == {
        *("_id", "create_time", "logo", "name", "video_url", "effect_code")
    }
    assert (one["effect_code"], one["create_time"]) == ("dolly", 1767225600000)


def test_the_demo_finds_its_free_model_first() -> None:
    views = [
        ModelView(MODELS[name], name, available=True)
        for name in ("motion", "akool-i2v", "wan2.6-i2v")
    ]
    wire = WireRequest("GET", f"{V4}/aigModel/list", query={"types[]": "1501"})
    listed = show_models(views, wire).body["data"]
    first = listed[0]
    assert first["value"] == "AkoolImage2VideoFastV1"
    assert [size["value"] for size in first["resolutionList"]] == [
        *("720p", "1080p", "4k")
    ]
    assert first["durationList"] == [5, 10]
    assert {model["value"] for model in listed[1:]} == {"motion", "wan2.6-i2v"}


def test_other_kinds_of_model_are_not_ours() -> None:
    view = ModelView(MODELS["motion"], "motion", available=True)
    wire = WireRequest("GET", f"{V4}/aigModel/list", query={"types[]": "1502"})
    assert show_models([view], wire).body["data"] == []


# --------------------------------------------------------------------- webhook

CLIENT_ID, CLIENT_SECRET = "cid_0123456789ab", "0123456789abcdef0123456789abcdef"
PLAIN = (
    '{"_id":"64dd90f9f0b6684651e90d60","status":3,'
    '"type":"image2video","url":"https://x.example/v.mp4"}'
)
#: Computed with npm crypto-js and PyPI pycryptodome, which agree.
SEALED = {
    "signature": "ff4cfe9aa3304b1ee4a6d10a4f8edded38fc2cfb",
    "dataEncrypt": "5pUM3dRgOcns7X5fDmQLT+0YhVW9pwgAvXn6Ih7BjGe/hs+rtBjEHchQYUCIX56b"
    "yr0ZcglXNu+N/2x1Z566AA7kcJFt+yu4EDA6wXlVO7PKr7NN0jL/4mlmUGBF0bM/Fr3d3JuIHoDlEy+8"
    "eOQATg==",
    "timestamp": 1700000000000,
    "nonce": "1529",
}


def test_the_webhook_is_sealed_as_two_other_libraries_seal_it() -> None:
    made = sealed(
        PLAIN,
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        timestamp=1700000000000,
        nonce="1529",
    )
    assert made == SEALED


def _opened(body: dict[str, Any], secret: str) -> Any:
    cipher = Cipher(algorithms.AES(secret.encode()), modes.CBC(CLIENT_ID.encode()))
    decryptor = cipher.decryptor()
    data = (
        decryptor.update(base64.b64decode(body["dataEncrypt"])) + decryptor.finalize()
    )
    unpadder = padding.PKCS7(128).unpadder()
    return json.loads(unpadder.update(data) + unpadder.finalize())


@pytest.mark.parametrize("secret", ["k" * 24, "k" * 32])
@pytest.mark.parametrize(
    ("status", "number"), [("succeeded", 3), ("failed", 4), ("running", 2)]
)
def test_a_receiver_opens_what_we_seal(secret: str, status: str, number: int) -> None:
    view = pairs.view_of(
        {"id": "64dd90f9f0b6684651e90d60", "status": status, "video_url": "https://v"}
    )
    event = Event("evt_1", "job." + status, datetime.now(UTC), view)
    secrets = {"client_id": CLIENT_ID, "client_secret": secret}
    assert DIALECT.webhook is not None
    call = DIALECT.webhook(event, secrets)
    body = json.loads(call.body)
    parts = [CLIENT_ID, str(body["timestamp"]), body["nonce"], body["dataEncrypt"]]
    signed = hashlib.sha1("".join(sorted(parts)).encode()).hexdigest()
    assert body["signature"] == signed
    plain = _opened(body, secret)
    assert (plain["_id"], plain["status"]) == (view.id, number)
    assert ("url" in plain) == (status == "succeeded")
    # A repeated delivery is the same call.
    assert DIALECT.webhook(event, secrets) == call


# ------------------------------------------------------------------- the door


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"authorization": "Bearer t", "x-api-key": "k"}, "t"),
        ({"authorization": "t"}, "t"),
        ({"x-api-key": "k"}, "k"),
        ({"authorization": "", "x-api-key": "k"}, "k"),
        ({}, None),
    ],
)
def test_authorization_wins_over_the_api_key(
    headers: dict[str, str], key: str | None
) -> None:
    assert DIALECT.key_of(headers) == key


def test_a_wrong_client_pair_is_an_invalid_authorization() -> None:
    wire = WireRequest("POST", "/api/open/v3/getToken", operation=Operation.TOKEN)
    route = wires.route_of("akool", "POST", wire.path)
    answer = route.render(Unauthenticated(), wire)
    assert (answer.status, answer.body["code"]) == (200, 1101)


ANYTHING = wires.bodies(
    {**GOOD, "audio_url": SOUND, "effect_code": "", "webhookurl": "", "count": 2}
    | {"model_name": "akool-i2v", "generate_audio": True, "last_image_url": ""}
    | {"_ids": "a,b", "pre_video_id": "a", "clientId": "a", "clientSecret": "b"}
)


@pytest.mark.parametrize(
    "path", [route.path for route in DIALECT.routes if route.method == "POST"]
)
@given(body=ANYTHING)
def test_anything_is_a_command_or_a_documented_refusal(path: str, body: Any) -> None:
    try:
        wires.send("akool", "POST", path, body)
    except ApiError as refused:
        answer = DIALECT.error(refused, WireRequest("POST", path))
        assert answer.status == 200
        assert answer.body.keys() == {"code", "msg"}
        assert answer.body["code"] != 1000
        json.dumps(answer.body)


@given(query=st.dictionaries(st.sampled_from(["types[]", "types", "x"]), st.text()))
def test_any_query_is_read(query: dict[str, str]) -> None:
    for path in (f"{V4}/aigModel/list", f"{V4}/image2Video/effects"):
        wires.send("akool", "GET", path, query=query)


def test_what_is_refused_after_parsing_gets_the_wire_name() -> None:
    refused = InvalidRequest("effect", "There is no such one.")
    assert "effect_code" in wires.refusal("akool", refused).body["msg"]
