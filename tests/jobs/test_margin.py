"""What jobs cost us beside what customers paid."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db.models.functions import Now
from django.test import Client
from django.urls import reverse

from jobs import margin
from jobs.models import Job, Route
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


def lines(*by: str) -> dict[tuple[str, ...], margin.Line]:
    today = datetime.now(UTC).date()
    return {line.group: line for line in margin.report(by, since=today, until=today)}


@pytest.fixture
def jobs() -> list[Job]:
    alice = make_account("alice", plan="enterprise", credits=100)
    made = [make_job(alice, seconds=5) for _ in range(4)]  # 1 credit each
    Route.objects.filter(model="motion", name="cpu").update(gpu_second_microdollars=50)
    end(made[0], work_seconds=20.0)
    end(made[1], work_seconds=10.0)
    # Failed after a provider had billed it; and one that is still in the making.
    end(made[2], status="failed", charged_millicredits=0, cost_microdollars=300)
    return made


def test_cost_is_the_bill_or_the_seconds_times_their_rate(jobs):
    line = lines("provider", "model")[("motion", "motion")]
    assert (line.jobs, line.succeeded) == (3, 2)
    assert line.revenue_microdollars == 20_000
    assert line.provider_microdollars == 300
    assert line.machine_microdollars == 30 * 50
    assert line.margin_microdollars == 20_000 - 1_800


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
