"""Accepting a job: checks, price, hold, row and slot in one transaction, then a bell.

``submit`` either commits everything or nothing; after it the job will end, whatever
happens to the process that answered.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from django.db import transaction
from django.db.models.functions import Now, TruncMonth

from billing import errors as billing_errors
from billing import keys, ledger, prices
from inference.catalogue import MODELS, PublicModel
from jobs import bells, effects, retention, routing, slots, webhooks
from jobs.errors import (
    Forbidden,
    InsufficientCredits,
    InvalidRequest,
    ModelUnavailable,
    NotAcceptableNow,
    QuotaExhausted,
    SpendCapReached,
)
from jobs.models import Job, JobNote, JobUpload
from jobs.requests import SEED_MAX, JobRequest, Sound, WebhookTarget
from jobs.states import Status, Step

if TYPE_CHECKING:
    from billing.keys import Credential

#: First guess for an audio-only job: decode, encode, remux.
AUDIO_SECONDS = 5.0
FILES_GONE = "The video's files are no longer kept."
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
    request = effects.apply(request, plan=credential.plan).request
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
    fingerprint = _fingerprint(request, source)
    applied = effects.apply(request, plan=credential.plan)
    request = applied.request
    model = MODELS[request.model]
    _check_plan(request, model, credential)
    choice = routing.choose(
        model, mode=credential.mode, plan=credential.plan.code, request=request
    )
    priced = _price(request)
    if request.seed is None:
        request = request.replace(seed=_drawn_seed(), seed_is_drawn=True)
    job = _job(
        request,
        credential=credential,
        dialect=dialect,
        public_id=public_id,
        source=source,
        fingerprint=fingerprint,
        resolved=dict(applied.resolved),
        route=dict(choice.route),
        eta_seconds=_estimate(model, choice.route),
        price_version=priced.price_version,
        quoted_millicredits=priced.amount_millicredits,
    )
    if request.webhook is not None and request.webhook.test_status is not None:
        return _rehearse_webhook(job, request.webhook)
    return _accept(
        job,
        request,
        credential,
        is_client_retry=is_client_retry,
        reasons=choice.reasons,
    )


def submit_audio(
    source: Job,
    audio: Sound,
    *,
    credential: Credential,
    dialect: str,
    public_id: str | None = None,
    is_client_retry: bool = False,
    webhook: WebhookTarget | None = None,
    echo: Mapping[str, Any] | None = None,
) -> Job:
    """Accept another sound for a finished job's video, as a job of its own.

    Its picture stays as it is. It has its own price and refers to ``source``. Raises
    NotAcceptableNow while the source is not finished or its files are gone.
    """
    if audio.mode == "none":
        raise InvalidRequest("audio.mode", "Must be one of generate, url.")
    if source.status != Status.SUCCEEDED or not source.output.get("key"):
        raise NotAcceptableNow("Only a finished video can get another sound.")
    if source.files_deleted_at is not None:
        raise NotAcceptableNow(FILES_GONE)
    request = JobRequest.load(source.request).replace(
        audio=audio,
        webhook=webhook,
        echo=dict(echo or {}),
        seed=_drawn_seed(),
        seed_is_drawn=True,
    )
    own_words = f"{source.pk}:{audio}:{webhook}:{echo}"
    priced = _price(request, operation="audio")
    job = _job(
        request,
        credential=credential,
        dialect=dialect,
        public_id=public_id,
        source=source,
        kind="audio",
        fingerprint=hashlib.sha256(own_words.encode()).hexdigest(),
        resolved=dict(source.resolved),
        route=audio_route(simulates=bool(source.route.get("simulates"))),
        eta_seconds=AUDIO_SECONDS,
        price_version=priced.price_version,
        quoted_millicredits=priced.amount_millicredits,
    )
    return _accept(job, request, credential, is_client_retry=is_client_retry)


def audio_route(*, simulates: bool) -> dict[str, Any]:
    """Return the route of a job that generates no picture."""
    return {
        "name": "audio",
        "kind": "audio",
        "queue": "media",
        "runner": "",
        "profile": "",
        "simulates": simulates,
    }


def _job(
    request: JobRequest,
    *,
    credential: Credential,
    dialect: str,
    public_id: str | None,
    **facts: Any,
) -> Job:
    """Return the row of a new job, not yet saved."""
    job_id = uuid4()
    return Job(
        id=job_id,
        account_id=credential.account_id,
        mode=credential.mode,
        api_key_id=credential.key_id,
        dialect=dialect,
        public_id=public_id or str(job_id),
        model=request.model,
        request=request.stored(),
        status=Status.QUEUED,
        step=Step.PREPARE,
        queue="media",
        priority=request.priority,
        start_by=Now() + timedelta(seconds=credential.plan.queue_ttl_seconds),
        **facts,
    )


def _accept(
    job: Job,
    request: JobRequest,
    credential: Credential,
    *,
    is_client_retry: bool,
    reasons: Sequence[str] = (),
) -> Job:
    """Hold the price and store the job, in one transaction."""
    with transaction.atomic():
        if is_client_retry and (
            earlier := _earlier(credential, job.dialect, job.fingerprint)
        ):
            return earlier
        _hold(credential, job)
        if job.source_id is not None and _needs_source(job, request):
            _keep_source(job.source_id)
        free = slots.is_free(
            account_id=credential.account_id,
            mode=credential.mode,
            limit=credential.plan.max_running,
        )
        if job.kind == "video":
            _check_month(credential, job.dialect)
        job.ready_at = Now() if free else None
        job.save(force_insert=True)
        if job.kind == "video":
            _keep_uploads(job, request)
        if len(reasons) > 1:
            JobNote.objects.create(job=job, kind="route", text="; ".join(reasons))
        if free:
            bells.ring(job.queue)
    return job


def _rehearse_webhook(job: Job, target: WebhookTarget) -> Job:
    """Store a job that ends at once, unpaid, and send its one mock event."""
    job.status, job.step, job.queue = Status.CANCELED, Step.DONE, ""
    job.finished_at = Now()
    job.error_code = webhooks.TEST_CODE
    job.error_message = "Only the webhook was tested; nothing was made or charged."
    job.quoted_millicredits = 0
    with transaction.atomic():
        job.save(force_insert=True)
        webhooks.announce_rehearsal(job.pk, target)
    job.refresh_from_db()
    return job


def _drawn_seed() -> int:
    return secrets.randbelow(SEED_MAX + 1)


def submit_again(job: Job, *, public_id: str | None, actor: str) -> Job:
    """Accept an ended job's request once more, for an operator.

    It is a new job of the same account, held at today's price, that takes the old one's
    prepared pictures; those of the job before, when it ended before it had its own. An
    effect is applied anew, as it is today. Raises NotAcceptableNow when the pictures are
    gone.
    """
    request = effects.as_asked(job)
    if job.kind != "video":
        raise NotAcceptableNow("Only videos can be made again from here.")
    kept = next((one for one in (job, job.source) if one and _has_picture(one)), None)
    if kept is None and request.image.url is None:
        raise NotAcceptableNow("Its picture is no longer kept; it must be sent again.")
    if request.seed_is_drawn:
        request = request.replace(seed=None, seed_is_drawn=False)
    again = submit(
        request,
        credential=keys.on_behalf_of(job.account_id, job.mode),
        dialect=job.dialect,
        public_id=public_id,
        source=kept or job,
    )
    JobNote.objects.create(
        job=again, kind="operator", text=f"another try of {job.pk}", actor=actor
    )
    return again


def _has_picture(job: Job) -> bool:
    return job.files_deleted_at is None and bool(job.inputs.get("image"))


def _price(request: JobRequest, *, operation: str = "video") -> Quote:
    usage = prices.Usage(
        model=request.model,
        operation=operation,
        resolution=MODELS[request.model].native_tier(request.tier),
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


#: What a price may depend on besides model, length and resolution.
PRICED_OPTIONS = ("audio", "quality", "upscaled", "premium")


def _priced_options(request: JobRequest) -> Mapping[str, Any]:
    is_enlarged = MODELS[request.model].native_tier(request.tier) != request.tier
    return {
        "audio": request.audio.mode,
        "quality": request.quality,
        **({"upscaled": request.tier} if is_enlarged else {}),
    }


def _hold(credential: Credential, job: Job) -> None:
    try:
        held = ledger.hold(
            account_id=credential.account_id,
            mode=credential.mode,
            reference=str(job.id),
            amount_millicredits=job.quoted_millicredits,
            api_key_id=credential.key_id or None,
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


def _fingerprint(request: JobRequest, source: Job | None) -> str:
    if source is None:
        return request.fingerprint()
    # An uploaded picture is known by its source alone: the request has lost its bytes.
    words = f"{source.pk}:{request.fingerprint()}"
    return hashlib.sha256(words.encode()).hexdigest()


def _earlier(credential: Credential, dialect: str, fingerprint: str) -> Job | None:
    # Under the wallet's lock the first call has either committed or will not.
    ledger.lock_wallet(account_id=credential.account_id, mode=credential.mode)
    return Job.objects.filter(
        ~retention.gone(),
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


def _needs_source(job: Job, request: JobRequest) -> bool:
    """Say whether the job cannot be made without files that its source has."""
    pictures = (request.image, request.last_image)
    return job.kind == "audio" or any(
        picture is not None and picture.url is None and picture.data is None
        for picture in pictures
    )


def _keep_source(source_id: UUID) -> None:
    """Keep the source's files until the new job's row says that it needs them."""
    rows = Job.objects.select_for_update(no_key=True).filter(pk=source_id)
    if not rows.filter(files_deleted_at__isnull=True).exists():
        raise NotAcceptableNow(FILES_GONE)


def _estimate(model: PublicModel, route: Mapping[str, Any]) -> float:
    return 10.0 if route["simulates"] else model.seconds_of_work
