"""Accounts at providers: limits under their lock, several at once, and what is asked."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.db.models.functions import Now

from inference.errors import Fault, ProviderError, Unsupported
from inference.providers import base
from jobs import outside
from jobs.models import Incident, Job, ProviderAccount
from tests.factories import make_account, make_job, make_request

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]


def account(name: str = "main", **fields: object) -> ProviderAccount:
    return ProviderAccount.objects.create(
        provider="sinancode",
        name=name,
        base_url="http://127.0.0.1:9",
        credentials='{"api_key": "canary"}',
        **fields,
    )


def take() -> outside.Taken:
    with transaction.atomic():
        return outside.take_account("sinancode", can=lambda _: None)


def test_the_rate_of_submits_holds_and_a_worker_learns_when_to_ask_again():
    account(submits_per_second=0.5)
    take()
    with pytest.raises(outside.NoneFree):
        take()
    wait = outside.seconds_to_wait("sinancode")
    assert wait is not None
    assert 0 < wait <= 2


def test_jobs_at_once_hold_per_account():
    row = account(submits_per_second=1000, concurrent_jobs=1)
    make_job(make_account(credits=100), model="motion")
    Job.objects.update(step="await", status="running", provider_account=row)
    with pytest.raises(outside.NoneFree):
        take()
    assert outside.seconds_to_wait("sinancode") is None
    Job.objects.update(step="finish")
    assert outside.seconds_to_wait("sinancode") == 0.0


def test_heavier_accounts_take_more():
    account("heavy", weight=300, submits_per_second=1e6)
    account("light", weight=100, submits_per_second=1e6)
    drawn: Counter[str] = Counter()
    for _ in range(100):
        ProviderAccount.objects.update(next_submit_at=None)
        drawn[take().row.name] += 1
    assert 55 < drawn["heavy"] < 95


def test_an_account_that_cannot_make_it_is_not_asked():
    account("small", submits_per_second=1e6)
    account("large", submits_per_second=1e6)

    def can(one: object) -> None:
        if getattr(one, "name", "") == "small":
            raise Unsupported("too long", field="seconds")

    names = set()
    for _ in range(8):
        ProviderAccount.objects.update(next_submit_at=None)
        with transaction.atomic():
            names.add(outside.take_account("sinancode", can=can).row.name)
    assert names == {"large"}


def test_failures_that_come_while_it_is_open_do_not_lengthen_the_pause():
    row = account()
    for _ in range(30):  # calls that were all under way
        outside.went_wrong(row.pk, ProviderError("500", fault=Fault.HEALTH))
    row.refresh_from_db()
    assert row.failures_in_row == outside.FAILURES_TO_OPEN


def test_only_a_video_makes_failures_forgotten():
    row = account(failures_in_row=4)
    outside.accepted(row.pk)
    row.refresh_from_db()
    assert row.failures_in_row == 4
    outside.went_wrong(row.pk, ProviderError("500", fault=Fault.HEALTH))
    row.refresh_from_db()
    assert row.open_until is not None
    outside.went_well(row.pk)
    row = ProviderAccount.objects.get(pk=row.pk)
    assert (row.failures_in_row, row.open_until) == (0, None)


def test_out_of_credit_is_one_incident_however_often_it_is_heard():
    row = account()
    for _ in range(3):
        outside.went_wrong(row.pk, ProviderError("402", fault=Fault.ACCOUNT))
    assert Incident.objects.get().kind == "provider_account"
    with pytest.raises(ProviderError) as refused:
        take()
    assert refused.value.fault is Fault.ACCOUNT


def test_keys_are_encrypted_and_not_in_what_is_printed():
    row = account()
    with connection.cursor() as cursor:
        cursor.execute("SELECT credentials FROM jobs_provideraccount")
        (stored,) = cursor.fetchone()
    assert "canary" not in stored
    assert "canary" not in repr(outside.as_account(row))
    assert outside.as_account(row).secret("api_key") == "canary"


@pytest.mark.django_db(transaction=True)
def test_of_many_workers_at_once_each_place_goes_to_one():
    account(submits_per_second=1e9, concurrent_jobs=3)
    alice = make_account(plan="enterprise", credits=1000)
    jobs = [make_job(alice) for _ in range(12)]
    taken: list[object] = []
    gate = threading.Barrier(len(jobs))

    def one(job: Job) -> None:
        gate.wait()
        try:
            with transaction.atomic():
                row = outside.take_account("sinancode", can=lambda _: None).row
                Job.objects.filter(pk=job.pk).update(
                    provider_account=row,
                    step="submit",
                    status="running",
                    lease_until=Now() + timedelta(seconds=60),
                )
            taken.append(row)
        except outside.NoneFree:
            pass
        finally:
            connection.close()

    threads = [threading.Thread(target=one, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(taken) <= 3
    assert Job.objects.filter(provider_account__isnull=False).count() == len(taken)


# ---------------------------------------------------------------- what is asked for


def ordered(
    model: str, provider: str, wire_model: str, **options: Any
) -> base.ProviderJob:
    request = make_request(model, **options)
    return outside.order(
        request, reference="r", wire_model=wire_model, provider=provider
    )


def test_a_providers_watermark_and_our_own_extras_are_never_asked_for():
    order = ordered("wan2.6-i2v", "sinancode", "wan2.6-i2v", watermark=True)
    assert order.audio_mode == "generate"
    assert "watermark" not in vars(order)


def test_sound_the_provider_cannot_make_is_made_here():
    order = ordered("wan2.2-i2v", "magicoal", "i2v")
    assert order.audio_mode == "none"


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({}, "generate"),
        ({"sound": False}, "none"),
        ({"sound": False, "seconds": [4]}, "none"),
    ],
)
def test_sound_a_server_of_the_same_format_lacks_is_made_here(
    settings: dict[str, Any], mode: str
) -> None:
    there = base.ProviderAccount(
        "own", "https://own.example", {"api_key": "k"}, settings
    )
    request = make_request("wan2.7-i2v", seconds=4, tier="720p", prompt="waves")
    order = outside.order(
        request,
        reference="r",
        wire_model="sora-2",
        provider="openai_videos",
        account=there,
    )
    outside.adapter("openai_videos").check(order, there)
    assert order.audio_mode == mode


def test_a_shot_type_is_shaped_by_us_where_the_provider_has_none():
    order = ordered("wan2.7-i2v", "dashscope", "wan2.7-i2v", shot_type="multi")
    there = outside.adapter("dashscope")
    there.check(order, outside.as_account(account()))  # nothing is refused
    assert order.shot_type == "single"


def add_provider(monkeypatch: pytest.MonkeyPatch, key: str, *options: str) -> None:
    credentials = json.dumps({"api_key": key})
    monkeypatch.setattr(sys, "stdin", io.StringIO(credentials))
    call_command("addprovider", "sinancode", *options, stdout=io.StringIO())


def test_an_account_switched_off_by_command_keeps_its_credentials(monkeypatch):
    add_provider(monkeypatch, "one")
    call_command("addprovider", "sinancode", "--off")
    row = ProviderAccount.objects.get(provider="sinancode")
    assert not row.is_enabled
    assert json.loads(row.credentials) == {"api_key": "one"}
    with pytest.raises(CommandError, match="no account 'second'"):
        call_command("addprovider", "sinancode", "--name=second", "--off")


def test_an_account_entered_anew_is_used_again_and_its_incident_over(monkeypatch):
    add_provider(monkeypatch, " sk-old\n")
    row = ProviderAccount.objects.get()
    assert json.loads(row.credentials) == {"api_key": "sk-old"}
    outside.went_wrong(row.pk, ProviderError("402", fault=Fault.ACCOUNT))
    assert not outside.usable_accounts("sinancode")
    add_provider(monkeypatch, "sk-new", "--setting=poll_seconds=5")
    (row,) = outside.usable_accounts("sinancode")
    assert (row.last_error, row.settings) == ("", {"poll_seconds": 5})
    assert not Incident.objects.filter(resolved_at=None).exists()


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("", ()),
        ("sk-te\u200bst", ()),
        ("sk", ("--setting=poll_seconds=soon",)),
        ("sk", ("--setting=poll_second=5",)),
    ],
)
def test_an_account_that_could_not_work_is_not_entered(key, options, monkeypatch):
    with pytest.raises(CommandError):
        add_provider(monkeypatch, key, *options)
    assert not ProviderAccount.objects.exists()
