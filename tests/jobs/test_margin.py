"""What jobs cost us beside what customers paid."""

from __future__ import annotations

import importlib
import io
import pkgutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from django.urls import reverse

from inference.errors import EngineFailed
from jobs import claims, lifecycle, margin, migrations, routing
from jobs.claims import Claim
from jobs.models import Attempt, Job, ProviderAccount, Route
from jobs.states import Step
from tests.factories import make_account, make_job

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]


def end(job: Job, **facts: object) -> None:
    values = {
        "status": "succeeded",
        "step": "done",
        "finished_at": Now(),
        "charged_millicredits": job.quoted_millicredits,
        **facts,
    }
    Job.objects.filter(pk=job.pk).update(**values)


def tried(job: Job, **facts: object) -> None:
    values = {"fence": 1, "provider": "motion", "route": "cpu", "outcome": "ok"}
    Attempt.objects.create(job=job, step="generate", **{**values, **facts})


def lines(*by: str) -> dict[tuple[str, ...], margin.Line]:
    today = datetime.now(UTC).date()
    return {line.group: line for line in margin.report(by, since=today, until=today)}


@pytest.fixture
def jobs() -> list[Job]:
    alice = make_account("alice", plan="enterprise", credits=100)
    made = [make_job(alice, seconds=5) for _ in range(4)]  # 1 credit each
    tried(made[0], work_seconds=20.0, second_microdollars=50)
    tried(made[1], work_seconds=10.0, second_microdollars=50)
    # Failed after a provider had billed it; and one that is still in the making.
    tried(made[2], cost_microdollars=300)
    for job in made[:2]:
        end(job)
    end(made[2], status="failed", charged_millicredits=0)
    return made


def test_cost_is_the_bill_or_the_seconds_times_their_rate(jobs):
    line = lines("provider", "model")[("motion", "motion")]
    assert (line.jobs, line.succeeded) == (3, 2)
    assert line.revenue_microdollars == 20_000
    assert line.provider_microdollars == 300
    assert line.machine_microdollars == 30 * 50
    assert line.margin_microdollars == 20_000 - 1_800


def test_a_bill_is_in_the_line_of_who_sent_it_also_when_another_made_the_video(jobs):
    row = ProviderAccount.objects.create(provider="novita", name="eu", base_url="x")
    tried(
        jobs[0],
        fence=2,
        provider="novita",
        route="novita",
        provider_account=row,
        cost_microdollars=40,
    )
    for by in ("provider", "route"):
        found = lines(by)
        assert set(found) == {("motion" if by == "provider" else "cpu",), ("novita",)}
        theirs = found[("novita",)]
        assert (theirs.jobs, theirs.margin_microdollars) == (0, -40)
    assert lines("provider_account")[("novita: eu",)].provider_microdollars == 40
    assert lines("model")[("motion",)].provider_microdollars == 340


@pytest.mark.parametrize("by", [(name,) for name in margin.GROUPS] + [margin.GROUPS])
def test_whatever_it_is_grouped_by_a_report_adds_up_to_the_attempts(jobs, by):
    tried(jobs[0], fence=2, provider="novita", route="novita", cost_microdollars=40)
    tried(jobs[2], fence=2, outcome="lost", work_seconds=0.3, second_microdollars=7)
    found = lines(*by).values()
    ended = Attempt.objects.exclude(job=jobs[3])
    assert sum(line.jobs for line in found) == 3
    assert sum(line.provider_microdollars for line in found) == sum(
        one.cost_microdollars for one in ended
    )
    assert sum(line.machine_microdollars for line in found) == sum(
        round(one.work_seconds * one.second_microdollars) for one in ended
    )


# ---------------------------------------------------- what an attempt of ours costs


@pytest.fixture
def at_work() -> Iterator[Claim]:
    """A claimed motion job whose worker has been at it for 20 s, at 50 a second."""
    routing.forget()
    job = make_job(make_account("bob", plan="enterprise", credits=100), seconds=5)
    Route.objects.filter(model="motion", name="cpu").update(gpu_second_microdollars=50)
    first = claims.claim_next("media", worker="m")
    assert first is not None
    lifecycle.advance(first, Step.GENERATE, queue="cpu")
    work = claims.claim_next("cpu", worker="w")
    assert work is not None
    assert work.job_id == job.pk
    begun = Now() - timedelta(seconds=20)
    Attempt.objects.filter(job=job).update(started_at=begun)
    yield work
    routing.forget()


def lost(work: Claim) -> None:
    Job.objects.update(lease_until=Now() - timedelta(seconds=1))
    lifecycle.lose(Job.objects.get())


def canceled(work: Claim) -> None:
    Job.objects.update(cancel_requested_at=Now())
    lifecycle.confirm_canceled(work)


def rerouted(work: Claim) -> None:
    Route.objects.create(
        model="motion", name="spare", kind="engine", queue="cpu", runner="motion"
    )
    routing.forget()
    lifecycle.reroute(work, EngineFailed("broke"))


@pytest.mark.parametrize(
    ("ends", "seconds"),
    [
        (lambda work: lifecycle.fail(work, EngineFailed("broke")), 20),
        (lambda work: lifecycle.try_again(work, EngineFailed("broke")), 20),
        (lambda work: lifecycle.advance(work, Step.FINISH, queue="media"), 20),
        (lifecycle.let_go, 20),
        (canceled, 20),
        (rerouted, 20),
        (lost, 19),  # until its lease ran out
    ],
)
def test_the_seconds_of_every_try_cost_however_it_ended(ends, seconds, at_work):
    ends(at_work)
    work = Attempt.objects.get(step="generate")
    assert work.work_seconds == pytest.approx(seconds, abs=0.9)
    job = Job.objects.get()
    assert job.work_seconds == work.work_seconds
    if job.finished_at is None:
        end(job, status="failed", charged_millicredits=0)
    line = lines("provider")[("motion",)]
    assert line.machine_microdollars == pytest.approx(seconds * 50, abs=45)
    assert (line.jobs, line.revenue_microdollars) == (1, 0)


def test_a_lease_that_was_renewed_in_time_does_not_end_the_attempt(at_work):
    seen = Job.objects.get()
    lifecycle.lose(seen)
    assert Attempt.objects.get(step="generate").ended_at is None


@pytest.mark.parametrize("gone", [False, True])
def test_a_rate_edited_later_does_not_rewrite_what_was_spent(gone, at_work):
    lifecycle.fail(at_work, EngineFailed("broke"))
    before = lines("provider")
    Route.objects.filter(name="cpu").update(gpu_second_microdollars=9_999)
    if gone:
        Route.objects.filter(name="cpu").delete()
    assert lines("provider") == before


def test_who_prepares_or_finishes_elsewhere_is_not_paid_as_the_routes_own_worker(
    at_work,
):
    lifecycle.advance(at_work, Step.FINISH, queue="media")
    finish = claims.claim_next("media", worker="m")
    assert finish is not None
    Attempt.objects.filter(step="finish").update(
        started_at=Now() - timedelta(seconds=5)
    )
    lifecycle.fail(finish, EngineFailed("broke"))
    rates = dict(Attempt.objects.values_list("step", "second_microdollars"))
    assert rates == {"prepare": 0, "generate": 50, "finish": 0}
    assert Job.objects.get().work_seconds == pytest.approx(25, abs=1)


def test_what_was_spent_before_attempts_kept_it_is_still_in_the_report():
    alice = make_account("alice", plan="enterprise", credits=100)
    ours, theirs = (make_job(alice, seconds=5) for _ in range(2))
    Route.objects.filter(model="motion", name="cpu").update(gpu_second_microdollars=50)
    row = ProviderAccount.objects.create(provider="novita", name="eu", base_url="x")
    novita = {**theirs.route, "name": "novita", "runner": "novita"}
    end(ours, work_seconds=8.0)
    end(theirs, route=novita, provider_account=row, cost_microdollars=30)
    for step, outcome in (("generate", "failed"), ("generate", "ok"), ("finish", "ok")):
        Attempt.objects.create(
            job=ours,
            fence=ours.attempts.count(),
            step=step,
            outcome=outcome,
            route="cpu",
        )
    Attempt.objects.create(
        job=theirs,
        fence=1,
        step="submit",
        outcome="ok",
        route="novita",
        cost_microdollars=30,
    )
    (name,) = (
        module.name
        for module in pkgutil.iter_modules(migrations.__path__)
        if module.name.endswith("_earlier_attempts_carry_their_cost")
    )
    filling = importlib.import_module(f"jobs.migrations.{name}")
    with connection.cursor() as cursor:
        for _ in range(2):
            cursor.execute(filling.BILLS)
            cursor.execute(filling.SECONDS)
    found = lines("provider", "provider_account")
    assert found[("motion", "")].machine_microdollars == 400
    assert found[("novita", "novita: eu")].provider_microdollars == 30


# ------------------------------------------------------------------- the report


def test_what_was_given_back_is_no_revenue(jobs):
    Job.objects.filter(pk=jobs[0].pk).update(refunded_millicredits=1000)
    assert lines("model")[("motion",)].revenue_microdollars == 10_000


def test_a_report_goes_by_day_and_account(jobs):
    ((day, account), line), *others = lines("day", "account").items()
    assert others == []
    assert day == datetime.now(UTC).date().isoformat()
    assert account == str(jobs[0].account_id)
    assert line.jobs == 3


def test_test_jobs_earn_nothing_and_are_not_in_it(jobs):
    Job.objects.filter(pk=jobs[3].pk).update(mode="test")
    end(jobs[3])
    assert lines("model")[("motion",)].jobs == 3


def test_a_report_is_a_table_for_spreadsheets(jobs):
    file = io.StringIO()
    by = ("model",)
    margin.write_csv(file, by, lines(*by).values())
    head, row = file.getvalue().splitlines()
    assert head.startswith("model,jobs,succeeded,credits,revenue_usd")
    assert row == ("motion,3,2,2.000,0.020000,0.000300,0.001500,0.001800,0.018200,30.0")


def test_an_unknown_group_is_refused():
    with pytest.raises(KeyError):
        lines("model; DROP TABLE jobs_job")


def test_a_name_is_never_a_formula():
    line = margin.Line(("=1+1",), 1, 1, 0, 0, 0, 0.0)
    assert next(margin.rows([line]))[0] == "'=1+1"


@pytest.fixture
def olga(client: Client) -> Client:
    client.force_login(
        get_user_model().objects.create_superuser("olga"),
        backend="django.contrib.auth.backends.ModelBackend",
    )
    return client


def test_an_operator_sees_the_report_and_takes_it_along(jobs, olga):
    path = reverse("admin:jobs_margin")
    page = olga.get(path, {"by": ["provider", "model"]}).content.decode()
    assert "motion" in page
    assert "0.018200" in page
    file = olga.get(path, {"by": "account", "format": "csv"})
    assert file["Content-Type"].startswith("text/csv")
    assert str(jobs[0].account_id) in file.content.decode()
    # Whatever stands in the address, only known groups reach the database.
    assert olga.get(path, {"by": "x; DROP TABLE", "since": "?"}).status_code == 200


def test_nobody_else_sees_it(jobs, client):
    assert client.get(reverse("admin:jobs_margin")).status_code == 302


def test_the_report_is_a_command_too(jobs, capsys):
    call_command("margin", by=["model"])
    head, row, *_ = capsys.readouterr().out.splitlines()
    assert head.startswith("model,jobs")
    assert row.startswith("motion,3,2")
