"""Which route a job takes, and what is said of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from inference.catalogue import MODELS
from jobs import intake, routing
from jobs.errors import InvalidRequest, ModelUnavailable
from jobs.models import Job, ModelAlias, ProviderAccount, Route
from tests.factories import credential, make_account, make_job, make_request
from tests.jobs import providers_world as world

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

MODEL = "wan2.6-i2v"  # dashscope, sinancode, novita in this order


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    routing.forget()
    yield
    routing.forget()


def account(provider: str, name: str = "main", **fields: object) -> ProviderAccount:
    row = ProviderAccount.objects.create(
        provider=provider,
        name=name,
        base_url="http://127.0.0.1:9",
        credentials='{"api_key": "k", "client_id": "i", "client_secret": "s"}',
        **fields,
    )
    routing.forget()
    return row


@pytest.fixture
def three(settings: Any) -> dict[str, ProviderAccount]:
    settings.S3_PUBLIC_ENDPOINT_URL = "https://files.example"
    return {name: account(name) for name in ("dashscope", "sinancode", "novita")}


def choose(
    model: str = MODEL,
    *,
    plan: str = "pro",
    without: Sequence[str] = (),
    **options: Any,
) -> routing.Choice:
    request = make_request(model, **options)
    return routing.choose(
        MODELS[model], mode="live", plan=plan, request=request, without=without
    )


def change(name: str, **fields: object) -> None:
    Route.objects.filter(model=MODEL, name=name).update(**fields)
    routing.forget()


def test_the_lowest_rank_is_taken_and_the_log_says_so(three):
    choice = choose()
    assert choice.route["name"] == "dashscope"
    assert choice.reasons == ["dashscope: chosen, rank 0, weight 100"]
    change("novita", rank=0)
    change("dashscope", rank=7)
    assert choose().route["name"] == "novita"


def test_of_one_rank_the_cheaper_is_taken_then_weight_decides(three):
    for name in three:
        change(name, rank=0)
    change("sinancode", weight=300)
    drawn = Counter(choose().route["name"] for _ in range(60))
    assert set(drawn) == set(three)
    assert drawn["sinancode"] > drawn["dashscope"]
    change("novita", cost_microdollars=0)
    change("dashscope", cost_microdollars=50)
    change("sinancode", cost_microdollars=40)
    assert {choose().route["name"] for _ in range(20)} == {"novita"}


def test_a_route_may_be_for_some_plans_alone(three):
    change("dashscope", plans=["enterprise"])
    assert choose(plan="enterprise").route["name"] == "dashscope"
    choice = choose(plan="pro")
    assert choice.route["name"] == "sinancode"
    assert "dashscope: not for plan pro" in choice.reasons


def test_what_a_route_cannot_do_leads_to_the_next_one(three):
    assert choose(seconds=15, tier="1080p").route["name"] == "dashscope"
    # A negative prompt longer than one vendor takes is no matter for another.
    change("dashscope", profile="wan2.2-i2v-flash")  # 480p and 720p, 5 s
    choice = choose(tier="1080p")
    assert choice.route["name"] == "sinancode"
    assert any("dashscope: " in reason for reason in choice.reasons)


def test_what_no_route_can_do_is_refused_naming_the_field(three):
    for name in ("sinancode", "novita"):
        change(name, is_enabled=False)
    change("dashscope", profile="wan2.2-i2v-flash")
    with pytest.raises(InvalidRequest) as refused:
        choose(tier="1080p")
    assert refused.value.field == "resolution"
    assert "dashscope" not in str(refused.value).lower()
    with pytest.raises(InvalidRequest) as refused:
        choose(tier="720p", seconds=15)
    assert refused.value.field == "seconds"


def test_a_sick_provider_is_passed_over_until_its_pause_is_over(three):
    row = ProviderAccount.objects.filter(provider="dashscope")
    row.update(failures_in_row=5, open_until=Now() + timedelta(seconds=30))
    choice = choose()
    assert choice.route["name"] == "sinancode"
    assert "dashscope: not healthy now" in choice.reasons
    # Its pause is over: one job may find out how it is.
    row.update(open_until=Now() - timedelta(seconds=1))
    assert choose().route["name"] == "dashscope"


def test_a_full_provider_is_passed_over(three):
    row = three["dashscope"]
    ProviderAccount.objects.filter(pk=row.pk).update(concurrent_jobs=1)
    job = make_job(make_account("alice", plan="pro", credits=500), model=MODEL)
    assert job.route["name"] == "dashscope"
    Job.objects.update(step="await", status="running", provider_account=row)
    choice = choose()
    assert choice.route["name"] == "sinancode"
    assert "dashscope: full now" in choice.reasons


def test_when_all_are_sick_or_full_the_first_is_taken_all_the_same(three):
    ProviderAccount.objects.update(
        failures_in_row=5, open_until=Now() + timedelta(seconds=30)
    )
    assert choose().route["name"] == "dashscope"


def test_a_provider_without_an_account_takes_nothing(settings):
    settings.S3_PUBLIC_ENDPOINT_URL = "https://files.example"
    account("novita")
    choice = choose()
    assert choice.route["name"] == "novita"
    assert "dashscope: no account is entered" in choice.reasons


def test_a_loopback_endpoint_takes_out_who_reads_pictures_by_url(settings):
    settings.S3_PUBLIC_ENDPOINT_URL = "http://127.0.0.1:8333"
    account("novita")
    ProviderAccount.objects.update(base_url="https://api.novita.ai")
    account("sinancode")
    choice = choose()
    assert choice.route["name"] == "sinancode"
    ProviderAccount.objects.filter(provider="sinancode").delete()
    with pytest.raises(ModelUnavailable):
        choose()


def test_without_a_live_route_nothing_is_charged():
    alice = make_account("alice", plan="pro", credits=100)
    with pytest.raises(ModelUnavailable):
        make_job(alice, model=MODEL)
    assert world.available(alice) == 100_000
    assert world.held(alice) == 0
    assert not Job.objects.exists()


def test_an_account_out_of_order_counts_for_nothing(three):
    ProviderAccount.objects.filter(provider="dashscope").update(out_of_order_at=Now())
    choice = choose()
    assert choice.route["name"] == "sinancode"
    assert any("dashscope: account 'main' is out" in r for r in choice.reasons)


def test_the_next_route_is_none_of_those_given_up(three):
    assert choose(without=["dashscope"]).route["name"] == "sinancode"
    with pytest.raises(ModelUnavailable):
        choose(without=["dashscope", "sinancode", "novita"])


def test_an_alias_is_a_row(three):
    ModelAlias.objects.create(name="my-model", model=MODEL)
    ModelAlias.objects.filter(name="sora-2").update(model=MODEL)
    routing.forget()
    for name in ("my-model", "sora-2", MODEL):
        assert routing.lookup(name) is MODELS[MODEL]
    assert routing.lookup("no-such-model") is None


def test_the_jobs_log_says_why_it_went_where_it_did(three):
    change("dashscope", is_enabled=False)
    alice = make_account("alice", plan="pro", credits=100)
    job = intake.submit(
        make_request(MODEL), credential=credential(alice), dialect="native"
    )
    said = job.notes.get(kind="route").text
    assert "dashscope: disabled" in said
    assert "sinancode: chosen" in said


def test_the_list_of_models_shows_what_can_be_had(three):
    assert routing.is_available(MODELS[MODEL], mode="live", plan="pro")
    Route.objects.filter(model=MODEL).update(is_enabled=False)
    routing.forget()
    assert not routing.is_available(MODELS[MODEL], mode="live", plan="pro")
    assert routing.is_available(MODELS["wan2.1-i2v"], mode="live", plan="pro")
