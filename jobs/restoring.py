"""After a backup of Postgres was restored: what no longer agrees with the world.

Postgres then is older than S3, than the providers and than the till. Each finding says
what it is, whether ``repair`` may put it right, and what a person must do otherwise.
Safe are repairs that follow from what is certain: a key that was revoked, a file that is
not there, a job that has ended, a payment that the till has.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from billing import accounts, keys, ledger, operator_keys
from billing.errors import BillingError, UnknownAccount
from inference.errors import ProviderError, RenderError
from inference.providers import transport
from inference.providers.base import Evidence, FindQuery
from jobs import account_deletion, context, lifecycle, outside, retention, stops
from jobs.models import DeletionRecord, Job, ProviderAccount
from jobs.provider_steps import http
from jobs.states import ACTIVE, Status, Step

#: A row of the till's list, by the names in its first line.
Payment = Mapping[str, str]
PAYMENT_COLUMNS: Final = frozenset({"payment_id", "account_id", "credits"})


class UnreadableList(Exception):
    """The till's list cannot be read; the message says why."""


@dataclass(frozen=True)
class Finding:
    """One disagreement. ``repair`` puts it right; without one a person must."""

    kind: str
    subject: str
    text: str
    repair: Callable[[], object] | None = None

    def __str__(self) -> str:
        return f"{self.kind:<18} {self.subject:<38} {self.text}"


def findings(*, since: datetime, payments: Sequence[Payment]) -> Iterator[Finding]:
    """Yield what disagrees; ``since`` is the moment the backup shows."""
    yield from stopped_before(since)
    yield from ledger_mismatches()
    yield from settled_late()
    yield from missing_files()
    yield from unknown_files()
    yield from provider_jobs(since)
    yield from lost_payments(payments)


# --------------------------------------------------------------------- what stopped


def stopped_before(since: datetime) -> Iterator[Finding]:
    """Keys, operators' keys and accounts that are back although they were stopped."""
    told = set()
    for stop in stops.written():
        if (found := _back(stop, since)) is not None and found.subject not in told:
            told.add(found.subject)
            yield found


def _back(stop: stops.Stop, since: datetime) -> Finding | None:
    name = stop.subject
    if stop.kind == "key":
        owner = keys.account_of_live(name)
        if owner is None:
            return None
        revoke = partial(keys.revoke, account_id=owner, key_id=name)
        return Finding("key", name, f"of account {owner}: was revoked, works", revoke)
    if stop.kind == "operator-key":
        if not operator_keys.is_live(name):
            return None
        revoke_it = partial(operator_keys.revoke, name)
        return Finding("operator key", name, "was revoked and works", revoke_it)
    try:
        account = accounts.get_account(UUID(name))
    except (UnknownAccount, ValueError):
        return None  # opened after the backup
    if account.deleted_at is not None:
        return None
    if stop.kind == "account-deleted":
        again = partial(_delete_again, account.pk)
        return Finding("account", name, "was deleted and is there", again)
    if account.is_active and stop.at >= since:
        # Perhaps it was enabled later: nobody but a person knows.
        return Finding("account", name, f"was disabled at {stop.at:%F %R} UTC")
    return None


def _delete_again(account_id: UUID) -> None:
    left = account_deletion.delete_account(account_id, actor="reconcile_restore")
    if left:
        raise ValueError(f"{left} of its jobs are being stopped; run this again then")


# -------------------------------------------------------------------------- money


def ledger_mismatches() -> Iterator[Finding]:
    for mismatch in ledger.check():
        yield Finding(
            "ledger", str(mismatch.wallet_id), f"{mismatch}; freeze it and look"
        )


def settled_late() -> Iterator[Finding]:
    """Holds of jobs that have ended: the job says how they settle."""
    for account_id, mode, reference in ledger.open_holds():
        try:
            job = Job.objects.filter(pk=UUID(reference)).first()
        except ValueError:
            job = None
        where: dict[str, Any] = {
            "account_id": account_id,
            "mode": mode,
            "reference": reference,
        }
        release = partial(ledger.release, **where)
        if job is None:
            yield Finding("hold", reference, "held for no job we know", release)
        elif job.status == Status.SUCCEEDED:
            yield Finding(
                "hold",
                reference,
                "held though the job succeeded",
                partial(
                    ledger.capture,
                    **where,
                    amount_millicredits=job.charged_millicredits,
                ),
            )
        elif job.status not in ACTIVE:
            yield Finding(
                "hold",
                reference,
                f"held though the job {job.status}",
                release,
            )


def read_payments(path: Path) -> list[Payment]:
    """Read the till's list: a CSV of payment_id, account_id and credits.

    Columns ``mode``, ``paid_amount`` and ``paid_currency`` may be there too. Raises
    UnreadableList for a file that cannot be this list.
    """
    try:
        # Spreadsheets write a mark before the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            missing = sorted(PAYMENT_COLUMNS - set(reader.fieldnames or ()))
            if missing:
                raise UnreadableList(
                    f"{path} lacks the columns {', '.join(missing)}: its first line must "
                    "name them, with commas between."
                )
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableList(f"{path} cannot be read: {error}") from error


def lost_payments(payments: Sequence[Payment]) -> Iterator[Finding]:
    """Payments of the till's list we do not know.

    Crediting is by payment id, so a payment is never credited twice.
    """
    for number, row in enumerate(payments, start=1):
        payment_id = row["payment_id"].strip()
        if not all(row[name].strip() for name in PAYMENT_COLUMNS):
            yield Finding("payment", payment_id or f"payment {number}", "is incomplete")
        elif ledger.purchase_of(payment_id) is None:
            yield Finding(
                "payment",
                payment_id,
                f"{row['credits']} credits of account {row['account_id']} are missing",
                _crediting(row, payment_id),
            )


def _crediting(row: Payment, payment_id: str) -> Callable[[], object]:
    def credit() -> object:
        account = accounts.get_account(UUID(row["account_id"].strip()))
        paid = row.get("paid_amount") or ""
        return ledger.purchase(
            account_id=account.pk,
            mode=row.get("mode") or "live",
            payment_id=payment_id,
            amount_millicredits=int(Decimal(row["credits"]) * 1000),
            paid_amount=Decimal(paid) if paid else None,
            paid_currency=row.get("paid_currency") or "",
            actor="reconcile_restore",
            reason="credited again after a restore",
        )

    return credit


# -------------------------------------------------------------------------- files


def missing_files() -> Iterator[Finding]:
    """Jobs whose files storage does not have (any more)."""
    storage = context.get().storage
    with_files = Job.objects.filter(files_deleted_at__isnull=True).exclude(
        Q(output={}) & Q(inputs={})
    )
    ordered = with_files.order_by("account_id", "pk").iterator(chunk_size=500)
    for account_id, jobs in groupby(ordered, key=lambda job: job.account_id):
        stored = {file.key for file in storage.list(f"{account_id}/")}
        for job in jobs:
            gone = [key for key in retention.keys_of(job) if key not in stored]
            if not gone:
                continue
            if Status(job.status).is_terminal:
                if job.output.get("key") in gone or not job.output:
                    yield Finding(
                        "file",
                        str(job.pk),
                        f"{len(gone)} files are gone; its row says they are there",
                        _marking_gone(job, gone),
                    )
            elif job.lease_until is None:
                yield Finding(
                    "input",
                    str(job.pk),
                    "its prepared pictures are gone: it cannot be made",
                    _failing(job, gone),
                )


def _marking_gone(job: Job, gone: list[str]) -> Callable[[], object]:
    def mark() -> None:
        Job.objects.filter(pk=job.pk).update(files_deleted_at=Now(), inputs={})
        DeletionRecord.objects.create(
            job=job,
            account_id=str(job.account_id),
            keys=gone,
            reason=DeletionRecord.Reason.MISSING,
            actor="reconcile_restore",
        )

    return mark


def _failing(job: Job, gone: list[str]) -> Callable[[], object]:
    error = RenderError(
        "its inputs were lost in a restore",
        code="input_lost",
        public="The picture was lost; please send it again. Nothing was charged.",
    )

    def fail() -> None:
        if lifecycle.end(job.pk, error):
            _marking_gone(job, gone)()

    return fail


def unknown_files() -> Iterator[Finding]:
    """Files of jobs accepted after the backup: the videos exist, their rows do not."""
    by_job = groupby(
        context.get().storage.list(), key=lambda file: retention.job_of(file.key)
    )
    for job_id, files in by_job:
        if job_id is None or Job.objects.filter(pk=job_id).exists():
            continue
        keys = [file.key for file in files]
        yield Finding(
            "unknown job",
            str(job_id),
            f"{len(keys)} files under {keys[0].rpartition('/')[0]}, and no job: the "
            "customer has it from after the backup. Kept for ORPHAN_UNKNOWN_SECONDS.",
        )


# ---------------------------------------------------------------------- providers


def provider_jobs(since: datetime) -> Iterator[Finding]:
    """Jobs that will be sent to a provider, which may have them already."""
    waiting = Job.objects.filter(
        status__in=ACTIVE,
        step__in=[Step.PREPARE, Step.SCREEN, Step.SUBMIT],
        route__kind="provider",
        submit_sent_at__isnull=True,
    )
    known = frozenset(
        Job.objects.exclude(provider_job_id="").values_list(
            "provider_job_id", flat=True
        )
    )
    rows = list(ProviderAccount.objects.filter(is_enabled=True))
    for job in waiting.iterator():
        found = [
            f"{row}: {candidate}"
            for row in rows
            if row.provider == job.route["runner"]
            for candidate in _at(row, job, since, known)
        ]
        if found:
            text = f"may have been sent after the backup as {', '.join(found[:5])}"
        else:
            text = "will be sent now; nothing of it was seen at its provider"
        yield Finding("provider job", str(job.pk), text)


def _at(
    row: ProviderAccount, job: Job, since: datetime, known: frozenset[str]
) -> tuple[str, ...]:
    provider = outside.adapter(row.provider)
    try:
        account = outside.as_account(row)
    except ProviderError as error:
        return (f"(could not be asked: {error})",)
    if provider.evidence(account, callback_url=None) is not Evidence.TASK_LIST:
        return ()
    query = FindQuery(
        reference="",
        model=job.route["profile"],
        prompt=str(job.resolved.get("prompt") or job.request["prompt"]),
        since=since,
        until=timezone.now(),
        known_ids=known,
    )
    try:
        return transport.find(http(), provider, query, account).candidates
    except ProviderError as error:
        return (f"(could not be asked: {error})",)


def repair(finding: Finding) -> str:
    """Do what is safe; return what came of it."""
    if finding.repair is None:
        return "needs a person"
    try:
        finding.repair()
    except (BillingError, RenderError, ValueError, ArithmeticError) as error:
        return f"not repaired: {error}"
    return "repaired"
