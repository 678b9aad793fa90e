"""Novita's, Akool's and DashScope's formats over HTTP: their statuses, their words."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.test import Client

from billing.models import Account
from jobs.models import Job
from tests.factories import make_account, make_key, png

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

PICTURE = base64.b64encode(png(480, 832)).decode()
AKOOL = "/api/open/v4/image2Video"
VIDEO = "/api/v1/services/aigc/video-generation/video-synthesis"
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@dataclass(frozen=True)
class Format:
    """What one service calls things; ``refusals`` maps a cause to status and code."""

    name: str
    create: str
    body: Mapping[str, Any]
    wrong_field: tuple[str, Any]
    status: Callable[[Caller, str], Any]
    id_of: Callable[[Any], str]
    is_refusal: Callable[[Any], bool]
    code_of: Callable[[Any], object]
    refusals: Mapping[str, tuple[int, object]]
    unknown_id: str = UNKNOWN
    headers: Mapping[str, str] = field(default_factory=dict)


class Caller:
    def __init__(self, key: str | None) -> None:
        self.client = Client(raise_request_exception=False)
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def get(self, path: str) -> Any:
        return self.client.get(path, headers=self.headers)

    def post(self, path: str, body: Any = b"", **headers: str) -> Any:
        return self.client.generic(
            "POST",
            path,
            body if isinstance(body, bytes) else json.dumps(body),
            content_type="application/json",
            headers={**self.headers, **headers},
        )

    def submit(self, form: Format, body: Any = None, **headers: str) -> Any:
        given = form.body if body is None else body
        return self.post(form.create, given, **{**form.headers, **headers})

    def create(self, form: Format) -> str:
        answer = self.submit(form)
        assert answer.status_code == 200, answer.content
        return form.id_of(answer.json())


FORMATS = {
    one.name: one
    for one in (
        Format(
            name="novita",
            create="/v3/async/wan-i2v",
            body={"image_url": PICTURE, "prompt": "waves"},
            wrong_field=("steps", 99),
            status=lambda who, name: who.get(f"/v3/async/task-result?task_id={name}"),
            id_of=lambda body: body["task_id"],
            is_refusal=lambda body: (
                body.keys() == {"code", "reason", "message", "metadata"}
            ),
            code_of=lambda body: body["reason"],
            refusals={
                "invalid": (400, "INVALID_REQUEST_BODY"),
                "no key": (400, "MISSING_API_KEY"),
                "bad key": (403, "INVALID_API_KEY"),
                "scope": (403, "FEATURE_NOT_ALLOWED"),
                "credits": (400, "BILLING_BALANCE_NOT_ENOUGH"),
                "throttle": (429, "RATE_LIMIT_EXCEEDED"),
                "unknown": (404, "TASK_NOT_FOUND"),
                "path": (404, "API_NOT_FOUND"),
                "method": (405, "API_NOT_FOUND"),
                "too large": (400, "IMAGE_FILE_EXCEEDS_MAX_SIZE"),
            },
        ),
        Format(
            name="akool",
            create=f"{AKOOL}/createBySourcePrompt",
            body={
                "image_url": PICTURE,
                "prompt": "waves",
                "negative_prompt": "",
                "resolution": "720p",
                "audio_type": 3,
                "video_length": 5,
            },
            wrong_field=("video_length", 7),
            status=lambda who, name: who.post(f"{AKOOL}/resultsByIds", {"_ids": name}),
            id_of=lambda body: body["data"]["_id"],
            is_refusal=lambda body: body.keys() == {"code", "msg"},
            code_of=lambda body: body["code"],
            unknown_id="0" * 24,
            refusals={
                "invalid": (200, 1003),
                "no key": (200, 1102),
                "bad key": (200, 1101),
                "scope": (200, 1009),
                "credits": (200, 1006),
                "throttle": (200, 1005),
                "unknown": (200, 1008),
                "path": (404, 1003),
                "method": (405, 1003),
                "too large": (200, 1003),
            },
        ),
        Format(
            name="dashscope",
            create=VIDEO,
            body={
                "model": "wan2.6-i2v",
                "input": {"img_url": PICTURE, "prompt": "waves"},
                "parameters": {"resolution": "720P", "duration": 5},
            },
            headers={"X-DashScope-Async": "enable"},
            wrong_field=("parameters", {"duration": 7}),
            status=lambda who, name: who.get(f"/api/v1/tasks/{name}"),
            id_of=lambda body: body["output"]["task_id"],
            is_refusal=lambda body: body.keys() == {"code", "message", "request_id"},
            code_of=lambda body: body.get("code", body.get("output")),
            refusals={
                "invalid": (400, "InvalidParameter"),
                "no key": (401, "InvalidApiKey"),
                "bad key": (401, "InvalidApiKey"),
                "scope": (403, "AccessDenied"),
                "credits": (400, "Arrearage"),
                "throttle": (429, "Throttling.RateQuota"),
                "unknown": (200, {"task_id": UNKNOWN, "task_status": "UNKNOWN"}),
                "path": (404, "InvalidParameter"),
                "method": (405, "UnsupportedOperation"),
                "too large": (400, "InvalidParameter"),
            },
        ),
    )
}
every_format = pytest.mark.parametrize("form", FORMATS.values(), ids=list(FORMATS))


def assert_refused(form: Format, answer: Any, cause: str) -> None:
    status, code = form.refusals[cause]
    assert (answer.status_code, form.code_of(answer.json())) == (status, code)
    if cause != "unknown":
        assert form.is_refusal(answer.json())


@pytest.fixture
def alice() -> Account:
    return make_account("alice")


@pytest.fixture
def caller(alice: Account) -> Caller:
    return Caller(make_key(alice, "test"))


@pytest.fixture
def mallory() -> Caller:
    return Caller(make_key(make_account("mallory"), "test"))


@every_format
def test_a_test_key_makes_a_job_and_reads_it_back(caller: Caller, form: Format) -> None:
    made = caller.create(form)
    answer = form.status(caller, made)
    assert answer.status_code == 200
    assert made in answer.content.decode()
    job = Job.objects.get()
    assert (job.dialect, job.public_id, job.mode) == (form.name, made, "test")


@every_format
def test_somebody_elses_job_looks_like_an_unknown_one(
    caller: Caller, mallory: Caller, form: Format
) -> None:
    made = caller.create(form)
    foreign = form.status(mallory, made)
    unknown = form.status(mallory, form.unknown_id)
    assert_refused(form, unknown, "unknown")
    assert foreign.status_code == unknown.status_code
    told = foreign.content.decode().replace(made, form.unknown_id)
    assert form.code_of(json.loads(told)) == form.refusals["unknown"][1]


@every_format
def test_a_job_shows_in_its_own_format_and_natively_only(
    caller: Caller, form: Format
) -> None:
    made = caller.create(form)
    native = str(Job.objects.get().pk)
    assert [j["id"] for j in caller.get("/v1/jobs").json()["data"]] == [native]
    for other in FORMATS.values():
        if other is not form:
            for name in (made, native):
                told = other.status(caller, name).content.decode()
                code = other.code_of(json.loads(told.replace(name, other.unknown_id)))
                assert code == other.refusals["unknown"][1]


@every_format
def test_a_bad_key_is_refused_in_the_formats_shape(db: None, form: Format) -> None:
    for key, cause in ((None, "no key"), ("nonsense", "bad key")):
        stranger = Caller(key)
        assert_refused(form, stranger.submit(form), cause)
        assert_refused(form, form.status(stranger, form.unknown_id), cause)


@every_format
def test_a_key_without_the_scope_is_refused(alice: Account, form: Format) -> None:
    reader = Caller(make_key(alice, "test", "jobs:read"))
    assert_refused(form, reader.submit(form), "scope")
    assert_refused(form, form.status(reader, form.unknown_id), "unknown")


def test_a_live_key_without_credits_is_refused(alice: Account) -> None:
    form = FORMATS["dashscope"]
    body = {**form.body, "model": "motion"}
    assert_refused(form, Caller(make_key(alice)).submit(form, body), "credits")
    rich = Caller(make_key(make_account("rich", credits=10)))
    assert rich.submit(form, body).status_code == 200


@every_format
def test_bad_input_is_refused_and_costs_nothing(caller: Caller, form: Format) -> None:
    name, value = form.wrong_field
    wrong: list[Any] = [
        {**form.body, name: value},
        {**form.body, "prompt": "a\x00b"},
        [],
        "text",
        b"{",
        b"[" * 200_000,
        b'{"a": NaN}',
        b'{"prompt": "\\ud800"}',
        b"\xff",
    ]
    for body in wrong:
        assert_refused(form, caller.submit(form, body), "invalid")
    named = caller.submit(form, wrong[0]).content.decode()
    assert name in named
    assert not Job.objects.exists()
    assert caller.get("/v1/balance").json()["held_credits"] == 0.0


@every_format
def test_text_without_a_picture_names_the_picture(caller: Caller, form: Format) -> None:
    body = json.loads(json.dumps(form.body).replace(PICTURE, ""))
    answer = caller.submit(form, body)
    assert_refused(form, answer, "invalid")
    assert (
        "img_url" in answer.content.decode() or "image_url" in answer.content.decode()
    )


@every_format
def test_a_picture_over_the_limit_is_refused(caller: Caller, form: Format) -> None:
    text = json.dumps(form.body).replace(PICTURE, "A" * (15 * 2**20))
    assert_refused(form, caller.submit(form, text.encode()), "too large")


@every_format
def test_wrong_methods_and_paths_are_refused_in_the_formats_shape(
    caller: Caller, form: Format
) -> None:
    method = caller.client.put(form.create, headers=caller.headers)
    assert_refused(form, method, "method")
    assert "POST" in method["Allow"]
    assert_refused(form, caller.get(form.create + "/no/such/path"), "path")


@every_format
def test_an_idempotency_key_works_in_every_format(caller: Caller, form: Format) -> None:
    first = caller.submit(form, **{"Idempotency-Key": "one"})
    again = caller.submit(form, **{"Idempotency-Key": "one"})
    assert first.json() == again.json()
    text = json.dumps(form.body).replace("waves", "rain")
    mismatch = caller.submit(form, text.encode(), **{"Idempotency-Key": "one"})
    assert_refused(form, mismatch, "invalid")
    assert Job.objects.count() == 1


@every_format
def test_too_many_requests_are_told_when_to_come_back(db: None, form: Format) -> None:
    free = Caller(make_key(make_account("bob", plan="free"), "test"))
    answers = (form.status(free, form.unknown_id) for _ in range(400))
    refused = next(answer for answer in answers if "Retry-After" in answer)
    assert int(refused["Retry-After"]) >= 1
    assert_refused(form, refused, "throttle")


# --------------------------------------------------------------- their specials


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v3/async/wan-2.2-i2v", "wan2.2-i2v-plus"),
        ("/v3/async/wan-2.5-i2v-preview", "wan2.5-i2v-preview"),
        ("/v3/async/wan2.6-i2v", "wan2.6-i2v"),
        ("/v3/async/wan2.7-i2v", "wan2.7-i2v"),
    ],
)
def test_novitas_newer_calls_make_their_models(
    caller: Caller, path: str, model: str
) -> None:
    flat = {"image_url": PICTURE, "prompt": "waves"}
    nested = {"input": {"img_url": PICTURE, "prompt": "waves"}}
    answer = caller.post(path, flat if "2.7" in path else nested)
    assert answer.status_code == 200, answer.content
    assert Job.objects.get().model == model


def test_novita_shows_the_balance_in_its_unit() -> None:
    rich = Caller(make_key(make_account("rich", credits=10)))
    body = rich.get("/v3/user").json()
    assert body == {"allow_features": [], "credit_balance": 1000, "free_trial": {}}


def test_novita_takes_a_bare_key(alice: Account) -> None:
    bare = Caller(None)
    bare.headers = {"Authorization": make_key(alice, "test")}
    assert bare.create(FORMATS["novita"])


def test_akool_takes_its_api_key_header(alice: Account) -> None:
    named = Caller(None)
    named.headers = {"x-api-key": make_key(alice, "test")}
    assert named.create(FORMATS["akool"])
    named.headers = {"x-api-key": "nonsense"}
    assert named.submit(FORMATS["akool"]).json()["code"] == 1109


def test_akool_exchanges_a_client_pair_for_a_token(alice: Account) -> None:
    key = make_key(alice, "test")
    pair = {"clientId": key.split("_")[2], "clientSecret": key}
    answer = Caller(None).post("/api/open/v3/getToken", pair).json()
    assert answer["code"] == 1000
    assert Caller(answer["token"]).create(FORMATS["akool"])
    wrong = Caller(None).post("/api/open/v3/getToken", {**pair, "clientId": "x"})
    assert (wrong.status_code, wrong.json()["code"]) == (200, 1101)


def test_akool_answers_for_several_ids_and_leaves_unknown_ones_out(
    caller: Caller,
) -> None:
    form = FORMATS["akool"]
    ids = [caller.create(form), "0" * 24, caller.create(form)]
    body = form.status(caller, ",".join(ids)).json()
    assert [item["_id"] for item in body["data"]["result"]] == [ids[0], ids[2]]
    assert {item["status"] for item in body["data"]["result"]} == {1}


def test_akool_shows_what_was_asked_beside_an_effect(caller: Caller) -> None:
    form = FORMATS["akool"]
    [effect, *_] = caller.get(f"{AKOOL}/effects").json()["data"]["result"]
    for extend in (True, False):
        order = {"effect_code": effect["effect_code"], "extend_prompt": extend}
        made = caller.submit(form, {**form.body, **order}).json()["data"]
        [item] = form.status(caller, made["_id"]).json()["data"]["result"]
        for told in (made, item):
            assert told["extend_prompt"] is extend
            assert (told["prompt"], told["effect_code"]) == (
                "waves",
                effect["effect_code"],
            )


def test_akool_shows_price_and_refund(caller: Caller) -> None:
    form = FORMATS["akool"]
    answer = caller.submit(form, {**form.body, "resolution": "1080p"}).json()
    assert answer["data"]["deduction_credit"] == 25
    deleted = caller.post(f"{AKOOL}/delbyids", {"_ids": answer["data"]["_id"]}).json()
    assert deleted["data"]["successIds"] == [answer["data"]["_id"]]
    assert form.status(caller, answer["data"]["_id"]).json()["code"] == 1008
    assert caller.get("/v1/balance").json()["held_credits"] == 0.0


def test_akool_does_not_delete_what_is_not_yours(
    caller: Caller, mallory: Caller
) -> None:
    made = caller.create(FORMATS["akool"])
    data = mallory.post(f"{AKOOL}/delbyids", {"_ids": made}).json()["data"]
    assert data["successIds"] == []
    assert [item["_id"] for item in data["noPermissionItems"]] == [made]
    assert Job.objects.get().status == "queued"


@pytest.mark.parametrize("change", [{"video_length": 10}, {"is_premium_model": True}])
def test_akools_plan_rules_are_code_1009(db: None, change: dict[str, Any]) -> None:
    form = FORMATS["akool"]
    free = Caller(make_key(make_account("bob", plan="free"), "test"))
    assert free.submit(form, {**form.body, **change}).json()["code"] == 1009
    assert not Job.objects.exists()


def test_akool_makes_a_batch(caller: Caller) -> None:
    body = {**FORMATS["akool"].body, "count": 3}
    answer = caller.post(f"{AKOOL}/createBySourcePrompt/batch", body).json()
    assert answer["code"] == 1000, answer
    assert len({item["_id"] for item in answer["data"]["successList"]}) == 3
    assert Job.objects.count() == 3


def test_akool_shows_quota_effects_and_models(caller: Caller) -> None:
    rich = Caller(make_key(make_account("rich", credits=10)))
    quota = rich.get("/api/open/v3/faceswap/quota/info").json()
    assert quota == {"code": 1000, "msg": "OK", "data": {"credit": 10}}
    effects = rich.get(f"{AKOOL}/effects").json()
    assert effects["data"].keys() == {"result", "count"}
    models = caller.get("/api/open/v4/aigModel/list?types[]=1501").json()["data"]
    assert models[0]["value"] == "AkoolImage2VideoFastV1"


def test_dashscope_cancels_a_pending_task_and_gives_the_credits_back(
    caller: Caller,
) -> None:
    form = FORMATS["dashscope"]
    made = caller.create(form)
    answer = caller.post(f"/api/v1/tasks/{made}/cancel")
    assert answer.status_code == 200
    assert answer.json().keys() == {"request_id"}
    task = form.status(caller, made).json()
    assert task["output"]["task_status"] == "CANCELED"
    assert caller.get("/v1/balance").json()["held_credits"] == 0.0


def test_dashscope_does_not_cancel_what_has_begun(caller: Caller) -> None:
    made = caller.create(FORMATS["dashscope"])
    Job.objects.update(status="running")
    for name in (made, UNKNOWN):
        answer = caller.post(f"/api/v1/tasks/{name}/cancel")
        assert answer.status_code == 400
        assert answer.json()["code"] == "UnsupportedOperation"
    assert Job.objects.get().status == "running"


def test_dashscope_finds_tasks_by_the_dated_name_they_were_made_by(
    caller: Caller,
) -> None:
    form = FORMATS["dashscope"]
    dated = "wan2.7-i2v-2026-04-25"
    made = caller.submit(form, {**form.body, "model": dated}).json()["output"]
    for name in (dated, "wan2.7-i2v"):
        found = caller.get(f"/api/v1/tasks?model_name={name}").json()
        assert [task["task_id"] for task in found["data"]] == [made["task_id"]]


def test_dashscope_lists_tasks_by_page_and_state(caller: Caller) -> None:
    form = FORMATS["dashscope"]
    made = [caller.create(form) for _ in range(3)]
    page = caller.get("/api/v1/tasks?page_no=2&page_size=2").json()
    assert [task["task_id"] for task in page["data"]] == made[:1]
    assert (page["total"], page["total_page"]) == (3, 2)
    for query in ("status=SUCCEEDED", "status=UNKNOWN", "model_name=wan2.7-i2v"):
        assert caller.get(f"/api/v1/tasks/?{query}").json()["total"] == 0
    assert caller.get("/api/v1/tasks/?status=PENDING").json()["total"] == 3


def test_dashscope_lists_tasks_by_key_and_region(alice: Account) -> None:
    form = FORMATS["dashscope"]
    keys = [make_key(alice, "test") for _ in range(2)]
    made = {key.split("_")[2]: Caller(key).create(form) for key in keys}
    caller = Caller(keys[0])
    for key_id, task_id in made.items():
        page = caller.get(f"/api/v1/tasks/?api_key_id={key_id}&region=default").json()
        assert page["total"] == 1
        [task] = page["data"]
        assert (task["task_id"], task["api_key_id"]) == (task_id, key_id)
        assert task["region"] == "default"
    for query in (
        "region=cn-beijing",
        "api_key_id=nobody",
        "start_time=20400101000000",
    ):
        page = caller.get(f"/api/v1/tasks/?{query}").json()
        assert (page["total"], page["data"]) == (0, [])
    assert caller.get("/api/v1/tasks/?region=&api_key_id=").json()["total"] == 2


def test_dashscope_takes_the_two_frames_of_a_kf2v_model(caller: Caller) -> None:
    answer = caller.post(
        "/api/v1/services/aigc/image2video/video-synthesis",
        {
            "model": "wanx2.1-kf2v-plus",
            "input": {"first_frame_url": PICTURE, "last_frame_url": PICTURE},
        },
        **{"X-DashScope-Async": "enable"},
    )
    assert answer.status_code == 200, answer.content
    assert Job.objects.get().request["last_image"]
