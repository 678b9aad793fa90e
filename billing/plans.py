"""What a plan allows, as a frozen copy that travels with a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from billing.errors import UnknownPlan
from billing.models import Plan


@dataclass(frozen=True)
class PlanTerms:
    """The limits of `billing.models.Plan`, read once with the API key."""

    code: str
    max_running: int
    requests_per_minute: int
    premium_allowed: bool
    long_allowed: bool
    file_retention_days: int
    queue_ttl_seconds: int
    running_cancels_per_day: int
    #: ``block``, ``flag`` or ``off``, and whether the account may ask for less.
    safety_policy: str = "block"
    is_trusted: bool = False
    #: By the API the video comes in through; an absent name has no limit.
    monthly_videos: Mapping[str, int] = field(default_factory=dict)


def terms_of(plan: Plan, *, is_trusted: bool = False) -> PlanTerms:
    return PlanTerms(
        code=plan.code,
        max_running=plan.max_running,
        requests_per_minute=plan.requests_per_minute,
        premium_allowed=plan.premium_allowed,
        long_allowed=plan.long_allowed,
        file_retention_days=plan.file_retention_days,
        queue_ttl_seconds=plan.queue_ttl_seconds,
        running_cancels_per_day=plan.running_cancels_per_day,
        safety_policy=plan.safety_policy,
        is_trusted=is_trusted,
        monthly_videos=dict(plan.monthly_videos),
    )


def find_plan(code: str) -> Plan:
    plan = Plan.objects.filter(code=code).first()
    if plan is None:
        raise UnknownPlan(f"no plan {code!r}; there are: {', '.join(plan_codes())}")
    return plan


def plan_codes() -> list[str]:
    return list(Plan.objects.values_list("code", flat=True))
