"""What goes in and out, typed strictly: a number is not a string, and what is not asked
for is refused. Credits are numbers with up to three decimals; times are ISO 8601 in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from drf_spectacular.extensions import OpenApiSerializerExtension
from drf_spectacular.utils import (
    OpenApiParameter,
    extend_schema_field,
    inline_serializer,
)
from rest_framework import serializers

from billing.keys import SCOPES

MODES = ("live", "test")
#: More than any till sells at once; keeps sums far from 64 bits.
CREDITS_MAX = 10**9


class Text(serializers.CharField):
    """A string, and nothing that could be made one."""

    def __init__(self, **options: Any) -> None:
        if not options.get("allow_blank"):
            options.setdefault("min_length", 1)
        super().__init__(**options)

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class Truth(serializers.BooleanField):
    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class Number(serializers.FloatField):
    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, bool) or not isinstance(data, int | float):
            self.fail("invalid")
        return super().to_internal_value(data)


def in_the_future(time: datetime) -> None:
    if time <= datetime.now(UTC):
        raise serializers.ValidationError("Must lie in the future.")


class Moment(serializers.DateTimeField):
    """A time with its zone."""

    def to_internal_value(self, value: Any) -> datetime:
        if not isinstance(value, str) or len(value) > 40:
            self.fail("invalid", format="ISO 8601 with its zone")
        try:
            time = datetime.fromisoformat(value)
            if "T" not in value.upper() or time.tzinfo is None:
                self.fail("invalid", format="ISO 8601 with its zone")
            return time.astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail("invalid", format="ISO 8601 with its zone")


@extend_schema_field(
    {"type": "number", "minimum": 0, "maximum": CREDITS_MAX, "multipleOf": 0.001}
)
class Credits(serializers.Field):  # type: ignore[type-arg]
    """Credits as a number; milli-credits inside."""

    default_error_messages = {
        "invalid": "Must be a number of credits with at most three decimals.",
        "range": f"Must be from {{low}} to {CREDITS_MAX}.",
    }

    low = Decimal(0)

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int | float):
            self.fail("invalid")
        credits = Decimal(str(data))
        if not credits.is_finite() or not self.low <= credits <= CREDITS_MAX:
            self.fail("range", low=self.low)
        if credits * 1000 % 1:
            self.fail("invalid")
        return int(credits * 1000)

    def to_representation(self, value: int) -> float:
        return value / 1000


@extend_schema_field(
    {"type": "number", "minimum": 0.001, "maximum": CREDITS_MAX, "multipleOf": 0.001}
)
class SomeCredits(Credits):
    """More than nothing."""

    low = Decimal("0.001")


class Strict(serializers.Serializer):  # type: ignore[type-arg]
    """Refuses fields it does not know."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            unknown = sorted(set(data) - set(self.fields))
            if unknown:
                known = ", ".join(self.fields)
                raise serializers.ValidationError(
                    {unknown[0]: [f"Unknown field; known: {known}."]}
                )
        return super().to_internal_value(data)


class _StrictShape(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """Says in the OpenAPI document that unknown fields are refused."""

    target_class = Strict
    match_subclasses = True

    def map_serializer(self, auto_schema: Any, direction: str) -> dict[str, Any]:
        shape: dict[str, Any] = auto_schema._map_serializer(
            self.target, direction, bypass_extensions=True
        )
        return {**shape, "additionalProperties": False}


# ---------------------------------------------------------------------------- accounts


class NewAccount(Strict):
    name = Text(max_length=200)
    plan = Text(max_length=32, default="free")
    reference = Text(
        max_length=200,
        required=False,
        allow_null=True,
        help_text="Your own id for it. Sending the same again returns the same account.",
    )


class AccountChange(Strict):
    name = Text(max_length=200, required=False)
    plan = Text(max_length=32, required=False)
    is_active = Truth(required=False, help_text="False: its keys stop within seconds.")
    low_balance_threshold_credits = Credits(required=False, allow_null=True)
    daily_spend_cap_credits = Credits(required=False, allow_null=True)
    reason = Text(max_length=300, default="by the operator API")


class OperatorBalance(serializers.Serializer):  # type: ignore[type-arg]
    available_credits = serializers.FloatField()
    held_credits = serializers.FloatField()
    debt_credits = serializers.FloatField()
    is_frozen = serializers.BooleanField()


class AccountOut(serializers.Serializer):  # type: ignore[type-arg]
    id = serializers.UUIDField()
    object = serializers.CharField()
    name = serializers.CharField()
    reference = serializers.CharField(allow_null=True)
    plan = serializers.CharField()
    is_active = serializers.BooleanField()
    low_balance_threshold_credits = serializers.FloatField(allow_null=True)
    daily_spend_cap_credits = serializers.FloatField(allow_null=True)
    created_at = serializers.DateTimeField()
    deleted_at = serializers.DateTimeField(allow_null=True)
    live = OperatorBalance()
    test = OperatorBalance()


AccountPage = inline_serializer(
    "AccountPage",
    {
        "object": serializers.CharField(),
        "data": AccountOut(many=True),
        "has_more": serializers.BooleanField(),
        "next_cursor": serializers.UUIDField(allow_null=True),
    },
)


class PageQuery(Strict):
    limit = serializers.IntegerField(min_value=1, max_value=100, default=50)
    cursor = serializers.UUIDField(required=False)
    reference = serializers.CharField(max_length=200, required=False)


# ------------------------------------------------------------------------------ grants


class NewGrant(Strict):
    payment_id = Text(
        max_length=200,
        help_text="Of your payment system. One payment is credited once, whatever is "
        "repeated.",
    )
    credits = SomeCredits()
    mode = serializers.ChoiceField(choices=MODES, default="live")
    expires_at = Moment(required=False, allow_null=True, validators=[in_the_future])
    paid_amount = Number(required=False, allow_null=True, min_value=0, max_value=10**9)
    paid_currency = serializers.RegexField(
        r"^[A-Z]{3}\Z", required=False, help_text="ISO 4217, such as EUR."
    )
    reason = Text(max_length=300, default="purchase")

    def validate_paid_amount(self, value: float | None) -> Decimal | None:
        return None if value is None else round(Decimal(str(value)), 4)


class TakeBack(Strict):
    reason = Text(max_length=300, default="the payment was taken back")


class GrantOut(serializers.Serializer):  # type: ignore[type-arg]
    object = serializers.CharField()
    payment_id = serializers.CharField()
    account_id = serializers.UUIDField()
    mode = serializers.CharField()
    credits = serializers.FloatField()
    remaining_credits = serializers.FloatField()
    expires_at = serializers.DateTimeField(allow_null=True)
    created_at = serializers.DateTimeField()
    taken_back_at = serializers.DateTimeField(allow_null=True)


# -------------------------------------------------------------------------------- keys


class NewKey(Strict):
    mode = serializers.ChoiceField(choices=MODES, default="live")
    scopes = serializers.ListField(
        child=serializers.ChoiceField(choices=SCOPES),
        allow_empty=False,
        max_length=len(SCOPES),
        default=["jobs:write", "jobs:read", "billing:read"],
    )
    name = Text(max_length=100, default="", allow_blank=True)
    expires_at = Moment(required=False, allow_null=True, validators=[in_the_future])
    daily_spend_cap_credits = Credits(required=False, allow_null=True)
    client_pair = serializers.BooleanField(
        default=False,
        help_text="Also give it an id and a secret of 16 and 32 characters (Akool).",
    )


class KeyOut(serializers.Serializer):  # type: ignore[type-arg]
    id = serializers.CharField()
    object = serializers.CharField()
    name = serializers.CharField(allow_blank=True)
    mode = serializers.CharField()
    prefix = serializers.CharField()
    client_id = serializers.CharField(
        allow_null=True, help_text="Of its client pair, if it has one."
    )
    scopes = serializers.ListField(child=serializers.CharField())
    daily_spend_cap_credits = serializers.FloatField(allow_null=True)
    created_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField(allow_null=True)
    revoked_at = serializers.DateTimeField(allow_null=True)
    last_used_at = serializers.DateTimeField(allow_null=True)


IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    str,
    OpenApiParameter.HEADER,
    description="1 to 255 printable ASCII characters of your choice, one per key.",
)


class NewKeyOut(KeyOut):
    key = serializers.CharField(
        allow_null=True, help_text="The key itself, shown this once."
    )
    client_secret = serializers.CharField(
        allow_null=True, help_text="Of its client pair, shown this once."
    )


KeyList = inline_serializer(
    "KeyList",
    {
        "object": serializers.CharField(),
        "data": KeyOut(many=True),
    },
)


# ------------------------------------------------------------------------------- usage


class UsageQuery(Strict):
    since = serializers.DateField(required=False, help_text="First day (UTC).")
    until = serializers.DateField(required=False, help_text="Last day (UTC), counted.")
    mode = serializers.ChoiceField(choices=MODES, default="live")


class UsageRow(serializers.Serializer):  # type: ignore[type-arg]
    day = serializers.DateField()
    account_id = serializers.UUIDField()
    model = serializers.CharField()
    jobs = serializers.IntegerField()
    succeeded = serializers.IntegerField()
    failed = serializers.IntegerField()
    canceled = serializers.IntegerField()
    video_seconds = serializers.FloatField()
    charged_credits = serializers.FloatField()
    refunded_credits = serializers.FloatField()
    cost_usd = serializers.FloatField()


Usage = inline_serializer(
    "Usage",
    {
        "object": serializers.CharField(),
        "since": serializers.DateField(),
        "until": serializers.DateField(),
        "mode": serializers.CharField(),
        "data": UsageRow(many=True),
    },
)


# ---------------------------------------------------------------------------- refusals


class FieldError(serializers.Serializer):  # type: ignore[type-arg]
    field = serializers.CharField()
    message = serializers.CharField()


#: RFC 9457.
Problem = inline_serializer(
    "OperatorProblem",
    {
        "type": serializers.URLField(),
        "title": serializers.CharField(),
        "status": serializers.IntegerField(),
        "detail": serializers.CharField(allow_blank=True),
        "code": serializers.CharField(),
        "request_id": serializers.UUIDField(),
        "errors": FieldError(many=True, required=False),
    },
)
