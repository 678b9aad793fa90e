"""Effect templates: a named look that fills in prompt and parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.errors import InvalidRequest

if TYPE_CHECKING:
    from billing.plans import PlanTerms
    from jobs.requests import JobRequest


def expand(request: JobRequest, *, plan: PlanTerms) -> JobRequest:
    """Return the request with its effect's template applied.

    Raises InvalidRequest for an unknown effect.
    """
    if request.effect is None:
        return request
    raise InvalidRequest("effect", f"There is no effect '{request.effect}'.")
