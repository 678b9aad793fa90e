"""Accounts, plans, keys, prices and the books.

Amounts are milli-credits (1 credit = 1000 = $0.01), always integers. Only `ledger`
writes wallets, grants, holds, transfers and entries; triggers keep transfers, entries
and price rows append-only for everybody, a psql session included.

Most foreign keys of the books have no index of their own: a unique constraint or an
index below begins with the same column, nothing is ever deleted, and every index less
is one less to write for each movement.
"""

from __future__ import annotations

import uuid

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import BrinIndex
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now

from billing.secrets import EncryptedField


class Mode(models.TextChoices):
    """Which of an account's two wallets: real credits, or rehearsal."""

    LIVE = "live"
    TEST = "test"


class SafetyPolicy(models.TextChoices):
    BLOCK = "block"
    FLAG = "flag"
    OFF = "off"


class Plan(models.Model):
    """The limits an account lives under. Rows are the operator's to edit."""

    code = models.CharField(primary_key=True, max_length=32)
    name = models.CharField(max_length=64)
    #: Videos of one account that may be in the making at once.
    max_running = models.PositiveIntegerField()
    #: Of calls that change something; reading may come four times as often.
    requests_per_minute = models.PositiveIntegerField(validators=[MinValueValidator(1)])
    #: Videos a calendar month (UTC) by the API they come in through; absent: no limit.
    monthly_videos = models.JSONField(default=dict, blank=True)
    premium_allowed = models.BooleanField(default=False)
    #: Ten-second clips where the model's own API asks for a higher plan.
    long_allowed = models.BooleanField(default=False)
    file_retention_days = models.PositiveIntegerField()
    #: How long something may wait before it is given up and its credits returned.
    queue_ttl_seconds = models.PositiveIntegerField(default=86_400)
    #: Cancels of work that had already started, per account within 24 hours.
    running_cancels_per_day = models.PositiveIntegerField()
    #: What becomes of content the safety rules flag; ``off`` counts for trusted
    #: accounts only, others are then blocked.
    safety_policy = models.CharField(
        max_length=5, choices=SafetyPolicy, default=SafetyPolicy.BLOCK
    )

    class Meta:
        ordering = ["max_running"]
        constraints = [
            models.CheckConstraint(
                name="a_plan_lets_something_run",
                condition=Q(max_running__gte=1) & Q(requests_per_minute__gte=1),
            )
        ]

    def __str__(self) -> str:
        return self.name


class Account(models.Model):
    """One customer: a company or a person who pays with one pair of wallets."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=200, db_index=True)
    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, related_name="accounts")
    #: The operator's own name for it, such as the id in their shop.
    reference = models.CharField(max_length=200, null=True, blank=True, unique=True)
    #: A disabled account's keys stop working within seconds.
    is_active = models.BooleanField(default=True)
    #: May go below what its plan's safety policy demands, where it asks for that.
    is_trusted = models.BooleanField(default=False)
    #: Holding credits below this mark is worth telling the customer.
    low_balance_threshold_millicredits = models.PositiveBigIntegerField(
        null=True, blank=True
    )
    #: Per wallet and UTC day: what is held or was captured, less refunds.
    daily_spend_cap_millicredits = models.PositiveBigIntegerField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    #: Its people, files and prompts are gone; the books are kept.
    deleted_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Member(models.Model):
    """A person who may act for an account."""

    class Role(models.TextChoices):
        OWNER = "owner"
        DEVELOPER = "developer"
        VIEWER = "viewer"

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships"
    )
    account = models.ForeignKey(
        Account, on_delete=models.CASCADE, related_name="members"
    )
    role = models.CharField(max_length=16, choices=Role, default=Role.DEVELOPER)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["user", "account"], name="one_role_per_member"
            )
        ]

    def __str__(self) -> str:
        return f"{self.user} ({self.role}) of {self.account}"


class ApiKey(models.Model):
    """A customer's key. Only an HMAC of it is kept; the key itself is shown once."""

    #: The middle part of the key, eight base62 characters; not a secret.
    id = models.CharField(primary_key=True, max_length=8, editable=False)
    account = models.ForeignKey(
        Account, on_delete=models.PROTECT, related_name="api_keys"
    )
    mode = models.CharField(max_length=4, choices=Mode)
    name = models.CharField(max_length=100, blank=True)
    #: HMAC-SHA256 under API_KEY_PEPPER of everything before the checksum.
    digest = models.BinaryField(editable=False)
    scopes = ArrayField(models.CharField(max_length=32))
    #: Its other form, for clients that sign in with an id and a secret. The secret is
    #: kept, encrypted, because webhooks are sealed with it; it is found by its HMAC.
    client_id = models.CharField(
        max_length=16, null=True, blank=True, unique=True, editable=False
    )  # null, not "": several keys have none
    client_secret = EncryptedField(
        blank=True, default="", db_default="", editable=False
    )
    client_digest = models.BinaryField(null=True, unique=True, editable=False)
    #: A limit of this key's own, below the plan's; null: the plan's alone.
    requests_per_minute = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)]
    )
    daily_spend_cap_millicredits = models.PositiveBigIntegerField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    #: Exact to about a minute: written in bulk, off the request's path.
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        verbose_name = "API key"
        verbose_name_plural = "API keys"
        ordering = ["-created_at", "id"]
        constraints = [
            models.CheckConstraint(
                name="a_key_mode_is_live_or_test", condition=Q(mode__in=Mode.values)
            ),
            models.CheckConstraint(
                name="a_key_lets_something_through",
                condition=Q(requests_per_minute__isnull=True)
                | Q(requests_per_minute__gte=1),
            ),
            models.CheckConstraint(
                name="a_client_pair_is_whole",
                condition=Q(client_id__isnull=True, client_digest__isnull=True)
                | Q(client_id__isnull=False, client_digest__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"zoe_{self.mode}_{self.id}"


class OperatorKey(models.Model):
    """A program's key to the operator API. Only an HMAC is kept; it is shown once."""

    #: The middle part of the key, eight base62 characters; not a secret.
    id = models.CharField(primary_key=True, max_length=8, editable=False)
    #: The operator in whose name it acts; with this person it stops working.
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="operator_keys"
    )
    name = models.CharField(max_length=100)
    digest = models.BinaryField(editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ["-created_at", "id"]

    def __str__(self) -> str:
        return f"zoe_operator_{self.id}"


class OneTimePassword(models.Model):
    """Says that the user's password was made for them and must be changed first."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        primary_key=True,
        related_name="one_time_password",
    )
    made_at = models.DateTimeField(db_default=Now(), editable=False)

    def __str__(self) -> str:
        return f"one-time password of {self.user_id}"


class Wallet(models.Model):
    """An account's credits of one mode. The row is the lock of everything below it."""

    account = models.ForeignKey(
        Account, on_delete=models.PROTECT, related_name="wallets"
    )
    mode = models.CharField(max_length=4, choices=Mode)
    available = models.BigIntegerField(default=0)
    held = models.BigIntegerField(default=0)
    #: Spent credits whose payment was taken back; what comes in repays it first, so
    #: that nothing is available while anything is owed.
    debt = models.BigIntegerField(default=0)
    #: A wallet with a mark tops itself up to it when a hold needs more.
    refill_to = models.BigIntegerField(null=True, blank=True)
    #: Never later than the first expiry of a grant that still has credits.
    next_expiry_at = models.DateTimeField(null=True, blank=True, db_index=True)
    #: A frozen wallet refuses new holds; what is open still settles.
    frozen = models.BooleanField(default=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["account", "mode"], name="one_wallet_per_account_and_mode"
            ),
            models.CheckConstraint(
                name="wallet_never_below_zero",
                condition=Q(available__gte=0, held__gte=0, debt__gte=0),
            ),
            models.CheckConstraint(
                name="a_wallet_mode_is_live_or_test", condition=Q(mode__in=Mode.values)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.account} ({self.mode})"


class CreditGrant(models.Model):
    """Credits given at one time for one reason, burnt by priority, expiry, age."""

    class Source(models.TextChoices):
        PURCHASE = "purchase"
        PROMOTION = "promotion"
        GOODWILL = "goodwill"  # the operator makes good
        REFILL = "refill"  # a wallet with a refill mark topped itself up
        REISSUE = "reissue"  # came back when the grant it was burnt from had died

    wallet = models.ForeignKey(
        Wallet, on_delete=models.PROTECT, related_name="grants", db_index=False
    )
    source = models.CharField(max_length=16, choices=Source)
    reference = models.CharField(max_length=255)
    amount = models.BigIntegerField()
    remaining = models.BigIntegerField()
    #: Gone unspent: expired, or taken back with the payment behind it.
    written_off = models.BigIntegerField(default=0)
    #: Went to the wallet's debt.
    repaid = models.BigIntegerField(default=0)
    #: Lower burns first.
    priority = models.SmallIntegerField(default=100)
    expires_at = models.DateTimeField(null=True, blank=True)
    #: Set when the payment behind it was taken back; nothing returns to it after.
    voided_at = models.DateTimeField(null=True, blank=True)
    reissue_of = models.ForeignKey(
        "self",
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="reissues",
        db_index=False,
    )
    #: For the index alone. With `remaining` itself in its condition no update would be
    #: heap-only, and each hold would wade through the dead versions of those before.
    is_empty = models.GeneratedField(
        expression=models.ExpressionWrapper(
            Q(remaining=0), output_field=models.BooleanField()
        ),
        output_field=models.BooleanField(),
        db_persist=True,
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["wallet", "reference"], name="a_grant_is_given_once"
            ),
            models.CheckConstraint(
                name="a_grant_gives_at_most_its_amount",
                condition=Q(
                    amount__gt=0, remaining__gte=0, written_off__gte=0, repaid__gte=0
                )
                & Q(amount__gte=F("remaining") + F("written_off") + F("repaid")),
            ),
        ]
        indexes = [
            models.Index(
                "wallet",
                "priority",
                F("expires_at").asc(nulls_last=True),
                "id",
                name="grants_in_burn_order",
                condition=Q(is_empty=False),
            )
        ]

    def __str__(self) -> str:
        return f"{self.source} of {self.amount} m¢ ({self.reference})"


class Purchase(models.Model):
    """A payment that bought a grant; one payment buys once, for one account."""

    payment_id = models.CharField(max_length=255, unique=True)
    grant = models.OneToOneField(
        CreditGrant, on_delete=models.PROTECT, related_name="purchase"
    )
    #: What the customer paid, for the operator's books; never used to reckon.
    paid_amount = models.DecimalField(
        max_digits=14, decimal_places=4, null=True, blank=True
    )
    paid_currency = models.CharField(max_length=3, blank=True)
    taken_back_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    def __str__(self) -> str:
        return self.payment_id


class Transfer(models.Model):
    """One movement of credits, whole: its entries sum to zero. Append-only."""

    class Kind(models.TextChoices):
        GRANT = "grant"
        HOLD = "hold"
        CAPTURE = "capture"
        RELEASE = "release"
        REFUND = "refund"
        EXPIRE = "expire"
        TAKE_BACK = "take_back"

    wallet = models.ForeignKey(
        Wallet, on_delete=models.PROTECT, related_name="transfers", db_index=False
    )
    kind = models.CharField(max_length=16, choices=Kind)
    #: What it was for, in the caller's words: a grant's or a hold's reference.
    reference = models.CharField(max_length=255)
    #: ``purpose:reference``; capture and release share ``fin:``, so never both.
    idem = models.CharField(max_length=300)
    reverses = models.OneToOneField(
        "self", on_delete=models.PROTECT, null=True, blank=True, related_name="reversal"
    )
    #: Who did it; empty for the platform itself.
    actor = models.CharField(max_length=200, blank=True)
    reason = models.CharField(max_length=500, blank=True)
    available_after = models.BigIntegerField()
    held_after = models.BigIntegerField()
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["wallet", "idem"], name="a_movement_happens_once"
            )
        ]
        indexes = [
            models.Index(fields=["wallet", "-id"], name="statement_of_a_wallet"),
            # Rows come in the order of time, so a few kilobytes find any day.
            BrinIndex(
                fields=["created_at"], name="movements_of_a_day", autosummarize=True
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.reference}"


class Entry(models.Model):
    """One leg of a transfer. Append-only."""

    class Book(models.TextChoices):
        AVAILABLE = "available"  # the customer's, to spend
        HELD = "held"  # the customer's, spoken for
        DEBT = "debt"  # owed by the customer, negative
        REVENUE = "revenue"  # earned
        ISSUED = "issued"  # negative: all that was ever given for money or promotion
        GOODWILL = "goodwill"  # negative: given to make good
        EXPIRED = "expired"  # died unspent

    transfer = models.ForeignKey(
        Transfer, on_delete=models.PROTECT, related_name="entries"
    )
    book = models.CharField(max_length=16, choices=Book)
    amount = models.BigIntegerField()

    class Meta:
        verbose_name_plural = "entries"
        constraints = [
            models.CheckConstraint(
                name="an_entry_moves_something", condition=~Q(amount=0)
            )
        ]

    def __str__(self) -> str:
        return f"{self.book} {self.amount:+}"


class Hold(models.Model):
    """Credits set aside for one reference, until captured or released."""

    class State(models.TextChoices):
        OPEN = "open"
        CAPTURED = "captured"
        RELEASED = "released"

    wallet = models.ForeignKey(
        Wallet, on_delete=models.PROTECT, related_name="holds", db_index=False
    )
    api_key = models.ForeignKey(
        ApiKey,
        on_delete=models.PROTECT,
        null=True,
        related_name="holds",
        db_index=False,
    )
    reference = models.CharField(max_length=255)
    amount = models.BigIntegerField()
    captured = models.BigIntegerField(default=0)
    refunded = models.BigIntegerField(default=0)
    state = models.CharField(max_length=8, choices=State, default=State.OPEN)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    closed_at = models.DateTimeField(null=True, blank=True)

    #: True on the hold that took the balance below the account's threshold; not stored.
    crossed_low_balance = False

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["wallet", "reference"], name="one_hold_per_reference"
            ),
            models.CheckConstraint(
                name="a_hold_settles_within_its_amount",
                condition=Q(refunded__gte=0)
                & Q(captured__gte=F("refunded"))
                & Q(amount__gte=F("captured")),
            ),
            models.CheckConstraint(
                name="a_hold_is_open_captured_or_released",
                condition=Q(state="open", captured=0, closed_at__isnull=True)
                | Q(state="captured", closed_at__isnull=False)
                | Q(state="released", captured=0, closed_at__isnull=False),
            ),
        ]
        indexes = [
            models.Index(fields=["wallet", "created_at"], name="spend_of_a_day"),
            models.Index(
                fields=["created_at"], name="open_holds", condition=Q(state="open")
            ),
        ]

    def __str__(self) -> str:
        return f"{self.state} {self.reference}"


class HoldSlice(models.Model):
    """The part of a hold burnt from one grant."""

    hold = models.ForeignKey(
        Hold, on_delete=models.PROTECT, related_name="slices", db_index=False
    )
    grant = models.ForeignKey(
        CreditGrant, on_delete=models.PROTECT, related_name="slices", db_index=False
    )
    #: Burn order, from 1; what comes back returns to the highest first.
    seq = models.PositiveSmallIntegerField()
    amount = models.BigIntegerField()
    returned = models.BigIntegerField(default=0)
    #: The part of ``returned`` that went to a new grant, the old one having died.
    reissued = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["hold", "seq"], name="a_hold_burns_in_order"
            ),
            models.CheckConstraint(
                name="a_slice_returns_at_most_its_amount",
                condition=Q(amount__gt=0, reissued__gte=0)
                & Q(returned__gte=F("reissued"))
                & Q(amount__gte=F("returned")),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.amount} of grant {self.grant_id}"


class PriceRow(models.Model):
    """One line of the price book. Append-only: a new price is a new version.

    The rows that count for a model and operation are those of its highest version
    whose time has come.
    """

    class Operation(models.TextChoices):
        VIDEO = "video"
        AUDIO = "audio"  # sound for a finished video

    class Unit(models.TextChoices):
        JOB = "job"  # the amount, whatever the length
        SECOND = "second"  # per unit_size seconds
        FRAME = "frame"  # per unit_size frames
        BLOCK = "block"  # per begun block of unit_size seconds

    model = models.CharField(max_length=100)
    operation = models.CharField(
        max_length=8, choices=Operation, default=Operation.VIDEO
    )
    #: ``480p``, ``720p``, ``1080p``, ``4k``; empty: any.
    resolution = models.CharField(max_length=16, blank=True, default="")
    #: Only for clips of exactly this length; null: any.
    seconds = models.DecimalField(max_digits=8, decimal_places=3, null=True, blank=True)
    #: Only when the request has all of these options.
    options = models.JSONField(default=dict, blank=True)
    #: Added on top of the chosen row wherever it fits, instead of competing with it.
    is_surcharge = models.BooleanField(default=False)
    unit = models.CharField(max_length=8, choices=Unit, default=Unit.JOB)
    unit_size = models.PositiveIntegerField(
        default=1, validators=[MinValueValidator(1)]
    )
    #: True: a part of a unit costs that part; false: a begun unit costs all of it.
    prorata = models.BooleanField(default=False)
    amount_millicredits = models.PositiveBigIntegerField()
    version = models.PositiveIntegerField()
    effective_from = models.DateTimeField(db_default=Now())
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ["model", "operation", "-version", "resolution", "seconds", "id"]
        constraints = [
            models.UniqueConstraint(
                fields=[
                    "model",
                    "operation",
                    "version",
                    "resolution",
                    "seconds",
                    "options",
                    "is_surcharge",
                ],
                nulls_distinct=False,
                name="one_price_per_case_and_version",
            ),
            models.CheckConstraint(
                name="a_price_has_a_unit", condition=Q(unit_size__gte=1)
            ),
        ]

    def __str__(self) -> str:
        case = " ".join(
            part
            for part in (
                self.resolution,
                f"{self.seconds:g} s" if self.seconds is not None else "",
            )
            if part
        )
        return f"{self.model} {self.operation} {case} v{self.version}".strip()
