"""Unknown is not failed: finding out what became of a job at a provider.

A submit whose answer was lost is looked for by the evidence the provider offers. Found,
the job goes on; proved absent, it is sent again; otherwise it waits in the operator's
inbox and, after a day, is given back to the customer at the operator's cost.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import structlog
from django.conf import settings
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from inference.errors import Fault, ProviderError, RenderError
from inference.providers import transport
from inference.providers.base import Evidence, FindQuery
from jobs import incidents, lifecycle, outside
from jobs.models import Job, ProviderErrand
from jobs.provider_steps import http
from jobs.states import Status, Step

log = structlog.get_logger()

#: How long before we look again, growing with each look.
LOOK_SECONDS = 10.0
LOOK_SECONDS_MAX = 600.0
#: A task list is believed to be complete this long after the submit.
SETTLED = timedelta(seconds=30)
ERRAND_TRIES = 5
BATCH = 50
#: "Lost" is not yet worth a person's time in the first minutes.
INBOX_AFTER = timedelta(minutes=2)


def look() -> None:
    """Look once at every job whose fate is unknown and whose time has come."""
    due = Job.objects.filter(
        step=Step.RECONCILE, status=Status.RUNNING, next_poll_at__lte=Now()
    ).select_related("provider_account")[:BATCH]
    for job in due:
        wait = min(LOOK_SECONDS * 2 ** min(job.poll_failures, 10), LOOK_SECONDS_MAX)
        Job.objects.filter(pk=job.pk, step=Step.RECONCILE).update(
            next_poll_at=Now() + timedelta(seconds=wait),
            poll_failures=F("poll_failures") + 1,
        )
        try:
            _look_for(job)
        except ProviderError as error:
            log.warning("reconcile_failed", job=str(job.pk), error=str(error))


def _look_for(job: Job) -> None:
    row = job.provider_account
    assert row is not None  # intent is stored with its account
    assert job.submit_sent_at is not None
    provider, account = outside.adapter(row.provider), outside.as_account(row)
    age = timezone.now() - job.submit_sent_at
    if job.provider_job_id:
        evidence = Evidence.NONE  # it has an id that the provider no longer knows
    else:
        evidence = provider.evidence(account, callback_url=None)
    if evidence is Evidence.CLIENT_TOKEN:
        _send_again(job, keep_token=True)
        return
    if evidence is Evidence.TASK_LIST:
        query = FindQuery(
            reference=job.submit_token,
            model=job.route["profile"],
            prompt=job.resolved.get("prompt") or job.request["prompt"],
            since=job.submit_sent_at - timedelta(seconds=2),
            until=job.submit_sent_at + timedelta(minutes=5),
            known_ids=_ids_of_others(job),
        )
        found = transport.find(http(), provider, query, account)
        if len(found.candidates) == 1:
            was_found(job, found.candidates[0])
            return
        if not found.candidates and found.conclusive and age > SETTLED:
            _send_again(job, keep_token=False)
            return
    _wait_for_a_person(job, age)


def was_found(job: Job, provider_id: str) -> None:
    """The provider has the job under this id after all: await it."""
    moved = lifecycle.return_to(
        job.pk,
        Step.AWAIT,
        came_from=Step.RECONCILE,
        provider_job_id=provider_id,
        next_poll_at=Now(),
        poll_failures=0,
        end_by=Now() + timedelta(seconds=settings.RUN_DEADLINE_SECONDS),
    )
    if moved:
        lifecycle.note(job.pk, "reconcile", f"found at the provider as {provider_id}")
        incidents.resolve("unknown_fate", str(job.pk))


def _send_again(job: Job, *, keep_token: bool) -> None:
    changes = (
        {}
        if keep_token
        else {"submit_sent_at": None, "submit_token": "", "provider_account": None}
    )
    moved = lifecycle.return_to(
        job.pk,
        Step.SUBMIT,
        came_from=Step.RECONCILE,
        queue=job.route["queue"],
        next_poll_at=None,
        poll_failures=0,
        **changes,
    )
    if moved:
        lifecycle.note(job.pk, "reconcile", "the provider has no such job: sent again")
        incidents.resolve("unknown_fate", str(job.pk))


def _wait_for_a_person(job: Job, age: timedelta) -> None:
    if age.total_seconds() > settings.RECONCILE_SECONDS:
        ended = lifecycle.end(
            job.pk,
            RenderError(
                "its fate at the provider could not be proved",
                code="provider_failed",
                public="The video could not be made.",
            ),
        )
        if ended:
            incidents.report(
                "unproved_loss",
                str(job.pk),
                "Refunded after a day without proof; the provider may have billed it.",
            )
            incidents.resolve("unknown_fate", str(job.pk), by="reconcile")
        return
    if age > INBOX_AFTER:
        incidents.report(
            "unknown_fate",
            str(job.pk),
            "A submit went out and its answer was lost. Look the job up at the provider.",
            detail={
                "account": str(job.provider_account),
                "sent_at": str(job.submit_sent_at),
                "token": job.submit_token,
            },
        )


def _ids_of_others(job: Job) -> frozenset[str]:
    return frozenset(
        Job.objects.filter(
            provider_account_id=job.provider_account_id,
            created_at__gt=job.created_at - timedelta(days=2),
        )
        .exclude(provider_job_id="")
        .values_list("provider_job_id", flat=True)
    )


def vanished(job: Job) -> None:
    """The provider no longer knows the id it gave: a person must look."""
    moved = lifecycle.return_to(
        job.pk, Step.RECONCILE, came_from=Step.AWAIT, next_poll_at=Now()
    )
    if moved:
        lifecycle.note(
            job.pk, "reconcile", "the provider does not know its id any more"
        )


def remote_failure(job_id: UUID, error: ProviderError) -> None:
    """The provider says the job failed: whose fault it was decides what follows."""
    job = Job.objects.get(pk=job_id)
    if error.fault is Fault.CUSTOMER:
        lifecycle.end(job.pk, error)
        return
    if job.provider_account_id is not None:
        outside.went_wrong(job.provider_account_id, error)
    lifecycle.reroute_waiting(job, error)


# --------------------------------------------------------------------- errands


def run_errands() -> None:
    """Cancel and delete at providers what ended here; give up after a few tries."""
    for errand in ProviderErrand.objects.filter(due_at__lte=Now()).select_related(
        "account"
    )[:BATCH]:
        provider = outside.adapter(errand.account.provider)
        account = outside.as_account(errand.account)
        can = provider.capabilities
        act = transport.cancel if errand.kind == "cancel" else transport.delete
        is_possible = can.cancel if errand.kind == "cancel" else can.delete
        done = True
        if is_possible:
            try:
                done = act(http(), provider, errand.provider_job_id, account)
            except ProviderError as error:
                log.warning("errand_failed", errand=str(errand), error=str(error))
                done = False
        if not done and errand.tries + 1 < ERRAND_TRIES:
            ProviderErrand.objects.filter(pk=errand.pk).update(
                tries=F("tries") + 1,
                due_at=Now() + timedelta(seconds=30 * 2**errand.tries),
            )
            continue
        if errand.kind == "cancel":
            said = "stopped at the provider" if is_possible and done else "detached"
            lifecycle.note(errand.job_id, "provider", said)
        errand.delete()
