"""What the tests of jobs at providers share: accounts at fakes, and steps done here.

Steps run in the test's own process, against the real Postgres and S3 and a fake that
speaks the provider's wire format.
"""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

from django.db import connection
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from billing import ledger
from billing.models import Account
from inference.catalogue import MODELS
from inference.errors import RenderError
from inference.providers import transport
from jobs import (
    claims,
    lifecycle,
    outside,
    poller,
    provider_steps,
    reconcile,
    routing,
    steps,
)
from jobs.claims import Claim, Held
from jobs.models import Job, ProviderAccount, Route
from jobs.requests import Picture
from jobs.states import Step
from tests import fakes
from tests.factories import make_job, png
from tests.fakes import FakeService

#: provider → a public model it makes, with the options of a small job
MODEL = {
    "magicoal": ("wan2.2-i2v", {"tier": "480p", "frames": 17}),
    "aimlapi": ("alibaba/wan2.5-i2v-preview", {"tier": "480p", "seconds": 2}),
    "sinancode": ("wan2.6-i2v", {"tier": "720p", "seconds": 2}),
    "novita": ("wan2.5-i2v-preview", {"tier": "480p", "seconds": 2}),
    "akool": ("akool-i2v", {"tier": "720p", "seconds": 5}),
    "dashscope": ("wan2.5-i2v-preview", {"tier": "480p", "seconds": 2}),
    "openai_videos": ("wan2.5-i2v-preview", {"tier": "480p", "seconds": 2}),
}
PROVIDERS = tuple(MODEL)
CREDENTIALS = {"api_key": "sk-test"}


def credentials_of(fake: FakeService, key: str = "sk-test") -> dict[str, str]:
    return {
        "api_key": key,
        "client_id": fake.client_id,
        "client_secret": fake.client_secret if key == "sk-test" else key,
        "webhook_secret": fake.webhook_secret,
    }


def enter(
    fake: FakeService, name: str = "main", *, key: str = "sk-test", **fields: Any
) -> ProviderAccount:
    """Enter an account at the fake, and let the provider make its model of ``MODEL``."""
    row = ProviderAccount.objects.create(
        provider=fake.name,
        name=name,
        base_url=fake.url,
        credentials=json.dumps(credentials_of(fake, key)),
        **{"submits_per_second": 1000.0, **fields},
    )
    if fake.name == "openai_videos":
        open_route(fake.name, MODEL[fake.name][0], "sora-2")
    routing.forget()
    return row


def spoil(row: ProviderAccount) -> None:
    """Leave credentials in the account's row that no key of ours opens."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE jobs_provideraccount SET credentials = 'fernet:spoiled'"
            " WHERE id = %s",
            [row.pk],
        )
    routing.forget()


def open_route(provider: str, model: str, wire_model: str, **fields: Any) -> Route:
    route, _ = Route.objects.update_or_create(
        model=model,
        name=provider,
        defaults={
            "kind": "provider",
            "queue": f"provider.{provider}",
            "runner": provider,
            "profile": wire_model,
            **fields,
        },
    )
    routing.forget()
    return route


def order(account: Account, provider: str, **options: Any) -> Job:
    """Accept a small job that this provider will make."""
    model, usual = MODEL[provider]
    prompt = options.pop("prompt", "a quiet street")
    last = None
    if MODELS[model].last_image_required:
        last = Picture(data=png(), size=(96, 64))
    job = make_job(
        account, model=model, prompt=prompt, last_image=last, **{**usual, **options}
    )
    assert job.route["runner"] == provider, job.route
    return job


def claim(queue: str, step: Step | None = None) -> Claim:
    Job.objects.filter(run_after__isnull=False).update(run_after=None)
    found = claims.claim_next(queue, worker="test", step=step)
    assert found is not None, f"nothing to claim in {queue}"
    return found


def work(queue: str) -> None:
    """Do what a worker of the queue does with its next bell."""
    claimed = claim(queue)
    try:
        steps.run(Held(claimed))
    except lifecycle.Superseded:
        return
    except RenderError as error:
        if error.permanent:
            lifecycle.fail(claimed, error)
        else:
            lifecycle.try_again(claimed, error)


def submitted(account: Account, provider: str, **options: Any) -> Job:
    """Return a job that was prepared and sent to the provider."""
    job = order(account, provider, **options)
    work("media")
    work(f"provider.{provider}")
    job.refresh_from_db()
    return job


def look() -> None:
    """Ask about every job that is out and act on the answer, without the poller's loop.

    In this thread and transaction, so that a test may roll everything back.
    """
    for job in Job.objects.filter(step=Step.AWAIT).select_related("provider_account"):
        assert job.provider_account is not None
        provider = outside.adapter(job.provider_account.provider)
        account = outside.as_account(job.provider_account)
        one = job.provider_job_id
        status = transport.status(provider_steps.http(), provider, [one], account)[one]
        if status.state == "succeeded":
            poller._arrived(job.pk, provider.name)
        elif status.state == "failed":
            reconcile.remote_failure(job.pk, status)
        elif status.state == "unknown":
            Job.objects.filter(pk=job.pk).update(poll_failures=F("poll_failures") + 1)
            if job.poll_failures + 1 >= poller.UNKNOWN_LOOKS:
                reconcile.vanished(job)


def reconcile_now(*, age_seconds: float = 0) -> None:
    """Look for the jobs in doubt, as if they had been sent so much earlier."""
    earlier = timedelta(seconds=age_seconds)
    doubtful = Job.objects.filter(step=Step.RECONCILE)
    doubtful.update(
        next_poll_at=Now() - timedelta(seconds=1),
        submit_sent_at=F("submit_sent_at") - earlier,
    )
    reconcile.look()


def due_now() -> None:
    Job.objects.filter(next_poll_at__isnull=False).update(next_poll_at=Now())


def poll(rounds: int = 1) -> None:
    """Ask once about every job that is out, as the poller does."""

    async def once() -> None:
        asking = poller.Poller()
        try:
            for _ in range(rounds):
                await asking.round()
                while asking._tasks:
                    await asyncio.wait(set(asking._tasks))
                await asking.round()
        finally:
            await asking.close()

    due_now()
    asyncio.run(once())


def finish_there(fake: FakeService) -> None:
    """Let the provider's clock pass the end of every job."""
    fake.advance(fake.queued_seconds + fake.running_seconds + 1)


def finish(fake: FakeService, *, by_poller: bool = False) -> None:
    """See a submitted job through to its end."""
    finish_there(fake)
    poll() if by_poller else look()
    work(f"provider.{fake.name}")
    work("media")


def start(name: str, **options: Any) -> FakeService:
    """Start a fake whose clock moves by ``advance`` alone, as far as a test can tell."""
    return fakes.start(
        name, video_side=64, queued_seconds=60, running_seconds=60, **options
    )


def forget(fake: FakeService) -> FakeService:
    """Make a used fake like new."""
    fake.jobs.clear()
    fake.calls.clear()
    fake.counts.clear()
    fake.callbacks.clear()
    fake._faults.clear()
    fake._undelivered.clear()
    fake._skew = 0.0
    return fake


def held(account: Account) -> int:
    return ledger.balance(account_id=account.pk, mode="live").held_millicredits


def available(account: Account) -> int:
    return ledger.balance(account_id=account.pk, mode="live").available_millicredits


def put_out(
    account: Account, row: ProviderAccount, ids: list[str], **fields: Any
) -> list[Job]:
    """Make jobs that await their videos at the account under these ids, and are due."""
    model = MODEL[row.provider][0]
    route = {
        "id": 0,
        "name": row.provider,
        "kind": "provider",
        "queue": f"provider.{row.provider}",
        "runner": row.provider,
        "profile": "any",
        "simulates": False,
    }
    return Job.objects.bulk_create(
        Job(
            account_id=account.pk,
            mode="live",
            dialect="native",
            public_id=f"{row.pk}-{one}",
            model=model,
            request={},
            fingerprint="-",
            status="running",
            route=route,
            start_by=timezone.now(),
            ready_at=timezone.now(),
            provider_account=row,
            provider_job_id=one,
            **{"step": Step.AWAIT, "next_poll_at": timezone.now(), **fields},
        )
        for one in ids
    )
