"""The rows: jobs and what belongs to them. Fields, constraints and little else.

Rules that must always hold are constraints here. Moves of a job are in ``lifecycle``
and ``claims``; nothing else updates ``status``, ``step``, ``fence`` or the lease.
"""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now

from billing import secrets
from jobs import states

STATUS_CHOICES = [(status.value, status.value) for status in states.Status]
#: In a fixed order, or each process would find its own constraint changed.
ACTIVE_STATUSES = ["running", "queued"]
STEP_CHOICES = [(step.value, step.value) for step in states.Step]
#: Under this name ``Job.master`` keeps a finished file that waits for its review.
MADE = "made"


class Job(models.Model):
    """One video (or one sound) that somebody asked for, from accept to the end."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(
        "billing.Account", on_delete=models.PROTECT, related_name="+"
    )
    #: Which wallet pays: live or test. A test job is otherwise like any other.
    mode = models.CharField(max_length=4)
    api_key_id = models.CharField(max_length=8, blank=True)
    #: The wire format it came in by, and its id there.
    dialect = models.CharField(max_length=16)
    public_id = models.CharField(max_length=64)
    kind = models.CharField(max_length=5, default="video")
    #: The job whose clip this one works on (audio, remix).
    source = models.ForeignKey(
        "self", on_delete=models.PROTECT, null=True, blank=True, related_name="derived"
    )

    #: The public model, and the whole request with every default resolved.
    model = models.CharField(max_length=64)
    request = models.JSONField()
    fingerprint = models.CharField(max_length=64)
    #: Values decided on the way: size, expanded prompt, engine fingerprint, notes…
    resolved = models.JSONField(default=dict)

    status = models.CharField(
        max_length=9, choices=STATUS_CHOICES, default=states.Status.QUEUED
    )
    step = models.CharField(
        max_length=9, choices=STEP_CHOICES, default=states.Step.PREPARE
    )
    #: Where the current step waits; empty for steps without a worker.
    queue = models.CharField(max_length=48, blank=True)
    #: The customer's: which of an account's waiting jobs gets its next free slot.
    priority = models.SmallIntegerField(default=0)
    #: Since when it holds one of its account's slots; null while it waits for one.
    ready_at = models.DateTimeField(null=True)
    #: Not before this moment (pause after a failed try).
    run_after = models.DateTimeField(null=True)

    #: The route chosen, as it was then (RouteSpec and row id), and routes given up.
    route = models.JSONField(default=dict)
    routes_tried = models.JSONField(default=list)

    #: Grows at each claim; whoever holds an older one can change nothing.
    fence = models.PositiveIntegerField(default=0)
    step_tries = models.PositiveSmallIntegerField(default=0)
    lease_until = models.DateTimeField(null=True)
    worker = models.CharField(max_length=128, blank=True)

    progress = models.FloatField(default=0.0)
    stage = models.CharField(max_length=48, blank=True)
    eta_seconds = models.FloatField(null=True)

    created_at = models.DateTimeField(db_default=Now())
    #: Given up when it has not started by then.
    start_by = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    #: When ``job.running`` was left for whoever wants it.
    running_told_at = models.DateTimeField(null=True, blank=True)
    #: Given up when it has not ended by then; set when it starts.
    end_by = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    cancel_requested_at = models.DateTimeField(null=True)
    cancel_reason = models.CharField(max_length=200, blank=True)

    #: The account at a provider this attempt goes to, stored before anything is sent:
    #: our token for it, when it was sent, and the provider's id once known.
    provider_account = models.ForeignKey(
        "ProviderAccount",
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="jobs",
    )
    submit_token = models.CharField(max_length=64, blank=True)
    submit_sent_at = models.DateTimeField(null=True)
    provider_job_id = models.CharField(max_length=256, blank=True)
    #: When the poller looks at it again, and how often it found nothing.
    next_poll_at = models.DateTimeField(null=True)
    poll_failures = models.PositiveIntegerField(default=0)

    #: Storage keys: prepared inputs, an unfinished clip, and the finished files.
    inputs = models.JSONField(default=dict)
    master = models.JSONField(default=dict)
    output = models.JSONField(default=dict)
    files_expire_at = models.DateTimeField(null=True)
    files_deleted_at = models.DateTimeField(null=True)

    price_version = models.CharField(max_length=64, blank=True)
    quoted_millicredits = models.PositiveBigIntegerField(default=0)
    charged_millicredits = models.PositiveBigIntegerField(default=0)
    refunded_millicredits = models.PositiveBigIntegerField(default=0)
    #: What it cost us over all attempts: the providers' bills, in millionths of a US
    #: dollar, and seconds of work on our own machines.
    cost_microdollars = models.PositiveBigIntegerField(default=0)
    work_seconds = models.FloatField(default=0.0)

    error_code = models.CharField(max_length=64, blank=True)
    #: What the customer may read.
    error_message = models.CharField(max_length=500, blank=True)
    error_retryable = models.BooleanField(default=False)
    #: What only the operator may read.
    error_detail = models.TextField(blank=True)

    class Meta:
        ordering: ClassVar = ["-created_at", "-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["dialect", "public_id"], name="one_job_per_public_id"
            ),
            models.CheckConstraint(
                name="a_finished_job_has_an_end_and_no_lease",
                condition=Q(status__in=ACTIVE_STATUSES)
                | Q(finished_at__isnull=False, lease_until__isnull=True, step="done"),
            ),
            models.CheckConstraint(
                name="a_charge_never_exceeds_the_quote",
                condition=Q(charged_millicredits__lte=F("quoted_millicredits")),
            ),
            models.CheckConstraint(
                name="only_success_is_charged",
                condition=Q(status="succeeded") | Q(charged_millicredits=0),
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["queue", "ready_at"],
                name="job_claimable",
                condition=Q(
                    status__in=["queued", "running"],
                    lease_until__isnull=True,
                    ready_at__isnull=False,
                ),
            ),
            # A full provider's workers look past every submit that waits there.
            models.Index(
                fields=["queue", "ready_at"],
                name="job_collectable",
                condition=Q(
                    step="collect",
                    status__in=["queued", "running"],
                    lease_until__isnull=True,
                    ready_at__isnull=False,
                ),
            ),
            models.Index(
                fields=["lease_until"],
                name="job_leased",
                condition=Q(lease_until__isnull=False),
            ),
            models.Index(
                fields=["account", "mode", "-priority", "created_at"],
                name="job_waits_for_a_slot",
                condition=Q(ready_at__isnull=True, status="queued"),
            ),
            models.Index(
                fields=["account", "mode"],
                name="job_holds_a_slot",
                condition=Q(ready_at__isnull=False, status__in=["queued", "running"]),
            ),
            models.Index(
                fields=["account", "mode", "-created_at", "-id"], name="job_of_account"
            ),
            # Operators' lists go over all accounts.
            models.Index(fields=["-created_at", "-id"], name="job_newest"),
            models.Index(
                fields=["provider_account", "next_poll_at"],
                name="job_at_provider",
                condition=Q(provider_account__isnull=False, status="running"),
            ),
            models.Index(
                fields=["start_by"],
                name="job_not_started",
                condition=Q(status="queued"),
            ),
            models.Index(
                fields=["end_by"], name="job_running", condition=Q(status="running")
            ),
            models.Index(
                fields=["files_expire_at"],
                name="job_files_expire",
                condition=Q(
                    files_expire_at__isnull=False, files_deleted_at__isnull=True
                ),
            ),
            models.Index(
                fields=["finished_at"],
                name="job_left_files",
                condition=Q(
                    status__in=["failed", "canceled"], files_deleted_at__isnull=True
                ),
            ),
            models.Index(
                fields=["finished_at"],
                name="job_left_master",
                condition=Q(finished_at__isnull=False) & ~Q(master={}),
            ),
            models.Index(
                fields=["finished_at"],
                name="job_ended",
                condition=Q(finished_at__isnull=False),
            ),
            models.Index(
                fields=["provider_job_id"],
                name="job_by_provider_id",
                condition=~Q(provider_job_id=""),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.model} {self.public_id}"


class Attempt(models.Model):
    """One claim of one step: who tried, how it ended, what it cost."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="attempts")
    fence = models.PositiveIntegerField()
    step = models.CharField(max_length=9, choices=STEP_CHOICES)
    route = models.CharField(max_length=48, blank=True)
    worker = models.CharField(max_length=128)
    started_at = models.DateTimeField(db_default=Now())
    ended_at = models.DateTimeField(null=True)
    #: ok, failed, in_doubt, lost, released, stopped, canceled
    outcome = models.CharField(max_length=16, blank=True)
    error_code = models.CharField(max_length=64, blank=True)
    error_detail = models.TextField(blank=True)

    #: Who made it, or was to: an engine of ours or a provider; and the account there
    #: that has a job of it, or may have one.
    provider = models.CharField(max_length=48, blank=True, db_default="")
    provider_account = models.ForeignKey(
        "ProviderAccount",
        on_delete=models.PROTECT,
        null=True,
        related_name="attempts",
        db_index=False,
    )
    #: What the provider bills for it; our estimate until it says so.
    cost_microdollars = models.PositiveBigIntegerField(default=0)
    #: Seconds of work on a machine of ours, known when the attempt has ended, and what
    #: one cost when it began (0 for workers that are not the route's own).
    work_seconds = models.FloatField(db_default=0.0)
    second_microdollars = models.PositiveBigIntegerField(db_default=0)

    class Meta:
        ordering: ClassVar = ["fence"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["job", "fence"], name="one_attempt_per_fence"
            )
        ]

    def __str__(self) -> str:
        return f"{self.step} #{self.fence}"


class JobNote(models.Model):
    """A line in a job's log: a routing decision, an operator's action, an oddity."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="notes")
    at = models.DateTimeField(db_default=Now())
    kind = models.CharField(max_length=32)
    text = models.TextField()
    actor = models.CharField(max_length=150, blank=True)
    detail = models.JSONField(default=dict)

    class Meta:
        ordering: ClassVar = ["at", "id"]

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


class JobUpload(models.Model):
    """Picture bytes that came with a request, until they have been prepared."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="uploads")
    name = models.CharField(max_length=16)
    data = models.BinaryField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["job", "name"], name="one_upload_per_name")
        ]

    def __str__(self) -> str:
        return f"{self.name} of {self.job_id}"


class IdempotencyRecord(models.Model):
    """The committed answer to a creating call, given again to its repetitions."""

    account = models.ForeignKey(
        "billing.Account", on_delete=models.CASCADE, related_name="+"
    )
    mode = models.CharField(max_length=4)
    key = models.CharField(max_length=255)
    #: SHA-256 of route and body; another body under the same key is refused.
    fingerprint = models.CharField(max_length=64)
    status = models.PositiveSmallIntegerField(default=0)
    body = models.JSONField(null=True)
    headers = models.JSONField(default=dict)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["account", "mode", "key"], name="one_answer_per_idempotency_key"
            )
        ]
        indexes: ClassVar = [models.Index(fields=["created_at"], name="idem_created")]

    def __str__(self) -> str:
        return self.key


class Route(models.Model):
    """One way to make a public model's videos. The operator's to edit."""

    class Kind(models.TextChoices):
        ENGINE = "engine"
        PROVIDER = "provider"

    model = models.CharField(max_length=64, help_text="public model")
    name = models.CharField(max_length=48)
    kind = models.CharField(max_length=8, choices=Kind)
    queue = models.CharField(max_length=48, help_text="which workers take it")
    runner = models.CharField(max_length=48, help_text="engine or provider")
    profile = models.CharField(
        max_length=96, blank=True, help_text="checkpoint, or the provider's model name"
    )
    #: Takes test-mode jobs, and only those.
    simulates = models.BooleanField(default=False)
    is_enabled = models.BooleanField(default=True)
    #: Routes of the lowest rank are tried first; among equals by weight.
    rank = models.PositiveSmallIntegerField(default=0)
    weight = models.PositiveSmallIntegerField(default=100)
    plans = models.JSONField(
        default=list, blank=True, help_text="plan codes; empty: every plan"
    )
    #: Expected cost of one job, to choose by and to report margin with.
    cost_microdollars = models.PositiveBigIntegerField(default=0)
    #: What a second of its workers costs; each attempt keeps it as it was then.
    gpu_second_microdollars = models.PositiveBigIntegerField(default=0)
    #: Measured: seconds of work per second of video; feeds deadlines and ETAs.
    seconds_per_second = models.FloatField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["model", "rank", "-weight", "name"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["model", "name"], name="one_route_per_model_and_name"
            )
        ]

    def __str__(self) -> str:
        return f"{self.model} by {self.name}"


class ProviderAccount(models.Model):
    """One account at an outside provider: its keys, its limits and how it is doing."""

    provider = models.CharField(max_length=48)
    name = models.CharField(max_length=64)
    base_url = models.CharField(max_length=300)
    #: JSON of the credentials, encrypted; written in the admin, never shown.
    credentials = secrets.EncryptedField(blank=True)
    settings = models.JSONField(default=dict, blank=True)
    is_enabled = models.BooleanField(default=True)
    weight = models.PositiveSmallIntegerField(default=100)
    #: Lower than the adapter's own figures where set.
    concurrent_jobs = models.PositiveIntegerField(null=True, blank=True)
    submits_per_second = models.FloatField(null=True, blank=True)
    statuses_per_second = models.FloatField(null=True, blank=True)

    #: Breaker: failures in a row; while open, one probe each time it ends.
    failures_in_row = models.PositiveIntegerField(default=0)
    open_until = models.DateTimeField(null=True, blank=True)
    #: It asked for a pause (429, Retry-After).
    rest_until = models.DateTimeField(null=True, blank=True)
    next_submit_at = models.DateTimeField(null=True, blank=True)
    #: Out of credit or refused our key: used again when an operator clears this.
    out_of_order_at = models.DateTimeField(null=True, blank=True)
    last_ok_at = models.DateTimeField(null=True, blank=True)
    last_error = models.CharField(max_length=500, blank=True)
    #: How often each of its jobs is asked about at present.
    poll_interval_seconds = models.FloatField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["provider", "name"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["provider", "name"], name="one_account_per_provider_and_name"
            )
        ]

    def __str__(self) -> str:
        return f"{self.provider}: {self.name}"


class ProviderErrand(models.Model):
    """Something to tell a provider after a job has ended: stop it, or delete its copy."""

    class Kind(models.TextChoices):
        CANCEL = "cancel"
        DELETE = "delete"

    account = models.ForeignKey(ProviderAccount, on_delete=models.CASCADE)
    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="errands")
    provider_job_id = models.CharField(max_length=256)
    kind = models.CharField(max_length=6, choices=Kind)
    due_at = models.DateTimeField(db_default=Now())
    tries = models.PositiveSmallIntegerField(default=0)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["due_at"], name="errand_due")]

    def __str__(self) -> str:
        return f"{self.kind} {self.provider_job_id}"


class WebhookEndpoint(models.Model):
    """An address of a customer that is told about every job of one mode."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(
        "billing.Account", on_delete=models.CASCADE, related_name="+"
    )
    mode = models.CharField(max_length=4)
    url = models.CharField(max_length=2000)
    description = models.CharField(max_length=200, blank=True)
    #: Event types it wants; empty: all.
    events = models.JSONField(default=list, blank=True)
    secret = secrets.EncryptedField()
    is_enabled = models.BooleanField(default=True)
    disabled_reason = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering: ClassVar = ["-created_at"]
        indexes: ClassVar = [
            models.Index(
                fields=["account", "mode"],
                name="endpoint_to_tell",
                condition=Q(is_enabled=True),
            )
        ]

    def __str__(self) -> str:
        return self.url


class FormerSecret(models.Model):
    """What an endpoint's secret was before it was rotated: it signs too, for a while."""

    endpoint = models.ForeignKey(
        WebhookEndpoint, on_delete=models.CASCADE, related_name="former_secrets"
    )
    secret = secrets.EncryptedField()
    until = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return f"former secret of {self.endpoint_id}"


class WebhookEvent(models.Model):
    """Something that happened and that somebody asked to be told."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(
        "billing.Account", on_delete=models.CASCADE, related_name="+"
    )
    mode = models.CharField(max_length=4)
    type = models.CharField(max_length=32)
    job = models.ForeignKey(Job, on_delete=models.CASCADE, null=True, related_name="+")
    #: What the event says; of a job, what ``webhooks.KEPT`` was at that moment.
    data = models.JSONField(default=dict)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.type} {self.id}"


class WebhookDelivery(models.Model):
    """One event on its way to one address, with every try so far."""

    class State(models.TextChoices):
        PENDING = "pending"
        DELIVERED = "delivered"
        FAILED = "failed"

    event = models.ForeignKey(
        WebhookEvent, on_delete=models.CASCADE, related_name="deliveries"
    )
    endpoint = models.ForeignKey(
        WebhookEndpoint, on_delete=models.CASCADE, null=True, related_name="deliveries"
    )
    url = models.CharField(max_length=2000)
    #: "standard", or the dialect whose own webhook form it has.
    format = models.CharField(max_length=16, default="standard")
    #: What shares a fate: an endpoint, or an account's host for per-job addresses.
    lane = models.CharField(max_length=300)
    state = models.CharField(max_length=9, choices=State, default=State.PENDING)
    tries = models.PositiveSmallIntegerField(default=0)
    next_at = models.DateTimeField(db_default=Now())
    claimed_until = models.DateTimeField(null=True)
    delivered_at = models.DateTimeField(null=True)
    #: For each try: when, how long, status, and at most 1 kB of the answer.
    log = models.JSONField(default=list)

    class Meta:
        verbose_name_plural = "webhook deliveries"
        ordering: ClassVar = ["-id"]
        indexes: ClassVar = [
            models.Index(
                fields=["next_at"], name="delivery_due", condition=Q(state="pending")
            ),
            models.Index(
                fields=["lane", "next_at"],
                name="delivery_of_lane",
                condition=Q(state="pending"),
            ),
            models.Index(
                fields=["lane"],
                name="delivery_claimed",
                condition=Q(claimed_until__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.event_id} → {self.url}"


class WebhookLane(models.Model):
    """How an address is doing; while it fails it gets few calls and delays nobody."""

    key = models.CharField(primary_key=True, max_length=300)
    failures_in_row = models.PositiveIntegerField(default=0)
    failing_since = models.DateTimeField(null=True)
    open_until = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.key


class AccountSecret(models.Model):
    """What an account's per-job webhooks are signed with."""

    account = models.ForeignKey(
        "billing.Account", on_delete=models.CASCADE, related_name="+"
    )
    mode = models.CharField(max_length=4)
    webhook_secret = secrets.EncryptedField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["account", "mode"], name="one_secret_per_account_and_mode"
            )
        ]

    def __str__(self) -> str:
        return f"secret of {self.account_id} ({self.mode})"


class SigningKey(models.Model):
    """A key of the whole installation's, made once: customers hold its public half."""

    name = models.CharField(primary_key=True, max_length=32)
    #: The ed25519 seed in base64.
    seed = secrets.EncryptedField()

    def __str__(self) -> str:
        return self.name


class Incident(models.Model):
    """Something a person must look at. One is open per kind and subject."""

    kind = models.CharField(max_length=48)
    #: What it is about: a job, an account, a queue.
    subject = models.CharField(max_length=128)
    text = models.TextField()
    detail = models.JSONField(default=dict)
    opened_at = models.DateTimeField(db_default=Now())
    seen_at = models.DateTimeField(db_default=Now())
    resolved_at = models.DateTimeField(null=True, blank=True)
    resolved_by = models.CharField(max_length=150, blank=True)
    #: When the operator's webhook took it, and when it took that it was over.
    told_at = models.DateTimeField(null=True, blank=True)
    end_told_at = models.DateTimeField(null=True, blank=True)
    #: How often in a row it was not taken, and when it is tried next.
    tell_tries = models.PositiveSmallIntegerField(db_default=0)
    tell_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering: ClassVar = ["-opened_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["kind", "subject"],
                condition=Q(resolved_at__isnull=True),
                name="one_open_incident_per_kind_and_subject",
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind}: {self.subject}"


class DeletionRecord(models.Model):
    """Files that are gone from storage for good: which, when, why and by whom."""

    class Reason(models.TextChoices):
        EXPIRED = "expired"  # their time was up
        REQUESTED = "requested"  # their owner asked
        UNFINISHED = "unfinished"  # of a job that failed or was canceled
        WORK = "work"  # a frame store nobody needs after the end
        ORPHAN = "orphan"  # no job names them: a late worker's upload
        ACCOUNT = "account"  # the account was deleted
        MISSING = "missing"  # found gone, after a restore for example

    #: Null for files of no known job; the account is kept as text for the same reason.
    job = models.ForeignKey(
        Job, on_delete=models.PROTECT, null=True, related_name="deletions"
    )
    account_id = models.CharField(max_length=36, blank=True)
    keys = models.JSONField(default=list)
    reason = models.CharField(max_length=10, choices=Reason)
    #: Who asked; empty for the platform itself.
    actor = models.CharField(max_length=150, blank=True)
    at = models.DateTimeField(db_default=Now(), db_index=True)

    class Meta:
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return f"{len(self.keys)} files, {self.reason}"


class ModelAlias(models.Model):
    """Another name under which customers may ask for a public model."""

    name = models.CharField(primary_key=True, max_length=64)
    model = models.CharField(max_length=64)

    class Meta:
        verbose_name_plural = "model aliases"
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return f"{self.name} → {self.model}"


class Lora(models.Model):
    """A LoRA customers may ask for by ``name``: a checked file in our own storage."""

    name = models.CharField(primary_key=True, max_length=200)
    key = models.CharField(max_length=200)
    sha256 = models.CharField(max_length=64)
    is_enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        verbose_name = "LoRA"
        verbose_name_plural = "LoRAs"
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class Effect(models.Model):
    """A named look that customers ask for by ``code``; what it does is in its versions."""

    code = models.SlugField(primary_key=True, max_length=64)
    name = models.CharField(max_length=100)
    description = models.CharField(max_length=300, blank=True)
    is_enabled = models.BooleanField(default=True)
    #: Order in listings, lowest first.
    rank = models.PositiveSmallIntegerField(default=100)
    plans = models.JSONField(
        default=list, blank=True, help_text="plan codes; empty: every plan"
    )
    for_models = models.JSONField(
        default=list, blank=True, help_text="public models; empty: every model"
    )
    #: A picture in storage; empty: a frame of the preview.
    logo_key = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering: ClassVar = ["rank", "code"]

    def __str__(self) -> str:
        return self.name

    @property
    def current(self) -> EffectVersion:
        """Return the newest version, which new jobs get."""
        newest = self.versions.order_by("-version").first()
        assert newest is not None  # made together with its first version
        return newest


class EffectVersion(models.Model):
    """What an effect did from some moment on. Never edited: jobs name it."""

    effect = models.ForeignKey(
        Effect, on_delete=models.CASCADE, related_name="versions"
    )
    version = models.PositiveIntegerField()
    prompt = models.TextField()
    negative_prompt = models.TextField(blank=True)
    #: Options by public model; those under "*" are for every model that has them.
    parameters = models.JSONField(default=dict, blank=True)
    #: ``{path, scale, path_low, scale_low}`` each, for models that take LoRAs.
    loras = models.JSONField(default=list, blank=True)
    #: Storage keys of what ``render_previews`` made.
    preview_key = models.CharField(max_length=300, blank=True)
    poster_key = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering: ClassVar = ["effect", "-version"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["effect", "version"], name="one_template_per_effect_and_version"
            )
        ]

    def __str__(self) -> str:
        return f"{self.effect_id} v{self.version}"


class Worker(models.Model):
    """A worker process as last heard of."""

    name = models.CharField(primary_key=True, max_length=128)
    queues = models.JSONField(default=list)
    started_at = models.DateTimeField(db_default=Now())
    seen_at = models.DateTimeField(db_default=Now())
    #: What it is doing: job id, step and progress of each claim it holds.
    doing = models.JSONField(default=list)
    #: How pictures are judged, as media and safety workers know it: classifier or
    #: prompt_only.
    safety = models.CharField(max_length=12, blank=True)
    #: When what it signs files with runs out; null where it signs none.
    certificate_until = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name
