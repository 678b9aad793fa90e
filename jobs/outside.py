"""Accounts at outside providers: which one takes a job now, and how each is doing.

Limits are kept in the account's row and changed under its lock, so they hold over every
process: jobs at once, submits per second, pauses the provider asked for, and a breaker
that opens after failures in a row and lets one probe through when its time is up.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import connection
from django.db.models import Count, Q
from django.db.models.functions import Now

from inference import registry
from inference.catalogue import MODELS
from inference.errors import Fault, ProviderError
from inference.providers import base
from inference.providers.base import Provider, ProviderJob
from jobs import incidents
from jobs.models import Job, ProviderAccount
from jobs.requests import JobRequest

if TYPE_CHECKING:
    from inference.contracts import AudioMode

#: Failures in a row that open the breaker, and for how long (doubling each time).
FAILURES_TO_OPEN = 5
OPEN_SECONDS = 30.0
OPEN_SECONDS_MAX = 600.0
_AT_PROVIDER = ("submit", "await", "collect", "reconcile")


def adapter(provider: str) -> Provider:
    return registry.provider(provider)


def as_account(row: ProviderAccount) -> base.ProviderAccount:
    """Return the account as adapters know it, with its secrets in clear."""
    return base.ProviderAccount(
        name=row.name,
        base_url=row.base_url,
        credentials=json.loads(row.credentials or "{}"),
        settings=row.settings,
    )


def usable_accounts(provider: str) -> Sequence[ProviderAccount]:
    """Return the accounts a job could go to, at once or after a pause."""
    rows = ProviderAccount.objects.filter(
        provider=provider, is_enabled=True, out_of_order_at__isnull=True
    )
    return [row for row in rows if not _why_not(row)]


def _why_not(row: ProviderAccount) -> str:
    return adapter(row.provider).unavailable(
        as_account(row), public_endpoint=settings.S3_PUBLIC_ENDPOINT_URL
    )


def is_healthy(provider: str) -> bool:
    """Return whether some usable account's breaker is closed."""
    return any(
        row.failures_in_row < FAILURES_TO_OPEN for row in usable_accounts(provider)
    )


def take_account(provider: str) -> ProviderAccount:
    """Choose an account for one submit and count it against its limits.

    Runs in the caller's transaction, which keeps the row locked until it commits.
    Raises ProviderError (busy) saying when to come back.
    """
    capabilities = adapter(provider).capabilities
    ready = list(
        ProviderAccount.objects.filter(
            provider=provider, is_enabled=True, out_of_order_at__isnull=True
        )
        .exclude(open_until__gt=Now())
        .exclude(rest_until__gt=Now())
        .exclude(next_submit_at__gt=Now())
    )
    random.shuffle(ready)
    ready.sort(key=lambda row: -row.weight * random.random())  # noqa: S311 - load only
    for candidate in ready:
        row = ProviderAccount.objects.select_for_update(no_key=True).get(
            pk=candidate.pk
        )
        limit = row.concurrent_jobs or capabilities.concurrent_jobs
        at_work = Job.objects.filter(
            provider_account=row,
            status__in=["queued", "running"],
            step__in=_AT_PROVIDER,
            submit_sent_at__isnull=False,
        ).count()
        if at_work >= limit or _why_not(row):
            continue
        rate = row.submits_per_second or capabilities.submits_per_second
        changes: dict[str, Any] = {
            "next_submit_at": Now() + timedelta(seconds=1 / rate)
        }
        if row.failures_in_row >= FAILURES_TO_OPEN:
            # Half open: this job is the probe; nobody else until it is answered.
            changes["open_until"] = Now() + timedelta(seconds=OPEN_SECONDS)
        ProviderAccount.objects.filter(pk=row.pk).update(**changes)
        return row
    raise ProviderError(
        f"no account at {provider} is free now",
        fault=Fault.BUSY,
        retry_after_seconds=1.0,
    )


# ----------------------------------------------------------------------- health


def went_well(account_id: int) -> None:
    ProviderAccount.objects.filter(pk=account_id).update(
        failures_in_row=0, open_until=None, last_ok_at=Now()
    )


def went_wrong(account_id: int, error: ProviderError) -> None:
    """Note a failed call: pause, breaker or out of order, by whose fault it was."""
    row = ProviderAccount.objects.filter(pk=account_id)
    words = str(error)[:500]
    match error.fault:
        case Fault.BUSY:
            pause = error.retry_after_seconds or 5.0
            row.update(rest_until=Now() + timedelta(seconds=pause), last_error=words)
        case Fault.ACCOUNT:
            row.update(out_of_order_at=Now(), last_error=words)
            account = row.get()
            incidents.report(
                "provider_account",
                str(account),
                f"{account} refuses our key or is out of credit; it is not used "
                "until somebody looks at it.",
                detail={"error": words},
            )
        case Fault.HEALTH:
            _count_failure(account_id, words)
        case Fault.CUSTOMER:
            went_well(account_id)  # it answered, and rightly


def _count_failure(account_id: int, words: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE jobs_provideraccount SET failures_in_row = failures_in_row + 1,"
            " last_error = %s, open_until = CASE WHEN failures_in_row + 1 >= %s"
            "  THEN now() + make_interval(secs => least(%s,"
            "       %s * 2 ^ least(failures_in_row + 1 - %s, 10))) ELSE open_until END"
            " WHERE id = %s",
            [
                words,
                FAILURES_TO_OPEN,
                OPEN_SECONDS_MAX,
                OPEN_SECONDS,
                FAILURES_TO_OPEN,
                account_id,
            ],
        )


def jobs_at_providers() -> Mapping[int, int]:
    """Return how many jobs each account is making."""
    return dict(
        Job.objects.filter(
            Q(step="await", status="running"), provider_account__isnull=False
        )
        .values_list("provider_account")
        .annotate(jobs=Count("id"))
    )


# --------------------------------------------------------------------- the order


def order(
    request: JobRequest,
    *,
    reference: str,
    wire_model: str,
    provider: str,
    size: tuple[int, int] = (1280, 720),
    prompt: str | None = None,
    image: base.Picture | None = None,
    last_image: base.Picture | None = None,
    audio_url: str | None = None,
    callback_url: str | None = None,
) -> ProviderJob:
    """Return what a provider is asked for: the request without what we do ourselves.

    Watermark, exact length and size, and sound the provider cannot make are ours.
    """
    model = MODELS[request.model]
    wire = adapter(provider).models.get(wire_model)
    offers = frozenset[str]() if wire is None else wire.options
    audio: AudioMode = request.audio.mode
    if wire is None or audio not in wire.audio or (audio == "url" and not audio_url):
        audio = "none"
    unasked = {
        name
        for name, value in model.defaults.items()
        if getattr(request, name) == value
    }
    if request.seed_is_drawn or request.seed is None:
        unasked.add("seed")
    # Our own safety rules and prompt expansion stand in for a missing one.
    unasked |= {"safety_checker", "prompt_expansion", "shot_type"}
    job = ProviderJob(
        reference=reference,
        model=wire_model,
        image=image or base.Picture(),
        last_image=last_image or (base.Picture() if request.last_image else None),
        tier=request.tier,
        width=size[0],
        height=size[1],
        frames=request.frames,
        fps=request.fps,
        prompt=request.prompt if prompt is None else prompt,
        negative_prompt=request.negative_prompt,
        seed=request.seed,
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        guidance_scale_2=request.guidance_scale_2,
        flow_shift=request.flow_shift,
        loras=request.loras,
        quality=request.quality,
        shot_type=request.shot_type,
        safety_checker=request.safety_checker,
        prompt_expansion=request.prompt_expansion,
        premium=request.premium,
        audio_mode=audio,
        audio_url=audio_url if audio == "url" else None,
        callback_url=callback_url,
        unasked=frozenset(unasked),
    )
    neutral = {
        name: value
        for name, value in _NEUTRAL.items()
        if name in unasked and name not in offers
    }
    return replace(job, **neutral)


_NEUTRAL: Mapping[str, Any] = {
    "seed": None,
    "steps": None,
    "guidance_scale": None,
    "guidance_scale_2": None,
    "flow_shift": None,
    "safety_checker": True,
    "prompt_expansion": False,
    "shot_type": "single",
}


def check(request: JobRequest, *, provider: str, wire_model: str) -> None:
    """Raise Unsupported naming the field when the provider cannot make this."""
    job = order(request, reference="check", wire_model=wire_model, provider=provider)
    for row in usable_accounts(provider)[:1]:
        adapter(provider).check(job, as_account(row))
