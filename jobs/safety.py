"""What the safety policy means for one job: who is refused, who is only noted.

The plan's policy decides. ``off`` counts for trusted accounts only; a trusted account
that asks for no checks gets one step less than its plan demands, others get the plan's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from inference.media import finish, safety
from jobs.models import Job, JobNote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from billing.plans import PlanTerms
    from inference.contracts import Context, SafetyPolicy

_LESS: Mapping[SafetyPolicy, SafetyPolicy] = {
    "block": "flag",
    "flag": "off",
    "off": "off",
}


def policy_of(terms: PlanTerms, *, is_asked: bool) -> SafetyPolicy:
    """Return what a flagged prompt or picture leads to.

    ``is_asked`` is the request's own wish to be checked.
    """
    policy = cast("SafetyPolicy", terms.safety_policy)
    if terms.is_trusted:
        return policy if is_asked else _LESS[policy]
    return "block" if policy == "off" else policy


class Guard:
    """Judges one job's words and pictures as its policy says, and keeps what it found."""

    def __init__(self, policy: SafetyPolicy, world: Context) -> None:
        self.policy = policy
        self._checks = finish.tools_for(world).safety
        self.flags: list[str] = []

    def text(self, words: str) -> None:
        """Raise ContentBlocked when such words are refused."""
        self._enforce(self._checks.prompt(words))

    def allows(self, words: str) -> bool:
        """Return whether nothing in ``words`` is flagged."""
        return not self._checks.prompt(words).flagged

    def picture(self, path: Any) -> None:
        """Raise ContentBlocked when the prepared picture at ``path`` is refused."""
        if self.policy != "off":
            self._enforce(self._checks.image(path))

    def _enforce(self, verdict: safety.Verdict) -> None:
        noted = safety.enforce(verdict, self.policy)
        self.flags += [f for f in noted.get("flagged", ()) if f not in self.flags]

    def told(self) -> dict[str, Any]:
        """Return what the job shows of it."""
        mode = "off" if self.policy == "off" else self._checks.mode
        flags = {"safety_flags": self.flags} if self.flags else {}
        return {"safety": mode, "safety_policy": self.policy, **flags}


def note_flags(job: Job, flags: list[str], *, where: str) -> None:
    """Leave a line for the operator about content that was delivered all the same."""
    if flags:
        JobNote.objects.create(
            job=job, kind="safety", text=f"{where}: {', '.join(flags)} (policy: flag)"
        )
