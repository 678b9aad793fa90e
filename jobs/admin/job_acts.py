"""What an operator does to a job, each with a reason."""

from __future__ import annotations

from decimal import Decimal

from django import forms
from unfold.widgets import UnfoldAdminDecimalFieldWidget, UnfoldAdminTextInputWidget

from billing.acting import Act, Deed, ReasonForm, Refused
from billing.errors import BillingError
from inference.errors import RenderError, StorageUnavailable
from jobs import intake, lifecycle, provider_steps, reconcile, retention
from jobs.dialects import load_dialect
from jobs.errors import ApiError
from jobs.models import Job
from jobs.states import Status, Step

REFUSALS = (BillingError, ApiError, StorageUnavailable)


class RefundForm(ReasonForm):
    """How much of the charge goes back; empty: all of it."""

    credits = forms.DecimalField(
        required=False,
        min_value=Decimal("0.001"),
        decimal_places=3,
        widget=UnfoldAdminDecimalFieldWidget(),
        help_text="Empty: all that was charged. A job is refunded once.",
    )
    field_order = ("credits", "reason")


class FoundForm(ReasonForm):
    """The id under which the provider knows the job."""

    provider_job_id = forms.CharField(
        max_length=256, widget=UnfoldAdminTextInputWidget()
    )
    field_order = ("provider_job_id", "reason")


def _cancel(job: Job, deed: Deed) -> str:
    canceled = lifecycle.cancel(
        job, reason="canceled by the operator", actor=deed.actor
    )
    lifecycle.note(job.pk, "operator", f"cancel: {deed.reason}", actor=deed.actor)
    if canceled.status == Status.CANCELED:
        return "canceled, the whole hold released."
    return "its worker stops at the next point; the whole hold is released then."


def _retry(job: Job, deed: Deed) -> str:
    if job.status not in (Status.FAILED, Status.CANCELED):
        raise Refused("Only a failed or canceled job is tried again.")
    # A job has one other try, which may have one in turn: nobody pays twice because two
    # people pressed the button.
    earlier = job.notes.filter(kind="operator", detail__has_key="job").first()
    if earlier is not None:
        raise Refused(
            f"It was tried again as job {earlier.detail['job']}; should that fail, try "
            "that one."
        )
    dialect = load_dialect(job.dialect)
    again = intake.submit_again(
        job, public_id=dialect.new_id and dialect.new_id(), actor=deed.actor
    )
    lifecycle.note(
        job.pk,
        "operator",
        f"tried again as {again.pk}: {deed.reason}",
        actor=deed.actor,
        detail={"job": str(again.pk)},
    )
    return f"tried again as job {again.pk}, at today's price."


def _refund(job: Job, deed: Deed) -> str:
    credits = deed.values["credits"]
    amount = int(credits * 1000) if credits else job.charged_millicredits
    if not amount:
        raise Refused("Nothing was charged for it.")
    lifecycle.refund(
        job, amount_millicredits=amount, actor=deed.actor, reason=deed.reason
    )
    return f"{amount / 1000:g} credits refunded."


def _delete_files(job: Job, deed: Deed) -> str:
    if not Status(job.status).is_terminal:
        raise Refused("It has not ended; cancel it first.")
    if job.files_deleted_at is not None:
        raise Refused("Its files are gone already.")
    keys = retention.delete_files(job, reason="requested", actor=deed.actor)
    return f"{len(keys)} files deleted from storage."


def _found(job: Job, deed: Deed) -> str:
    if job.step != Step.RECONCILE:
        raise Refused("Its fate is not in doubt.")
    one = deed.values["provider_job_id"]
    if (other := provider_steps.who_else_has(job, one)) is not None:
        raise Refused(f"That id is the one of job {other}.")
    if not provider_steps.was_found(job.pk, one, token=job.submit_token):
        raise Refused("It was moved in this moment; look again.")
    lifecycle.note(job.pk, "operator", f"found: {deed.reason}", actor=deed.actor)
    return "goes on as what the provider has under that id."


def _absent(job: Job, deed: Deed) -> str:
    if job.step != Step.RECONCILE:
        raise Refused("Its fate is not in doubt.")
    before = job.route["name"]
    reconcile.settle_as_absent(job, actor=deed.actor, reason=deed.reason)
    job.refresh_from_db()
    if job.step == Step.RECONCILE:
        raise Refused("It was moved in this moment; look again.")
    if Status(job.status).is_terminal:
        return "no other route can make it: failed, the whole hold released."
    if job.route["name"] != before:
        return f"goes on by the route {job.route['name']}."
    return "is sent to the provider once more."


def _give_up(job: Job, deed: Deed) -> str:
    ended = lifecycle.end(
        job.pk,
        RenderError(
            f"given up by {deed.actor}: {deed.reason}",
            code="provider_failed",
            public="The video could not be made.",
        ),
    )
    if not ended:
        raise Refused("A worker holds it, or it has ended; cancel it instead.")
    lifecycle.note(job.pk, "operator", f"given up: {deed.reason}", actor=deed.actor)
    return "failed, the whole hold released; what a provider bills is ours to pay."


def _is_open(job: Job) -> bool:
    return not Status(job.status).is_terminal


ACTS = (
    Act(
        name="cancel",
        label="Cancel",
        explains="The job ends as canceled and every held credit goes back. The "
        "customer reads that the operator canceled it, not your reason.",
        run=_cancel,
        icon="cancel",
        is_dangerous=True,
        refusals=REFUSALS,
        fits=_is_open,
    ),
    Act(
        name="retry",
        label="Try again",
        explains="The same request is accepted as a new job of the same account, at "
        "today's price and with a hold of its own; this job stays as it ended and is not "
        "tried a second time: should the new one fail, try that one. A seed that was drawn "
        "is drawn anew.",
        run=_retry,
        icon="replay",
        refusals=REFUSALS,
        fits=lambda job: job.status in (Status.FAILED, Status.CANCELED),
    ),
    Act(
        name="refund",
        label="Refund",
        explains="Credits of a finished job go back to where they came from. The video "
        "stays with the customer. Your reason is on the customer's statement.",
        run=_refund,
        form=RefundForm,
        icon="undo",
        permission="billing.add_transfer",
        refusals=REFUSALS,
        fits=lambda job: job.charged_millicredits > 0 and not job.refunded_millicredits,
    ),
    Act(
        name="found",
        label="Found at provider",
        explains="A submit went out and its answer was lost. Enter the id under which "
        "the provider has the job, and it is awaited there.",
        run=_found,
        form=FoundForm,
        icon="search_check",
        in_bulk=False,
        refusals=REFUSALS,
        fits=lambda job: job.step == Step.RECONCILE,
    ),
    Act(
        name="absent",
        label="Never got there",
        explains="You made sure that the provider has no such job, by its list or its "
        "bill. It is sent there once more; if that was done before, the next route takes "
        "it, and with none left it fails and every held credit goes back. Should the "
        "provider have it after all, it is made and billed twice.",
        run=_absent,
        icon="search_off",
        is_dangerous=True,
        in_bulk=False,
        refusals=REFUSALS,
        fits=lambda job: job.step == Step.RECONCILE,
    ),
    Act(
        name="give_up",
        label="Give up",
        explains="The job fails now and every held credit goes back, although a "
        "provider may still make and bill it.",
        run=_give_up,
        icon="heart_broken",
        is_dangerous=True,
        in_bulk=False,
        refusals=REFUSALS,
        fits=lambda job: job.step == Step.RECONCILE,
    ),
    Act(
        name="delete_files",
        label="Delete files",
        explains="Video, poster, pictures and work files are removed from storage for "
        "good. The job's record and the books stay.",
        run=_delete_files,
        icon="delete",
        is_dangerous=True,
        refusals=REFUSALS,
        fits=lambda job: (
            Status(job.status).is_terminal
            and job.files_deleted_at is None
            and bool(retention.keys_of(job))
        ),
    ),
)
