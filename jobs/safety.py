"""What the safety policy means for one job: who is refused, who is only noted.

The plan's policy decides. ``off`` counts for trusted accounts only; a trusted account
that asks for no checks gets one step less than its plan demands, others get the plan's.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from inference.media import safety
from jobs.models import Job, JobNote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from billing.plans import PlanTerms
    from inference.contracts import Context, SafetyPolicy

#: Where the steps `screen` and `review` wait for a worker with torch and the weights.
QUEUE: Final = "safety"
CLASSIFIER: Final = "classifier"
PROMPT_ONLY: Final = "prompt_only"

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


def providers_check(job: Job, terms: PlanTerms) -> bool:
    """Return whether a provider's own checker must look at the job as well.

    Only a trusted account that asked for no checks, and whose plan then blocks no more,
    goes without.
    """
    is_asked = bool(job.request.get("safety_checker", True))
    blocks = job.resolved.get("safety_policy", "block") == "block"
    return is_asked or blocks or not terms.is_trusted


def is_on(world: Context) -> bool:
    """Return whether pictures are judged here: demanded, or the weights are there."""
    return bool(world.options.get("safety_required")) or safety.has_weights(
        world.weights
    )


def is_screened(policy: SafetyPolicy, world: Context) -> bool:
    """Return whether a job under ``policy`` goes by the safety worker.

    Asked once, when it is prepared; ``resolved["safety"]`` keeps the answer, so that
    no job passes unseen because the worker or its weights went away meanwhile.
    """
    return policy != "off" and is_on(world)


def mode_of(job: Job) -> str:
    """Return what was decided for the job: classifier, prompt_only or off."""
    return str(job.resolved.get("safety", PROMPT_ONLY))


@cache
def judge(weights: Path, threshold: float) -> safety.Judge:
    """Return this process's judge of pictures; raise WeightsMissing without one."""
    return safety.load(weights, threshold=threshold)


def judge_of(world: Context) -> safety.Judge:
    threshold = world.options.get("safety_threshold", safety.THRESHOLD)
    return judge(world.weights, float(threshold))


class Guard:
    """Judges one job's words as its policy says, and keeps what it found."""

    def __init__(self, policy: SafetyPolicy) -> None:
        self.policy = policy
        self.flags: list[str] = []

    def text(self, words: str) -> None:
        """Raise ContentBlocked when such words are refused."""
        noted = safety.enforce(safety.judge_prompt(words), self.policy)
        self.flags += [f for f in noted.get("flagged", ()) if f not in self.flags]

    def has_more(self, words: str, *, than: str) -> bool:
        """Return whether ``words`` are flagged for anything that ``than`` is not."""
        found, known = safety.judge_prompt(words), safety.judge_prompt(than)
        return not set(found.reasons) <= set(known.reasons)

    def told(self, world: Context) -> dict[str, Any]:
        """Return what the job shows of it, and who looks at its pictures."""
        mode = CLASSIFIER if is_screened(self.policy, world) else PROMPT_ONLY
        flags = {"safety_flags": self.flags} if self.flags else {}
        return {
            "safety": "off" if self.policy == "off" else mode,
            "safety_policy": self.policy,
            **flags,
        }


def note_flags(job: Job, flags: list[str], *, where: str) -> None:
    """Leave a line for the operator about content that was delivered all the same."""
    if flags:
        JobNote.objects.create(
            job=job, kind="safety", text=f"{where}: {', '.join(flags)} (policy: flag)"
        )
