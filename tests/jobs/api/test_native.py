"""The native API as a customer sees it."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import DataError
from django.test import Client

from billing.models import Account
from inference.catalogue import MODELS
from jobs.models import IdempotencyRecord, Job
from tests.factories import make_account, make_key, png

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

PICTURE = base64.b64encode(png()).decode()
TALL = base64.b64encode(png(64, 6000)).decode()


class Api:
    def __init__(self, key: str | None) -> None:
        self.client = Client(raise_request_exception=False, enforce_csrf_checks=True)
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def get(self, path: str, **headers: str) -> Any:
        return self.client.get(path, headers={**self.headers, **headers})

    def delete(self, path: str) -> Any:
        return self.client.delete(path, headers=self.headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        return self.client.generic(
            "POST",
            path,
            body if isinstance(body, bytes) else json.dumps(body),
            content_type=headers.pop("content_type", "application/json"),
            headers={**self.headers, **headers},
        )


@pytest.fixture
def alice() -> Account:
    return make_account("alice", credits=100)


@pytest.fixture
def api(alice: Account) -> Api:
    return Api(make_key(alice))


@pytest.fixture
def mallory() -> Api:
    return Api(make_key(make_account("mallory", credits=100)))


def create(api: Api, **options: Any) -> Any:
    return api.post("/v1/jobs", {"image": PICTURE, **options})


def test_a_created_job_shows_what_it_will_be_and_cost(api: Api) -> None:
    response = create(api, prompt="push in", seconds=5, seed=7)
    assert response.status_code == 202
    job = response.json()
    assert response["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["status"], job["step"]) == ("queued", "prepare")
    assert job["credits"] == {
        "quoted": 1.0,
        "held": 1.0,
        "charged": 0.0,
        "refunded": 0.0,
    }
    assert job["parameters"]["seed"] == 7
    assert job["parameters"]["frames"] == 80
    assert job["parameters"]["resolution"] == "720p"


def test_a_job_is_read_back_with_its_place_in_the_queue(api: Api) -> None:
    create(api)
    second = create(api).json()["id"]
    job = api.get(f"/v1/jobs/{second}").json()
    assert job["queue_position"] == 2
    assert job["eta_seconds"] > 0


def test_a_priority_moves_a_job_before_own_ones_that_wait_for_a_slot(
    api: Api, alice: Account, mallory: Api
) -> None:
    plan = alice.plan
    plan.max_running = 1
    plan.save()
    jobs = [create(one).json()["id"] for one in (mallory, api, api)]
    jobs.append(create(api, priority=9).json()["id"])
    places = [api.get(f"/v1/jobs/{job}").json()["queue_position"] for job in jobs[1:]]
    assert places == [2, 4, 3]


@pytest.mark.parametrize(
    "send",
    [
        {"image": PICTURE},
        {"image": f"data:image/png;base64,{PICTURE}"},
        {"image": "https://example.com/cat.jpg"},
    ],
)
def test_pictures_come_as_base64_data_uri_or_url(
    api: Api, send: dict[str, str]
) -> None:
    assert api.post("/v1/jobs", send).status_code == 202


def test_pictures_come_as_a_file_part(api: Api) -> None:
    response = api.client.post(
        "/v1/jobs",
        {
            "model": "motion",
            "seconds": "2",
            "metadata": '{"order": "17"}',
            "image": SimpleUploadedFile("a.png", png(), "image/png"),
        },
        headers=api.headers,
    )
    assert response.status_code == 202, response.content
    assert response.json()["metadata"] == {"order": "17"}


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("image", {}),
        ("image", {"image": 3}),
        ("image", {"image": "not base64!"}),
        ("image", {"image": base64.b64encode(b"GIF89a....").decode()}),
        ("image", {"image": "http://127.0.0.1/a.png"}),
        ("image", {"image": "http://0x7f000001/a.png"}),
        ("image", {"image": "file:///etc/passwd"}),
        ("model", {"image": PICTURE, "model": "nope"}),
        ("seconds", {"image": PICTURE, "seconds": 16}),
        ("seconds", {"image": PICTURE, "seconds": "long"}),
        ("seconds", {"image": PICTURE, "seconds": True}),
        ("seconds", {"image": PICTURE, "seconds": -1}),
        ("fps", {"image": PICTURE, "fps": 60}),
        ("seed", {"image": PICTURE, "seed": 1.5}),
        ("seed", {"image": PICTURE, "seed": -2}),
        ("resolution", {"image": PICTURE, "resolution": "8k"}),
        ("steps", {"image": PICTURE, "steps": 20}),
        ("loras", {"image": PICTURE, "loras": [{"path": "x"}]}),
        ("audio.mode", {"image": PICTURE, "audio": {"mode": "loud"}}),
        ("audio.url", {"image": PICTURE, "audio": {"mode": "url"}}),
        ("audio.url", {"image": PICTURE, "audio": {"url": "ftp://x/y"}}),
        ("webhook.url", {"image": PICTURE, "webhook": "http://10.0.0.1/"}),
        ("webhook.url", {"image": PICTURE, "webhook": "http://example.com/hook"}),
        ("metadata.a", {"image": PICTURE, "metadata": {"a": 1}}),
        ("prompt", {"image": PICTURE, "prompt": "x" * 2001}),
        ("prompt", {"image": PICTURE, "prompt": "a\x00b"}),
        ("prompt", {"image": PICTURE, "prompt": "\ud800"}),
        ("effect", {"image": PICTURE, "effect": "nope"}),
        ("surprise", {"image": PICTURE, "surprise": 1}),
        ("size", {"image": PICTURE, "size": "1281x720"}),
        ("size", {"image": PICTURE, "size": "64x16386"}),
        ("size", {"image": PICTURE, "size": "16386x64"}),
        ("image", {"image": TALL, "resolution": "1080p"}),
        ("image", {"image": TALL, "resolution": "4k", "model": "wan2.2-i2v"}),
        ("size", {"image": PICTURE, "size": "1920x1080", "resolution": "720p"}),
        ("size", {"image": PICTURE, "size": "9998x9998"}),
    ],
)
def test_bad_input_is_refused_naming_the_field(
    api: Api, field: str, body: dict[str, Any]
) -> None:
    response = api.post("/v1/jobs", body)
    assert response.status_code == 422, response.content
    assert response["Content-Type"] == "application/problem+json"
    assert response.json()["errors"][0]["field"] == field
    assert not Job.objects.exists()


@pytest.mark.parametrize(
    "options",
    [
        {"image": TALL, "resolution": "480p"},
        {"image": TALL, "resolution": "1080p", "aspect_ratio": "9:16"},
        {"image": TALL, "resolution": "1080p", "size": "64x16384"},
    ],
)
def test_a_very_tall_picture_is_taken_where_a_file_can_hold_it(
    api: Api, options: dict[str, str]
) -> None:
    assert create(api, **options).status_code == 202


@pytest.mark.parametrize(
    ("model", "span"),
    [("wan2.1-i2v", "5"), ("wan2.2-i2v", "1 to 10"), ("motion", "1 to 15")],
)
def test_a_length_that_cannot_be_is_refused_with_those_that_can(
    api: Api, model: str, span: str
) -> None:
    answer = api.post("/v1/quotes", {"image": PICTURE, "model": model, "seconds": 30})
    assert answer.json()["detail"] == f"Model '{model}' makes {span} seconds."


def test_what_a_model_cannot_do_is_refused_naming_those_that_can(api: Api) -> None:
    problem = create(api, steps=20).json()
    assert "wan2.2-i2v" in problem["supported_by"]
    assert "motion" in problem["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"{",
        b"NaN",
        b"\xff\xfe",
    ],
)
def test_broken_json_is_refused(api: Api, body: bytes) -> None:
    response = api.post("/v1/jobs", body)
    assert response.status_code == 400, response.content[:300]
    assert response.json()["code"] == "malformed_body"


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("seed", b'{"seed": NaN}'),
        ("seed", b'{"seed": ' + b"9" * 100_000 + b"}"),
        ("seconds", b'{"seconds": 1e999}'),
        ("seconds", b'{"seconds": 1.' + b"1" * 100_000 + b"}"),
        ("audio.volume", b'{"audio": {"volume": -Infinity}}'),
        ("loras[1].scale", b'{"loras": [{}, {"scale": NaN}]}'),
    ],
)
def test_numbers_nobody_can_hold_are_refused_naming_the_field(
    api: Api, field: str, body: bytes
) -> None:
    response = api.post("/v1/jobs", body)
    assert response.status_code == 422, response.content[:300]
    assert response.json()["errors"][0]["field"] == field


@pytest.mark.parametrize("text", ["a\\u0000b", "\\ud800"])
@pytest.mark.parametrize("name", ["metadata", "loras", "audio", "webhook"])
def test_json_inside_a_text_is_held_to_the_same_rules(
    api: Api, name: str, text: str
) -> None:
    inside = f'{{"a": "{text}"}}'
    for answer in (
        create(api, **{name: inside}),
        api.client.post(
            "/v1/jobs",
            {"image": SimpleUploadedFile("a.png", png()), name: inside},
            headers=api.headers,
        ),
    ):
        assert answer.status_code == 422, answer.content
        assert answer.json()["errors"][0]["field"] == f"{name}.a"


def test_what_the_database_cannot_hold_is_the_callers_mistake(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*_: Any, **__: Any) -> None:
        raise DataError("such a value cannot be")

    monkeypatch.setattr("jobs.intake.submit", stumble)
    response = create(api)
    assert response.status_code == 400
    assert response.json()["code"] == "malformed_body"


def test_other_types_are_refused(api: Api) -> None:
    response = api.post("/v1/jobs", b"{}", content_type="application/xml")
    assert response.status_code == 415


def test_other_charsets_are_refused(api: Api) -> None:
    marked = {"Zoetrope-Body": "charset"}  # as the ASGI door marks them
    assert api.post("/v1/jobs", b"{}", **marked).status_code == 415


@pytest.mark.parametrize(
    ("mark", "status"), [("too-large", 413), ("too-slow", 408), ("no-room", 503)]
)
def test_what_the_door_did_not_read_is_refused(
    api: Api, mark: str, status: int
) -> None:
    answer = api.post("/v1/jobs", b"{}", **{"Zoetrope-Body": mark})
    assert answer.status_code == answer.json()["status"] == status
    assert answer.has_header("Retry-After") is (status == 503)


def test_a_form_of_escapes_alone_is_refused_before_it_is_read(api: Api) -> None:
    body = b"prompt=" + b"%41" * 600_000  # reading it takes 100 MB of memory
    answer = api.post(
        "/v1/jobs", body, content_type="application/x-www-form-urlencoded"
    )
    assert answer.status_code == 400
    assert "escapes" in answer.json()["detail"]


def test_a_picture_over_the_limit_is_refused(api: Api) -> None:
    response = create(api, image="A" * (15 * 2**20))
    assert response.status_code == 413
    assert response.json()["errors"][0]["field"] == "image"


def test_a_body_over_the_limit_is_refused(api: Api) -> None:
    response = api.post("/v1/jobs", b" " * (33 * 2**20))
    assert response.status_code == 413


def test_a_first_and_a_last_picture_may_both_be_large(alice: Account) -> None:
    api = Api(make_key(alice, "test"))
    large = png() + os.urandom(10 * 2**20 - 1000)
    asked = {"model": "wan2.7-i2v", "prompt": "waves"}
    names = ("image", "last_image")
    parts = {name: SimpleUploadedFile("a.png", large, "image/png") for name in names}
    answer = api.client.post("/v1/quotes", {**asked, **parts}, headers=api.headers)
    assert answer.status_code == 200, answer.content
    text = base64.b64encode(large).decode()
    body = json.dumps({**asked, **dict.fromkeys(names, text)}).replace("/", "\\/")
    assert api.post("/v1/quotes", body.encode()).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer x"},
        {"Authorization": "Basic dTpw"},
        {"Authorization": "Bearer zoe_live_aaaaaaaa_" + "a" * 43 + "_000000"},
    ],
)
def test_every_bad_key_gets_the_same_answer(db: None, headers: dict[str, str]) -> None:
    client = Client(headers=headers)
    response = client.get("/v1/jobs")
    assert response.status_code == 401
    assert response.json()["detail"] == "A valid API key is required."


def test_nobody_sees_anybody_elses_job(api: Api, mallory: Api) -> None:
    job = create(api).json()["id"]
    unknown = "00000000-0000-4000-8000-000000000000"
    for path in ("/v1/jobs/{}", "/v1/jobs/{}/content"):
        answers = [mallory.get(path.format(i)) for i in (job, unknown, "x")]
        assert {a.status_code for a in answers} == {404}
        assert len({a.json()["detail"] for a in answers}) == 1
    assert mallory.post(f"/v1/jobs/{job}/cancel").status_code == 404
    assert mallory.delete(f"/v1/jobs/{job}").status_code == 404
    assert mallory.get("/v1/jobs").json()["data"] == []


def test_jobs_are_listed_by_pages_and_filters(api: Api) -> None:
    ids = [create(api).json()["id"] for _ in range(5)]
    api.post(f"/v1/jobs/{ids[0]}/cancel")
    first = api.get("/v1/jobs?limit=3").json()
    assert [job["id"] for job in first["data"]] == ids[:1:-1]
    rest = api.get(f"/v1/jobs?limit=3&cursor={first['next_cursor']}").json()
    assert [job["id"] for job in rest["data"]] == ids[1::-1]
    assert not rest["has_more"]
    canceled = api.get("/v1/jobs?status=canceled").json()["data"]
    assert [job["id"] for job in canceled] == [ids[0]]
    assert api.get("/v1/jobs?status=lost").status_code == 422
    assert api.get("/v1/jobs?limit=1000").status_code == 422
    assert api.get("/v1/jobs?account_id=1").status_code == 422


@pytest.mark.parametrize("name", ["created_after", "created_before"])
def test_jobs_are_listed_by_time_in_any_zone(api: Api, name: str) -> None:
    create(api)
    found = {"created_after": 0, "created_before": 1}[name]
    for zone in ("Z", "%2B20:00", "-23:59", "%2B23:59:59"):
        answer = api.get(f"/v1/jobs?{name}=2200-01-01T00:00:00{zone}")
        assert answer.status_code == 200, answer.content
        assert len(answer.json()["data"]) == found
    for time in ("0001-01-01T00:00:00%2B20:00", "9999-12-31T23:59:59-20:00", "soon"):
        answer = api.get(f"/v1/jobs?{name}={time}")
        assert answer.status_code == 422, answer.content
        assert answer.json()["errors"][0]["field"] == name


def test_a_canceled_job_gives_its_credits_back(api: Api) -> None:
    job = create(api).json()["id"]
    answer = api.post(f"/v1/jobs/{job}/cancel").json()
    assert answer["status"] == "canceled"
    assert answer["credits"]["refunded"] == 1.0
    assert api.get("/v1/balance").json()["available_credits"] == 100.0


def test_without_credits_the_answer_says_what_is_missing(db: None) -> None:
    bob = Api(make_key(make_account("bob")))
    response = create(bob, seconds=15)
    assert response.status_code == 402
    assert response.json()["required_credits"] == 3.0
    assert response.json()["available_credits"] == 0.0


@pytest.mark.parametrize(
    ("model", "size", "resolution", "credits"),
    [
        ("akool-i2v", "1280x720", "720p", 20),
        ("akool-i2v", "1920x1080", "1080p", 25),
        ("akool-i2v", "3840x2160", "4k", 30),
        ("wan2.6-i2v", "1280x720", "720p", 50),
        ("wan2.6-i2v", "1680x720", "720p", 50),  # 21:9 keeps its short side
        ("wan2.6-i2v", "1024x1792", "1080p", 75),
        ("wan2.1-i2v", "854x480", "480p", 20),
        ("wan2.1-i2v", "1280x720", "720p", 40),
        ("wan2.1-i2v", "1920x1080", "1080p", 45),  # 5 more for enlarging
    ],
)
def test_an_exact_size_costs_what_its_resolution_costs(
    alice: Account, model: str, size: str, resolution: str, credits: int
) -> None:
    """Whether or not it is named; a smaller one is not taken for it."""
    api = Api(make_key(alice, mode="test"))
    body = {"image": PICTURE, "model": model, "size": size}
    assert api.post("/v1/quotes", body).json()["credits"] == credits
    named = {**body, "resolution": resolution}
    assert api.post("/v1/quotes", named).json()["credits"] == credits
    offered = (*MODELS[model].tiers, *MODELS[model].upscaled_tiers)
    for lower in offered[: offered.index(resolution)]:
        refused = api.post("/v1/quotes", {**body, "resolution": lower})
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["field"] == "size"


def test_a_quote_is_what_the_job_then_costs(api: Api) -> None:
    body = {"image": PICTURE, "seconds": 12}
    quote = api.post("/v1/quotes", body).json()
    assert quote["credits"] == 3.0
    assert api.post("/v1/jobs", body).json()["credits"]["held"] == 3.0


def test_models_show_their_limits_and_whether_they_are_available(api: Api) -> None:
    models = {m["id"]: m for m in api.get("/v1/models").json()["data"]}
    assert models["motion"]["available"]
    assert not models["wan2.6-i2v"]["available"]
    assert models["sora-2"]["alias_of"] == "wan2.7-i2v"
    assert api.get("/v1/models/alibaba/wan-2-7-i2v").json()["object"] == "model"
    assert api.get("/v1/models/nope").status_code == 404


@pytest.mark.parametrize(
    ("body", "shift"),
    [
        ({"resolution": "480p"}, 3.0),
        ({"resolution": "720p"}, 5.0),
        ({"resolution": "4k"}, 5.0),
        ({"resolution": "480p", "flow_shift": 4.5}, 4.5),
    ],
)
def test_an_option_not_given_is_what_the_resolutions_own_weights_want(
    alice: Account, body: dict[str, Any], shift: float
) -> None:
    api = Api(make_key(alice, mode="test"))
    model = api.get("/v1/models/wan2.1-i2v").json()
    assert model["defaults"]["flow_shift"] == 5.0
    assert model["resolution_defaults"] == {"480p": {"flow_shift": 3.0}}
    answer = create(api, model="wan2.1-i2v", **body)
    assert answer.json()["parameters"]["flow_shift"] == shift


def test_a_model_without_a_route_is_refused_before_charging(api: Api) -> None:
    response = create(api, model="wan2.6-i2v")
    assert response.status_code == 503
    assert response.json()["code"] == "model_unavailable"
    assert api.get("/v1/balance").json()["held_credits"] == 0.0


def test_repeating_a_call_with_its_idempotency_key_changes_nothing(api: Api) -> None:
    body = {"image": PICTURE}
    first = api.post("/v1/jobs", body, **{"Idempotency-Key": "k1"})
    again = api.post("/v1/jobs", body, **{"Idempotency-Key": "k1"})
    assert again.status_code == 202
    assert again["Idempotent-Replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    assert Job.objects.count() == 1
    other = api.post("/v1/jobs", {**body, "seed": 3}, **{"Idempotency-Key": "k1"})
    assert other.status_code == 422
    assert other.json()["code"] == "idempotency_mismatch"


@pytest.mark.parametrize(
    ("path", "body", "secrets"),
    [
        ("/v1/keys", {"client_pair": True}, ("key", "client_secret")),
        ("/v1/webhooks", {"url": "https://example.com/hook"}, ("secret",)),
    ],
)
def test_repeating_a_call_that_makes_a_secret_makes_no_second_one(
    api: Api, path: str, body: dict[str, Any], secrets: tuple[str, ...]
) -> None:
    before = len(api.get(path).json()["data"])
    first = api.post(path, body, **{"Idempotency-Key": "s1"})
    again = api.post(path, body, **{"Idempotency-Key": "s1"})
    assert (first.status_code, again.status_code) == (201, 201)
    assert again["Idempotent-Replayed"] == "true"
    assert again.json() == first.json() | dict.fromkeys(secrets)
    assert len(api.get(path).json()["data"]) == before + 1
    kept = str(IdempotencyRecord.objects.values_list("body", flat=True))
    for name in secrets:
        assert first.json()[name] not in kept
    assert api.post(path, {}, **{"Idempotency-Key": "s1"}).status_code == 422


def test_a_refused_call_does_not_use_up_its_idempotency_key(api: Api) -> None:
    bad = api.post("/v1/jobs", {"image": "?"}, **{"Idempotency-Key": "k2"})
    assert bad.status_code == 422
    good = api.post("/v1/jobs", {"image": PICTURE}, **{"Idempotency-Key": "k2"})
    assert good.status_code == 202


@pytest.mark.parametrize("key", ["", "x" * 256, "a\u0007b"])
def test_absurd_idempotency_keys_are_refused(api: Api, key: str) -> None:
    response = api.post("/v1/jobs", {"image": PICTURE}, **{"Idempotency-Key": key})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "Idempotency-Key"


def test_a_read_key_cannot_create(alice: Account) -> None:
    reader = Api(make_key(alice, "live", "jobs:read"))
    assert create(reader).status_code == 403
    assert reader.get("/v1/jobs").status_code == 200


def test_unknown_paths_and_methods_are_problems_too(api: Api) -> None:
    assert api.get("/v1/nothing").json()["code"] == "not_found"
    wrong = api.client.put("/v1/jobs", headers=api.headers)
    assert wrong.status_code == 405
    assert wrong["Allow"] == "POST, GET"


def test_keys_are_made_listed_and_revoked(api: Api) -> None:
    made = api.post("/v1/keys", {"name": "ci", "scopes": ["jobs:read"]})
    assert made.status_code == 201
    reader = Api(made.json()["key"])
    assert reader.get("/v1/jobs").status_code == 200
    listed = api.get("/v1/keys").json()["data"]
    assert made.json()["id"] in [key["id"] for key in listed]
    assert api.delete(f"/v1/keys/{made.json()['id']}").status_code == 200


def test_a_test_key_neither_sees_nor_spends_what_is_live(
    api: Api, alice: Account
) -> None:
    create(api)
    rehearsal = Api(make_key(alice, "test"))
    job = create(rehearsal, model="wan2.6-i2v").json()
    assert job["simulated"]
    assert [j["id"] for j in rehearsal.get("/v1/jobs").json()["data"]] == [job["id"]]


def test_the_ledger_shows_each_movement(api: Api) -> None:
    create(api)
    kinds = [row["kind"] for row in api.get("/v1/ledger").json()["data"]]
    assert kinds[:2] == ["hold", "grant"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/jobs/a%00b"),
        ("DELETE", "/v1/keys/%00"),
        ("GET", "/v1/models/a/%00"),
        ("DELETE", "/v1/webhooks/%00"),
        ("POST", "/v1/webhooks/deliveries/%00/replay"),
    ],
)
def test_nul_in_a_path_is_a_path_nobody_serves(
    api: Api, method: str, path: str
) -> None:
    answer = api.client.generic(method, path, headers=api.headers)
    assert answer.status_code == 404
    assert answer.json()["status"] == 404
