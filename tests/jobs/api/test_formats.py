"""The other services' formats over HTTP: same jobs, same money, their own words."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db.models.functions import Now
from django.test import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from billing import ledger
from billing.models import Account, Hold
from inference.catalogue import MODELS
from jobs.models import Job
from tests.factories import make_account, make_job, make_key, png
from tests.jobs import lives
from tests.jobs.dialects.wires import bodies, queries

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

PICTURE = base64.b64encode(png(480, 832)).decode()
UNKNOWN_UUID = "00000000-0000-4000-8000-000000000000"


@dataclass(frozen=True)
class Format:
    """What one service calls things. ``is_refusal`` knows its error body."""

    name: str
    create: str
    body: Mapping[str, Any]
    status: str
    id_of: Callable[[Any], str]
    unknown_id: str
    is_refusal: Callable[[Any], bool]
    accepted: int = 200
    invalid: int = 400
    wrong_field: tuple[str, Any] = ("", None)
    no_credits: int = 403
    #: may run on ``motion`` with a live key
    takes_any_model: bool = False


FORMATS = {
    one.name: one
    for one in (
        Format(
            name="magicoal",
            create="/api/v1/magicoal/generate/i2v",
            body={"image": PICTURE, "prompt": "waves", "num_frames": 33},
            status="/api/v1/magicoal/status/{}",
            id_of=lambda body: body["data"]["uuid"],
            unknown_id=UNKNOWN_UUID,
            is_refusal=lambda body: (
                body["success"] is False and {"code", "message"} <= body["error"].keys()
            ),
            accepted=202,
            invalid=422,
            wrong_field=("num_frames", 80),
        ),
        Format(
            name="aimlapi",
            create="/v2/video/generations",
            body={
                "model": "alibaba/wan-2-6-i2v",
                "prompt": "waves",
                "image_url": PICTURE,
            },
            status="/v2/video/generations?generation_id={}",
            id_of=lambda body: body["id"],
            unknown_id="V2cdWP9kao8xiofM-OvwG",
            is_refusal=lambda body: (
                {"requestId", "statusCode", "timestamp", "path", "message"}
                <= body.keys()
            ),
            wrong_field=("duration", 6),
            takes_any_model=True,
        ),
        Format(
            name="sinancode",
            create="/v1/generate/bailian/wan2-image-to-video",
            body={"image_url": PICTURE, "prompt": "waves"},
            status="/v1/tasks/{}",
            id_of=lambda body: body["task_id"],
            unknown_id=UNKNOWN_UUID,
            is_refusal=lambda body: body.keys() == {"error_code", "error_msg"},
            wrong_field=("resolution", "480P"),
        ),
        Format(
            name="openai",
            create="/v1/videos",
            body={
                "model": "sora-2",
                "prompt": "waves",
                "input_reference": {"image_url": f"data:image/png;base64,{PICTURE}"},
            },
            status="/v1/videos/{}",
            id_of=lambda body: body["id"],
            unknown_id="video_0",
            is_refusal=lambda body: (
                body["error"].keys() == {"message", "type", "param", "code"}
            ),
            wrong_field=("seconds", "99"),
            no_credits=429,
            takes_any_model=True,
        ),
    )
}
every_format = pytest.mark.parametrize("form", FORMATS.values(), ids=list(FORMATS))


class Caller:
    def __init__(self, key: str | None) -> None:
        self.client = Client(raise_request_exception=False)
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def get(self, path: str) -> Any:
        return self.client.get(path, headers=self.headers)

    def post(self, path: str, body: Any, **headers: str) -> Any:
        return self.client.generic(
            "POST",
            path,
            body if isinstance(body, bytes) else json.dumps(body),
            content_type="application/json",
            headers={**self.headers, **headers},
        )

    def create(self, form: Format, **changes: Any) -> str:
        answer = self.post(form.create, {**form.body, **changes})
        assert answer.status_code == form.accepted, answer.content
        return form.id_of(answer.json())


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
    answer = caller.get(form.status.format(made))
    assert answer.status_code == 200
    assert made in answer.content.decode()
    job = Job.objects.get()
    assert (job.dialect, job.public_id, job.mode) == (form.name, made, "test")


@every_format
def test_somebody_elses_job_looks_like_an_unknown_one(
    caller: Caller, mallory: Caller, form: Format
) -> None:
    made = caller.create(form)
    foreign = mallory.get(form.status.format(made))
    unknown = mallory.get(form.status.format(form.unknown_id))
    assert foreign.status_code == unknown.status_code == 404
    assert form.is_refusal(foreign.json())
    volatile = {"requestId", "timestamp"}
    assert {n: v for n, v in foreign.json().items() if n not in volatile} == {
        n: v for n, v in unknown.json().items() if n not in volatile
    }


@every_format
def test_an_id_with_nul_is_unknown(caller: Caller, form: Format) -> None:
    answer = caller.get(form.status.format("a%00b"))
    assert answer.status_code in (404, 422 if "?" in form.status else 404, 400)
    assert form.is_refusal(answer.json())


@every_format
def test_a_job_shows_in_its_own_format_and_natively_only(
    caller: Caller, form: Format
) -> None:
    made = caller.create(form)
    native = str(Job.objects.get().pk)
    assert caller.get(f"/v1/jobs/{native}").status_code == 200
    assert [j["id"] for j in caller.get("/v1/jobs").json()["data"]] == [native]
    for other in FORMATS.values():
        if other is not form:
            for name in (made, native):
                assert caller.get(other.status.format(name)).status_code == 404


@every_format
@pytest.mark.parametrize("key", [None, "", "nonsense", "zoe_test_x_y_z"])
def test_every_bad_key_is_refused_in_the_formats_shape(
    db: None, form: Format, key: str | None
) -> None:
    stranger = Caller(key)
    for answer in (
        stranger.post(form.create, form.body),
        stranger.get(form.status.format(form.unknown_id)),
    ):
        assert answer.status_code == 401
        assert form.is_refusal(answer.json())


@every_format
def test_a_key_without_the_scope_is_refused(alice: Account, form: Format) -> None:
    reader = Caller(make_key(alice, "test", "jobs:read"))
    answer = reader.post(form.create, form.body)
    assert answer.status_code == 403
    assert form.is_refusal(answer.json())
    assert reader.get(form.status.format(form.unknown_id)).status_code == 404


@pytest.mark.parametrize(
    "form",
    [one for one in FORMATS.values() if one.takes_any_model],
    ids=lambda form: form.name,
)
def test_a_live_key_makes_any_live_model_and_needs_credits(
    alice: Account, form: Format
) -> None:
    live = Caller(make_key(alice))
    answer = live.post(form.create, {**form.body, "model": "motion"})
    assert answer.status_code == form.no_credits
    assert form.is_refusal(answer.json())
    rich = Caller(make_key(make_account("rich", credits=10)))
    assert rich.create(form, model="motion")


@every_format
def test_bad_input_is_refused_and_costs_nothing(caller: Caller, form: Format) -> None:
    field, value = form.wrong_field
    wrong: list[Any] = [
        {**form.body, field: value},
        {},
        [],
        "text",
        b"{",
        b"[" * 200_000,
        b'{"a": NaN}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a\\u0000b"}',
        b"\xff",
    ]
    for body in wrong:
        answer = caller.post(form.create, body)
        assert answer.status_code in (400, form.invalid), body
        assert form.is_refusal(answer.json())
    named = caller.post(form.create, wrong[0])
    assert named.status_code == form.invalid
    assert field in named.content.decode()
    assert not Job.objects.exists()
    assert caller.get("/v1/balance").json()["held_credits"] == 0.0


@every_format
def test_a_picture_over_the_limit_is_refused(caller: Caller, form: Format) -> None:
    text = json.dumps(form.body).replace(PICTURE, "A" * (15 * 2**20))
    answer = caller.post(form.create, text.encode())
    assert answer.status_code in (400, 413)
    assert form.is_refusal(answer.json())


@every_format
def test_wrong_methods_and_paths_are_refused_in_the_formats_shape(
    caller: Caller, form: Format
) -> None:
    path = form.create
    method = caller.client.put(path, headers=caller.headers)
    assert method.status_code == 405
    assert "POST" in method["Allow"]
    assert form.is_refusal(method.json())
    nowhere = caller.get(path.rstrip("/") + "/no/such/path")
    assert nowhere.status_code == 404
    assert form.is_refusal(nowhere.json())


@every_format
def test_an_idempotency_key_works_in_every_format(caller: Caller, form: Format) -> None:
    first = caller.post(form.create, form.body, **{"Idempotency-Key": "one"})
    again = caller.post(form.create, form.body, **{"Idempotency-Key": "one"})
    assert first.json() == again.json()
    assert first.status_code == again.status_code == form.accepted
    other = {**form.body, "prompt": "rain"}
    mismatch = caller.post(form.create, other, **{"Idempotency-Key": "one"})
    assert mismatch.status_code in (400, 422)
    assert form.is_refusal(mismatch.json())
    assert Job.objects.count() == 1


@every_format
def test_a_clients_own_retry_makes_no_second_job(caller: Caller, form: Format) -> None:
    first = caller.create(form)
    retry = caller.post(form.create, form.body, **{"x-stainless-retry-count": "1"})
    assert form.id_of(retry.json()) == first
    assert caller.create(form) != first  # the same again, on purpose, is another one
    assert Job.objects.count() == 2


@every_format
def test_too_many_requests_are_told_when_to_come_back(db: None, form: Format) -> None:
    free = Caller(make_key(make_account("bob", plan="free"), "test"))
    path = form.status.format(form.unknown_id)
    answers = (free.get(path) for _ in range(400))
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused["Retry-After"]) >= 1
    assert form.is_refusal(refused.json())


@every_format
def test_our_own_mistakes_have_the_formats_shape_too(
    caller: Caller, form: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*_: Any, **__: Any) -> None:
        raise RuntimeError("the secret reason")

    monkeypatch.setattr("jobs.intake.submit", stumble)
    answer = caller.post(form.create, form.body)
    assert answer.status_code == 500
    assert form.is_refusal(answer.json())
    assert "secret" not in answer.content.decode()


def test_coals_answers_carry_the_rate_limit(caller: Caller) -> None:
    form = FORMATS["magicoal"]
    for answer in (
        caller.post(form.create, form.body),
        caller.get("/api/v1/magicoal/videos"),
        caller.get("/api/v1/magicoal/quota"),
        caller.post(form.create, {}),
        caller.get(form.status.format(form.unknown_id)),
    ):
        assert int(answer["X-RateLimit-Limit"]) > 0
        assert int(answer["X-RateLimit-Remaining"]) >= 0
        assert int(answer["X-RateLimit-Reset"]) > 1_700_000_000


@every_format
def test_whatever_is_sent_is_answered_and_a_refusal_costs_nothing(
    form: Format,
) -> None:
    caller = Caller(make_key(make_account("eve", plan="enterprise"), "test"))

    @given(bodies(form.body), queries)
    @settings(max_examples=40, deadline=None, derandomize=True)
    def holds(body: Any, query: dict[str, str]) -> None:
        before = Job.objects.count()
        path = f"{form.create}?{urlencode(query, errors='replace')}"
        answer = caller.post(path, body)
        accepted = answer.status_code == form.accepted
        assert accepted or answer.status_code in (400, 413, 422)
        assert accepted or form.is_refusal(answer.json())
        assert Job.objects.count() == before + accepted

    holds()


def test_openai_answers_any_form(caller: Caller) -> None:
    form = FORMATS["openai"]
    names = ("prompt", "model", "seconds", "size", "input_reference")
    values = st.text(max_size=20) | st.sampled_from(["4", "720x1280", "sora-2"])

    @given(
        st.dictionaries(st.sampled_from([*names, "input_reference[image_url]"]), values)
    )
    @settings(max_examples=40, deadline=None, derandomize=True)
    def holds(fields: dict[str, str]) -> None:
        clean = {n: v.encode("utf-8", "replace") for n, v in fields.items()}
        answer = caller.client.post("/v1/videos", clean, headers=caller.headers)
        assert answer.status_code == 400
        assert form.is_refusal(answer.json())

    holds()
    assert not Job.objects.exists()


def test_coals_charges_what_its_page_says(caller: Caller) -> None:
    form = FORMATS["magicoal"]
    data = caller.post(form.create, {"image": PICTURE}).json()["data"]
    assert data["credits_charged"] == 50.0
    assert caller.get("/v1/balance").json()["held_credits"] == 50.0


def test_coals_free_plan_has_five_videos_a_month(db: None) -> None:
    form = FORMATS["magicoal"]
    free = Caller(make_key(make_account("bob", plan="free"), "test"))
    for _ in range(5):
        free.create(form)
    answer = free.post(form.create, form.body)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "QUOTA_EXCEEDED"


def test_coals_lists_only_finished_videos(caller: Caller) -> None:
    caller.create(FORMATS["magicoal"])
    body = caller.get("/api/v1/magicoal/videos").json()
    assert body["data"] == []
    assert body["meta"] == {
        "current_page": 1,
        "per_page": 15,
        "total": 0,
        "last_page": 1,
        "has_more": False,
    }


def test_coals_quota_has_the_balance(alice: Account) -> None:
    rich = Caller(make_key(make_account("rich", credits=10)))
    data = rich.get("/api/v1/magicoal/quota").json()["data"]
    assert data == {
        "plan_type": "pro",
        "balance": 10.0,
        "quota_monthly": 10.0,
        "used_this_month": 0.0,
        "remaining_quota": 10.0,
    }


@pytest.mark.usefixtures("s3")
def test_coals_quota_counts_what_this_month_has_cost() -> None:
    alice = make_account("rich", credits=10)
    lives.succeeded(make_job(alice))
    kept_back = lives.succeeded(make_job(alice))
    ledger.refund(
        account_id=alice.pk,
        mode="live",
        reference=str(kept_back.pk),
        amount_millicredits=400,
        actor="olga",
        reason="sorry",
    )
    last_month = lives.succeeded(make_job(alice))
    Hold.objects.filter(reference=str(last_month.pk)).update(
        created_at=Now() - timedelta(days=32)
    )
    lives.failed(make_job(alice))
    make_job(alice)
    data = Caller(make_key(alice)).get("/api/v1/magicoal/quota").json()["data"]
    assert data["used_this_month"] == 1.6
    assert data["remaining_quota"] == data["balance"] == 6.4
    assert data["quota_monthly"] == 9.0


def test_coals_text_to_video_names_the_image(caller: Caller) -> None:
    answer = caller.post("/api/v1/magicoal/generate/t2v", {"prompt": "waves"})
    assert answer.status_code == 422
    assert "image" in answer.json()["error"]["details"]


def test_aimlapi_takes_its_legacy_path(caller: Caller) -> None:
    path = "/v2/generate/video/alibaba/generation"
    body = caller.post(path, FORMATS["aimlapi"].body).json()
    assert body["id"] == body["generation_id"]
    again = caller.get(f"{path}?generation_id={body['id']}").json()
    assert again["generation_id"] == body["id"]


def test_openai_takes_a_multipart_form(caller: Caller) -> None:
    answer = caller.client.post(
        "/v1/videos",
        {
            "prompt": "waves",
            "model": "wan2.6-i2v",
            "seconds": "5",
            "size": "1280x720",
            "input_reference": SimpleUploadedFile("a.png", png(), "image/png"),
        },
        headers=caller.headers,
    )
    assert answer.status_code == 200, answer.content
    body = answer.json()
    assert (body["seconds"], body["size"]) == ("5", "1280x720")
    assert int(answer["openai-poll-after-ms"]) > 0


def test_openai_pages_by_the_last_id(caller: Caller) -> None:
    made = [caller.create(FORMATS["openai"], prompt=str(n)) for n in range(3)]
    first = caller.get("/v1/videos?limit=2").json()
    assert [v["id"] for v in first["data"]] == made[:0:-1]
    assert (first["first_id"], first["last_id"]) == (made[2], made[1])
    assert first["has_more"]
    rest = caller.get(f"/v1/videos?limit=2&after={first['last_id']}").json()
    assert [v["id"] for v in rest["data"]] == made[:1]
    assert not rest["has_more"]
    ascending = caller.get("/v1/videos?order=asc").json()
    assert [v["id"] for v in ascending["data"]] == made


def test_openai_has_no_content_until_the_video_is_made(caller: Caller) -> None:
    form = FORMATS["openai"]
    answer = caller.get(f"/v1/videos/{caller.create(form)}/content")
    assert answer.status_code == 404
    assert form.is_refusal(answer.json())


def test_openai_deletes_a_queued_video_and_its_hold(caller: Caller) -> None:
    made = caller.create(FORMATS["openai"])
    answer = caller.client.delete(
        f"/v1/videos/{made}", content_type="application/json", headers=caller.headers
    )
    assert answer.json() == {"id": made, "object": "video.deleted", "deleted": True}
    assert caller.get("/v1/balance").json()["held_credits"] == 0.0


@pytest.mark.usefixtures("s3")
def test_openai_retrying_a_remix_gives_the_remix_of_that_video(caller: Caller) -> None:
    one, other = (
        lives.succeeded(Job.objects.get(public_id=caller.create(FORMATS["openai"])))
        for _ in range(2)
    )

    def remix(source: Job, retry: str) -> Any:
        path = f"/v1/videos/{source.public_id}/remix"
        body = {"prompt": "rain"}
        return caller.post(path, body, **{"x-stainless-retry-count": retry}).json()

    first = remix(one, "0")
    second = remix(other, "1")  # its first call never arrived
    assert second["remixed_from_video_id"] == other.public_id
    assert second["id"] != first["id"]
    assert remix(one, "1")["id"] == first["id"]
    assert remix(other, "2")["id"] == second["id"]


@pytest.mark.usefixtures("s3")
def test_openai_holds_a_remix_to_the_prompt_limit_of_its_model(caller: Caller) -> None:
    source = lives.succeeded(
        Job.objects.get(public_id=caller.create(FORMATS["openai"]))
    )
    longest = MODELS[source.model].prompt_max
    path = f"/v1/videos/{source.public_id}/remix"
    answer = caller.post(path, {"prompt": "x" * (longest + 1)})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt"
    assert caller.post(path, {"prompt": "x" * longest}).status_code == 200


def test_openai_remixes_only_what_is_finished(caller: Caller) -> None:
    made = caller.create(FORMATS["openai"])
    answer = caller.post(f"/v1/videos/{made}/remix", {"prompt": "rain"})
    assert answer.status_code == 409
    assert answer["x-should-retry"] == "false"
