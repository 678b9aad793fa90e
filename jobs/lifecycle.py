"""Every move of a job after it was accepted, with its money, in one transaction each.

A move names the claim's fence (or locks the row) and changes one row or none. Lock order
is wallet, then job, then hold. Whoever closes a job also gives its slot to the account's
next one and leaves the event for the customer in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, QuerySet
from django.db.models.functions import Greatest, Now

from billing import accounts, ledger
from billing.plans import PlanTerms
from inference.catalogue import MODELS
from inference.contracts import Artifact
from inference.errors import (
    ContentBlocked,
    Fault,
    FetchFailed,
    InputRejected,
    ProviderError,
    RenderError,
)
from jobs import bells, claims, incidents, routing, safety, slots, webhooks
from jobs.claims import Claim
from jobs.errors import InvalidRequest, ModelUnavailable, NotAcceptableNow, NotFound
from jobs.models import (
    MADE,
    Job,
    JobNote,
    JobUpload,
    ProviderErrand,
    WebhookDelivery,
)
from jobs.requests import JobRequest
from jobs.states import ACTIVE, MOVES, Status, Step

log = structlog.get_logger()

_ACTIVE = [status.value for status in ACTIVE]
#: The failure after which no file stays.
BLOCKED = ContentBlocked.default_code


class Superseded(Exception):
    """The claim is no longer ours; whatever was done under it counts for nothing."""


# ------------------------------------------------------------------ moving on


def advance(
    claim: Claim, step: Step, *, queue: str, outcome: str = "ok", **changes: Any
) -> None:
    """Move the claimed job to its next step and ring that queue.

    Raises Superseded when the claim was lost, and does nothing when the job was
    canceled meanwhile (the cancellation is then carried out).
    """
    assert step in MOVES[claim.step], f"{claim.step} → {step}"
    with transaction.atomic():
        moved = Job.objects.filter(
            **claims.owned(claim), cancel_requested_at__isnull=True
        ).update(
            step=step,
            queue=queue,
            lease_until=None,
            step_tries=0,
            worker="",
            stage="",
            **changes,
        )
        if moved:
            claims.close_attempt(claim, outcome)
            if claim.step is Step.PREPARE:
                JobUpload.objects.filter(job_id=claim.job_id).delete()
            bells.ring(queue)
            return
    confirm_canceled(claim)


def keep_for_review(claim: Claim, artifact: Artifact, **changes: Any) -> None:
    """Send the finished file to be looked at; until then no customer sees it.

    ``changes`` are further facts to write. The file is kept in ``master``, which nobody
    shows; ``succeed`` makes it the output.
    """
    master = {**claims.load(claim).master, MADE: _output(artifact)}
    advance(claim, Step.REVIEW, queue=safety.QUEUE, master=master, **changes)


def kept_artifact(job: Job) -> Artifact:
    """Return the file that waits for its review."""
    return Artifact(**job.master[MADE])


def record(claim: Claim, **changes: Any) -> None:
    """Write facts onto the claimed job without moving it; raise Superseded if lost."""
    if not Job.objects.filter(**claims.owned(claim)).update(**changes):
        raise Superseded


def announce_running(claim: Claim) -> None:
    """Leave the event that the job is running, once, when work on it really begins.

    The job says that it was left: not the first claim, whose worker may have died.
    """
    with transaction.atomic():
        untold = Job.objects.filter(**claims.owned(claim), running_told_at=None)
        if untold.update(running_told_at=Now()):
            webhooks.announce(claim.job_id, "job.running")


# -------------------------------------------------------------------- closing


def succeed(claim: Claim, artifact: Artifact, **changes: Any) -> None:
    """Close the claimed job with its video and capture the hold.

    ``changes`` are further facts to write onto the job.
    """
    job = claims.load(claim)
    # Read before the lock, which all of the account's workers wait for.
    terms = accounts.terms_of_account(job.account_id)
    targets = webhooks.targets_of(job, "job.succeeded")
    retention = _retention_seconds(job, terms)
    with transaction.atomic():
        wallet = ledger.lock_wallet(account_id=job.account_id, mode=job.mode)
        moved = Job.objects.filter(
            **claims.owned(claim), cancel_requested_at__isnull=True
        ).update(
            **_closing(Status.SUCCEEDED),
            progress=1.0,
            output=_output(artifact),
            master={k: v for k, v in job.master.items() if k != MADE},
            files_expire_at=Now() + timedelta(seconds=retention),
            charged_millicredits=F("quoted_millicredits"),
            **changes,
        )
        if moved:
            ledger.capture(
                account_id=job.account_id,
                mode=job.mode,
                reference=str(job.id),
                wallet=wallet,
            )
            claims.close_attempt(claim, "ok")
            _after_close(job, "job.succeeded", terms, targets)
            return
    confirm_canceled(claim)


def fail(claim: Claim, error: RenderError) -> None:
    """Close the claimed job as failed and give every held credit back."""
    job = claims.load(claim)
    with transaction.atomic():
        ledger.lock_wallet(account_id=job.account_id, mode=job.mode)
        moved = Job.objects.filter(**claims.owned(claim)).update(
            **_closing(Status.FAILED), **_reasons(error)
        )
        if not moved:
            raise Superseded
        _give_back(job, reissue_expired=_is_our_failure(job, error))
        claims.close_attempt(
            claim, "failed", error_code=error.code, error_detail=str(error)
        )
        _after_close(job, "job.failed")


def end(
    job_id: UUID,
    error: RenderError,
    *,
    fence: int | None = None,
    step: Step | None = None,
) -> bool:
    """Fail a job that nobody is working on (deadline, queue TTL, provider's word).

    Returns False when the job ended or was claimed meanwhile; with a ``fence``, also
    when it was claimed since, and with a ``step``, when it is not at that step.
    """
    job = Job.objects.get(pk=job_id)
    unclaimed: dict[str, object] = {} if fence is None else {"fence": fence}
    if step is not None:
        unclaimed["step"] = step
    with transaction.atomic():
        ledger.lock_wallet(account_id=job.account_id, mode=job.mode)
        moved = Job.objects.filter(
            pk=job_id, status__in=_ACTIVE, lease_until__isnull=True, **unclaimed
        ).update(**_closing(Status.FAILED), **_reasons(error))
        if moved:
            _give_back(job, reissue_expired=_is_our_failure(job, error))
            _after_close(job, "job.failed")
    return bool(moved)


def expire(job: Job, error: RenderError) -> None:
    """End a job whose time is over; what may be at a provider is looked for first."""
    if _may_be_out(job):
        put_in_doubt(job, "its time was over before anybody knew its answer")
    else:
        end(job.pk, error, fence=job.fence)


def _may_be_out(job: Job) -> bool:
    """Return whether a provider may have the job although no answer came."""
    return job.step == Step.SUBMIT and job.submit_sent_at is not None


def put_in_doubt(job: Job, reason: str) -> None:
    """Have a submitted job looked for that no worker holds (any more)."""
    with transaction.atomic():
        moved = Job.objects.filter(
            pk=job.pk,
            fence=job.fence,
            step=Step.SUBMIT,
            status__in=_ACTIVE,
            submit_sent_at__isnull=False,
        ).exclude(lease_until__gte=Now())
        if moved.update(
            step=Step.RECONCILE,
            queue="",
            lease_until=None,
            worker="",
            step_tries=0,
            run_after=None,
            next_poll_at=Now(),
            poll_failures=0,
        ):
            note(job.pk, "reconcile", reason)


def try_again(claim: Claim, error: RenderError) -> None:
    """Put the step back in its queue after a failed try; once its tries are used up,
    take an engine's job to the next route and fail any other.

    What was not the step's own fault (``error.counts`` false) costs no try.
    """
    tries = claim.tries + (1 if error.counts else 0)
    if error.permanent:
        fail(claim, error)
        return
    if tries >= settings.STEP_TRIES:
        give_up(claim, error)
        return
    pause = error.retry_after_seconds or settings.RETRY_SECONDS * 2**claim.tries
    moved = Job.objects.filter(**claims.owned(claim)).update(
        lease_until=None,
        step_tries=tries,
        worker="",
        run_after=Now() + timedelta(seconds=min(pause, 600)),
        error_detail=str(error)[:10_000],
    )
    if not moved:
        raise Superseded
    claims.close_attempt(
        claim, "failed", error_code=error.code, error_detail=str(error)
    )


def give_up(claim: Claim, error: RenderError) -> None:
    """End what these machines cannot do: on the next route where there is one."""
    if claim.step is Step.GENERATE:
        reroute(claim, error)
    else:
        fail(claim, error)


def reroute(claim: Claim, error: RenderError) -> None:
    """Take the job to its next route, keeping job, hold and price; else fail it."""
    if not try_elsewhere(claim, error):
        fail(claim, error)


def try_elsewhere(claim: Claim, error: RenderError) -> bool:
    """Take the claimed job to its next route; False, and nothing done, without one."""
    job = claims.load(claim)
    tried = [*job.routes_tried, str(job.route.get("name", ""))]
    if (choice := _next_route(job, tried)) is None:
        return False
    with transaction.atomic():
        _leave_errand(job.pk, _wanted_no_more(job))
        moved = Job.objects.filter(**claims.owned(claim)).update(
            **_rerouted(choice, tried, error),
            step=choice.first_step,
            step_tries=0,
            lease_until=None,
            worker="",
        )
        if not moved:
            raise Superseded
        claims.close_attempt(
            claim, "failed", error_code=error.code, error_detail=str(error)
        )
        _note_route(job.pk, choice, tried[-1], error)
        bells.ring(choice.route["queue"])
    return True


def reroute_waiting(job: Job, error: RenderError) -> bool:
    """Do for a job that no worker holds what ``try_elsewhere`` does for a claimed one."""
    tried = [*job.routes_tried, str(job.route.get("name", ""))]
    if (choice := _next_route(job, tried)) is None:
        return False
    with transaction.atomic():
        moved = return_to(
            job.pk,
            choice.first_step,
            came_from=Step(job.step),
            **_rerouted(choice, tried, error),
            **(anew() if job.step == Step.RECONCILE else {}),
        )
        if moved:
            _leave_errand_of(job, _wanted_no_more(job))
            _note_route(job.pk, choice, tried[-1], error)
    return True


def resubmit(job: Job, error: RenderError) -> bool:
    """Send a job that its provider failed once more on the same route."""
    return return_to(
        job.pk,
        Step.SUBMIT,
        came_from=Step(job.step),
        **_unsent(),
        queue=job.route["queue"],
        error_detail=str(error)[:10_000],
    )


def _next_route(job: Job, tried: list[str]) -> routing.Choice | None:
    try:
        return routing.choose(
            MODELS[job.model],
            mode=job.mode,
            plan=accounts.terms_of_account(job.account_id).code,
            request=JobRequest.load(job.request),
            without=tried,
        )
    except (ModelUnavailable, InvalidRequest):
        return None


def _wanted_no_more(job: Job) -> ProviderErrand.Kind:
    """Return what to tell a provider of a job that nobody waits for at its step."""
    is_made = job.step in (Step.COLLECT, Step.FINISH, Step.REVIEW)
    return ProviderErrand.Kind.DELETE if is_made else ProviderErrand.Kind.CANCEL


def _rerouted(
    choice: routing.Choice, tried: list[str], error: RenderError
) -> dict[str, Any]:
    return {
        **_unsent(),
        "route": dict(choice.route),
        "routes_tried": tried,
        "queue": choice.route["queue"],
        "error_detail": str(error)[:10_000],
    }


def _note_route(
    job_id: UUID, choice: routing.Choice, left: str, error: RenderError
) -> None:
    note(
        job_id,
        "route",
        "; ".join(choice.reasons),
        detail={"left": left, "because": str(error)[:500]},
    )


def return_to(
    job_id: UUID,
    step: Step,
    *,
    came_from: Step,
    queue: str = "",
    **changes: Any,
) -> bool:
    """Move a job that no worker holds (await, reconcile) on; False if it moved already."""
    assert step in MOVES[came_from], f"{came_from} → {step}"
    moved = Job.objects.filter(
        pk=job_id, step=came_from, status__in=_ACTIVE, lease_until__isnull=True
    ).update(step=step, queue=queue, step_tries=0, **changes)
    if moved:
        bells.ring(queue)
    return bool(moved)


def anew() -> dict[str, Any]:
    """Return the fields of a job whose time in doubt shall not count against it.

    Its deadline runs from its next claim; till then it waits like a new one.
    """
    patience = timedelta(seconds=settings.RUN_DEADLINE_SECONDS)
    return {"end_by": None, "start_by": Greatest(F("start_by"), Now() + patience)}


def _unsent() -> dict[str, Any]:
    """Return the fields of a job that no provider has (any more)."""
    return {
        "submit_token": "",
        "submit_sent_at": None,
        "provider_account": None,
        "provider_job_id": "",
        "next_poll_at": None,
        "poll_failures": 0,
    }


def let_go(claim: Claim, *, wait_seconds: float = 0.0) -> None:
    """Give the step back untried: the worker is draining, or it is too early."""
    moved = Job.objects.filter(**claims.owned(claim)).update(
        lease_until=None,
        worker="",
        run_after=Now() + timedelta(seconds=wait_seconds),
    )
    if moved:
        claims.close_attempt(claim, "released")
        bells.ring(claim.queue)


def deadline_exceeded() -> RenderError:
    return RenderError(
        "ran past its deadline",
        code="deadline_exceeded",
        permanent=True,
        public="Making the video took too long.",
    )


def lose(job: Job) -> None:
    """Take a job whose lease ran out from its worker; counts as a try of the step.

    One that is past its deadline ends: nobody else is to begin it again. One that its
    worker is just moving is left for the next look: it may only be slow to wake.
    """
    gone = Job.objects.filter(
        pk=job.pk, fence=job.fence, status__in=_ACTIVE, lease_until__lt=Now()
    )
    may_be_out = job.cancel_requested_at is None and _may_be_out(job)
    with transaction.atomic():
        # Locked before anything is written: of its attempt it would else be told that it
        # was lost, and the worker's move would then succeed.
        if not gone.select_for_update(no_key=True, skip_locked=True):
            return
        claims.close_lost(job)
        if may_be_out:
            # However often its worker died, and also while the provider takes no more.
            put_in_doubt(job, "the worker went away before it knew the answer")
        else:
            Job.objects.filter(pk=job.pk).update(
                lease_until=None, worker="", step_tries=F("step_tries") + 1
            )
    if not may_be_out:
        _go_on_without(job)


def _go_on_without(job: Job) -> None:
    """Decide about a job that has just lost its worker."""
    if job.cancel_requested_at is not None:
        cancel_now(job.pk)
    elif Job.objects.filter(pk=job.pk, end_by__lt=Now()).exists():
        end(job.pk, deadline_exceeded(), fence=job.fence)
    elif job.step_tries + 1 < settings.STEP_TRIES:
        bells.ring(job.queue)
    else:
        error = RenderError(
            f"lost its worker {job.step_tries + 1} times",
            code="worker_lost",
            public="The machines making the video went away repeatedly.",
        )
        if job.step != Step.GENERATE or not reroute_waiting(job, error):
            end(job.pk, error, fence=job.fence)


# ------------------------------------------------------------------- refunding


def refund(job: Job, *, amount_millicredits: int, actor: str, reason: str) -> None:
    """Give back what a finished job was charged, whole or in part, once.

    Raises billing's AlreadySettled or AmountTooLarge.
    """
    with transaction.atomic():
        ledger.refund(
            account_id=job.account_id,
            mode=job.mode,
            reference=str(job.id),
            amount_millicredits=amount_millicredits,
            actor=actor,
            reason=reason,
        )
        Job.objects.filter(pk=job.pk).update(refunded_millicredits=amount_millicredits)
        note(
            job.pk,
            "refund",
            f"{amount_millicredits / 1000:g} credits: {reason}",
            actor=actor,
        )


# ------------------------------------------------------------------- canceling


def cancel(
    job: Job, *, reason: str = "canceled by the customer", actor: str = ""
) -> Job:
    """Cancel a job: at once when nobody works on it, else at its next stopping point.

    Raises NotAcceptableNow when it has ended, or when the account has canceled too many
    running jobs today. An operator (``actor``) is not limited.
    """
    with transaction.atomic():
        ledger.lock_wallet(account_id=job.account_id, mode=job.mode)
        row = Job.objects.select_for_update(no_key=True).get(pk=job.pk)
        if row.status == Status.CANCELED or row.cancel_requested_at is not None:
            return row
        if row.status not in ACTIVE:
            raise NotAcceptableNow(f"The job has already {row.status}.")
        if row.status == Status.RUNNING and not actor:
            _check_cancel_allowance(row)
        if actor:
            note(row.pk, "cancel", reason, actor=actor)
        Job.objects.filter(pk=row.pk).update(
            cancel_requested_at=Now(), cancel_reason=reason[:200]
        )
        if row.lease_until is None:
            _close_canceled(row)
    return Job.objects.get(pk=job.pk)


def cancel_now(job_id: UUID) -> bool:
    """Close a job whose cancellation was asked for and that nobody works on any more."""
    job = Job.objects.get(pk=job_id)
    with transaction.atomic():
        ledger.lock_wallet(account_id=job.account_id, mode=job.mode)
        row = Job.objects.select_for_update(no_key=True).get(pk=job_id)
        if row.status not in ACTIVE or row.lease_until is not None:
            return False
        _close_canceled(row)
    return True


def confirm_canceled(claim: Claim) -> None:
    """Close the claimed job whose cancellation its worker has seen."""
    job = claims.load(claim)
    with transaction.atomic():
        ledger.lock_wallet(account_id=job.account_id, mode=job.mode)
        moved = Job.objects.filter(
            **claims.owned(claim), cancel_requested_at__isnull=False
        ).update(**_closing(Status.CANCELED), **_cancel_reasons(job))
        if not moved:
            raise Superseded
        _give_back(job, reissue_expired=_is_canceled_by_us(job))
        claims.close_attempt(claim, "canceled")
        _after_close(job, "job.canceled")


def _close_canceled(row: Job) -> None:
    Job.objects.filter(pk=row.pk).update(
        **_closing(Status.CANCELED), **_cancel_reasons(row)
    )
    _give_back(row, reissue_expired=_is_canceled_by_us(row))
    _after_close(row, "job.canceled")


def _check_cancel_allowance(job: Job) -> None:
    own = Job.objects.filter(
        ~Exists(_cancels_by_us().filter(job_id=OuterRef("pk"))),
        account_id=job.account_id,
        mode=job.mode,
        started_at__isnull=False,
        cancel_requested_at__gte=Now() - timedelta(days=1),
    )
    used = own.count()
    allowed = accounts.terms_of_account(job.account_id).running_cancels_per_day
    if used >= allowed:
        raise NotAcceptableNow(
            f"At most {allowed} running jobs may be canceled a day; this one goes on."
        )


# --------------------------------------------------------------------- parts


def note(
    job_id: UUID,
    kind: str,
    text: str,
    *,
    actor: str = "",
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Add a line to the job's log."""
    JobNote.objects.create(
        job_id=job_id, kind=kind, text=text, actor=actor, detail=dict(detail or {})
    )


def find(account_id: UUID, job_id: UUID) -> Job:
    """Return the account's job, or raise the NotFound a foreign id gets as well."""
    try:
        return Job.objects.get(pk=job_id, account_id=account_id)
    except Job.DoesNotExist as missing:
        raise NotFound from missing


def _closing(status: Status) -> dict[str, Any]:
    return {
        "status": status,
        "step": Step.DONE,
        "queue": "",
        "finished_at": Now(),
        "lease_until": None,
        "next_poll_at": None,
        "run_after": None,
        "stage": "",
        "eta_seconds": None,
    }


def _reasons(error: RenderError) -> dict[str, Any]:
    return {
        "error_code": error.code,
        "error_message": error.public[:500],
        "error_retryable": not error.permanent,
        "error_detail": str(error)[:10_000],
        "refunded_millicredits": F("quoted_millicredits"),
        # Nothing of what was refused is kept; housekeeping removes what is left.
        **({"files_expire_at": Now()} if error.code == BLOCKED else {}),
    }


def _cancel_reasons(job: Job) -> dict[str, Any]:
    return {
        "error_code": "canceled",
        "error_message": job.cancel_reason or "The job was canceled.",
        "error_retryable": False,
        "refunded_millicredits": F("quoted_millicredits"),
    }


def _give_back(job: Job, *, reissue_expired: bool) -> None:
    ledger.release(
        account_id=job.account_id,
        mode=job.mode,
        reference=str(job.id),
        reissue_expired=reissue_expired,
    )


def _is_our_failure(job: Job, error: RenderError) -> bool:
    """Say whether the customer could not have helped it.

    Only then do credits that expired while the job held them live on: else a queue
    filled with jobs that cannot succeed would keep any credits alive.
    """
    if isinstance(error, InputRejected | ContentBlocked):
        return False
    if isinstance(error, ProviderError):
        return error.fault is not Fault.CUSTOMER
    if isinstance(error, FetchFailed):
        return job.step != Step.PREPARE
    # Without a slot it waited for the account's own jobs, not for us.
    return error.code != "queue_expired" or job.ready_at is not None


def _is_canceled_by_us(job: Job) -> bool:
    return _cancels_by_us().filter(job_id=job.pk).exists()


def _cancels_by_us() -> QuerySet[JobNote]:
    """Return what operators' cancels have noted; a customer's has no note."""
    return JobNote.objects.filter(kind="cancel").exclude(actor="")


def _after_close(
    job: Job,
    event: str,
    terms: PlanTerms | None = None,
    targets: list[WebhookDelivery] | None = None,
) -> None:
    terms = terms or accounts.terms_of_account(job.account_id)
    if job.step == Step.PREPARE:  # later steps work from the prepared files
        JobUpload.objects.filter(job_id=job.pk).delete()
    if job.step == Step.RECONCILE:
        incidents.resolve("unknown_fate", str(job.pk), by="its end")
    if job.route.get("kind") == "provider":
        _leave_errand(job.pk, _wanted_no_more(job))
    webhooks.leave(job, event, targets)
    freed = slots.fill(
        account_id=job.account_id, mode=job.mode, limit=terms.max_running
    )
    bells.ring(*freed)


def _leave_errand(job_id: UUID, kind: ProviderErrand.Kind) -> None:
    fields = ("provider_account_id", "provider_job_id")
    _leave_errand_of(Job.objects.only(*fields).get(pk=job_id), kind)


def _leave_errand_of(job: Job, kind: ProviderErrand.Kind) -> None:
    """Have the provider stop what nobody wants any more, or delete its copy."""
    if job.provider_account_id is None or not job.provider_job_id:
        return
    ProviderErrand.objects.create(
        job_id=job.pk,
        account_id=job.provider_account_id,
        provider_job_id=job.provider_job_id,
        kind=kind,
    )


def _retention_seconds(job: Job, terms: PlanTerms) -> int:
    asked = job.request.get("retention_seconds")
    kept = terms.file_retention_days * 86_400
    return min(asked, kept) if asked else kept


def _output(artifact: Artifact) -> dict[str, Any]:
    import dataclasses

    values = dataclasses.asdict(artifact)
    values["notes"] = dict(artifact.notes)
    return values
