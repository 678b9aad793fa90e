"""What each operation does, the same for every dialect: a command in, a result out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from django.db import connection
from django.db.models import JSONField, QuerySet

from billing import errors as billing_errors
from billing import keys, ledger, serializers
from inference.catalogue import MODELS
from inference.storage import ObjectMissing
from jobs import context, display, endpoints, intake, lifecycle, retention, routing
from jobs import effects as catalogue
from jobs.dialects import base
from jobs.dialects.base import Dialect, Operation, Route, WireRequest
from jobs.errors import (
    ApiError,
    InvalidRequest,
    NotAcceptableNow,
    NotFound,
    Unauthenticated,
)
from jobs.models import Job
from jobs.requests import JobRequest, WebhookTarget
from jobs.states import Status

if TYPE_CHECKING:
    from billing.keys import Credential

log = structlog.get_logger()

#: At most this many jobs are answered for in one call.
MANY_MAX = 100


@dataclass(frozen=True)
class Call:
    """Who asks, in which dialect, by which route."""

    dialect: Dialect
    route: Route
    wire: WireRequest
    credential: Credential | None

    def require_credential(self) -> Credential:
        if self.credential is None:
            raise Unauthenticated
        return self.credential

    @property
    def is_client_retry(self) -> bool:
        count = self.wire.headers.get("x-stainless-retry-count", "0")
        return count.isascii() and count.isdigit() and int(count[:4]) >= 1

    def jobs(self) -> QuerySet[Job]:
        """Return the jobs this caller may see here: its account's, mode's and dialect's.

        Our own API shows them for good, the others until their files are deleted.
        """
        credential = self.require_credential()
        mine = Job.objects.filter(
            account_id=credential.account_id, mode=credential.mode
        ).select_related("source")
        if self.dialect.visible == "own":
            mine = mine.filter(~retention.gone(), dialect=self.dialect.name)
        return mine

    def find(self, public_id: str) -> Job:
        """Return the job of this id, or raise the NotFound a foreign id gets as well."""
        found = self.find_many([public_id])
        if not found:
            raise NotFound
        return found[public_id]

    def place(self, public_id: str) -> Job:
        """Return the job after which a page begins: also one deleted while paging."""
        if (job := self._owned([public_id]).get(public_id)) is None:
            raise NotFound
        return job

    def find_many(self, ids: Sequence[str]) -> dict[str, Job]:
        """Return by id those that this caller may see; unknown and foreign ones lack."""
        found = self._owned(ids)
        if self.dialect.visible == "all":
            return found
        doubtful = [job.pk for job in found.values() if job.files_deleted_at]
        if not doubtful:
            return found
        lost = Job.objects.filter(retention.gone(), pk__in=doubtful)
        gone = set(lost.values_list("pk", flat=True))
        return {name: job for name, job in found.items() if job.pk not in gone}

    def _owned(self, ids: Sequence[str]) -> dict[str, Job]:
        credential = self.require_credential()
        wanted = list(dict.fromkeys(ids))[:MANY_MAX]
        is_own = self.dialect.visible == "own"
        values = {
            "account": credential.account_id,
            "mode": credential.mode,
            "dialect": self.dialect.name,
            "ids": wanted if is_own else [i for i in wanted if _is_uuid(i)],
        }
        rows = _rows(_OWN if is_own else _ANY, values)
        return {job.public_id if is_own else str(job.pk): job for job in rows}

    def view(self, job: Job, *, with_position: bool = False) -> base.JobView:
        return display.view(
            job,
            dialect=self.dialect,
            storage=context.get().storage,
            base_url=self.wire.base_url,
            with_position=with_position,
        )


@dataclass(frozen=True)
class Content:
    """A finished file on its way to the caller."""

    chunks: Iterator[bytes]
    size_bytes: int
    content_type: str
    filename: str


# --------------------------------------------------------------------- creating


def create(call: Call, command: base.Create) -> base.JobView:
    return call.view(_submit(call, command.request))


def create_many(call: Call, command: base.CreateMany) -> base.ManyResult:
    """Submit each request on its own: some may be accepted and others refused."""
    accepted: list[base.JobView] = []
    refused: dict[str, ApiError] = {}
    for number, request in enumerate(command.requests):
        try:
            accepted.append(call.view(_submit(call, request)))
        except ApiError as error:
            refused[str(number)] = error
    return base.ManyResult(jobs=accepted, errors=refused)


def remix(call: Call, command: base.Remix) -> base.JobView:
    """Make the source's video again with another prompt."""
    source = call.find(command.source_id)
    if source.status != Status.SUCCEEDED or source.kind != "video":
        raise NotAcceptableNow("Only a finished video can be remixed.")
    longest = MODELS[source.model].prompt_max
    if (length := len(command.prompt)) > longest:
        raise InvalidRequest("prompt", f"At most {longest} characters, got {length}.")
    # Another prompt asks for another look: an effect would ignore it.
    request = JobRequest.load(source.request).replace(
        prompt=command.prompt, seed=None, effect=None
    )
    return call.view(_submit(call, request, source=source))


def _submit(call: Call, request: JobRequest, *, source: Job | None = None) -> Job:
    _check_webhook(call, request.webhook)
    return intake.submit(
        request,
        credential=call.require_credential(),
        dialect=call.dialect.name,
        public_id=call.dialect.new_id and call.dialect.new_id(),
        is_client_retry=call.is_client_retry,
        source=source,
    )


def _check_webhook(call: Call, target: WebhookTarget | None) -> None:
    """Refuse a webhook that nobody could open."""
    if target is None or not call.dialect.seals_webhooks:
        return
    asks = call.require_credential()
    if keys.pair_for(asks.account_id, asks.mode, key_id=asks.key_id) is None:
        raise InvalidRequest(
            "webhook",
            "It is encrypted with your client id and secret, and you have none: make "
            "a key with client_pair at POST /v1/keys.",
        )


def add_audio(call: Call, command: base.AddAudio) -> base.JobView:
    """Put another sound under a finished video, as a job of its own."""
    _check_webhook(call, command.webhook)
    job = intake.submit_audio(
        call.find(command.source_id),
        command.audio,
        credential=call.require_credential(),
        dialect=call.dialect.name,
        public_id=call.dialect.new_id and call.dialect.new_id(),
        is_client_retry=call.is_client_retry,
        webhook=command.webhook,
        echo=command.echo,
    )
    return call.view(job)


def quote(call: Call, command: base.Create) -> intake.Quote:
    return intake.quote(command.request, credential=call.require_credential())


# ---------------------------------------------------------------------- reading


def status(call: Call, command: base.OneJob) -> base.JobView:
    return call.view(call.find(command.id), with_position=True)


def status_many(call: Call, command: base.ManyJobs) -> base.ManyResult:
    found = call.find_many(command.ids)
    return base.ManyResult(
        jobs=[call.view(found[i]) for i in dict.fromkeys(command.ids) if i in found],
        missing=[i for i in dict.fromkeys(command.ids) if i not in found],
    )


def list_jobs(call: Call, command: base.ListJobs) -> base.JobsPage:
    rows = _filtered(call, command)
    total = rows.count() if command.with_total else None
    order = ("created_at", "id") if command.ascending else ("-created_at", "-id")
    rows = rows.order_by(*order)
    page = command.page or 1
    if command.after:
        rows = _after(rows, call.place(command.after), ascending=command.ascending)
    elif page > 1:
        rows = rows[(page - 1) * command.limit :]
    jobs = list(rows[: command.limit + 1])
    shown = jobs[: command.limit]
    views = [call.view(job) for job in shown]
    has_more = len(jobs) > command.limit
    return base.JobsPage(
        jobs=views,
        has_more=has_more,
        next_cursor=views[-1].id if has_more else None,
        page=page,
        limit=command.limit,
        total=total,
    )


def _filtered(call: Call, command: base.ListJobs) -> QuerySet[Job]:
    rows = call.jobs()
    if command.statuses:
        rows = rows.filter(status__in=command.statuses)
    if command.model:
        rows = rows.filter(model=command.model)
    if command.api_key_id:
        rows = rows.filter(api_key_id=command.api_key_id)
    if command.created_after:
        rows = rows.filter(created_at__gte=command.created_after)
    if command.created_before:
        rows = rows.filter(created_at__lt=command.created_before)
    return rows


def _after(rows: QuerySet[Job], last: Job, *, ascending: bool) -> QuerySet[Job]:
    from django.db.models import Q

    beyond = "gt" if ascending else "lt"
    return rows.filter(
        Q(**{f"created_at__{beyond}": last.created_at})
        | Q(created_at=last.created_at, **{f"id__{beyond}": last.pk})
    )


def content(call: Call, command: base.OneJob) -> Content:
    """Open a finished job's file; raise NotFound until there is one."""
    job = call.find(command.id)
    keys_of = {
        "video": ("key", "video/mp4", "mp4"),
        "thumbnail": ("poster_key", "image/jpeg", "jpg"),
        "spritesheet": ("preview_key", "image/webp", "webp"),
    }
    if command.variant not in keys_of:
        raise InvalidRequest("variant", f"Must be one of {', '.join(keys_of)}.")
    name, content_type, suffix = keys_of[command.variant]
    key = job.output.get(name)
    if job.status != Status.SUCCEEDED or job.files_deleted_at or not key:
        raise NotFound(f"{command.variant} for this job yet")
    try:
        size_bytes, chunks = context.get().storage.open(key)
    except ObjectMissing as missing:
        # The operator finds and mends these: manage.py reconcile_restore.
        log.error("file_missing", job=str(job.pk), key=key)
        raise NotFound(f"{command.variant} for this job any more") from missing
    return Content(chunks, size_bytes, content_type, f"{job.public_id}.{suffix}")


# ----------------------------------------------------------------------- ending


def cancel(call: Call, command: base.OneJob) -> base.JobView:
    job = call.find(command.id)
    if command.only_queued and job.status != Status.QUEUED:
        raise NotAcceptableNow("Only a job that has not begun can be canceled here.")
    return call.view(lifecycle.cancel(job))


def delete(call: Call, command: base.OneJob | base.ManyJobs) -> base.ManyResult:
    """Remove files of finished jobs; queued ones are canceled first.

    The job's record and its ledger entries stay. Jobs being worked on are refused.
    """
    ids = (command.id,) if isinstance(command, base.OneJob) else command.ids
    found = call.find_many(ids)
    gone: list[base.JobView] = []
    refused: dict[str, ApiError] = {}
    for public_id, job in found.items():
        try:
            gone.append(call.view(_delete(job)))
        except ApiError as error:
            refused[public_id] = error
    missing = [i for i in dict.fromkeys(ids) if i not in found]
    if isinstance(command, base.OneJob):
        if missing:
            raise NotFound
        if refused:
            raise refused[command.id]
    return base.ManyResult(jobs=gone, missing=missing, errors=refused)


def _delete(job: Job) -> Job:
    if job.status == Status.RUNNING:
        raise NotAcceptableNow("The job is being worked on; cancel it first.")
    if job.status == Status.QUEUED:
        job = lifecycle.cancel(job, reason="deleted by the customer")
        if not Status(job.status).is_terminal:
            raise NotAcceptableNow("The job is just being prepared; try again.")
    retention.delete_files(job)
    return Job.objects.get(pk=job.pk)


# ---------------------------------------------------------------------- account


def balance(call: Call, command: base.Ask) -> base.BalanceView:
    credential = call.require_credential()
    money = ledger.balance(account_id=credential.account_id, mode=credential.mode)
    used = 0
    if command.values.get("with_usage"):
        used = ledger.used_this_month(
            account_id=credential.account_id, mode=credential.mode
        )
    return base.BalanceView(
        used_this_month_millicredits=used,
        available_millicredits=money.available_millicredits,
        held_millicredits=money.held_millicredits,
        debt_millicredits=money.debt_millicredits,
        is_frozen=money.frozen,
        mode=credential.mode,
        plan=credential.plan.code,
        account_id=str(credential.account_id),
        account_number=display.account_number(credential.account_id),
    )


def movements(call: Call, command: base.Ask) -> Mapping[str, Any]:
    credential = call.require_credential()
    try:
        return serializers.list_ledger(credential, command.values)
    except billing_errors.BadRequest as error:
        raise InvalidRequest(error.field, error.reason) from error


def models(call: Call, command: base.Ask) -> list[base.ModelView]:
    names = {name: name for name in MODELS} | dict(routing.aliases())
    return [_model_view(call, name, target) for name, target in names.items()]


def model(call: Call, command: base.Ask) -> base.ModelView:
    name = str(command.values["name"])
    if (known := routing.lookup(name)) is None:
        raise NotFound("model")
    return _model_view(call, name, known.name)


def _model_view(call: Call, name: str, target: str) -> base.ModelView:
    credential = call.require_credential()
    public = MODELS[target]
    return base.ModelView(
        model=public,
        name=name,
        available=routing.is_available(
            public, mode=credential.mode, plan=credential.plan.code
        ),
    )


def effects(call: Call, command: base.Ask) -> base.EffectsPage:
    """Return a page of the effects on offer; without a page asked for, the first 100."""
    page = int(command.values.get("page", 1))
    limit = int(command.values.get("limit", MANY_MAX))
    rows = catalogue.listed()
    start = (page - 1) * limit
    return base.EffectsPage(
        effects=[
            display.effect(
                row,
                storage=context.get().storage,
                url_seconds=call.dialect.url_seconds,
                plan=call.require_credential().plan.code,
            )
            for row in rows[start : start + limit]
        ],
        total=rows.count(),
        page=page,
        limit=limit,
    )


def token(call: Call, command: base.Token) -> str:
    """Exchange a client id and secret for a bearer token: the secret itself.

    They are a key's client pair, or an API key and its id part.
    """
    try:
        credential = keys.authenticate(command.client_secret)
    except billing_errors.InvalidKey as error:
        raise Unauthenticated from error
    if not keys.is_client_id(credential.key_id, command.client_id):
        raise Unauthenticated
    return command.client_secret


def keys_list(call: Call, command: base.Ask) -> Any:
    return serializers.list_keys(call.require_credential())


def key_create(call: Call, command: base.Ask) -> Any:
    try:
        return serializers.create_key(call.require_credential(), command.values)
    except billing_errors.BadRequest as error:
        raise InvalidRequest(error.field, error.reason) from error


def key_revoke(call: Call, command: base.Ask) -> Any:
    try:
        return serializers.revoke_key(
            call.require_credential(), str(command.values["id"])
        )
    except billing_errors.UnknownKey as error:
        raise NotFound("key") from error


def webhook_endpoints(call: Call, command: base.Ask) -> Any:
    return endpoints.do(call.require_credential(), command.values)


Run = Callable[[Call, Any], Any]

RUN: Mapping[Operation, Run] = {
    Operation.CREATE: create,
    Operation.CREATE_MANY: create_many,
    Operation.REMIX: remix,
    Operation.ADD_AUDIO: add_audio,
    Operation.QUOTE: quote,
    Operation.STATUS: status,
    Operation.STATUS_MANY: status_many,
    Operation.LIST: list_jobs,
    Operation.CANCEL: cancel,
    Operation.DELETE: delete,
    Operation.BALANCE: balance,
    Operation.LEDGER: movements,
    Operation.MODELS: models,
    Operation.MODEL: model,
    Operation.EFFECTS: effects,
    Operation.TOKEN: token,
    Operation.KEYS_LIST: keys_list,
    Operation.KEY_CREATE: key_create,
    Operation.KEY_REVOKE: key_revoke,
    Operation.WEBHOOK_CREATE: webhook_endpoints,
    Operation.WEBHOOKS: webhook_endpoints,
}


# Polling is most of what customers do, and building this query by the ORM took five
# times as long as Postgres needs to answer it.
_FIELDS = tuple(field.attname for field in Job._meta.concrete_fields)
_JSON = tuple(
    place
    for place, field in enumerate(Job._meta.concrete_fields)
    if isinstance(field, JSONField)
)
_MINE = (
    f"SELECT {', '.join(_FIELDS)} FROM jobs_job"  # noqa: S608 - our own column names
    " WHERE account_id = %(account)s AND mode = %(mode)s"
)
_ANY = f"{_MINE} AND id = ANY(%(ids)s::uuid[])"
_OWN = f"{_MINE} AND dialect = %(dialect)s AND public_id = ANY(%(ids)s)"


def _rows(sql: str, values: Mapping[str, Any]) -> list[Job]:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        found = [list(row) for row in cursor.fetchall()]
    for row in found:
        for place in _JSON:
            row[place] = None if row[place] is None else json.loads(row[place])
    return [Job.from_db("default", _FIELDS, row) for row in found]


def _is_uuid(text: str) -> bool:
    from uuid import UUID

    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
