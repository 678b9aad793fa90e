"""Unknown is not failed: finding out what became of a job at a provider.

A submit whose answer was lost is looked for by the evidence the provider offers. Found,
the job goes on; proved absent, it is sent once more; otherwise it waits in the operator's
inbox and, after a day, is given back to the customer at the operator's cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

import structlog
from django.conf import settings
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from inference.errors import Fault, ProviderError, RenderError
from inference.providers import base, transport
from inference.providers.base import Evidence, FindQuery, RemoteStatus
from jobs import incidents, lifecycle, outside
from jobs.models import Job, JobNote, ProviderErrand
from jobs.provider_steps import (
    http,
    is_not_there,
    sent_attempts,
    settle_cost,
    was_found,
    was_stopped,
)
from jobs.states import Status, Step

log = structlog.get_logger()

#: How long before we look again, growing with each look.
LOOK_SECONDS: Final = 10.0
LOOK_SECONDS_MAX: Final = 600.0
#: A task list is believed to be complete this long after the submit.
SETTLED: Final = timedelta(seconds=30)
#: A submit's job was made at the provider within this time of being sent.
WINDOW: Final = timedelta(minutes=2)
#: A job is taken for ours where the provider's clock differs from ours by at most this;
SKEW: Final = timedelta(seconds=2)
#: but absent only if nothing unknown to us is in this time to either side: clocks may be
#: further off, and a provider may have changed our words.
FAR: Final = timedelta(minutes=10)
#: How often a provider is told; a copy goes only when its job has ended there, so
#: that is asked for over two days.
ERRAND_TRIES: Final[Mapping[str, int]] = {
    ProviderErrand.Kind.CANCEL: 5,
    ProviderErrand.Kind.DELETE: 54,
}
ERRAND_SECONDS: Final = 30.0
ERRAND_SECONDS_MAX: Final = 3600.0
STOPPED: Final = "stopped there"
BATCH: Final = 50
#: "Lost" is not yet worth a person's time in the first minutes.
INBOX_AFTER: Final = timedelta(minutes=2)
#: A candidate's own words are read for at most so many jobs of a list.
CANDIDATES_MAX: Final = 20
RESENT: Final = "resent"


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
        is_settled = False
        with incidents.alone(job.pk, "What became of this job cannot be looked up."):
            is_settled = _look_for(job)
        # Whatever kept us from it, its day passes.
        with incidents.alone(job.pk, "This job in doubt cannot be given back."):
            if not is_settled and job.submit_sent_at is not None:
                _wait_for_a_person(job, timezone.now() - job.submit_sent_at)


def _look_for(job: Job) -> bool:
    """Look once; return whether it is known what became of the job."""
    try:
        return _is_settled(job)
    except ProviderError as error:
        log.warning("reconcile_failed", job=str(job.pk), error=str(error))
        return False


def _is_settled(job: Job) -> bool:
    """Look, act on what was seen, and return whether anything was proved."""
    row = job.provider_account
    assert row is not None  # intent is stored with its account
    assert job.submit_sent_at is not None
    provider, account = outside.adapter(row.provider), outside.as_account(row)
    age = timezone.now() - job.submit_sent_at
    evidence = provider.evidence(account, callback_url=None)
    if one := job.provider_job_id:
        status = transport.status(http(), provider, [one], account)[one]
        if status.state != "unknown":
            return was_found(job.pk, one, token=job.submit_token)
        evidence = Evidence.NONE  # it has an id that the provider does not know now
    if evidence is Evidence.CLIENT_TOKEN and not _was_resent(job):
        _send_again(job, keep_token=True)
        return True
    if evidence is Evidence.TASK_LIST:
        found = _candidates(job, provider, account)
        if len(found.candidates) == 1 and not _has_rivals(job):
            return was_found(job.pk, found.candidates[0], token=job.submit_token)
        is_settled = found.conclusive and age > SETTLED
        if not found.candidates and is_settled and _is_absent(job, provider, account):
            _was_never_there(job)
            return True
    return False


def _candidates(
    job: Job, provider: base.Provider, account: base.ProviderAccount
) -> base.Found:
    """Return the provider's jobs that may be ours, those with other words left out."""
    query = _query(job, _prompt_of(job), before=SKEW, after=WINDOW)
    found = transport.find(http(), provider, query, account)
    if len(found.candidates) > CANDIDATES_MAX:
        return found
    if provider.capabilities.list_shows_prompts:
        return found
    return _told_apart(found, query, provider, account)


def _is_absent(
    job: Job, provider: base.Provider, account: base.ProviderAccount
) -> bool:
    """Return whether no job there can be ours, whatever its clock and words."""
    query = _query(job, None, before=FAR, after=FAR)
    found = transport.find(http(), provider, query, account)
    return found.conclusive and not found.candidates


def _query(
    job: Job, prompt: str | None, *, before: timedelta, after: timedelta
) -> FindQuery:
    assert job.submit_sent_at is not None
    return FindQuery(
        reference=job.submit_token,
        model=job.route["profile"],
        prompt=prompt,
        since=job.submit_sent_at - before,
        until=job.submit_sent_at + after,
        known_ids=_ids_of_others(job),
    )


def _told_apart(
    found: base.Found,
    query: FindQuery,
    provider: base.Provider,
    account: base.ProviderAccount,
) -> base.Found:
    """Keep the candidates whose own status shows our words.

    One that does not say yet may be ours: then nothing is proved either way.
    """
    ours = []
    for one in found.candidates:
        status = transport.status(http(), provider, [one], account)[one]
        if "prompt" not in status.notes:
            return base.Found()
        if status.notes["prompt"] == query.prompt:
            ours.append(one)
    return base.Found(tuple(ours), found.conclusive)


def _prompt_of(job: Job) -> str:
    return str(job.resolved.get("prompt") or job.request["prompt"])


def _has_rivals(job: Job) -> bool:
    """Return whether a candidate might as well be another job of ours without an id.

    The same words from two customers: giving one the other's video would be worse than
    giving neither.
    """
    assert job.submit_sent_at is not None
    others = Job.objects.filter(
        provider_account_id=job.provider_account_id,
        provider_job_id="",
        submit_sent_at__gt=job.submit_sent_at - WINDOW - SKEW,
        submit_sent_at__lt=job.submit_sent_at + WINDOW + SKEW,
    ).exclude(pk=job.pk)
    return any(
        _prompt_of(other) == _prompt_of(job)
        and other.route["profile"] == job.route["profile"]
        for other in others
    )


def _was_resent(job: Job) -> bool:
    """Return whether the job was already sent again on its present route."""
    return JobNote.objects.filter(
        job=job, kind=RESENT, detail__route=job.route["name"]
    ).exists()


def _was_never_there(job: Job, *, by: str = "reconcile") -> None:
    """The provider has no such job: send it once more, after that go elsewhere."""
    if not _was_resent(job):
        _send_again(job, keep_token=False, by=by)
        return
    error = ProviderError("submits get lost there", fault=Fault.HEALTH)
    if not lifecycle.reroute_waiting(job, error):
        lifecycle.end(job.pk, error)
    is_not_there(job)
    incidents.resolve("unknown_fate", str(job.pk), by=by)


def _send_again(job: Job, *, keep_token: bool, by: str = "reconcile") -> None:
    changes = (
        {}
        if keep_token
        else {
            "submit_sent_at": None,
            "submit_token": "",
            "provider_account": None,
            "provider_job_id": "",
        }
    )
    moved = lifecycle.return_to(
        job.pk,
        Step.SUBMIT,
        came_from=Step.RECONCILE,
        queue=job.route["queue"],
        next_poll_at=None,
        poll_failures=0,
        **lifecycle.anew(),
        **changes,
    )
    if moved:
        if not keep_token:
            is_not_there(job)
        why = "the same token is safe" if keep_token else "the provider has no such job"
        lifecycle.note(
            job.pk,
            RESENT,
            f"sent once more: {why}",
            detail={"route": job.route["name"]},
        )
        incidents.resolve("unknown_fate", str(job.pk), by=by)


def _wait_for_a_person(job: Job, age: timedelta) -> None:
    if not Job.objects.filter(pk=job.pk, step=Step.RECONCILE).exists():
        return  # it was found meanwhile
    if age.total_seconds() > settings.RECONCILE_SECONDS:
        ended = lifecycle.end(
            job.pk,
            RenderError(
                "its fate at the provider could not be proved",
                code="provider_failed",
                public="The video could not be made.",
            ),
            step=Step.RECONCILE,
        )
        if ended:
            incidents.report(
                "unproved_loss",
                str(job.pk),
                "Refunded after a day without proof; the provider may have billed it.",
            )
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
    """The provider no longer knows the id it gave: ask on, and have a person look."""
    moved = lifecycle.return_to(
        job.pk,
        Step.RECONCILE,
        came_from=Step.AWAIT,
        next_poll_at=Now(),
        poll_failures=0,
    )
    if moved:
        lifecycle.note(
            job.pk, "reconcile", "the provider does not know its id any more"
        )


# ------------------------------------------------------ what an operator may decide


def settle_as_absent(job: Job, *, actor: str, reason: str) -> None:
    """An operator made sure that the provider has no such job.

    It is sent there once more; after that another route takes it, or it is refunded.
    """
    lifecycle.note(
        job.pk, "reconcile", f"not at the provider: {reason}"[:500], actor=actor
    )
    _was_never_there(job, by=actor)


# ---------------------------------------------------------------- a provider's "failed"


def remote_failure(job_id: UUID, status: RemoteStatus) -> None:
    """The provider says the job failed: whose fault it was decides what follows."""
    job = Job.objects.get(pk=job_id)
    if job.step != Step.AWAIT:
        return
    error = status.error or ProviderError("no reason", fault=Fault.HEALTH)
    # Providers bill videos; where one bills a failure too, its answer says so.
    settle_cost(job.pk, status.cost_usd or Decimal(0))
    if job.provider_account_id is not None:
        wire_model = job.route["profile"]
        outside.went_wrong(job.provider_account_id, error, model=wire_model)
    if error.fault is Fault.CUSTOMER:
        lifecycle.end(job.pk, error)
        return
    if lifecycle.reroute_waiting(job, error):
        return
    if not _was_failed_before(job) and lifecycle.resubmit(job, error):
        lifecycle.note(job.pk, "provider", f"failed there, once more: {error}"[:500])
        return
    lifecycle.end(job.pk, error)


def _was_failed_before(job: Job) -> bool:
    """Return whether the present route has already taken and failed the job."""
    return sent_attempts(job.pk).filter(route=job.route["name"]).count() > 1


# --------------------------------------------------------------------- errands


def run_errands() -> None:
    """Cancel and delete at providers what ended here.

    What a provider goes on making is deleted when it has ended there. A copy that it
    still keeps after two days is a person's to delete.
    """
    due = ProviderErrand.objects.filter(due_at__lte=Now()).order_by("due_at")
    for errand in due.select_related("account")[:BATCH]:
        # Before it is run: whatever becomes of it, the others get their turn.
        _later(errand)
        with incidents.alone(errand.job_id, "Its provider cannot be told of its end."):
            _try(errand)


def _try(errand: ProviderErrand) -> None:
    """Run an errand that has been put off already."""
    try:
        said = _run(errand)
    except (ProviderError, _Busy) as error:
        if errand.tries + 1 < ERRAND_TRIES[errand.kind]:
            return
        said = f"could not {errand.kind} there: {error}"
        if errand.kind == ProviderErrand.Kind.DELETE:
            _report_copy(errand, said)
    if said == STOPPED:
        was_stopped(errand)
    if said:
        lifecycle.note(errand.job_id, "provider", said[:500])
    if said != STOPPED and _leaves_a_copy(errand):
        _delete_later(errand)
    else:
        errand.delete()


class _Busy(Exception):
    """The provider keeps its copy for now."""


def _run(errand: ProviderErrand) -> str:
    """Do the errand; return what to note of it."""
    provider = outside.adapter(errand.account.provider)
    account = outside.as_account(errand.account)
    one = errand.provider_job_id
    if errand.kind == ProviderErrand.Kind.CANCEL:
        stops = provider.capabilities.cancel
        stopped = stops and transport.cancel(http(), provider, one, account)
        return STOPPED if stopped else "goes on there, at our cost"
    if not provider.capabilities.delete:
        return ""
    if not transport.delete(http(), provider, one, account):
        # Some refuse an id they do not know: it may be gone since a lost answer.
        status = transport.status(http(), provider, [one], account)[one]
        if status.state != "unknown":
            raise _Busy("the provider keeps its copy")
    return "the provider's copy is deleted"


def _later(errand: ProviderErrand) -> None:
    pause = min(ERRAND_SECONDS * 2 ** min(errand.tries, 10), ERRAND_SECONDS_MAX)
    ProviderErrand.objects.filter(pk=errand.pk).update(
        tries=F("tries") + 1, due_at=Now() + timedelta(seconds=pause)
    )


def _leaves_a_copy(errand: ProviderErrand) -> bool:
    """Return whether what was not stopped can be deleted once it has ended there."""
    deletes = outside.adapter(errand.account.provider).capabilities.delete
    return errand.kind == ProviderErrand.Kind.CANCEL and deletes


def _delete_later(errand: ProviderErrand) -> None:
    ProviderErrand.objects.filter(pk=errand.pk).update(
        kind=ProviderErrand.Kind.DELETE,
        tries=0,
        due_at=Now() + timedelta(seconds=ERRAND_SECONDS),
    )


def _report_copy(errand: ProviderErrand, said: str) -> None:
    incidents.report(
        "provider_copy",
        f"{errand.account}, {errand.provider_job_id}",
        "A provider still keeps its copy of a job that has ended here.",
        detail={"job": str(errand.job_id), "why": said[:500]},
    )
