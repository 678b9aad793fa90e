"""The operator's pages on 1,000 rows: each opens on a few queries, each act leaves money,
actor and reason where they belong, and nothing a customer wrote runs there.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.core import signing
from django.db import DatabaseError, connection, transaction
from django.db.models.functions import Now
from django.forms import model_to_dict
from django.test import Client
from django.test.utils import CaptureQueriesContext

from billing import keys, ledger, operator_keys, prices
from billing.errors import InvalidKey
from billing.models import Account, Entry, Plan, PriceRow, Transfer
from inference.contracts import Artifact
from inference.errors import RenderError, StorageUnavailable
from inference.storage import Storage
from jobs import claims, effects, figures, incidents, lifecycle, provider_steps, routing
from jobs.models import (
    Effect,
    Incident,
    Job,
    ModelAlias,
    ProviderAccount,
    ProviderErrand,
    Route,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
    Worker,
)
from jobs.states import Step
from tests.factories import make_account, make_job
from tests.jobs import crowd, lives

QUERIES_MAX = 30
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"

pytestmark = [pytest.mark.django_db, pytest.mark.timeout(600)]


@pytest.fixture
def olga(client: Client) -> Client:
    """An operator with every right, signed in."""
    client.force_login(
        get_user_model().objects.create_superuser("olga"),
        backend="django.contrib.auth.backends.ModelBackend",
    )
    return client


@pytest.fixture
def alice(db: None) -> Iterator[Account]:
    """1,000 credits; her books must add up when the test is over."""
    keys.forget()
    prices.forget()
    routing.forget()
    alice = make_account("alice", plan="pro", credits=1000)
    yield alice
    assert ledger.check(account_id=alice.pk) == []


def running(job: Job) -> claims.Claim:
    """Take the job through prepare and claim its generate step."""
    claim = claims.claim_next("media", worker="w1")
    assert claim is not None
    inputs = {"image": {"key": f"{job.account_id}/{job.pk}/in/1-image.png"}}
    lifecycle.advance(claim, Step.GENERATE, queue="cpu", inputs=inputs)
    claim = claims.claim_next("cpu", worker="w1")
    assert claim is not None
    return claim


def succeeded(job: Job) -> Job:
    artifact = Artifact(
        key=f"{job.account_id}/{job.pk}/out/2-a.mp4",
        size_bytes=10,
        sha256="00",
        width=96,
        height=64,
        fps=16.0,
        frames=80,
        seconds=5.0,
        has_audio=False,
    )
    lifecycle.succeed(running(job), artifact)
    return Job.objects.get(pk=job.pk)


def failed(job: Job) -> Job:
    lifecycle.fail(running(job), RenderError("out of memory", code="out_of_memory"))
    return Job.objects.get(pk=job.pk)


def act(
    olga: Client, row: Any, name: str, reason: str = "asked by mail", **values: Any
) -> list[str]:
    """Do an act on its page; return what the operator reads."""
    label = row._meta.label_lower.replace(".", "/")
    url = f"/admin/{label}/{quote(str(row.pk), safe='')}/{name.replace('_', '-')}/"
    page = olga.get(url)
    assert page.status_code == 200, url
    assert 'name="reason"' in page.content.decode()
    answer = olga.post(url, {"reason": reason, **values}, follow=True)
    assert answer.status_code == 200
    return [str(message) for message in answer.context["messages"]]


def available(account: Account) -> float:
    balance = ledger.balance(account_id=account.pk, mode="live")
    return balance.available_millicredits / 1000


def written_down(row: Any) -> str:
    """Return the last line of the row's history, made by olga."""
    entry = LogEntry.objects.filter(object_id=str(row.pk)).latest("id")
    assert entry.user.get_username() == "olga"
    return entry.get_change_message()


# ---------------------------------------------------------------------- every page


def test_every_page_opens_on_few_queries_with_1000_rows(
    olga: Client, alice: Account
) -> None:
    crowd.make(alice)
    wrong: list[tuple[object, ...]] = []
    for model, page in admin.site._registry.items():
        name = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        row = model._default_manager.first()
        assert row is not None, name
        one = f"{name}{quote(str(row.pk), safe='')}/"
        for url in (name, f"{name}?q=a", f"{one}change/"):
            with CaptureQueriesContext(connection) as asked:
                answer = olga.get(url)
            if answer.status_code != 200 or len(asked) > QUERIES_MAX:
                wrong.append((url, answer.status_code, len(asked)))
        if model._default_manager.count() < 250 or page.list_display == ("__str__",):
            wrong.append((name, page.list_display, model._default_manager.count()))
    with CaptureQueriesContext(connection) as asked:
        assert olga.get("/admin/").status_code == 200
    assert len(asked) <= QUERIES_MAX
    assert wrong == []


def test_the_job_page_shows_what_happened_its_money_and_its_video(
    olga: Client, alice: Account, s3: str
) -> None:
    job = succeeded(make_job(alice, seconds=5, prompt="zoom in"))
    lifecycle.note(job.pk, "route", "cpu: chosen, rank 0")
    page = olga.get(f"/admin/jobs/job/{job.pk}/change/").content.decode()
    for part in ("zoom in", "cpu: chosen, rank 0", "generate #2 ok", "capture", "w1"):
        assert part in page
    [video] = re.findall(r'<video[^>]* src="([^"]+)"', page)
    assert "X-Amz-Signature" in video
    assert "out/2-a.mp4" in video


# ------------------------------------------------------------------------ the acts


def test_jobs_that_wait_for_a_safety_worker_are_found_though_there_is_none(
    olga: Client, alice: Account
) -> None:
    job, other = make_job(alice), make_job(alice)
    Job.objects.filter(pk=job.pk).update(step=Step.SCREEN, queue="safety")
    shown = olga.get("/admin/jobs/job/?queue=safety").content.decode()
    assert str(job.pk) in shown
    assert str(other.pk) not in shown
    assert "?queue=safety" in olga.get("/admin/jobs/job/").content.decode()


def test_cancel_gives_the_hold_back_and_says_who_and_why(
    olga: Client, alice: Account
) -> None:
    job = make_job(alice, seconds=5)
    act(olga, job, "cancel", "the customer phoned")
    job.refresh_from_db()
    assert job.status == "canceled"
    assert available(alice) == 1000
    assert "the customer phoned" in written_down(job)
    assert "the customer phoned" not in job.error_message
    assert job.notes.filter(actor="olga", text__contains="phoned").exists()


def test_trying_again_makes_a_new_job_with_a_hold_of_its_own(
    olga: Client, alice: Account
) -> None:
    job = failed(make_job(alice, seconds=5))
    assert available(alice) == 1000
    act(olga, job, "retry", "the card was broken")
    again = Job.objects.get(source=job)
    assert (again.status, again.account_id) == ("queued", alice.pk)
    assert again.request["prompt"] == job.request["prompt"]
    assert ledger.is_open(account_id=alice.pk, mode="live", reference=str(again.pk))
    assert available(alice) == 1000 - again.quoted_millicredits / 1000
    assert str(again.pk) in written_down(job)


def test_a_job_is_tried_again_once_and_then_its_other_try(
    olga: Client, alice: Account
) -> None:
    job = failed(make_job(alice, seconds=5))
    act(olga, job, "retry")
    again = Job.objects.get(source=job)
    assert f"tried again as job {again.pk}" in act(olga, job, "retry")[0]
    assert Job.objects.count() == 2
    claim = claims.claim_next("media", worker="w1")
    assert claim is not None
    lifecycle.fail(claim, RenderError("storage is away"))  # before it had pictures
    again.refresh_from_db()
    assert again.inputs == {}
    assert "tried again as job" in act(olga, again, "retry")[0]
    third = Job.objects.exclude(pk__in=[job.pk, again.pk]).get()
    assert third.source == job  # whose pictures are there
    assert "tried again as job" in act(olga, job, "retry")[0]
    assert "tried again as job" in act(olga, again, "retry")[0]
    assert Job.objects.count() == 3


@pytest.mark.django_db(transaction=True)
def test_operators_who_press_try_again_at_once_make_one_job(
    olga: Client, alice: Account
) -> None:
    job = failed(make_job(alice, seconds=5))
    ready = threading.Barrier(6)

    def press() -> None:
        try:
            ready.wait()
            olga.post(f"/admin/jobs/job/{job.pk}/retry/", {"reason": "the card broke"})
        finally:
            connection.close()

    threads = [threading.Thread(target=press) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = Job.objects.get(source=job)
    assert available(alice) == 1000 - again.quoted_millicredits / 1000


def test_only_what_failed_is_tried_again(olga: Client, alice: Account) -> None:
    job = succeeded(make_job(alice, seconds=5))
    assert "Only a failed or canceled job" in act(olga, job, "retry")[0]
    assert not Job.objects.filter(source=job).exists()


def test_a_refund_may_be_partial_and_happens_once(olga: Client, alice: Account) -> None:
    job = succeeded(make_job(alice, seconds=15))
    charged = job.charged_millicredits / 1000
    assert charged == 3
    act(olga, job, "refund", "half of it is black", credits="1.5")
    job.refresh_from_db()
    assert job.refunded_millicredits == 1500
    assert available(alice) == 1000 - charged + 1.5
    refund = Transfer.objects.get(kind="refund")
    assert (refund.actor, refund.reason) == ("olga", "half of it is black")
    entries = dict(Entry.objects.filter(transfer=refund).values_list("book", "amount"))
    assert entries == {"revenue": -1500, "available": 1500}
    assert "refunded 1500 before" in act(olga, job, "refund", credits="1")[0]
    assert available(alice) == 1000 - charged + 1.5


def test_a_refund_never_exceeds_the_charge(olga: Client, alice: Account) -> None:
    job = succeeded(make_job(alice, seconds=5))
    act(olga, job, "refund", credits="99")
    assert not Transfer.objects.filter(kind="refund").exists()


def test_giving_credits_twice_from_one_page_gives_once(
    olga: Client, alice: Account
) -> None:
    url = f"/admin/billing/account/{alice.pk}/grant/"
    page = olga.get(url).content.decode()
    [reference] = re.findall(r'name="reference" value="([^"]+)"', page)
    form = {
        "credits": "12.5",
        "mode": "live",
        "source": "goodwill",
        "reason": "sorry for Tuesday",
        "reference": reference,
    }
    for _ in range(2):
        assert olga.post(url, form).status_code == 302
    assert available(alice) == 1012.5
    given = Transfer.objects.get(kind="grant", actor="olga")
    assert given.reason == "sorry for Tuesday"
    assert "sorry for Tuesday" in written_down(alice)


def test_an_act_without_a_reason_is_not_done(olga: Client, alice: Account) -> None:
    url = f"/admin/billing/account/{alice.pk}/disable/"
    answer = olga.post(url, {"reason": ""})
    assert answer.status_code == 200
    assert "This field is required" in answer.content.decode()
    alice.refresh_from_db()
    assert alice.is_active


def test_several_rows_are_acted_on_with_one_reason(
    olga: Client, alice: Account
) -> None:
    bob = make_account("bob")
    form = {"action": "disable", "_selected_action": [str(alice.pk), str(bob.pk)]}
    page = olga.post("/admin/billing/account/", form)
    assert "alice" in page.content.decode()
    assert Account.objects.filter(is_active=True).count() == 2
    olga.post("/admin/billing/account/", {**form, "reason": "fraud ring"})
    assert not Account.objects.filter(is_active=True).exists()
    assert "fraud ring" in written_down(alice)
    assert "fraud ring" in written_down(bob)


def test_disabling_and_enabling_an_account(olga: Client, alice: Account) -> None:
    _, key = keys.mint(alice, "live")
    act(olga, alice, "disable")
    with pytest.raises(InvalidKey):
        keys.authenticate(key)
    act(olga, alice, "enable")
    assert keys.authenticate(key).account_id == alice.pk


def test_keys_are_revoked_with_a_reason(olga: Client, alice: Account) -> None:
    row, key = keys.mint(alice, "live")
    act(olga, row, "revoke", "leaked on a forum")
    with pytest.raises(InvalidKey):
        keys.authenticate(key)
    assert "leaked on a forum" in written_down(row)


def test_an_operator_key_is_shown_once_and_revoked(olga: Client) -> None:
    answer = olga.post(
        "/admin/billing/operatorkey/add/",
        {"name": "shop", "expires_at_0": "", "expires_at_1": ""},
        follow=True,
    )
    [key] = re.findall(r"zoe_operator_\w+_\w+_\w+", answer.content.decode())
    row = operator_keys.authenticate(key)
    assert (row.user.get_username(), row.name) == ("olga", "shop")
    act(olga, row, "revoke")
    with pytest.raises(InvalidKey):
        operator_keys.authenticate(key)


def test_a_frozen_wallet_thaws_only_when_its_books_add_up(
    olga: Client, alice: Account
) -> None:
    wallet = alice.wallets.get(mode="live")
    act(olga, wallet, "freeze")
    wallet.refresh_from_db()
    assert wallet.frozen
    act(olga, wallet, "thaw")
    wallet.refresh_from_db()
    assert not wallet.frozen


def test_a_payment_is_taken_back(olga: Client, alice: Account) -> None:
    bought = ledger.purchase(
        account_id=alice.pk, mode="live", payment_id="pay_1", amount_millicredits=5000
    )
    assert available(alice) == 1005
    act(olga, bought.purchase, "take_back", "chargeback")
    assert available(alice) == 1000
    moved = Transfer.objects.get(kind="take_back")
    assert (moved.actor, moved.reason) == ("olga", "chargeback")


def test_resolving_an_incident_keeps_who_and_why(olga: Client) -> None:
    incidents.report("open_hold", "job 1", "Credits are held.")
    row = Incident.objects.get()
    act(olga, row, "resolve", "settled by hand")
    row.refresh_from_db()
    assert row.resolved_by == "olga"
    assert "settled by hand" in written_down(row)


def test_a_provider_account_is_used_again(olga: Client) -> None:
    from django.utils import timezone

    row = ProviderAccount.objects.create(
        provider="novita",
        name="main",
        base_url="https://api.novita.ai",
        failures_in_row=9,
        out_of_order_at=timezone.now(),
    )
    incidents.report("provider_account", str(row), "out of credit")
    act(olga, row, "enable", "topped up")
    row.refresh_from_db()
    assert (row.failures_in_row, row.out_of_order_at) == (0, None)
    assert Incident.objects.get().resolved_by == "olga"


@pytest.mark.parametrize(
    ("provider", "public_url", "shown"),
    [
        ("openai_videos", "https://zoe.example", None),
        ("openai_videos", "http://127.0.0.1:8000", "unavailable: the provider cannot"),
        ("novita", "https://zoe.example", "nothing to enter"),
        ("novita", "http://localhost:8000", "unavailable: the provider cannot"),
        ("sinancode", "https://zoe.example", "none: this provider calls nobody"),
    ],
)
def test_the_address_to_enter_at_a_provider_is_on_its_accounts_page(
    olga: Client, settings: Any, provider: str, public_url: str, shown: str | None
) -> None:
    settings.PUBLIC_URL = public_url
    row = ProviderAccount.objects.create(
        provider=provider, name="main", base_url="https://api.example.com"
    )
    page = html.unescape(
        olga.get(f"/admin/jobs/provideraccount/{row.pk}/change/").content.decode()
    )
    found = re.search(rf"{public_url}/callbacks/{provider}/([\w:-]+)", page)
    assert (found is None) == (shown is not None)
    if found is not None:
        salt = provider_steps.ACCOUNT_CALLBACK_SALT
        assert signing.loads(found[1], salt=salt) == row.pk
    assert (shown or "") in page
    assert 'name="callback_url"' not in page
    fresh = olga.get("/admin/jobs/provideraccount/add/").content.decode()
    assert "shown once the account is saved" in fresh


def in_doubt(account: Account, **fields: Any) -> Job:
    """Return a job whose submit's answer was lost, with the incident it makes."""
    job = make_job(account)
    route = {
        "id": 0,
        "name": "novita",
        "kind": "provider",
        "queue": "provider.novita",
        "runner": "novita",
        "profile": "any",
        "simulates": False,
    }
    at, _ = ProviderAccount.objects.get_or_create(
        provider="novita", name="main", defaults={"base_url": "https://api.novita.ai"}
    )
    Job.objects.filter(pk=job.pk).update(
        status="running",
        step=Step.RECONCILE,
        queue="",
        route=route,
        provider_account=at,
        submit_token="t-1",
        submit_sent_at=Now(),
        **fields,
    )
    incidents.report("unknown_fate", str(job.pk), "its answer was lost")
    return Job.objects.get(pk=job.pk)


def test_what_never_got_to_the_provider_is_sent_again_then_made_elsewhere(
    olga: Client, alice: Account
) -> None:
    job = in_doubt(alice)
    page = olga.get(f"/admin/jobs/job/{job.pk}/change/").content.decode()
    assert "Never got there" in page
    (said,) = act(olga, job, "absent", "not on their bill")
    assert "sent to the provider once more" in said
    assert "not on their bill" in written_down(job)
    job.refresh_from_db()
    assert (job.step, job.queue, job.submit_sent_at) == (
        "submit",
        "provider.novita",
        None,
    )
    note = job.notes.get(kind="reconcile")
    assert (note.actor, note.text) == ("olga", "not at the provider: not on their bill")
    assert Incident.objects.get().resolved_by == "olga"

    Job.objects.filter(pk=job.pk).update(step=Step.RECONCILE, queue="")
    (said,) = act(olga, job, "absent", "again not there")
    assert "by the route cpu" in said
    job.refresh_from_db()
    assert (job.step, job.queue) == ("generate", "cpu")


def test_an_id_that_another_job_has_is_nobody_elses(
    olga: Client, alice: Account
) -> None:
    bob = make_account("bob", plan="enterprise", credits=100)
    hers, his = in_doubt(alice), in_doubt(bob)
    there = {"provider_job_id": "there"}
    (said,) = act(olga, hers, "found", "it is in their list", **there)
    assert "goes on" in said
    for ended in ({}, {"status": "succeeded", "step": "done", "finished_at": Now()}):
        Job.objects.filter(pk=hers.pk).update(**ended, queue="")
        (said,) = act(olga, his, "found", "it is in their list", **there)
        assert f"That id is the one of job {hers.pk}" in said
    his.refresh_from_db()
    assert (his.step, his.provider_job_id) == ("reconcile", "")
    assert not ProviderErrand.objects.exists()
    assert not his.notes.filter(kind="operator").exists()


def test_what_no_other_route_can_make_is_given_back(
    olga: Client, alice: Account
) -> None:
    job = in_doubt(alice, routes_tried=["cpu"])
    act(olga, job, "absent", "not on their bill")
    Job.objects.filter(pk=job.pk).update(step=Step.RECONCILE, queue="")
    (said,) = act(olga, job, "absent", "again not there")
    assert "the whole hold released" in said
    assert available(alice) == 1000


def test_only_a_job_in_doubt_can_have_got_lost(olga: Client, alice: Account) -> None:
    job = make_job(alice)
    (said,) = act(olga, job, "absent", "a mistake")
    assert "not in doubt" in said
    job.refresh_from_db()
    assert (job.status, job.step) == ("queued", "prepare")


def test_a_delivery_is_sent_again(olga: Client, alice: Account) -> None:
    endpoint = WebhookEndpoint.objects.create(
        account=alice, mode="live", url="https://example.com", secret="whsec_eA=="
    )
    event = WebhookEvent.objects.create(account=alice, mode="live", type="balance.low")
    row = WebhookDelivery.objects.create(
        event=event, endpoint=endpoint, url=endpoint.url, lane="l", state="failed"
    )
    act(olga, row, "replay", "their server is back")
    row.refresh_from_db()
    assert row.state == "pending"
    assert "their server is back" in written_down(row)
    WebhookDelivery.objects.update(state="failed")
    WebhookEndpoint.objects.update(is_enabled=False)
    assert "endpoint is disabled" in act(olga, row, "replay")[0]
    row.refresh_from_db()
    assert row.state == "failed"


def test_a_dead_worker_is_forgotten(olga: Client) -> None:
    row = Worker.objects.create(name="gpu@gone", queues=["gpu.wan2.2"])
    incidents.report("worker_dead", row.name, "silent")
    told = act(olga, row, "forget", "the host was given back")
    assert told == [
        "gpu@gone: forgotten; should it still live, it comes back within seconds."
    ]
    assert not Worker.objects.exists()
    assert Incident.objects.get().resolved_by == "olga"


# ---------------------------------------------------------------------- what is edited


def test_an_edited_price_is_a_new_version_with_its_reason(olga: Client) -> None:
    row = PriceRow.objects.get(
        model="wan2.1-i2v", resolution="480p", is_surcharge=False
    )
    form = {
        "resolution": "480p",
        "seconds": "",
        "options": "{}",
        "unit": "job",
        "unit_size": 1,
        "amount_millicredits": 21_000,
        "effective_from_0": row.effective_from.date().isoformat(),
        "effective_from_1": row.effective_from.time().isoformat(),
    }
    url = f"/admin/billing/pricerow/{row.pk}/change/"
    assert olga.post(url, form).status_code == 200  # no reason, not saved
    assert olga.post(url, {**form, "reason": "GPUs cost more"}).status_code == 302
    row.refresh_from_db()
    assert row.amount_millicredits == 20_000
    newest = PriceRow.objects.filter(model="wan2.1-i2v").order_by("-version").first()
    assert newest is not None
    assert newest.version > row.version
    assert "GPUs cost more" in written_down(row)


def test_credentials_of_a_provider_go_in_and_never_come_out(olga: Client) -> None:
    form = {
        "provider": "novita",
        "name": "main",
        "base_url": "https://api.novita.ai",
        "settings": "{}",
        "is_enabled": "on",
        "weight": 100,
        "new_credentials": '{"api_key": "sk-very-secret"}',
        "reason": "our account",
    }
    answer = olga.post("/admin/jobs/provideraccount/add/", form)
    assert answer.status_code == 302, answer.context["errors"]
    row = ProviderAccount.objects.get()
    assert json.loads(row.credentials) == {"api_key": "sk-very-secret"}
    url = f"/admin/jobs/provideraccount/{row.pk}/change/"
    assert "sk-very-secret" not in olga.get(url).content.decode()
    answer = olga.post(url, {**form, "new_credentials": "", "weight": 50})
    assert answer.status_code == 302
    row.refresh_from_db()
    assert row.weight == 50
    assert "sk-very-secret" in row.credentials
    assert not LogEntry.objects.filter(change_message__contains="very-secret").exists()
    for given, told in (
        ('{"key": "x"}', "it takes api_key"),
        ("{}", "api_key is missing"),
        ('{"api_key": 5}', "is not one line of printable ASCII"),
        ('{"api_key": "sk-te\u200bst"}', "is not one line of printable ASCII"),
    ):
        answer = olga.post(url, {**form, "new_credentials": given})
        assert told in answer.content.decode()
    olga.post(url, {**form, "new_credentials": '{"api_key": " sk-pasted\\n"}'})
    row.refresh_from_db()
    assert json.loads(row.credentials) == {"api_key": "sk-pasted"}


def test_an_account_that_can_take_no_job_is_not_called_well(
    olga: Client, settings: Any
) -> None:
    settings.S3_PUBLIC_ENDPOINT_URL = "http://127.0.0.1:8333"
    row = ProviderAccount.objects.create(
        provider="novita",
        name="main",
        base_url="https://api.novita.ai",
        credentials='{"api_key": "sk-test"}',
    )
    url = f"/admin/jobs/provideraccount/{row.pk}/change/"

    def shown() -> tuple[str, str, bool]:
        listed = olga.get("/admin/jobs/provideraccount/").content.decode()
        (health,) = re.findall(r"\b(unusable|well)\b", listed)
        (usable,) = (line.is_usable for line in figures.providers())
        return health, olga.get(url).content.decode(), usable

    health, page, usable = shown()
    assert (health, usable) == ("unusable", False)
    assert "no: Novita AI reads pictures by URL" in page
    settings.S3_PUBLIC_ENDPOINT_URL = "https://files.example"
    health, page, usable = shown()
    assert (health, usable) == ("well", True)
    assert "no: Novita" not in page
    ProviderAccount.objects.update(credentials="{}")
    health, page, usable = shown()
    assert (health, usable) == ("unusable", False)
    assert "has no api_key" in page


NOVITA = {
    "provider": "novita",
    "name": "main",
    "base_url": "https://api.novita.ai",
    "is_enabled": "on",
    "weight": 100,
    "new_credentials": '{"api_key": "sk-test"}',
    "reason": "our account",
}


@pytest.mark.parametrize("text", ["", "null", "{}"])
def test_the_settings_of_a_provider_account_may_be_emptied(
    olga: Client, text: str
) -> None:
    answer = olga.post("/admin/jobs/provideraccount/add/", {**NOVITA, "settings": text})
    assert answer.status_code == 302, answer.context["errors"]
    assert ProviderAccount.objects.get().settings == {}


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("settings", "[]", "must be a JSON object"),
        ("settings", '{"poll_seconds": "10 s"}', "must be a number of seconds"),
        ("settings", '{"sizes": {"720p": "1280x720"}}', "there is no"),
        ("settings", '{"usd_per_second": {"720p": NaN}}', "prices by tier"),
        ("new_credentials", "", "A new account needs its credentials."),
        ("weight", "0", "It must be more than 0."),
        ("concurrent_jobs", "0", "It must be more than 0."),
        ("submits_per_second", "-1", "It must be more than 0."),
        ("statuses_per_second", "0", "It must be more than 0."),
    ],
)
def test_what_a_provider_account_cannot_work_with_is_not_saved(
    olga: Client, field: str, value: str, told: str
) -> None:
    given = {**NOVITA, "settings": "{}", field: value}
    answer = olga.post("/admin/jobs/provideraccount/add/", given)
    assert told in html.unescape(answer.content.decode())
    assert not ProviderAccount.objects.exists()


def test_routes_and_aliases_must_lead_somewhere(olga: Client) -> None:
    alias = {"name": "my-model", "model": "no-such-model", "reason": "for a test"}
    assert olga.post("/admin/jobs/modelalias/add/", alias).status_code == 200
    assert not ModelAlias.objects.filter(name="my-model").exists()
    olga.post("/admin/jobs/modelalias/add/", {**alias, "model": "motion"})
    assert routing.lookup("my-model") is routing.lookup("motion")
    route = Route.objects.filter(kind="provider").first()
    assert route is not None
    form = {
        "model": route.model,
        "name": route.name,
        "kind": "provider",
        "queue": route.queue,
        "runner": "nobody",
        "plans": "[]",
        "rank": 0,
        "weight": 100,
        "cost_microdollars": 0,
        "gpu_second_microdollars": 0,
        "reason": "for a test",
    }
    url = f"/admin/jobs/route/{route.pk}/change/"
    assert "Providers are" in olga.post(url, form).content.decode()


# -------------------------------------------------------------------- nobody's hands

BOOKS = ["wallet", "creditgrant", "transfer", "entry", "hold", "purchase"]
BOOK_TABLES = ["billing_transfer", "billing_entry", "billing_pricerow"]


@pytest.mark.parametrize("book", BOOKS)
def test_no_operator_edits_the_books(olga: Client, alice: Account, book: str) -> None:
    make_job(alice, seconds=5)
    ledger.purchase(
        account_id=alice.pk, mode="live", payment_id="pay_1", amount_millicredits=5000
    )
    table = apps.get_model("billing", book)
    before = list(table.objects.order_by("pk").values())
    row = table.objects.first()
    url = f"/admin/billing/{book}/{row.pk}"
    assert olga.get(f"/admin/billing/{book}/add/").status_code == 403
    assert olga.post(f"{url}/change/", {"amount": 1}).status_code == 403
    assert olga.post(f"{url}/delete/", {"post": "yes"}).status_code == 403
    form = {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"}
    olga.post(f"/admin/billing/{book}/", form)
    assert list(table.objects.order_by("pk").values()) == before


@pytest.mark.parametrize("table", BOOK_TABLES)
@pytest.mark.parametrize("verb", ["UPDATE {} SET id = id", "DELETE FROM {}"])
def test_no_session_edits_the_books(alice: Account, table: str, verb: str) -> None:
    with (
        pytest.raises(DatabaseError, match="append-only"),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute(verb.format(table))


def test_staff_without_the_right_can_neither_see_nor_act(
    client: Client, alice: Account
) -> None:
    user = get_user_model().objects.create_user("ben", is_staff=True)
    client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    job = make_job(alice, seconds=5)
    assert client.get("/admin/jobs/job/").status_code == 403
    url = f"/admin/jobs/job/{job.pk}/cancel/"
    assert client.post(url, {"reason": "because I can"}).status_code == 403
    url = f"/admin/billing/account/{alice.pk}/grant/"
    assert client.post(url, {"reason": "because I can"}).status_code == 403
    assert "Revenue" not in client.get("/admin/").content.decode()
    job.refresh_from_db()
    assert job.status == "queued"


# ------------------------------------------------------------- what customers wrote


def test_what_customers_wrote_is_text_and_runs_nowhere(
    olga: Client, alice: Account
) -> None:
    job = make_job(alice, seconds=5, prompt=EVIL, metadata={"x": EVIL})
    endpoint = WebhookEndpoint.objects.create(
        account=alice,
        mode="live",
        url="https://example.com/" + EVIL,
        description=EVIL,
        secret="whsec_eA==",
    )
    event = WebhookEvent.objects.create(account=alice, mode="live", type="balance.low")
    delivery = WebhookDelivery.objects.create(
        event=event,
        endpoint=endpoint,
        url=endpoint.url,
        lane="l",
        log=[{"at": "now", "status": 200, "seconds": 1, "answer": EVIL}],
    )
    Account.objects.filter(pk=alice.pk).update(name=EVIL)
    keys.mint(alice, "live", name=EVIL)
    Worker.objects.create(name="w", queues=[EVIL], doing=[])
    incidents.report("webhook_endpoint", "x", EVIL)
    pages = [
        "/admin/",
        "/admin/jobs/job/",
        f"/admin/jobs/job/{job.pk}/change/",
        f"/admin/jobs/job/{job.pk}/cancel/",
        "/admin/jobs/webhookendpoint/",
        f"/admin/jobs/webhookendpoint/{endpoint.pk}/change/",
        f"/admin/jobs/webhookdelivery/{delivery.pk}/change/",
        "/admin/billing/account/",
        f"/admin/billing/account/{alice.pk}/change/",
        "/admin/billing/apikey/",
        "/admin/jobs/incident/",
        "/admin/jobs/worker/",
    ]
    for url in pages:
        answer = olga.get(url)
        page = answer.content.decode()
        assert "<script>alert" not in page, url
        assert "<img src=x" not in page, url
        policy = answer["Content-Security-Policy"]
        assert "script-src 'self' 'unsafe-eval';" in policy
        assert "frame-ancestors 'none'" in policy


def test_a_statement_runs_no_formula(olga: Client, alice: Account) -> None:
    ledger.grant(
        account_id=alice.pk,
        mode="live",
        reference="=HYPERLINK(1)",
        amount_millicredits=1000,
        actor="@SUM(1)",
        reason='+cmd|"/C calc"!A0',
    )
    url = f"/admin/billing/account/{alice.pk}/statement/"
    assert olga.get(url).status_code == 200
    answer = olga.get(url, {"mode": "live", "start": "2020-01-01", "end": "2100-01-01"})
    assert answer["Content-Type"].startswith("text/csv")
    lines = b"".join(answer.streaming_content).decode()  # type: ignore[attr-defined]
    rows = list(csv.DictReader(io.StringIO(lines)))
    assert [row["available_after_credits"] for row in rows] == ["1000.000", "1001.000"]
    assert rows[1]["reference"] == "'=HYPERLINK(1)"
    assert rows[1]["actor"] == "'@SUM(1)"
    assert rows[1]["reason"].startswith("'+cmd")


@pytest.mark.parametrize(
    ("start", "end"), [("2030-01-02", "2030-01-01"), ("2030-01-01", "9999-12-31")]
)
def test_a_statement_of_no_period_is_asked_for_again(
    olga: Client, alice: Account, start: str, end: str
) -> None:
    url = f"/admin/billing/account/{alice.pk}/statement/"
    answer = olga.get(url, {"mode": "live", "start": start, "end": end})
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/html")


def test_an_effects_new_words_are_a_new_version(olga: Client) -> None:
    effects.install()
    effect = Effect.objects.first()
    assert effect is not None
    first = effect.current
    form = {
        "code": effect.code,
        "name": effect.name,
        "description": effect.description,
        "is_enabled": "on",
        "rank": effect.rank,
        "plans": "[]",
        "for_models": "[]",
        "prompt": "the camera circles slowly",
        "negative_prompt": "",
        "parameters": "{}",
        "loras": "[]",
        "reason": "nicer",
        "versions-TOTAL_FORMS": 0,
        "versions-INITIAL_FORMS": 0,
    }
    url = f"/admin/jobs/effect/{effect.pk}/change/"
    answer = olga.post(url, form)
    assert answer.status_code == 302, answer.context["errors"]
    assert effect.current.version == first.version + 1
    assert effect.current.prompt == "the camera circles slowly"
    first.refresh_from_db()
    assert first.prompt != "the camera circles slowly"
    assert "nicer" in written_down(effect)
    wrong = olga.post(url, {**form, "parameters": '{"no-such-model": {}}'})
    assert "There is no model" in wrong.content.decode()
    assert effect.versions.count() == first.version + 1


def test_files_are_not_deleted_while_the_storage_is_away(
    olga: Client, alice: Account, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = lives.succeeded(make_job(alice, seconds=5))

    def away(*_: object) -> None:
        raise StorageUnavailable("storage is away")

    monkeypatch.setattr(Storage, "delete", away)
    assert "storage is away" in act(olga, job, "delete_files")[0]
    job.refresh_from_db()
    assert job.files_deleted_at is None


@pytest.mark.parametrize(
    ("stderr", "read"),
    [
        ("Traceback …\nCommandError: orbit v1: no memory", "orbit v1: no memory"),
        ("", "-9"),
    ],
)
def test_a_preview_that_cannot_be_rendered_says_why(
    olga: Client, monkeypatch: pytest.MonkeyPatch, stderr: str, read: str
) -> None:
    def ended(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, -9, stdout="", stderr=stderr)

    monkeypatch.setattr(subprocess, "run", ended)
    effect = Effect.objects.get(pk="orbit")
    (said,) = act(olga, effect, "render", "new words")
    assert read in said
    assert not LogEntry.objects.filter(object_id="orbit").exists()


def form_of(row: Any, **typed: Any) -> dict[str, Any]:
    """Return what the row's page would send, with ``typed`` in some of its boxes."""
    shown = model_to_dict(row)
    json_boxes = {k: json.dumps(v) for k, v in shown.items() if type(v) in (dict, list)}
    kept = {k: v for k, v in shown.items() if v is not None and v is not False}
    return {**kept, **json_boxes, "reason": "for a test", **typed}


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("5", "one JSON object"),
        ("[1]", "one JSON object"),
        ('{"magicoal": "5"}', "whole number of videos"),
        ('{"magicoal": true}', "whole number of videos"),
        ('{"magicaol": 5}', "there are native, magicoal"),
    ],
)
def test_a_plans_months_are_numbers_by_api(olga: Client, typed: str, read: str) -> None:
    plan = Plan.objects.get(pk="free")
    answer = olga.post(
        "/admin/billing/plan/free/change/", form_of(plan, monthly_videos=typed)
    )
    assert answer.status_code == 200
    assert read in html.unescape(answer.content.decode())
    plan.refresh_from_db()
    assert plan.monthly_videos == {"magicoal": 5}


def test_an_emptied_box_takes_the_limit_away(olga: Client) -> None:
    plan = Plan.objects.get(pk="free")
    answer = olga.post(
        "/admin/billing/plan/free/change/", form_of(plan, monthly_videos="")
    )
    assert answer.status_code == 302, answer.context["errors"]
    plan.refresh_from_db()
    assert plan.monthly_videos == {}


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ({"plans": "5"}, "one JSON list"),
        ({"plans": '["prp"]'}, "there are enterprise, free, pro"),
        ({"plans": "[[]]"}, "There is no plan []"),
        ({"runner": "moton"}, "Engines are motion"),
    ],
)
def test_a_route_names_what_there_is(
    olga: Client, typed: dict[str, str], read: str
) -> None:
    route = Route.objects.filter(model="motion", simulates=False).get()
    url = f"/admin/jobs/route/{route.pk}/change/"
    answer = olga.post(url, form_of(route, **typed))
    assert answer.status_code == 200
    assert read in html.unescape(answer.content.decode())
    answer = olga.post(url, form_of(route, plans='["pro"]'))
    assert answer.status_code == 302, answer.context["errors"]
    answer = olga.post(url, form_of(route, plans=""))
    assert answer.status_code == 302, answer.context["errors"]
    route.refresh_from_db()
    assert route.plans == []


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ({"options": "5"}, "one JSON object"),
        ({"options": "[1]"}, "one JSON object"),
        ({"options": '{"qualty": "fast"}'}, "there are audio, quality"),
        ({"options": '{"quality": ["fast"]}'}, "must be a text, true or false"),
        ({"resolution": "720P"}, "wan2.1-i2v renders 480p, 720p"),
        ({"model": "moton"}, "There is no public model 'moton'"),
    ],
)
def test_a_price_is_for_something_that_is_sold(
    olga: Client, typed: dict[str, str], read: str
) -> None:
    row = PriceRow.objects.filter(model="wan2.1-i2v", resolution="720p").get()
    form = form_of(row, effective_from_0="2026-01-01", effective_from_1="00:00:00")
    answer = olga.post("/admin/billing/pricerow/add/", {**form, **typed})
    assert answer.status_code == 200
    assert read in html.unescape(answer.content.decode())
    if "model" not in typed:
        url = f"/admin/billing/pricerow/{row.pk}/change/"
        assert read in html.unescape(olga.post(url, {**form, **typed}).content.decode())
    assert not PriceRow.objects.filter(version__gt=row.version).exists()


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ({"plans": "5"}, "one JSON list"),
        ({"plans": '["gold"]'}, "There is no plan 'gold'"),
        ({"for_models": '"motion"'}, "one JSON list"),
        ({"for_models": '["moton"]'}, "There is no public model 'moton'"),
        ({"prompt": "x" * 801}, "801 characters"),
        ({"loras": '[{"path": 5}]'}, "name or address"),
        ({"loras": '[{"path": "a", "scale": "x"}]'}, "-4 to 4"),
    ],
)
def test_an_effect_names_what_there_is(
    olga: Client, typed: dict[str, str], read: str
) -> None:
    effects.install()
    effect = Effect.objects.get(pk="orbit")
    form = form_of(
        effect,
        prompt="the camera circles slowly",
        **{"versions-TOTAL_FORMS": 0, "versions-INITIAL_FORMS": 0},
    )
    url = "/admin/jobs/effect/orbit/change/"
    answer = olga.post(url, {**form, **typed})
    assert answer.status_code == 200
    assert read in html.unescape(answer.content.decode())
    emptied = {"plans": "", "for_models": "", "parameters": "", "loras": ""}
    answer = olga.post(url, {**form, **emptied})
    assert answer.status_code == 302, answer.context["errors"]
    effect.refresh_from_db()
    assert (effect.plans, effect.for_models) == ([], [])


def test_an_edited_plan_says_why(olga: Client) -> None:
    form = {k: v for k, v in model_to_dict(Plan.objects.get(pk="pro")).items() if v}
    form |= {"max_running": 7, "monthly_videos": "{}"}
    url = "/admin/billing/plan/pro/change/"
    assert olga.post(url, form).status_code == 200
    answer = olga.post(url, {**form, "reason": "more GPUs"})
    assert answer.status_code == 302, answer.context["errors"]
    assert Plan.objects.get(pk="pro").max_running == 7
    assert "more GPUs" in written_down(Plan.objects.get(pk="pro"))


def test_an_account_is_deleted_from_its_page(
    olga: Client, alice: Account, s3: str
) -> None:
    make_job(alice, prompt="a secret")
    act(olga, alice, "delete_account", "asked to be forgotten")
    alice.refresh_from_db()
    assert alice.deleted_at is not None
    assert Job.objects.get().request["prompt"] == ""
    assert "asked to be forgotten" in written_down(alice)
