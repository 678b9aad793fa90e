"""The promises every provider in the table keeps."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.catalogue import MODELS, Feature
from inference.contracts import Lora
from inference.errors import AnswerLost, Fault, ProviderError, Unsupported
from inference.providers.base import (
    CallbackRefused,
    Evidence,
    FindQuery,
    HttpCall,
    HttpReply,
    Picture,
    RemoteStatus,
    Submitted,
    is_local,
    reaches,
)
from tests.fakes import FAKES
from tests.fakes.bodies import WIRE, load
from tests.inference.providers.samples import (
    CREDENTIALS,
    PNG,
    PROVIDERS,
    make_account,
    make_job,
    provider,
    recorded_reply,
    reply,
)

ACCOUNT = make_account()
LAST = Picture(PNG, url="https://files.example/last.png")
#: Every option a job can carry, with a value that asks for something.
OPTIONS: dict[str, Any] = {
    "last_image": LAST,
    "negative_prompt": "blur",
    "seed": 99,
    "steps": 21,
    "guidance_scale": 4.5,
    "guidance_scale_2": 4.0,
    "flow_shift": 4.0,
    "loras": (Lora("hf/name", 0.7),),
    "quality": "fast",
    "shot_type": "multi",
    "safety_checker": False,
    "prompt_expansion": True,
    "premium": True,
}
WIRE_MODELS = [(name, model) for name in PROVIDERS for model in provider(name).models]
every_provider = pytest.mark.parametrize("name", PROVIDERS)
every_wire_model = pytest.mark.parametrize(("name", "model"), WIRE_MODELS)


def sent(call: HttpCall) -> str:
    return json.dumps([call.json, call.form, sorted(call.files)], default=str)


def test_every_provider_has_a_fake_of_its_own():
    assert sorted(FAKES) == sorted(PROVIDERS)


@every_provider
def test_a_provider_is_known_by_the_name_of_its_line(name):
    adapter = provider(name)
    assert adapter.name == name
    assert adapter.default_base_url.startswith("https://")
    assert not adapter.default_base_url.endswith("/")


def test_every_provider_route_of_the_catalogue_leads_to_a_model_of_that_provider():
    routes = [
        (model, route)
        for model in MODELS.values()
        for route in model.routes
        if route.kind == "provider"
    ]
    assert len(routes) >= 15
    for model, route in routes:
        assert route.profile in provider(route.runner).models, (model.name, route)


@pytest.mark.parametrize(
    ("public", "route"),
    [
        pytest.param(model, route, id=f"{model.name}-{route.name}")
        for model in MODELS.values()
        for route in model.routes
        if route.kind == "provider"
    ],
)
def test_a_default_request_of_a_public_model_can_take_its_provider_route(public, route):
    values = {
        key: value for key, value in public.defaults.items() if key in OPTIONS
    } | {"seed": 1}
    job = make_job(
        route.runner,
        route.profile,
        frames=public.frames_default,
        fps=public.fps,
        tier=public.tier_default,
        audio_mode=public.audio_default,
        unasked=frozenset(values),
        **values,
    )
    provider(route.runner).check(job, ACCOUNT)


@every_wire_model
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_sent_or_refused_by_name_but_never_dropped(name, model, option):
    adapter = provider(name)
    base = {"prompt_expansion": True} if option == "shot_type" else {}
    if "prompt_expansion" in base and not adapter.models[model].offers(option):
        base = {}
    plain = make_job(name, model, **base)
    asked = make_job(name, model, **{**base, option: OPTIONS[option]})
    if adapter.models[model].offers(option):
        before = adapter.build_submit(
            plain.replace(last_image=None)
            if option == "last_image" and not adapter.models[model].last_image_required
            else plain,
            ACCOUNT,
        )
        after = adapter.build_submit(asked, ACCOUNT)
        if not adapter.models[model].last_image_required or option != "last_image":
            assert sent(after) != sent(before)
        return
    with pytest.raises(Unsupported) as refused:
        adapter.build_submit(asked, ACCOUNT)
    assert refused.value.field == option
    # What nobody asked for may be left to the provider.
    adapter.build_submit(asked.replace(unasked=frozenset({option})), ACCOUNT)


@every_wire_model
@pytest.mark.parametrize("mode", ["generate", "url"])
def test_sound_is_asked_for_or_refused(name, model, mode):
    adapter = provider(name)
    job = make_job(
        name, model, audio_mode=mode, audio_url="https://files.example/a.mp3"
    )
    if mode in adapter.models[model].audio:
        call = adapter.build_submit(job, ACCOUNT)
        assert mode == "generate" or "https://files.example/a.mp3" in sent(call)
        return
    with pytest.raises(Unsupported) as refused:
        adapter.build_submit(job, ACCOUNT)
    assert refused.value.field == "audio"


@every_wire_model
def test_each_tier_is_said_in_the_wires_words_and_others_are_refused(name, model):
    adapter = provider(name)
    for tier in ("480p", "720p", "1080p", "4k"):
        job = make_job(name, model, tier=tier)
        if tier in adapter.models[model].tiers:
            adapter.build_submit(job, ACCOUNT)
            continue
        with pytest.raises(Unsupported) as refused:
            adapter.build_submit(job, ACCOUNT)
        assert refused.value.field == "resolution"


@every_wire_model
def test_a_clip_is_bought_at_least_as_long_as_asked(name, model):
    adapter = provider(name)
    facts = adapter.models[model]
    assert list(facts.seconds) == sorted(facts.seconds)
    for seconds in range(1, facts.seconds[-1] + 1):
        job = make_job(name, model, frames=seconds * 16)
        assert seconds <= adapter.sold_seconds(job, facts) <= facts.seconds[-1]
    too_long = make_job(name, model, frames=(facts.seconds[-1] + 1) * 16)
    with pytest.raises(Unsupported) as refused:
        adapter.build_submit(too_long, ACCOUNT)
    assert refused.value.field in ("seconds", "frames")


@every_provider
def test_a_model_the_provider_does_not_sell_is_refused(name):
    account = make_account(models=["something-else"])
    with pytest.raises(Unsupported) as refused:
        provider(name).build_submit(
            make_job(name).replace(model="no-such-model"), account
        )
    assert refused.value.field == "model"


@every_wire_model
def test_a_watermark_is_never_asked_for(name, model):
    call = provider(name).build_submit(make_job(name, model), ACCOUNT)
    assert '"watermark": true' not in sent(call)


@every_provider
def test_refusals_name_no_provider_since_customers_read_them(name):
    adapter = provider(name)
    with pytest.raises(Unsupported) as refused:
        adapter.build_submit(make_job(name, guidance_scale_2=3.0), ACCOUNT)
    shown = refused.value.public.lower()
    assert name not in shown
    assert adapter.title.lower() not in shown


@every_provider
def test_keys_show_in_no_representation_and_no_error(name):
    adapter = provider(name)
    call = adapter.build_submit(make_job(name), ACCOUNT)
    status = adapter.build_status(["id"], ACCOUNT)
    shown = repr((ACCOUNT, call, status, call.url, status.url))
    with pytest.raises(ProviderError) as refused:
        adapter.parse_submit(reply(401, b"no"), ACCOUNT)
    shown += repr(refused.value)
    assert not [key for key in CREDENTIALS.values() if key in shown]


@every_provider
def test_an_account_without_keys_is_unavailable_and_says_which(name):
    adapter = provider(name)
    bare = dataclasses.replace(ACCOUNT, credentials={})
    reason = adapter.unavailable(bare, public_endpoint="https://s3.example")
    assert "has no" in reason
    with pytest.raises(ProviderError) as refused:
        adapter.build_submit(make_job(name), bare)
    assert refused.value.fault is Fault.ACCOUNT


UNSENDABLE = ["sk-test\n", " sk-test", "sk-te\u200bst", "\u201csk-test\u201d", 5, ["k"]]


@every_provider
@pytest.mark.parametrize("key", UNSENDABLE)
def test_a_key_that_no_header_can_hold_is_the_accounts_fault(name, key):
    adapter = provider(name)
    spoiled = dataclasses.replace(ACCOUNT, credentials=dict.fromkeys(CREDENTIALS, key))
    with pytest.raises(ProviderError) as refused:
        adapter.build_submit(make_job(name), spoiled)
    assert refused.value.fault is Fault.ACCOUNT
    reason = adapter.unavailable(spoiled, public_endpoint="https://s3.example")
    assert "is not one line of printable ASCII" in reason


@every_provider
def test_credentials_are_entered_without_the_blanks_around_them(name):
    adapter = provider(name)
    pasted = {field: f" {value}\n" for field, value in CREDENTIALS.items()}
    needed = {field.name for field in adapter.credential_fields}
    assert adapter.credentials({**pasted, "other": "x"}) == {
        field: value for field, value in CREDENTIALS.items() if field in needed
    }
    required = [field.name for field in adapter.credential_fields if field.required]
    with pytest.raises(ValueError, match=f"{required[-1]} is missing"):
        adapter.credentials({**pasted, required[-1]: " "})
    with pytest.raises(ValueError, match=f"{required[0]} is not one line"):
        adapter.credentials({**pasted, required[0]: "sk-te\u200bst"})


@every_provider
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"idempotency_key": True, "callbacks": False},
        {"poll_seconds": 0.5},
        {"usd_per_second": {"720p": 0.1, "1080p": "0.15"}},
    ],
)
def test_settings_as_documented_are_taken(name, given):
    assert provider(name).settings_problem(given) == ""


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("akool", {"usd_per_credit": "0.04"}),
        ("dashscope", {"workspace": "ws-1"}),
        ("openai_videos", {"seconds": [4, 8], "sizes": {"720p": "1280x720"}}),
        ("openai_videos", {"models": ["x"], "sound": False, "pictures_exact": False}),
    ],
)
def test_an_adapters_own_settings_are_taken_there_alone(name, given):
    assert provider(name).settings_problem(given) == ""
    assert "there is no" in provider("novita").settings_problem(given)


NO_SETTINGS: list[Any] = [
    [],
    "x",
    None,
    {"poll_second": 5},
    {"idempotency_key": "yes"},
    *({"poll_seconds": one} for one in (0, -1, "10 s", "10", True, 1e300, None)),
    *({"poll_seconds": one} for one in (float("nan"), 10**400, [5])),
    *({"usd_per_second": one} for one in (0.1, {"720": 1}, {"720p": "?"})),
    {"usd_per_second": []},
    *({"usd_per_second": {"720p": one}} for one in (-1, None, float("inf"))),
]


@every_provider
@pytest.mark.parametrize("given", NO_SETTINGS)
def test_settings_that_would_break_later_are_refused(name, given):
    assert provider(name).settings_problem(given)


NOT_SOLD: list[dict[str, Any]] = [
    *({"seconds": one} for one in (5, "4,8", [], ["4"], [0], [4.5], {"4": 8})),
    *({"sizes": one} for one in (["1280x720"], {}, {"720p": 1280}, {"720": "1x1"})),
    *({"sizes": {"720p": one}} for one in ("1280", "1280 x 720", "0x0")),
    *({"models": one} for one in ("sora-2", [], [1])),
    {"sound": 1},
]


@pytest.mark.parametrize("given", NOT_SOLD)
def test_what_an_openai_server_sells_is_entered_as_documented(given):
    assert provider("openai_videos").settings_problem(given)


@every_provider
def test_a_picture_by_url_needs_storage_the_provider_can_reach(name):
    adapter = provider(name)
    by_url = adapter.capabilities.picture.form == "url"
    loopback = adapter.unavailable(ACCOUNT, public_endpoint="http://127.0.0.1:8333")
    assert bool(loopback) is by_url
    assert not adapter.unavailable(ACCOUNT, public_endpoint="https://s3.example")
    # A provider on this machine reads from this machine.
    here = make_account("http://127.0.0.1:9000")
    assert not adapter.unavailable(here, public_endpoint="http://127.0.0.1:8333")


@every_provider
def test_a_lost_submit_is_in_doubt_also_where_the_server_honours_keys(
    name,
):
    adapter = provider(name)
    assert not adapter.build_submit(make_job(name), ACCOUNT).idempotent
    account = make_account(idempotency_key=True)
    call = adapter.build_submit(make_job(name), account)
    assert not call.idempotent
    assert call.headers["Idempotency-Key"] == "attempt-1"
    assert adapter.evidence(account, callback_url=None) is Evidence.CLIENT_TOKEN


@every_provider
def test_the_evidence_for_a_lost_answer_really_exists(name):
    adapter = provider(name)
    evidence = adapter.capabilities.evidence
    moment = datetime(2026, 3, 3, tzinfo=UTC)
    query = FindQuery("ref", "m", "p", moment, moment + timedelta(seconds=30))
    if evidence is Evidence.TASK_LIST:
        assert adapter.build_find(query, ACCOUNT).idempotent
    else:
        with pytest.raises(NotImplementedError):
            adapter.build_find(query, ACCOUNT)
    if evidence is Evidence.CALLBACK_TOKEN:
        url = "https://us.example/cb/token-1"
        call = adapter.build_submit(make_job(name, callback_url=url), ACCOUNT)
        assert url in sent(call)
        assert adapter.evidence(ACCOUNT, callback_url=url) is evidence
    # A callback that was never asked for proves nothing.
    without = adapter.evidence(ACCOUNT, callback_url=None)
    assert without is not Evidence.CALLBACK_TOKEN


@every_provider
def test_cancel_and_delete_exist_or_are_refused(name):
    adapter = provider(name)
    for can, build in (
        (adapter.capabilities.cancel, adapter.build_cancel),
        (adapter.capabilities.delete, adapter.build_delete),
    ):
        if can:
            assert build("id", ACCOUNT).idempotent
        else:
            with pytest.raises(Unsupported):
                build("id", ACCOUNT)


@every_provider
def test_more_ids_than_one_call_takes_are_a_mistake_of_ours(name):
    adapter = provider(name)
    ids = [f"id-{n}" for n in range(adapter.capabilities.status_batch + 1)]
    with pytest.raises(ValueError, match="ids"):
        adapter.build_status(ids, ACCOUNT)
    call = adapter.build_status(ids[:-1], ACCOUNT)
    assert call.idempotent


# ------------------------------------------------------------------ bad answers


@every_provider
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"\x00\xff{]"),
        (200, b"<html>hello</html>"),
        (200, b"[]"),
        (200, b"null"),
        (200, b'{"id": null, "task_id": "", "data": 3, "output": []}'),
        (500, b"Internal Server Error"),
        (502, b"<html>bad gateway</html>"),
        (504, b""),
    ],
)
def test_a_submit_answered_by_anything_unclear_may_have_been_taken(name, status, body):
    with pytest.raises(AnswerLost):
        provider(name).parse_submit(reply(status, body), ACCOUNT)


@every_provider
@pytest.mark.parametrize(
    ("status", "fault"),
    [
        (301, Fault.HEALTH),
        (401, Fault.ACCOUNT),
        (403, Fault.HEALTH),
        (404, Fault.HEALTH),
        (429, Fault.BUSY),
        (503, Fault.HEALTH),
    ],
)
def test_a_refusal_by_something_in_between_was_no_submit(name, status, fault):
    with pytest.raises(ProviderError) as refused:
        provider(name).parse_submit(
            reply(status, b"<html>no</html>", retry_after="7"), ACCOUNT
        )
    assert not isinstance(refused.value, AnswerLost)
    assert refused.value.fault is fault
    assert refused.value.retry_after_seconds == 7


@every_provider
@pytest.mark.parametrize("status", [200, 404, 500, 502])
def test_a_foreign_answer_to_a_status_call_says_nothing_about_the_job(name, status):
    # A wrong base URL answers 404 to everything; no job may be given up for that.
    with pytest.raises(ProviderError) as broken:
        provider(name).parse_status(reply(status, b"<html>?</html>"), ["id"], ACCOUNT)
    assert broken.value.fault is Fault.HEALTH


@every_provider
def test_no_word_of_a_recorded_error_reaches_a_customer(name):
    adapter = provider(name)
    for error, body in load(name, "errors").items():
        answer = recorded_reply(name, "errors", error)
        with pytest.raises(ProviderError) as refused:
            adapter.parse_submit(answer, ACCOUNT)
        shown = f"{refused.value.public} {refused.value.code}"
        said = json.dumps(body.filled(request_id="R", time="T"))
        assert error not in shown.split()
        assert not [
            word for word in ("http", "api", name, "balance", "credit") if word in shown
        ]
        assert shown not in said


@every_provider
def test_every_error_of_the_wire_folder_has_its_expectation(name):
    tests = importlib.import_module(f"tests.inference.providers.test_{name}")
    listed = set(tests.EXPECTED)
    if name == "aimlapi":
        listed |= {"BAD_GATEWAY", "GENERATION_TIMEOUT"}  # tested apart: in doubt
    assert listed == set(load(name, "errors"))


@every_provider
def test_a_job_that_failed_for_a_reason_unknown_to_us_is_the_providers_failure(name):
    error = provider(name).failure("SomethingNew", "secret detail")
    assert error.fault is Fault.HEALTH
    assert not error.permanent
    assert "secret" not in error.public


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "data",
                    "output",
                    "task",
                    "status",
                    "task_status",
                    "id",
                    "_id",
                    "result",
                    "videos",
                    "video",
                    "error",
                    "code",
                    "success",
                    "uuid",
                    "task_id",
                    "statusCode",
                    "reason",
                    "meta",
                    "extra",
                    "seed",
                    "progress",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@every_provider
@settings(max_examples=25, deadline=None)
@given(body=JSON, status=st.sampled_from([200, 201, 400, 404, 429, 500, 503]))
def test_any_json_is_read_or_refused_as_a_provider_error(name, body, status):
    adapter = provider(name)
    answer = reply(status, json.dumps(body).encode())
    with contextlib.suppress(ProviderError):
        assert isinstance(adapter.parse_submit(answer, ACCOUNT), Submitted)
    with contextlib.suppress(ProviderError):
        states = adapter.parse_status(answer, ["id"], ACCOUNT)
        assert isinstance(states["id"], RemoteStatus)
        assert states["id"].state != "succeeded" or states["id"].video_url
    with contextlib.suppress(CallbackRefused):
        adapter.parse_callback(answer.body, {}, ACCOUNT)


# ------------------------------------------------------------------ small things


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ({"retry_after": "12"}, 12.0),
        ({"retry_after": "-3"}, 0.0),
        ({"retry_after": "1e12"}, 3600.0),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "soon"}, None),
        ({"retry_after_ms": "250"}, 0.25),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_its_forms(header, seconds):
    assert reply(429, b"", **header).retry_after_seconds() == seconds


def test_retry_after_may_be_a_date():
    moment = datetime.now(UTC) + timedelta(seconds=60)
    answer = reply(429, b"", retry_after=moment.strftime("%a, %d %b %Y %H:%M:%S GMT"))
    waited = answer.retry_after_seconds()
    assert waited is not None
    assert 55 < waited <= 60


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:1",
        "http://s3.localhost",
        "http://127.9.9.9",
        "http://[::1]:1",
        "http://0.0.0.0:1",
        "",
    ],
)
def test_addresses_of_this_machine_are_local(url):
    assert is_local(url)
    assert not reaches("https://api.example", url)


def test_the_operators_price_goes_before_the_tables():
    adapter = provider("dashscope")
    job = make_job("dashscope", "wan2.6-i2v", tier="720p", frames=150, fps=30)
    assert str(adapter.estimate_usd(job, ACCOUNT)) == "0.50"
    account = make_account(usd_per_second={"720p": "0.08"})
    assert str(adapter.estimate_usd(job, account)) == "0.40"
    assert provider("sinancode").estimate_usd(make_job("sinancode"), ACCOUNT) is None


def test_fakes_share_no_code_with_adapters_or_dialects_nor_the_reverse():
    root = WIRE.parents[2]
    imports = re.compile(r"^\s*(?:from|import) ([\w.]+)", re.MULTILINE)
    for path in WIRE.parent.glob("*.py"):
        packages = {name.split(".")[0] for name in imports.findall(path.read_text())}
        assert not packages & {"inference", "jobs", "billing", "project"}, path
    for path in (*root.glob("inference/**/*.py"), *root.glob("jobs/**/*.py")):
        assert "tests" not in imports.findall(path.read_text()), path


def test_features_of_the_catalogue_are_all_known_to_the_option_check():
    unknown = {str(feature) for feature in Feature} - set(OPTIONS) - {"fps"}
    assert not unknown


def test_what_no_database_takes_never_comes_out_of_an_answer():
    reply = HttpReply(200, body=b'{"id": "a\\u0000b", "n\\ud800": [{"p": "\\udfffc"}]}')
    assert reply.json() == {"id": "a b", "n?": [{"p": "?c"}]}
