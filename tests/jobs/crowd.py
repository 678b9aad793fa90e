"""A thousand rows of everything, so that a page that asks per row is found out."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from axes.models import AccessAttempt, AccessFailureLog, AccessLog
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import Group, User
from django.contrib.contenttypes.models import ContentType
from django.utils import timezone
from django_otp.plugins.otp_totp.models import TOTPDevice

from billing import accounts, keys, ledger
from billing.models import Account, ApiKey, Member, OperatorKey, Plan, PriceRow
from jobs import effects
from jobs.models import (
    Attempt,
    DeletionRecord,
    Effect,
    EffectVersion,
    IdempotencyRecord,
    Incident,
    Job,
    JobNote,
    Lora,
    ModelAlias,
    ProviderAccount,
    ProviderErrand,
    Route,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
    WebhookLane,
    Worker,
)
from tests.factories import make_request

ROWS = 1000


def make(alice: Account) -> None:
    """Fill every table the operator can list with about ``ROWS`` rows."""
    _people()
    _accounts(alice)
    _books(alice)
    _jobs(alice)
    _making()
    _webhooks(alice)


def _many(table: Any, /, **values: Any) -> list[Any]:
    """Make rows; a callable value is called with the row's number."""
    rows = [
        table(**{k: v(n) if callable(v) else v for k, v in values.items()})
        for n in range(ROWS)
    ]
    made: list[Any] = table.objects.bulk_create(rows)
    return made


def _people() -> None:
    users = _many(User, username=lambda n: f"user-{n}", is_staff=True)
    _many(Group, name=lambda n: f"group-{n}")
    _many(TOTPDevice, user=lambda n: users[n], name="phone")
    _many(
        OperatorKey,
        id=lambda n: f"{n:08}",
        user=lambda n: users[n],
        name="site",
        digest=b"x",
    )
    kind = ContentType.objects.get_for_model(User)
    _many(
        LogEntry,
        user=lambda n: users[n],
        content_type=kind,
        object_id=lambda n: str(users[n].pk),
        object_repr="somebody",
        action_flag=CHANGE,
        change_message="changed",
    )
    seen = {"username": "olga", "ip_address": "192.0.2.1", "user_agent": "curl"}
    _many(
        AccessAttempt,
        **{**seen, "username": lambda n: f"olga-{n}"},
        failures_since_start=1,
        get_data="",
        post_data="",
    )
    _many(AccessLog, **seen)
    _many(AccessFailureLog, **seen)


def _accounts(alice: Account) -> None:
    _many(
        Plan,
        code=lambda n: f"plan-{n}",
        name="plan",
        max_running=1,
        requests_per_minute=60,
        file_retention_days=7,
        running_cancels_per_day=1,
    )
    made = _many(Account, name=lambda n: f"account {n}", plan_id="pro")
    for account in made:
        accounts.open_wallets(account)
    users = list(User.objects.all()[:ROWS])
    _many(Member, account=lambda n: made[n], user=lambda n: users[n])
    _many(
        ApiKey,
        id=lambda n: f"k{n:07}",
        account=lambda n: made[n],
        mode="live",
        digest=b"x",
        scopes=list(keys.SCOPES),
    )
    _many(
        PriceRow,
        model=lambda n: f"model-{n}",
        amount_millicredits=1,
        version=1,
        effective_from=timezone.now() + timedelta(days=1),
    )


def _books(alice: Account) -> None:
    wallet: dict[str, Any] = {"account_id": alice.pk, "mode": "live"}
    for number in range(ROWS):
        ledger.purchase(**wallet, payment_id=f"pay-{number}", amount_millicredits=1000)
    for number in range(ROWS // 4):
        ledger.hold(**wallet, reference=f"job-{number}", amount_millicredits=1000)


def _jobs(alice: Account) -> None:
    request = make_request().stored()
    now = timezone.now()
    some = list(Account.objects.all()[:3])
    made = _many(
        Job,
        account=lambda n: some[n % 3],
        mode="live",
        dialect="native",
        public_id=lambda n: f"crowd-{n}",
        model="motion",
        request=request,
        fingerprint="",
        status="failed",
        step="done",
        error_code=lambda n: f"code_{n % 5}",
        start_by=now,
        finished_at=now,
        route={"name": "cpu", "queue": "cpu"},
    )
    job = lambda n: made[n]  # noqa: E731
    _many(Attempt, job=job, fence=1, step="generate", worker="w1")
    _many(JobNote, job=job, kind="route", text="cpu: chosen")
    _many(DeletionRecord, job=job, account_id=str(alice.pk), keys=["a"], reason="work")
    _many(IdempotencyRecord, account=alice, mode="live", key=lambda n: f"key-{n}")
    _many(Incident, kind="worker_dead", subject=lambda n: f"w-{n}", text="silent")
    provider = _many(
        ProviderAccount, provider="novita", name=lambda n: f"n-{n}", credentials="{}"
    )
    _many(
        ProviderErrand,
        account=lambda n: provider[n],
        job=job,
        provider_job_id="x",
        kind="cancel",
    )


def _making() -> None:
    _many(
        Route,
        model="motion",
        name=lambda n: f"route-{n}",
        kind="engine",
        queue="cpu",
        runner="motion",
        is_enabled=False,
    )
    _many(ModelAlias, name=lambda n: f"alias-{n}", model="motion")
    made = _many(Effect, code=lambda n: f"effect-{n}", name="effect")
    _many(EffectVersion, effect=lambda n: made[n], version=1, prompt="zoom in")
    _many(Lora, name=lambda n: f"lora-{n}", key="k", sha256="0")
    _many(Worker, name=lambda n: f"worker-{n}", queues=["cpu"])
    assert effects.listed().count() >= ROWS


def _webhooks(alice: Account) -> None:
    endpoints = _many(
        WebhookEndpoint,
        account=alice,
        mode="live",
        url=lambda n: f"https://example.com/{n}",
        secret="whsec_eA==",
    )
    events = _many(WebhookEvent, account=alice, mode="live", type="job.succeeded")
    _many(
        WebhookDelivery,
        event=lambda n: events[n],
        endpoint=lambda n: endpoints[n],
        url=lambda n: endpoints[n].url,
        lane=lambda n: f"lane-{n}",
        state="delivered",
    )
    _many(WebhookLane, key=lambda n: f"lane-{n}")
