"""The steps of a job that an outside provider makes: submit and collect.

Between them nobody waits: the poller asks. Before anything is sent, the account, our
token and the moment are stored, so that whatever happens to this process, it is known
that a provider may have the job, and where. An answer that was lost is looked for
(``reconcile``), never answered by sending again.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import httpx
import structlog
from django.conf import settings
from django.core import signing
from django.db import transaction
from django.db.models import QuerySet, Sum
from django.db.models.functions import Now
from django.utils import timezone

from billing import accounts
from inference.errors import (
    AnswerLost,
    Fault,
    InputRejected,
    ProviderError,
    RenderError,
    ResultAway,
    Unsupported,
)
from inference.media.audio import read_track
from inference.media.probe import UnusableVideo, probe
from inference.providers import base, results, transport
from inference.providers.base import Evidence
from inference.providers.pictures import fit_picture
from jobs import claims, context, incidents, lifecycle, outside, safety, words
from jobs.models import Attempt, Job, ProviderAccount, ProviderErrand, Route
from jobs.requests import JobRequest
from jobs.states import Status, Step
from jobs.workfolders import folder_of, workfolder

if TYPE_CHECKING:
    from inference.contracts import Context
    from jobs.claims import Claim, Held

CALLBACK_SALT: Final = "zoetrope.callback"
ACCOUNT_CALLBACK_SALT: Final = "zoetrope.callback.account"
#: First look after a submit, as a share of the provider's interval.
FIRST_LOOK: Final = 0.5
#: A signed link to an input must outlive a provider's own queue.
INPUT_LINK_SECONDS: Final = 24 * 3600
RECONCILE_FIRST_SECONDS: Final = 5.0
#: How often a submit may be refused by a sick provider: at most one more is sent.
SUBMIT_TRIES: Final = 2
#: Pause before a token is sent once more to a provider that could not take it just now.
RESEND_SECONDS: Final = 10.0
#: Longer than this nobody waits for a resting provider if there is another route.
PATIENCE_SECONDS: Final = 30.0
#: Longest pause before a finished video that could not be had is asked for again.
COLLECT_SECONDS_MAX: Final = 60.0
#: How much shorter than ordered a provider's clip may be; finishing holds its last frame.
SHORT_SECONDS: Final = 0.25

log = structlog.get_logger()
_http: httpx.Client | None = None


def http() -> httpx.Client:
    """Return this process's client for providers; safe to share between threads."""
    global _http
    if _http is None:
        _http = transport.client(limits=httpx.Limits(max_keepalive_connections=20))
    return _http


class NotNow(RenderError):
    """Nothing failed: a provider will take the job later."""

    default_code = "provider_busy"
    counts = False


# ----------------------------------------------------------------------- submit


@dataclass(frozen=True)
class Ready:
    """A submit that only has to be sent."""

    taken: outside.Taken
    account: base.ProviderAccount
    call: base.HttpCall
    estimate: Decimal | None


def submit(held: Held) -> None:
    """Send the job to one of the route's accounts."""
    claim, job = held.claim, claims.load(held.claim)
    provider = outside.adapter(job.route["runner"])
    was_out = job.submit_sent_at is not None
    if was_out and not _may_send_again(job, provider):
        _in_doubt(claim, "the worker went away before it knew the answer")
        return
    try:
        ready = _prepare(claim, job, provider)
    except (Unsupported, InputRejected, ProviderError) as error:
        _not_taken(claim, job, error)
        return
    lifecycle.announce_running(claim)
    row, is_probe = ready.taken.row, ready.taken.is_probe
    # From here on the provider may have it, and bill it, whatever becomes of us.
    with transaction.atomic():
        lifecycle.record(claim, submit_sent_at=Now())
        if not was_out:  # the same token again makes no second job, nor a second bill
            _book(claim.job_id, claim.fence, row, ready.estimate)
    try:
        reply = transport.send(http(), ready.call)
        submitted = provider.parse_submit(reply, ready.account)
    except AnswerLost as lost:
        outside.went_wrong(row.pk, lost, is_probe=is_probe)
        _in_doubt(claim, str(lost))
        return
    except ProviderError as error:
        wire_model = job.route["profile"]
        outside.went_wrong(row.pk, error, is_probe=is_probe, model=wire_model)
        if not was_out:
            with transaction.atomic():
                lifecycle.record(claim, submit_sent_at=None, provider_account=None)
                is_not_there(job)
        _not_taken(claim, job, error)
        return
    # Should the database be away now, this line is all that is left of the id.
    log.info("submitted", account=str(row), provider_job_id=submitted.provider_id)
    outside.accepted(row.pk)
    _keep(claim, job, row, submitted)


def _may_send_again(job: Job, provider: base.Provider) -> bool:
    """Return whether sending the same token twice makes one job there."""
    row = job.provider_account
    if row is None:
        return True
    try:
        account = outside.as_account(row)
    except ProviderError:
        return False
    return provider.evidence(account, callback_url=None) is Evidence.CLIENT_TOKEN


def _prepare(claim: Claim, job: Job, provider: base.Provider) -> Ready:
    """Choose the account, store it with our token, and build the call."""
    taken = _take(claim, job)
    row, account = taken.row, outside.as_account(taken.row)
    # The same token when the same route is asked again.
    job.submit_token = job.submit_token or secrets.token_hex(16)
    job.resolved |= words.late(job)
    lifecycle.record(claim, submit_token=job.submit_token, resolved=job.resolved)
    job.provider_account = row
    order = _order(job, provider, account, context.get())
    call = provider.build_submit(order, account)
    estimate = provider.estimate_usd(order, account)
    return Ready(taken, account, call, estimate or _usual_cost(job))


def _usual_cost(job: Job) -> Decimal | None:
    """Return what the operator expects a job of this route to cost."""
    route = Route.objects.filter(pk=job.route["id"]).first()
    return Decimal(route.cost_microdollars) / 1_000_000 if route else None


def _take(claim: Claim, job: Job) -> outside.Taken:
    if job.submit_sent_at is not None and job.provider_account is not None:
        # The same token goes to the same account.
        return outside.Taken(job.provider_account, is_probe=False)
    name = job.route["runner"]
    provider = outside.adapter(name)
    # An earlier try may have left one: the job would fill the place it asks for. Not
    # below, where the account is locked before the job, as when a lost job is found.
    lifecycle.record(claim, provider_account=None)
    with transaction.atomic():
        taken = outside.take_account(
            name, can=lambda account: provider.check(_asked(job, account), account)
        )
        lifecycle.record(claim, provider_account=taken.row)
    return taken


def _asked(job: Job, account: base.ProviderAccount) -> base.ProviderJob:
    """Return the order without what only the moment of sending knows."""
    return outside.order(
        JobRequest.load(job.request),
        reference="asked",
        wire_model=job.route["profile"],
        provider=job.route["runner"],
        account=account,
        audio_url="checked and stored" if _may_hear(job, account) else None,
    )


def _may_hear(job: Job, account: base.ProviderAccount) -> bool:
    """Return whether the provider can fetch the customer's sound from our storage.

    Where it cannot, the clip is made without and finishing puts the sound under it.
    """
    endpoint = settings.S3_PUBLIC_ENDPOINT_URL
    return "audio" in job.inputs and base.reaches(account.base_url, endpoint)


def _not_taken(claim: Claim, job: Job, error: RenderError) -> None:
    """Go on with a job that was not sent, or not accepted."""
    if job.submit_sent_at is not None:
        _not_taken_again(claim, error)
    elif isinstance(error, ProviderError):
        _refused(claim, job, error)
    else:
        lifecycle.reroute(claim, error)


def _not_taken_again(claim: Claim, error: RenderError) -> None:
    """The same token was refused: of the first call, whose answer was lost, that says
    nothing. So account and token stay, and no other account gets the job.
    """
    if isinstance(error, ProviderError) and error.fault in (Fault.BUSY, Fault.HEALTH):
        pause = error.retry_after_seconds or RESEND_SECONDS
        lifecycle.try_again(claim, NotNow(str(error), retry_after_seconds=pause))
    else:
        _in_doubt(claim, f"sent again, it was refused: {error}")


def _refused(claim: Claim, job: Job, error: ProviderError) -> None:
    """The provider has not got it: by whose fault, decides what happens next."""
    match error.fault:
        case Fault.CUSTOMER:
            lifecycle.fail(claim, error)
        case Fault.BUSY:
            _wait_or_go_elsewhere(claim, job, error)
        case Fault.MODEL:
            others = len(outside.usable_accounts(job.route["runner"])) > 1
            if others and claim.tries + 1 < settings.STEP_TRIES:
                lifecycle.try_again(claim, error)  # another account may have it
            else:
                lifecycle.reroute(claim, error)
        case Fault.ACCOUNT:
            if outside.usable_accounts(job.route["runner"]):
                lifecycle.try_again(claim, NotNow(str(error), retry_after_seconds=0.05))
            else:
                lifecycle.reroute(claim, error)
        case Fault.HEALTH:
            if claim.tries + 1 < SUBMIT_TRIES:
                lifecycle.try_again(claim, error)
            else:
                lifecycle.reroute(claim, error)


def _wait_or_go_elsewhere(claim: Claim, job: Job, error: ProviderError) -> None:
    """Wait for a place; where that may take long, try the next route first."""
    wait = error.retry_after_seconds or 1.0
    if isinstance(error, outside.NoneFree):
        is_long = error.is_broken or wait > PATIENCE_SECONDS
    elif outside.seconds_to_wait(job.route["runner"]) == 0.0 and wait < 600:
        # Another account of the provider can take it, or says itself why not.
        is_long, wait = False, 0.05
    else:
        is_long = wait > PATIENCE_SECONDS
    if is_long and lifecycle.try_elsewhere(claim, error):
        return
    if claim.is_start and isinstance(error, outside.NoneFree):
        # Nothing was sent: the customer's job still waits, and no deadline runs.
        lifecycle.record(claim, status=Status.QUEUED, started_at=None, end_by=None)
    lifecycle.try_again(claim, NotNow(str(error), retry_after_seconds=wait))


def _keep(
    claim: Claim, job: Job, row: ProviderAccount, submitted: base.Submitted
) -> None:
    """Store the provider's id and bill, and await the video."""
    try:
        # Before the move, which a cancellation may turn into another one: whoever ends
        # the job then knows what to stop at the provider.
        lifecycle.record(claim, provider_job_id=submitted.provider_id)
        if submitted.cost_usd is not None:
            settle_cost(job.pk, submitted.cost_usd)
        lifecycle.advance(claim, Step.AWAIT, queue="", **_first_look(row))
    except lifecycle.Superseded:
        was_found(job.pk, submitted.provider_id, token=job.submit_token)
        raise


def _first_look(row: ProviderAccount) -> dict[str, Any]:
    seconds = interval_of(row) * FIRST_LOOK
    return {
        "next_poll_at": Now() + timedelta(seconds=seconds),
        "poll_failures": 0,
    }


def interval_of(row: ProviderAccount) -> float:
    """Return how often the account's jobs are asked about when there are few.

    Of settings that ``as_account`` has found usable.
    """
    usual = outside.adapter(row.provider).capabilities.poll_seconds
    return float(row.settings.get("poll_seconds") or usual)


def _in_doubt(claim: Claim, reason: str) -> None:
    """Nobody knows whether the provider has it: look for it, unless it called already."""
    lifecycle.note(claim.job_id, "reconcile", reason[:500])
    job = claims.load(claim)
    if job.provider_job_id and job.provider_account is not None:
        look = _first_look(job.provider_account)
        lifecycle.advance(claim, Step.AWAIT, queue="", **look)
        return
    lifecycle.advance(
        claim,
        Step.RECONCILE,
        queue="",
        outcome="in_doubt",
        next_poll_at=Now() + timedelta(seconds=RECONCILE_FIRST_SECONDS),
    )


def was_found(job_id: UUID, provider_id: str, *, token: str) -> bool:
    """The provider has the attempt ``token`` under this id after all.

    A job in doubt is awaited then, and one still at its submit keeps the id, should its
    worker not come back. One that has gone another way or ended has the provider's job
    stopped: its video is nobody's any more. An id that another job has stays that job's:
    one customer's video must not reach another.
    """
    job = Job.objects.get(pk=job_id)
    if job.provider_account_id is None:
        return False
    with transaction.atomic():
        # Locked, the account first as for a submit: of two jobs that are told of one id
        # only one gets it, and of two who tell a job neither takes the other for too late.
        ProviderAccount.objects.select_for_update(no_key=True).get(
            pk=job.provider_account_id
        )
        job = Job.objects.select_for_update(no_key=True).get(pk=job_id)
        if (other := who_else_has(job, provider_id)) is not None:
            lifecycle.note(job.pk, "provider", f"{provider_id} is that of job {other}")
            return False
        if job.submit_token == token and _goes_on_as(job, provider_id):
            return True
    if job.provider_job_id == provider_id or job.provider_account is None:
        return False
    errand = {
        "job": job,
        "account": job.provider_account,
        "provider_job_id": provider_id,
        "kind": ProviderErrand.Kind.CANCEL,
    }
    if not ProviderErrand.objects.filter(**errand).exists():
        ProviderErrand.objects.create(**errand)
        lifecycle.note(job.pk, "provider", f"{provider_id} came too late: stopped")
    return False


def who_else_has(job: Job, provider_id: str) -> UUID | None:
    """Return which other job has this id at the job's account, if one has."""
    others = Job.objects.filter(
        provider_account_id=job.provider_account_id, provider_job_id=provider_id
    )
    return others.exclude(pk=job.pk).values_list("pk", flat=True).first()


def _goes_on_as(job: Job, provider_id: str) -> bool:
    """Have the locked job go on under the id, if it still waits for one."""
    if job.step == Step.SUBMIT and job.submit_sent_at and not job.provider_job_id:
        Job.objects.filter(pk=job.pk).update(provider_job_id=provider_id)
        return True
    if job.step != Step.RECONCILE:
        return False
    lifecycle.note(job.pk, "reconcile", f"found at the provider: {provider_id}")
    incidents.resolve("unknown_fate", str(job.pk), by="reconcile")
    return lifecycle.return_to(
        job.pk,
        Step.AWAIT,
        came_from=Step.RECONCILE,
        provider_job_id=provider_id,
        next_poll_at=Now(),
        poll_failures=0,
        end_by=Now() + timedelta(seconds=settings.RUN_DEADLINE_SECONDS),
    )


def _order(
    job: Job, provider: base.Provider, account: base.ProviderAccount, world: Context
) -> base.ProviderJob:
    request = JobRequest.load(job.request)
    size = (int(job.resolved["render_width"]), int(job.resolved["render_height"]))
    options: dict[str, Any] = {
        "reference": job.submit_token,
        "wire_model": job.route["profile"],
        "provider": job.route["runner"],
        "account": account,
        "size": size,
        "prompt": job.resolved.get("prompt"),
        "audio_url": _link(job.inputs["audio"], world)
        if _may_hear(job, account)
        else None,
        "callback_url": _callback_url(job, provider, account),
        "safety_checker": safety.providers_check(
            job, accounts.terms_of_account(job.account_id)
        ),
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
        return base.Picture(url=_link(entry, world))
    local = folder / Path(entry["key"]).name
    world.storage.get_file(entry["key"], local)
    return fit_picture(local, need, canvas)


def _link(entry: Mapping[str, Any], world: Context) -> str:
    return world.storage.presign(entry["key"], seconds=INPUT_LINK_SECONDS)


def _callback_url(
    job: Job, provider: base.Provider, account: base.ProviderAccount
) -> str | None:
    if not provider.capabilities.callback_per_job or not reaches_us(account.base_url):
        return None
    if not account.settings.get("callbacks", True):
        return None
    token = signing.dumps([str(job.pk), job.submit_token], salt=CALLBACK_SALT)
    return f"{settings.PUBLIC_URL}/callbacks/{provider.name}/{token}"


def reaches_us(base_url: str) -> bool:
    """Return whether a service there could call us back, and we want it to."""
    return settings.CALLBACKS and base.reaches(base_url, settings.PUBLIC_URL)


def account_callback_url(row: ProviderAccount) -> str:
    """Return the address an operator enters at a service that calls one per account."""
    token = signing.dumps(row.pk, salt=ACCOUNT_CALLBACK_SALT)
    return f"{settings.PUBLIC_URL}/callbacks/{row.provider}/{token}"


def micro(cost: Decimal | None) -> int:
    return 0 if cost is None else max(0, round(cost * 1_000_000))


def sent_attempts(job_id: UUID) -> QuerySet[Attempt]:
    """Return the attempts of which a provider has a job, or may have one."""
    return Attempt.objects.filter(
        job_id=job_id, step=Step.SUBMIT, provider_account__isnull=False
    )


def settle_cost(job_id: UUID, cost: Decimal | None) -> None:
    """Put the provider's own figure in the place of our estimate for its last attempt."""
    if (last := sent_attempts(job_id).last()) is not None:
        _book(job_id, last.fence, last.provider_account, cost)


def was_stopped(errand: ProviderErrand) -> None:
    """The provider stopped the errand's job before it began, and will bill none."""
    sent = list(sent_attempts(errand.job_id).filter(provider_account=errand.account))
    job = Job.objects.only("provider_job_id", "provider_account_id").get(
        pk=errand.job_id
    )
    is_last = job.provider_job_id == errand.provider_job_id
    # A job that is there again, or went there twice and on, does not say which it was.
    has_left = job.provider_account_id != errand.account_id
    if sent and (is_last or (has_left and len(sent) == 1)):
        _book(errand.job_id, sent[-1].fence, errand.account, Decimal(0))


def is_not_there(job: Job) -> None:
    """The provider has no job of the last attempt after all, and will bill none.

    Looks no further than to the attempts of when ``job`` was read: it may be sent again.
    """
    last = sent_attempts(job.pk).filter(fence__lte=job.fence).last()
    if last is not None:
        _book(job.pk, last.fence, None, None)


def _book(
    job_id: UUID, fence: int, account: ProviderAccount | None, cost: Decimal | None
) -> None:
    """Note on the attempt who has it and what it costs, and on the job the sum."""
    attempts = Attempt.objects.filter(job_id=job_id)
    attempts.filter(fence=fence).update(
        provider_account=account, cost_microdollars=micro(cost)
    )
    total = attempts.aggregate(cost=Sum("cost_microdollars"))["cost"] or 0
    Job.objects.filter(pk=job_id).update(cost_microdollars=total)


# ---------------------------------------------------------------------- collect


def collect(held: Held) -> None:
    """Bring the finished clip here; the finish step makes the delivered file of it."""
    claim, job = held.claim, claims.load(held.claim)
    provider = outside.adapter(job.route["runner"])
    row = job.provider_account
    assert row is not None  # a job is collected from where it was sent
    try:
        status, master = _fetch(claim, job, provider, row)
    except ProviderError as error:
        if error.fault is Fault.BUSY:
            wait = error.retry_after_seconds or 5.0
            lifecycle.try_again(claim, NotNow(str(error), retry_after_seconds=wait))
        elif isinstance(error, ResultAway):
            _collect_later(claim, job, row, error)
        else:
            _uncollected(claim, row, error)
        return
    except UnusableVideo as error:
        _uncollected(claim, row, ProviderError(f"result: {error}", fault=Fault.HEALTH))
        return
    outside.went_well(row.pk)
    if status.cost_usd is not None:
        settle_cost(job.pk, status.cost_usd)
    lifecycle.advance(
        claim,
        Step.FINISH,
        queue="media",
        master=master,
        resolved={**job.resolved, **_reported(job, status)},
    )


def _fetch(
    claim: Claim, job: Job, provider: base.Provider, row: ProviderAccount
) -> tuple[base.RemoteStatus, dict[str, Any]]:
    """Download, probe and store the clip; return the last status and where it lies."""
    one, world = job.provider_job_id, context.get()
    try:
        account = outside.as_account(row)
        status = transport.status(http(), provider, [one], account)[one]
    except ProviderError as error:
        if error.fault is Fault.BUSY:
            raise
        # It speaks of the call or the account, not of the job.
        raise ResultAway(str(error), fault=error.fault) from error
    if status.state != "succeeded":
        raise status.error or ResultAway(
            f"{provider.name} says {status.state} of a finished job", fault=Fault.HEALTH
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
        # All of it is decoded: here there is still another route, in finish none.
        facts = probe(target, depth="all")
        request = JobRequest.load(job.request)
        if facts.has_audio and request.audio.mode != "none":
            read_track(target)
        missing = request.seconds - facts.seconds
        if missing > SHORT_SECONDS:
            raise UnusableVideo(f"the clip is {missing:.2f} s too short")
        key = f"{folder_of(job)}/work/{claim.fence}-{secrets.token_hex(8)}.mp4"
        world.storage.put_file(key, target, content_type="video/mp4")
    return status, {
        "key": key,
        "width": facts.width,
        "height": facts.height,
        "has_customers_sound": _asked(job, account).audio_mode == "url",
    }


def _collect_later(
    claim: Claim, job: Job, row: ProviderAccount, error: ResultAway
) -> None:
    """Ask for a video that is made and billed again and again, until its deadline.

    From the middle of its time on another route may have the rest, if there is one.
    """
    tries = job.attempts.filter(step=Step.COLLECT, route=job.route["name"]).count()
    if tries == settings.STEP_TRIES:  # not for each look at the same video
        outside.went_wrong(row.pk, error)
    may_go = tries >= settings.STEP_TRIES and _is_half_over(job)
    if may_go and lifecycle.try_elsewhere(claim, error):
        return
    pause = min(settings.RETRY_SECONDS * 2 ** min(tries - 1, 10), COLLECT_SECONDS_MAX)
    lifecycle.try_again(claim, NotNow(str(error), retry_after_seconds=pause))


def _is_half_over(job: Job) -> bool:
    """Return whether half of the time the job may run has passed."""
    if job.started_at is None or job.end_by is None:
        return False
    return timezone.now() > job.started_at + (job.end_by - job.started_at) / 2


def _uncollected(claim: Claim, row: ProviderAccount, error: ProviderError) -> None:
    """The result cannot be had or used: look again, then take the next route."""
    if not error.permanent and claim.tries + 1 < settings.STEP_TRIES:
        lifecycle.try_again(claim, error)
        return
    outside.went_wrong(row.pk, error)
    if error.permanent:
        lifecycle.fail(claim, error)
    else:
        lifecycle.reroute(claim, error)


def _reported(job: Job, status: base.RemoteStatus) -> dict[str, Any]:
    """Return what the provider says it used where the customer left it to us."""
    told: dict[str, Any] = {}
    seed = status.notes.get("seed")
    if job.request.get("seed_is_drawn") and isinstance(seed, int):
        told["seed"] = seed
    words = status.notes.get("expanded_prompt")
    if "prompt" not in job.resolved and job.resolved.get("expansion") and words:
        told["expanded_prompt"] = str(words)[:5000]
    return told
