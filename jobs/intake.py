"""Accepting a job: checks, price, hold, row and slot in one transaction, then a bell.

``submit`` either commits everything or nothing; after it the job will end, whatever
happens to the process that answered.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from django.db import transaction
from django.db.models.functions import Now, TruncMonth

from billing import errors as billing_errors
from billing import ledger, prices
from inference.catalogue import MODELS, PublicModel
from jobs import bells, effects, routing, slots, webhooks
from jobs.errors import (
    Forbidden,
    InsufficientCredits,
    ModelUnavailable,
    QuotaExhausted,
    SpendCapReached,
)
from jobs.models import Job, JobNote, JobUpload
from jobs.requests import SEED_MAX, JobRequest
from jobs.states import Status, Step

if TYPE_CHECKING:
    from billing.keys import Credential

#: A client library's own retry of a call is recognised for this long.
RETRY_WINDOW = timedelta(minutes=10)


@dataclass(frozen=True)
class Quote:
    amount_millicredits: int
    price_version: str
    lines: tuple[tuple[str, int], ...]
    request: JobRequest


def quote(request: JobRequest, *, credential: Credential) -> Quote:
    """Return what the request would cost, having checked it as submit does."""
    request = effects.expand(request, plan=credential.plan)
    model = MODELS[request.model]
    _check_plan(request, model, credential)
    routing.choose(
        model, mode=credential.mode, plan=credential.plan.code, request=request
    )
    return _price(request)


def submit(
    request: JobRequest,
    *,
    credential: Credential,
    dialect: str,
    public_id: str | None = None,
    is_client_retry: bool = False,
    source: Job | None = None,
) -> Job:
    """Accept the request as a job and hold its price.

    ``is_client_retry`` says the client library itself repeats a call whose answer it
    never got: an identical job of the same key, accepted within ten minutes, is then
    returned in place of a second paid one. Without a ``public_id`` the job's own id is it.

    Raises the ApiErrors of its checks, and commits nothing when it does.
    """
    fingerprint = request.fingerprint()
    request = effects.expand(request, plan=credential.plan)
    model = MODELS[request.model]
    _check_plan(request, model, credential)
    choice = routing.choose(
        model, mode=credential.mode, plan=credential.plan.code, request=request
    )
    priced = _price(request)
    if request.seed is None:
        request = request.replace(
            seed=secrets.randbelow(SEED_MAX + 1), seed_is_drawn=True
        )
    job_id = uuid4()
    job = Job(
        id=job_id,
        account_id=credential.account_id,
        mode=credential.mode,
        api_key_id=credential.key_id,
        dialect=dialect,
        public_id=public_id or str(job_id),
        source=source,
        model=request.model,
        request=request.stored(),
        fingerprint=fingerprint,
        status=Status.QUEUED,
        step=Step.PREPARE,
        queue="media",
        priority=request.priority,
        route=dict(choice.route),
        eta_seconds=_estimate(model, choice.route),
        start_by=Now() + timedelta(seconds=credential.plan.queue_ttl_seconds),
        price_version=priced.price_version,
        quoted_millicredits=priced.amount_millicredits,
    )
    with transaction.atomic():
        if is_client_retry and (earlier := _earlier(credential, dialect, fingerprint)):
            return earlier
        _hold(credential, job)
        free = slots.is_free(
            account_id=credential.account_id,
            mode=credential.mode,
            limit=credential.plan.max_running,
        )
        _check_month(credential, dialect)
        job.ready_at = Now() if free else None
        job.save(force_insert=True)
        _keep_uploads(job, request)
        if len(choice.reasons) > 1:
            JobNote.objects.create(
                job=job, kind="route", text="; ".join(choice.reasons)
            )
        if free:
            bells.ring(job.queue)
    return job


def _price(request: JobRequest) -> Quote:
    usage = prices.Usage(
        model=request.model,
        resolution=request.tier,
        seconds=Fraction(request.frames, request.fps),
        frames=request.frames,
        premium=request.premium,
        options=_priced_options(request),
    )
    try:
        priced = prices.quote_now(usage)
    except billing_errors.NoPrice as missing:
        # A model that cannot be priced cannot be sold.
        raise ModelUnavailable(request.model) from missing
    return Quote(
        amount_millicredits=priced.amount_millicredits,
        price_version=str(priced.price_version),
        lines=tuple(
            (line.description, line.amount_millicredits) for line in priced.lines
        ),
        request=request,
    )


def _priced_options(request: JobRequest) -> Mapping[str, Any]:
    return {
        "audio": request.audio.mode,
        "quality": request.quality,
    }


def _hold(credential: Credential, job: Job) -> None:
    try:
        held = ledger.hold(
            account_id=credential.account_id,
            mode=credential.mode,
            reference=str(job.id),
            amount_millicredits=job.quoted_millicredits,
            api_key_id=credential.key_id,
        )
    except billing_errors.InsufficientCredits as short:
        raise InsufficientCredits(
            required_millicredits=short.required_millicredits,
            available_millicredits=short.available_millicredits,
        ) from short
    except billing_errors.SpendCapReached as cap:
        raise SpendCapReached(str(cap)) from cap
    except billing_errors.WalletFrozen as frozen:
        raise Forbidden(str(frozen)) from frozen
    if held.crossed_low_balance:
        left = ledger.balance(account_id=credential.account_id, mode=credential.mode)
        webhooks.announce_account(
            credential.account_id,
            credential.mode,
            "balance.low",
            {"available_credits": left.available_millicredits / 1000},
        )


def _check_plan(
    request: JobRequest, model: PublicModel, credential: Credential
) -> None:
    plan = credential.plan
    if request.premium and not plan.premium_allowed:
        raise Forbidden(
            f"Premium models need a higher plan than {plan.code}.", field="premium"
        )
    is_long = model.seconds_choices and request.seconds > min(model.seconds_choices)
    if is_long and not plan.long_allowed:
        raise Forbidden(
            f"Clips of {request.seconds:g} s need a higher plan than {plan.code}.",
            field="seconds",
        )


def _check_month(credential: Credential, dialect: str) -> None:
    """Refuse more videos a month than the plan gives through this dialect."""
    allowed = credential.plan.monthly_videos.get(dialect)
    if allowed is None:
        return
    used = (
        Job.objects.filter(
            account_id=credential.account_id,
            mode=credential.mode,
            dialect=dialect,
            created_at__gte=TruncMonth(Now()),
        )
        .exclude(status__in=[Status.FAILED, Status.CANCELED])
        .count()
    )
    if used >= allowed:
        raise QuotaExhausted(f"The plan's {allowed} videos of this month are used up.")


def _earlier(credential: Credential, dialect: str, fingerprint: str) -> Job | None:
    # Under the wallet's lock the first call has either committed or will not.
    ledger.lock_wallet(account_id=credential.account_id, mode=credential.mode)
    return Job.objects.filter(
        account_id=credential.account_id,
        mode=credential.mode,
        api_key_id=credential.key_id,
        dialect=dialect,
        fingerprint=fingerprint,
        created_at__gt=Now() - RETRY_WINDOW,
    ).first()


def _keep_uploads(job: Job, request: JobRequest) -> None:
    pictures = {"image": request.image, "last_image": request.last_image}
    JobUpload.objects.bulk_create(
        JobUpload(job=job, name=name, data=picture.data)
        for name, picture in pictures.items()
        if picture is not None and picture.data is not None
    )


def _estimate(model: PublicModel, route: Mapping[str, Any]) -> float:
    return 10.0 if route["simulates"] else model.seconds_of_work
