"""Files go when they should, are really gone, and leave a record; nothing else goes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import connection

from billing import accounts, keys, ledger, operator_keys, prices
from billing.errors import InvalidKey
from billing.models import Account, ApiKey, Member, OperatorKey
from jobs import (
    account_deletion,
    context,
    intake,
    lifecycle,
    retention,
    routing,
    stops,
    watch,
)
from jobs.models import (
    DeletionRecord,
    IdempotencyRecord,
    Incident,
    Job,
    WebhookEndpoint,
    WebhookEvent,
)
from tests.factories import make_account, make_job, make_key
from tests.jobs.lives import failed, running, store, stored, succeeded

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("s3")]


@pytest.fixture
def alice(db: None) -> Iterator[Account]:
    keys.forget()
    prices.forget()
    routing.forget()
    alice = make_account("alice", plan="pro", credits=100)
    yield alice
    assert ledger.check(account_id=alice.pk) == []


def let_pass(job: Job, **ago: timedelta) -> Job:
    """Move moments of the job into the past: all of it obeys the database's clock."""
    with connection.cursor() as cursor:
        # An ended job's end is kept by a trigger.
        cursor.execute("SET LOCAL session_replication_role = replica")
        for name, age in ago.items():
            cursor.execute(
                f"UPDATE jobs_job SET {name} = now() - make_interval(secs => %s)"
                " WHERE id = %s",
                [age.total_seconds(), job.pk],
            )
        cursor.execute("SET LOCAL session_replication_role = origin")
    return Job.objects.get(pk=job.pk)


def files(job: Job) -> set[str]:
    return {key.rpartition("/")[2] for key in stored(f"{job.account_id}/{job.pk}/")}


ALL = {"1-image.png", "2-m.mp4", "2-a.mp4", "2-a.jpg"}


# --------------------------------------------------------------------- by the clock


def test_files_go_when_their_time_is_up_and_leave_a_record(alice: Account) -> None:
    job = succeeded(make_job(alice))
    assert files(job) == ALL
    retention.delete_due()
    assert files(job) == ALL
    let_pass(job, files_expire_at=timedelta(seconds=1))
    retention.delete_due()
    assert files(job) == set()
    job.refresh_from_db()
    assert job.files_deleted_at is not None
    record = DeletionRecord.objects.get()
    assert (record.job, record.reason, record.actor) == (job, "expired", "")
    assert {key.rpartition("/")[2] for key in record.keys} == ALL


@pytest.mark.parametrize(
    ("plan", "asked", "days"),
    [
        ("free", None, 7),
        ("pro", None, 30),
        ("pro", 86_400, 1),
        ("free", 31 * 86_400, 7),
    ],
)
def test_the_plan_and_the_request_say_how_long_files_are_kept(
    alice: Account, plan: str, asked: int | None, days: int
) -> None:
    Account.objects.filter(pk=alice.pk).update(plan_id=plan)
    job = succeeded(make_job(alice, retention_seconds=asked))
    assert job.files_expire_at is not None
    assert job.finished_at is not None
    assert job.files_expire_at - job.finished_at == timedelta(days=days)


def test_what_a_failed_job_left_goes_after_a_week(alice: Account) -> None:
    job = failed(make_job(alice))
    retention.delete_due()
    assert files(job) == {"1-image.png"}
    let_pass(job, finished_at=timedelta(days=8))
    retention.delete_due()
    assert files(job) == set()
    assert DeletionRecord.objects.get().reason == "unfinished"


def test_what_a_failed_job_left_goes_sooner_if_it_was_asked_for(alice: Account) -> None:
    job = failed(make_job(alice, retention_seconds=600))
    let_pass(job, finished_at=timedelta(minutes=9))
    retention.delete_due()
    assert files(job) == {"1-image.png"}
    let_pass(job, finished_at=timedelta(minutes=11))
    retention.delete_due()
    assert files(job) == set()


def test_the_clip_a_video_was_made_from_goes_within_hours(alice: Account) -> None:
    job = let_pass(succeeded(make_job(alice)), finished_at=timedelta(hours=2))
    retention.delete_due()
    assert files(job) == ALL - {"2-m.mp4"}
    job.refresh_from_db()
    assert job.master == {}
    assert job.files_deleted_at is None
    assert DeletionRecord.objects.get().reason == "work"


def test_deleting_twice_is_deleting_once(alice: Account) -> None:
    job = succeeded(make_job(alice))
    retention.delete_files(job)
    retention.delete_files(job)
    assert DeletionRecord.objects.count() == 1


def test_a_picture_another_try_needs_is_kept_until_that_one_is_done(
    alice: Account,
) -> None:
    first = failed(make_job(alice))
    again = intake.submit_again(first, public_id=None, actor="olga")
    Job.objects.filter(pk=again.pk).update(inputs=first.inputs)
    retention.delete_files(first)
    assert files(first) == {"1-image.png"}
    lifecycle.cancel(again, actor="olga")
    retention.delete_files(Job.objects.get(pk=again.pk))
    assert files(first) == set()


# -------------------------------------------------------------------------- orphans


def test_a_late_workers_upload_is_swept_and_the_jobs_own_files_stay(
    alice: Account, settings: Any
) -> None:
    settings.ORPHAN_SECONDS = 0
    job = succeeded(make_job(alice))
    late = store(f"{job.account_id}/{job.pk}/out/1-late.mp4")
    retention.sweep_all()
    assert files(job) == ALL
    record = DeletionRecord.objects.get()
    assert (record.job, record.keys, record.reason) == (job, [late], "orphan")


def test_what_may_still_be_wanted_is_not_swept(alice: Account, settings: Any) -> None:
    ended = succeeded(make_job(alice))
    young = store(f"{ended.account_id}/{ended.pk}/out/1-late.mp4")
    claim = running(make_job(alice))
    active = store(f"{alice.pk}/{claim.job_id}/out/9-zombie.mp4")
    elsewhere = store("effects/preview.mp4")
    unknown = store(f"{alice.pk}/00000000-0000-4000-8000-000000000000/out/1-a.mp4")
    retention.sweep_all()
    settings.ORPHAN_SECONDS = 0
    left = stored("")
    assert {young, active, elsewhere, unknown} <= left
    retention.sweep_all()
    assert young not in stored("")
    assert {active, elsewhere, unknown} <= stored("")
    settings.ORPHAN_UNKNOWN_SECONDS = 0
    retention.sweep_all()
    assert unknown not in stored("")
    context.get().storage.delete([elsewhere, active])


# ----------------------------------------------------------------- a whole account


def test_a_deleted_account_leaves_numbers_and_the_books(alice: Account) -> None:
    key = make_key(alice)
    user = get_user_model().objects.create_user("anna", email="anna@example.com")
    Member.objects.create(user=user, account=alice)
    WebhookEndpoint.objects.create(
        account=alice,
        mode="live",
        url="https://hooks.example/anna",
        secret="whsec_eA==",
    )
    IdempotencyRecord.objects.create(
        account=alice, mode="live", key="k", body={"prompt": "anna"}
    )
    done = succeeded(make_job(alice, prompt="anna at the beach", seconds=5))
    waiting = make_job(alice, prompt="anna in town", metadata={"who": "anna"})
    stray = store(f"{alice.pk}/{done.pk}/out/1-late.mp4")
    before = ledger.statement(account_id=alice.pk, mode="live")
    charged = done.charged_millicredits

    assert account_deletion.delete_account(alice.pk, actor="olga") == 0

    assert stored(f"{alice.pk}/") == set()
    deleted = {key for record in DeletionRecord.objects.all() for key in record.keys}
    assert stray in deleted
    assert {record.actor for record in DeletionRecord.objects.all()} == {"olga"}
    with pytest.raises(InvalidKey):
        keys.authenticate(key)
    row = Account.objects.get(pk=alice.pk)
    assert (row.name, row.is_active) == (f"deleted {str(alice.pk)[:8]}", False)
    assert not get_user_model().objects.filter(username="anna").exists()
    assert not WebhookEndpoint.objects.exists()
    assert not WebhookEvent.objects.exists()
    assert not IdempotencyRecord.objects.exists()
    done.refresh_from_db()
    waiting.refresh_from_db()
    assert (waiting.status, done.charged_millicredits) == ("canceled", charged)
    for table in ("jobs_job", "jobs_jobnote", "jobs_attempt", "billing_account"):
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT count(*) FROM {table} t WHERE t::text ~* 'anna'")
            assert cursor.fetchone() == (0,), table
    after = ledger.statement(account_id=alice.pk, mode="live")
    assert after[-len(before) :] == before
    assert ledger.balance(account_id=alice.pk, mode="live").frozen


def test_an_account_whose_job_is_worked_on_is_deleted_when_that_has_stopped(
    alice: Account,
) -> None:
    claim = running(make_job(alice))
    assert account_deletion.delete_account(alice.pk, actor="olga") == 1
    assert Account.objects.get(pk=alice.pk).name == "alice"
    lifecycle.confirm_canceled(claim)
    out = io.StringIO()
    call_command("deleteaccount", str(alice.pk), "--yes", stdout=out)
    assert "is deleted" in out.getvalue()
    assert Account.objects.get(pk=alice.pk).deleted_at is not None
    assert stored(f"{alice.pk}/") == set()


def test_a_member_of_two_accounts_survives_one(alice: Account) -> None:
    user = get_user_model().objects.create_user("anna")
    bob = make_account("bob")
    Member.objects.create(user=user, account=alice)
    Member.objects.create(user=user, account=bob)
    account_deletion.delete_account(alice.pk, actor="olga")
    assert list(user.memberships.values_list("account", flat=True)) == [bob.pk]


# ---------------------------------------------------------------- after a restore


def reconcile(*arguments: str) -> str:
    out = io.StringIO()
    try:
        call_command(
            "reconcile_restore", "--since", "2026-01-01T00:00Z", *arguments, stdout=out
        )
    except SystemExit as ended:
        assert ended.code == 1  # noqa: PT017 - something is left for a person
    return out.getvalue()


def test_a_restore_is_reconciled_with_storage_and_the_till(
    alice: Account, tmp_path: Path
) -> None:
    gone = succeeded(make_job(alice))
    context.get().storage.delete([gone.output["key"]])
    waiting = running(make_job(alice))
    lifecycle.let_go(waiting)
    context.get().storage.delete([f"{alice.pk}/{waiting.job_id}/in/1-image.png"])
    lost = store(f"{alice.pk}/00000000-0000-4000-8000-000000000000/out/1-a.mp4")
    till = tmp_path / "till.csv"
    till.write_text(f"payment_id,account_id,credits\npay_9,{alice.pk},25\n")

    told = reconcile("--payments", str(till))
    assert f"{gone.pk}" in told
    assert "pay_9" in told
    assert "00000000-0000-4000-8000-000000000000" in told
    assert ledger.purchase_of("pay_9") is None

    told = reconcile("--payments", str(till), "--repair")
    assert told.count("[repaired]") == 3
    gone.refresh_from_db()
    assert gone.files_deleted_at is not None
    assert DeletionRecord.objects.get(job=gone).reason == "missing"
    job = Job.objects.get(pk=waiting.job_id)
    assert (job.status, job.error_code) == ("failed", "input_lost")
    paid = ledger.purchase_of("pay_9")
    assert paid is not None
    assert paid.grant.amount == 25_000
    assert lost in stored("")

    told = reconcile("--payments", str(till), "--repair")
    assert "[repaired]" not in told
    context.get().storage.delete([lost])


def test_a_tills_list_as_spreadsheets_write_it_is_read(
    alice: Account, tmp_path: Path
) -> None:
    till = tmp_path / "till.csv"
    lines = ["payment_id,account_id,credits", f"pay_1,{alice.pk},10", "pay_2"]
    till.write_text("\r\n".join(lines), encoding="utf-8-sig")
    told = reconcile("--payments", str(till), "--repair").splitlines()
    [credited] = [line for line in told if "pay_1" in line]
    assert credited.endswith("[repaired]")
    [broken] = [line for line in told if "pay_2" in line]
    assert broken.endswith("[needs a person]")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (
            b"payment_id;account_id;credits\npay_1;a;10\n",
            "lacks the columns account_id",
        ),
        (b"", "lacks the columns account_id, credits, payment_id"),
        (b"\xff\xfe\x00", "cannot be read"),
        (None, "No such file"),
    ],
)
def test_a_list_that_is_none_is_refused_before_anything_is_repaired(
    alice: Account, tmp_path: Path, text: bytes | None, read: str
) -> None:
    gone = succeeded(make_job(alice))
    context.get().storage.delete([gone.output["key"]])
    till = tmp_path / "till.csv"
    if text is not None:
        till.write_bytes(text)
    with pytest.raises(CommandError, match=read):
        reconcile("--payments", str(till), "--repair")
    gone.refresh_from_db()
    assert gone.files_deleted_at is None


def test_a_hold_of_a_job_that_has_ended_is_reported_and_settled(alice: Account) -> None:
    done = make_job(alice, seconds=5)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE jobs_job SET status = 'failed', step = 'done', finished_at = now()"
            " WHERE id = %s",
            [done.pk],
        )
    watch.look_at_holds()
    incident = Incident.objects.get()
    assert (incident.kind, incident.subject) == ("open_hold", str(done.pk))
    assert "[repaired]" in reconcile("--repair")
    assert not ledger.is_open(account_id=alice.pk, mode="live", reference=str(done.pk))
    watch.look_at_holds()
    incident.refresh_from_db()
    assert incident.resolved_at is not None


def test_an_open_job_is_no_incident(alice: Account) -> None:
    make_job(alice)
    watch.look_at_holds()
    assert not Incident.objects.exists()


def test_a_restore_brings_no_revoked_key_and_no_deleted_customer_back(
    alice: Account,
) -> None:
    key, _ = keys.mint(alice, "live")
    operators, _ = operator_keys.mint(
        get_user_model().objects.create_superuser("olga"), name="shop"
    )
    bob, carl, dora = (make_account(name) for name in ("bob", "carl", "dora"))
    writer = stops.Writer()
    writer.look()
    keys.revoke(account_id=alice.pk, key_id=key.pk)
    operator_keys.revoke(operators.pk)
    account_deletion.delete_account(bob.pk, actor="olga")
    for account in (carl, dora):
        accounts.change_account(account.pk, is_active=False)
    writer.look()
    stored_once = stored("stopped/")
    writer.look()
    stops.Writer().look()  # another housekeeper begins
    assert stored("stopped/") == stored_once

    # As the backup has it.
    ApiKey.objects.update(revoked_at=None)
    OperatorKey.objects.update(revoked_at=None)
    Account.objects.update(is_active=True, deleted_at=None)
    accounts.change_account(dora.pk, is_active=False)
    stops.Writer().look()  # somebody starts the housekeeper too early
    told = reconcile()
    for subject in (key.pk, operators.pk, bob.pk, carl.pk):
        assert str(subject) in told
    assert str(dora.pk) not in told
    assert ApiKey.objects.get(pk=key.pk).revoked_at is None
    told = reconcile("--repair")
    assert told.count("[repaired]") == 3
    assert ApiKey.objects.get(pk=key.pk).revoked_at is not None
    assert OperatorKey.objects.get(pk=operators.pk).revoked_at is not None
    bob.refresh_from_db()
    assert bob.deleted_at is not None
    carl.refresh_from_db()
    assert carl.is_active  # it may have been enabled later: a person knows
    told = reconcile("--repair")
    assert str(carl.pk) in told
    assert "[repaired]" not in told


def test_an_account_disabled_twice_is_written_down_twice(alice: Account) -> None:
    writer = stops.Writer()
    for is_active in (False, True, False):
        accounts.change_account(alice.pk, is_active=is_active)
        writer.look()
    assert len(stored(f"stopped/account-disabled/{alice.pk}/")) == 2
