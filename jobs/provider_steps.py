"""The steps of a job that an outside provider makes: submit and collect.

Between them nobody waits: the poller asks. Before anything is sent, the account, our
token and the moment are stored, so that whatever happens to this process, it is known
that a provider may have the job, and where. An answer that was lost is looked for
(``reconcile``), never answered by sending again.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from django.conf import settings
from django.core import signing
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from inference.errors import (
    AnswerLost,
    Fault,
    ProviderError,
    RenderError,
    Unsupported,
)
from inference.media.probe import UnusableVideo, probe
from inference.providers import base, results, transport
from inference.providers.base import Evidence
from inference.providers.pictures import fit_picture
from jobs import claims, context, lifecycle, outside
from jobs.models import Attempt, Job, ProviderAccount
from jobs.requests import JobRequest
from jobs.states import Step
from jobs.workfolders import folder_of, workfolder

if TYPE_CHECKING:
    from inference.contracts import Context
    from jobs.claims import Claim, Held

CALLBACK_SALT = "zoetrope.callback"
#: First look after a submit, as a share of the provider's interval.
FIRST_LOOK = 0.5
#: A signed link to an input must outlive a provider's own queue.
INPUT_LINK_SECONDS = 24 * 3600
RECONCILE_FIRST_SECONDS = 5.0

_http: httpx.Client | None = None


def http() -> httpx.Client:
    """Return this process's client for providers; safe to share between threads."""
    global _http
    if _http is None:
        _http = transport.client(limits=httpx.Limits(max_keepalive_connections=20))
    return _http


# ----------------------------------------------------------------------- submit


def submit(held: Held) -> None:
    """Send the job to one of the route's accounts."""
    claim, job = held.claim, claims.load(held.claim)
    lifecycle.announce_running(claim)
    provider = outside.adapter(job.route["runner"])
    if job.submit_sent_at is not None and not _may_send_again(job, provider):
        _to_reconcile(claim, "the worker died before it knew the answer")
        return
    try:
        row = _intend(claim, job)
        order = _order(job, provider, outside.as_account(row), context.get())
        call = provider.build_submit(order, outside.as_account(row))
    except Unsupported as error:
        lifecycle.record(claim, submit_sent_at=None)
        lifecycle.reroute(claim, error)
        return
    except ProviderError as error:
        _refused(claim, job, error)
        return
    account = outside.as_account(row)
    try:
        submitted = provider.parse_submit(transport.send(http(), call), account)
    except AnswerLost as lost:
        outside.went_wrong(row.pk, lost)
        _to_reconcile(claim, str(lost))
        return
    except ProviderError as error:
        outside.went_wrong(row.pk, error)
        _refused(claim, job, error)
        return
    outside.went_well(row.pk)
    cost = submitted.cost_usd or provider.estimate_usd(order, account)
    first_look = provider.capabilities.poll_seconds * FIRST_LOOK
    _book(claim, cost)
    lifecycle.advance(
        claim,
        Step.AWAIT,
        queue="",
        provider_job_id=submitted.provider_id,
        next_poll_at=Now() + timedelta(seconds=first_look),
        poll_failures=0,
        cost_microdollars=F("cost_microdollars") + _micro(cost),
    )


def _may_send_again(job: Job, provider: base.Provider) -> bool:
    """Return whether sending the same token twice makes one job there."""
    row = job.provider_account
    if row is None:
        return True
    found = provider.evidence(outside.as_account(row), callback_url=None)
    return found is Evidence.CLIENT_TOKEN


def _intend(claim: Claim, job: Job) -> ProviderAccount:
    """Choose the account and store that we are about to send; one transaction."""
    if job.submit_sent_at is not None and job.provider_account is not None:
        return job.provider_account  # the same token to the same account
    with transaction.atomic():
        row = outside.take_account(job.route["runner"])
        lifecycle.record(
            claim,
            provider_account=row,
            submit_token=secrets.token_hex(16),
            submit_sent_at=Now(),
        )
    job.refresh_from_db()
    return row


def _refused(claim: Claim, job: Job, error: ProviderError) -> None:
    """The provider has not got it: by whose fault, decides what happens next."""
    lifecycle.record(claim, submit_sent_at=None, submit_token="", provider_account=None)
    last_try = claim.tries + 1 >= settings.STEP_TRIES
    match error.fault:
        case Fault.CUSTOMER:
            lifecycle.fail(claim, error)
        case Fault.BUSY:
            lifecycle.try_again(claim, _uncounted(error))
        case Fault.ACCOUNT:
            # Another account of this provider, else another route.
            if outside.usable_accounts(job.route["runner"]):
                lifecycle.try_again(claim, _uncounted(error))
            else:
                lifecycle.reroute(claim, error)
        case Fault.HEALTH:
            if last_try:
                lifecycle.reroute(claim, error)
            else:
                lifecycle.try_again(claim, error)


def _uncounted(error: ProviderError) -> ProviderError:
    error.counts = False  # type: ignore[misc]  # of this one error, not of its class
    return error


def _to_reconcile(claim: Claim, reason: str) -> None:
    lifecycle.note(claim.job_id, "reconcile", reason[:500])
    lifecycle.advance(
        claim,
        Step.RECONCILE,
        queue="",
        next_poll_at=Now() + timedelta(seconds=RECONCILE_FIRST_SECONDS),
    )


def _order(
    job: Job, provider: base.Provider, account: base.ProviderAccount, world: Context
) -> base.ProviderJob:
    request = JobRequest.load(job.request)
    size = (int(job.resolved["width"]), int(job.resolved["height"]))
    options: dict[str, Any] = {
        "reference": job.submit_token,
        "wire_model": job.route["profile"],
        "provider": job.route["runner"],
        "size": size,
        "prompt": job.resolved.get("prompt"),
        "audio_url": request.audio.url,
        "callback_url": _callback_url(job, provider),
    }
    canvas = provider.canvas(outside.order(request, **options), account)
    with workfolder(world) as folder:
        for name in ("image", "last_image"):
            if (entry := job.inputs.get(name)) is not None:
                options[name] = _picture(entry, provider, canvas, folder, world)
    return outside.order(request, **options)


def _picture(
    entry: Mapping[str, Any],
    provider: base.Provider,
    canvas: tuple[int, int] | None,
    folder: Path,
    world: Context,
) -> base.Picture:
    need = provider.capabilities.picture
    if need.form == "url":
        link = world.storage.presign(entry["key"], seconds=INPUT_LINK_SECONDS)
        return base.Picture(url=link)
    local = folder / Path(entry["key"]).name
    world.storage.get_file(entry["key"], local)
    return fit_picture(local, need, canvas)


def _callback_url(job: Job, provider: base.Provider) -> str | None:
    if not provider.capabilities.callback_per_job or not settings.CALLBACKS:
        return None
    token = signing.dumps([str(job.pk), job.submit_token], salt=CALLBACK_SALT)
    return f"{settings.PUBLIC_URL}/callbacks/{provider.name}/{token}"


def _book(claim: Claim, cost: Decimal | None) -> None:
    Attempt.objects.filter(job_id=claim.job_id, fence=claim.fence).update(
        cost_microdollars=_micro(cost)
    )


def _micro(cost: Decimal | None) -> int:
    return 0 if cost is None else max(0, round(cost * 1_000_000))


# ---------------------------------------------------------------------- collect


def collect(held: Held) -> None:
    """Bring the finished clip here; the finish step makes the delivered file of it."""
    claim, job = held.claim, claims.load(held.claim)
    provider = outside.adapter(job.route["runner"])
    row = job.provider_account
    assert row is not None  # a job is collected from where it was sent
    account, world = outside.as_account(row), context.get()
    try:
        status = transport.status(http(), provider, [job.provider_job_id], account)[
            job.provider_job_id
        ]
        if status.state != "succeeded":
            raise status.error or ProviderError(
                f"{provider.name} says {status.state} of a finished job",
                fault=Fault.HEALTH,
            )
        with workfolder(world) as folder:
            target = folder / "result.mp4"
            results.download(
                status,
                account,
                target,
                egress=world.egress,
                http=http(),
                max_bytes=world.limits.video_bytes,
            )
            facts = probe(target)
            key = f"{folder_of(job)}/work/{claim.fence}-{secrets.token_hex(8)}.mp4"
            world.storage.put_file(key, target, content_type="video/mp4")
    except (ProviderError, UnusableVideo) as error:
        if claim.tries + 1 >= settings.STEP_TRIES and not error.permanent:
            lifecycle.reroute(claim, _ours(error))
            return
        raise _ours(error) from error
    outside.went_well(row.pk)
    lifecycle.advance(
        claim,
        Step.FINISH,
        queue="media",
        master={"key": key, "width": facts.width, "height": facts.height},
        resolved={**job.resolved, **_reported(status)},
    )


def _ours(error: RenderError) -> ProviderError:
    """Return the error as one whose text no customer sees."""
    if isinstance(error, ProviderError):
        return error
    return ProviderError(str(error), fault=Fault.HEALTH)


def _reported(status: base.RemoteStatus) -> dict[str, Any]:
    """Return what the provider says it used, where that is worth showing."""
    return {
        f"provider_{name}": status.notes[name]
        for name in ("seed", "prompt")
        if name in status.notes
    }
