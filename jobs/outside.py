"""Accounts at outside providers: which one takes a job now, and how each is doing.

Limits are kept in the account's row and changed under its lock, so they hold over every
process: jobs at once, submits per second, pauses the provider asked for, and a breaker
that opens after failures and lets one probe through each time its pause is over.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings
from django.db import connection
from django.db.models import Count, Q, QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from billing.errors import SecretUnreadable
from inference import registry
from inference.catalogue import MODELS
from inference.errors import Fault, ProviderError, Unsupported
from inference.providers import base
from inference.providers.base import Provider, ProviderJob
from jobs import incidents
from jobs.models import Job, ProviderAccount
from jobs.requests import JobRequest

if TYPE_CHECKING:
    from inference.contracts import AudioMode

QUEUE_PREFIX: Final = "provider."
#: Failures since the last video that open the breaker, and for how long; each failed
#: probe doubles it.
FAILURES_TO_OPEN: Final = 5
OPEN_SECONDS: Final = 30.0
OPEN_SECONDS_MAX: Final = 600.0
#: What may be at a provider although nobody knows fills its place for this long.
DOUBT_FILLS: Final = timedelta(hours=1)


def adapter(provider: str) -> Provider:
    return registry.provider(provider)


def as_account(row: ProviderAccount) -> base.ProviderAccount:
    """Return the account as adapters know it, with its secrets in clear.

    Raises ProviderError (account) where they cannot be read, or its settings be used.
    """
    try:
        credentials = json.loads(row.credentials or "{}")
    except (SecretUnreadable, ValueError) as error:
        words = f"the credentials of account '{row.name}' cannot be read"
        raise ProviderError(words, fault=Fault.ACCOUNT) from error
    if problem := adapter(row.provider).settings_problem(row.settings):
        words = f"the settings of account '{row.name}' cannot be used: {problem}"
        raise ProviderError(words, fault=Fault.ACCOUNT)
    return base.ProviderAccount(
        name=row.name,
        base_url=row.base_url,
        credentials=credentials,
        settings=row.settings,
    )


# ------------------------------------------------------------- who could take a job


@dataclass(frozen=True)
class Standing:
    """How a provider is doing over all its accounts, as routing asks."""

    usable: Sequence[ProviderAccount]
    #: why there is no usable account
    reason: str
    #: some usable account's breaker is closed, or its pause is over
    is_healthy: bool
    #: some healthy account is below its limit of jobs at once
    has_room: bool


def standing(provider: str) -> Standing:
    rows = list(_with_pauses(ProviderAccount.objects.filter(provider=provider)))
    usable, reason = [], "no account is entered"
    for row in rows:
        if reason_not := why_not(row):
            reason = reason_not
        else:
            usable.append(row)
    healthy = [row for row in usable if not row.is_broken]
    at_work = jobs_at_work([row.pk for row in healthy])
    return Standing(
        usable=usable,
        reason=reason,
        is_healthy=bool(healthy),
        has_room=any(
            at_work.get(row.pk, 0) < limit_of(row) and not row.is_resting
            for row in healthy
        ),
    )


def usable_accounts(provider: str) -> Sequence[ProviderAccount]:
    """Return the accounts a job could go to, at once or after a pause."""
    rows = ProviderAccount.objects.filter(
        provider=provider, is_enabled=True, out_of_order_at__isnull=True
    )
    return [row for row in rows if not why_not(row)]


def why_not(row: ProviderAccount) -> str:
    """Say why no job may go to this account at all, or answer ""."""
    if not row.is_enabled:
        return f"account '{row.name}' is disabled"
    if row.out_of_order_at is not None:
        return f"account '{row.name}' is out of order: {row.last_error}"
    try:
        account = as_account(row)
    except ProviderError as error:
        return str(error)
    return adapter(row.provider).unavailable(
        account, public_endpoint=settings.S3_PUBLIC_ENDPOINT_URL
    )


def _with_pauses(rows: QuerySet[ProviderAccount]) -> QuerySet[Any]:
    return rows.annotate(
        is_broken=Q(open_until__isnull=False, open_until__gt=Now()),
        is_resting=Q(rest_until__isnull=False, rest_until__gt=Now()),
    )


def limit_of(row: ProviderAccount) -> int:
    """Return how many jobs the account may have at once."""
    return row.concurrent_jobs or adapter(row.provider).capabilities.concurrent_jobs


def jobs_at_work(accounts: Sequence[int]) -> Mapping[int, int]:
    """Return how many jobs each of the accounts has, or may have, in the making."""
    at_provider = (
        Q(step="await")
        | Q(step="submit", lease_until__isnull=False)
        | Q(step="reconcile", submit_sent_at__gt=Now() - DOUBT_FILLS)
    )
    return dict(
        Job.objects.filter(
            at_provider, status="running", provider_account_id__in=accounts
        )
        .order_by()
        .values_list("provider_account_id")
        .annotate(jobs=Count("id"))
    )


def seconds_to_wait(provider: str) -> float | None:
    """Return when a submit is worth a try: 0 now, None when a job there has ended.

    Asked before a worker claims a job, so that a full provider costs nothing. Where no
    account can be used or all are broken, 0: then the job must hear of it.
    """
    rows = _with_pauses(ProviderAccount.objects.filter(provider=provider))
    able = [
        row
        for row in rows
        if not (row.is_broken or row.is_resting) and not why_not(row)
    ]
    if not able:
        return 0.0
    at_work = jobs_at_work([row.pk for row in able])
    free = [row for row in able if at_work.get(row.pk, 0) < limit_of(row)]
    waits = [_seconds_until(row.next_submit_at) for row in free]
    return min(waits, default=None)


def full_queues() -> list[str]:
    """Return the queues of providers that take no submit until a job there has ended."""
    names = ProviderAccount.objects.filter(provider__in=registry.PROVIDERS)
    return [
        f"{QUEUE_PREFIX}{name}"
        for name in names.order_by().values_list("provider", flat=True).distinct()
        if seconds_to_wait(name) is None
    ]


def _seconds_until(moment: datetime | None) -> float:
    if moment is None:
        return 0.0
    return max(0.0, (moment - timezone.now()).total_seconds())


class NoneFree(ProviderError):
    """Every account that could take the job is full, resting or broken just now."""

    def __init__(self, provider: str, *, seconds: float, is_broken: bool) -> None:
        super().__init__(
            f"no account at {provider} is free now",
            fault=Fault.BUSY,
            retry_after_seconds=seconds,
        )
        self.is_broken = is_broken


@dataclass(frozen=True)
class Taken:
    """An account chosen for one submit. ``is_probe``: it decides over the breaker."""

    row: ProviderAccount
    is_probe: bool


def take_account(
    provider: str, *, can: Callable[[base.ProviderAccount], None]
) -> Taken:
    """Choose an account for one submit and count it against its limits.

    Runs in the caller's transaction, which keeps the row locked until it commits.
    ``can`` raises Unsupported for an account that cannot make the job, and the last such
    error is raised when none can. Raises NoneFree, or ProviderError (account).
    """
    rows = ProviderAccount.objects.filter(
        provider=provider, is_enabled=True, out_of_order_at__isnull=True
    )
    able, refused = [], None
    for row in rows:
        if why_not(row):
            continue
        try:
            can(as_account(row))
            able.append(row)
        except Unsupported as error:
            refused = error
    if refused is not None and not able:
        raise refused
    if not able:
        raise ProviderError(f"no usable account at {provider}", fault=Fault.ACCOUNT)
    free = (
        rows.exclude(open_until__gt=Now())
        .exclude(rest_until__gt=Now())
        .exclude(next_submit_at__gt=Now())
    )
    # A heavier account comes first more often (Efraimidis and Spirakis).
    able.sort(key=lambda row: -(random.random() ** (1 / max(row.weight, 1))))  # noqa: S311 - load only
    for candidate in able:
        # Looked at again under its lock: another worker may have just taken it.
        locked = free.select_for_update(no_key=True).filter(pk=candidate.pk).first()
        if locked is None:
            continue
        if jobs_at_work([locked.pk]).get(locked.pk, 0) >= limit_of(locked):
            continue
        return _taken(locked)
    raise _none_free(provider, able)


def _taken(row: ProviderAccount) -> Taken:
    rate = (
        row.submits_per_second or adapter(row.provider).capabilities.submits_per_second
    )
    changes: dict[str, Any] = {"next_submit_at": Now() + timedelta(seconds=1 / rate)}
    is_probe = row.failures_in_row >= FAILURES_TO_OPEN
    if is_probe:
        # Half open: this job is the probe; nobody else until it is answered.
        changes["open_until"] = Now() + timedelta(seconds=OPEN_SECONDS)
    ProviderAccount.objects.filter(pk=row.pk).update(**changes)
    return Taken(row, is_probe)


def _none_free(provider: str, able: Sequence[ProviderAccount]) -> NoneFree:
    rows = _with_pauses(ProviderAccount.objects.filter(pk__in=[row.pk for row in able]))
    pauses = [
        max(_seconds_until(row.open_until), _seconds_until(row.rest_until))
        for row in rows
    ]
    is_broken = all(row.is_broken or row.is_resting for row in rows)
    return NoneFree(
        provider, seconds=max(min(pauses, default=0.0), 1.0), is_broken=is_broken
    )


# ----------------------------------------------------------------------- health


def accepted(account_id: int) -> None:
    """Note that a submit was taken: the breaker closes, but failures stay in mind.

    Only a video forgets them (``went_well``), else a provider that takes every job and
    fails it would look healthy for ever.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE jobs_provideraccount SET open_until = NULL,"
            " failures_in_row = least(failures_in_row, %s), last_ok_at = now()"
            " WHERE id = %s",
            [FAILURES_TO_OPEN - 1, account_id],
        )


def went_well(account_id: int) -> None:
    """Note that the account made a video."""
    ProviderAccount.objects.filter(pk=account_id).update(
        failures_in_row=0, open_until=None, last_ok_at=Now()
    )


def went_wrong(
    account_id: int, error: ProviderError, *, is_probe: bool = False, model: str = ""
) -> None:
    """Note a failed call: pause, breaker or out of order, by whose fault it was.

    ``model`` is the provider's name for what was asked for.
    """
    row = ProviderAccount.objects.filter(pk=account_id)
    words = str(error)[:500]
    match error.fault:
        case Fault.BUSY:
            pause = error.retry_after_seconds or 5.0
            row.update(rest_until=Now() + timedelta(seconds=pause), last_error=words)
            if is_probe:
                accepted(account_id)  # it is alive
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
        case Fault.MODEL:
            account = row.get()
            incidents.report(
                "route_refused",
                f"{account}, {model or 'a job'}",
                f"{account} may not use this; its other models go on, and jobs for "
                "this one take their next route or fail.",
                detail={"error": words},
            )
            accepted(account_id)  # it answered
        case Fault.HEALTH:
            _count_failure(account_id, words, is_probe=is_probe)
        case Fault.CUSTOMER:
            accepted(account_id)  # it answered, and rightly


def _count_failure(account_id: int, words: str, *, is_probe: bool) -> None:
    # While it is open, calls that were already under way tell nothing new.
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE jobs_provideraccount SET failures_in_row = failures_in_row + 1,"
            " last_error = %(words)s, open_until = CASE"
            "  WHEN failures_in_row + 1 >= %(limit)s"
            "  THEN now() + make_interval(secs => least(%(longest)s,"
            "       %(first)s * 2 ^ least(failures_in_row + 1 - %(limit)s, 10)))"
            "  ELSE open_until END"
            " WHERE id = %(id)s"
            " AND (%(probe)s OR open_until IS NULL OR open_until <= now())",
            {
                "words": words,
                "limit": FAILURES_TO_OPEN,
                "longest": OPEN_SECONDS_MAX,
                "first": OPEN_SECONDS,
                "id": account_id,
                "probe": is_probe,
            },
        )


def back_in_order(account_id: int, *, by: str) -> None:
    """Use an account again that an operator has looked at."""
    row = ProviderAccount.objects.get(pk=account_id)
    ProviderAccount.objects.filter(pk=account_id).update(
        out_of_order_at=None,
        failures_in_row=0,
        open_until=None,
        rest_until=None,
        last_error="",
    )
    incidents.resolve("provider_account", str(row), by=by)


# --------------------------------------------------------------------- the order


def order(
    request: JobRequest,
    *,
    reference: str,
    wire_model: str,
    provider: str,
    account: base.ProviderAccount | None = None,
    size: tuple[int, int] = (1280, 720),
    prompt: str | None = None,
    image: base.Picture | None = None,
    last_image: base.Picture | None = None,
    audio_url: str | None = None,
    callback_url: str | None = None,
    safety_checker: bool = True,
) -> ProviderJob:
    """Return what a provider is asked for: the request without what we do ourselves.

    Watermark, exact length and size, and sound the provider cannot make are ours.
    ``account`` is whom it goes to: its settings may say what its server can make.
    ``safety_checker`` is what our policy decided, not what the customer asked for.
    """
    model = MODELS[request.model]
    wire = _wire_model(provider, wire_model, account)
    offers = frozenset[str]() if wire is None else wire.options
    audio: AudioMode = request.audio.mode
    if wire is None or audio not in wire.audio or (audio == "url" and not audio_url):
        audio = "none"
    unasked = {
        name
        for name, value in model.defaults_at(request.tier).items()
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
        tier=model.native_tier(request.tier),
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
        safety_checker=safety_checker,
        # Never twice: words given here are final.
        prompt_expansion=request.prompt_expansion and prompt is None,
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
    if prompt is not None and "prompt_expansion" in offers:
        # It cuts only what it writes out itself; final words hold their shots.
        neutral["shot_type"] = "single"
    return replace(job, **neutral)


def _wire_model(
    provider: str, name: str, account: base.ProviderAccount | None
) -> base.WireModel | None:
    if account is None:
        return adapter(provider).models.get(name)
    try:
        return adapter(provider).model(name, account)
    except Unsupported:
        return None


def expands(*, provider: str, wire_model: str) -> bool:
    """Return whether the provider writes the shot description itself when asked."""
    wire = adapter(provider).models.get(wire_model)
    return wire is not None and "prompt_expansion" in wire.options


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


def check(
    request: JobRequest,
    *,
    provider: str,
    wire_model: str,
    accounts: Sequence[ProviderAccount],
) -> None:
    """Raise Unsupported naming the field when none of the accounts can make this."""
    refused: Unsupported | None = None
    for row in accounts:
        account = as_account(row)
        job = order(
            request,
            reference="check",
            wire_model=wire_model,
            provider=provider,
            account=account,
        )
        try:
            adapter(provider).check(job, account)
        except Unsupported as error:
            refused = error
        else:
            return
    if refused is not None:
        raise refused
