"""The states and steps of a job, and the only moves between them. Pure.

Customers see ``Status``; workers see ``Step``. A job is queued until ``generate`` or
``submit`` is claimed, then running, then succeeded, failed or canceled for good.

::

    prepare ─► generate ──────────────────────────► finish ─► done
          └──► submit ─► await ─► collect ────────────┘
                  └► reconcile ─┘ (an answer was lost)
    audio-only jobs: prepare ─► finish
    where a classifier looks: prepare ─► screen ─► …, and … ─► review ─► done
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class Status(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL


class Step(StrEnum):
    PREPARE = "prepare"
    SCREEN = "screen"
    GENERATE = "generate"
    SUBMIT = "submit"
    AWAIT = "await"
    COLLECT = "collect"
    RECONCILE = "reconcile"
    FINISH = "finish"
    REVIEW = "review"
    DONE = "done"


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELED})
ACTIVE = frozenset({Status.QUEUED, Status.RUNNING})

#: Steps a worker holds under a lease; the others only wait for the poller or a person.
LEASED = frozenset(
    {
        Step.PREPARE,
        Step.SCREEN,
        Step.GENERATE,
        Step.SUBMIT,
        Step.COLLECT,
        Step.FINISH,
        Step.REVIEW,
    }
)

#: Claiming one of these is what a customer sees as "running"; finish, because an
#: audio-only job has no step before it that costs anything.
STARTS_RUNNING = frozenset({Step.GENERATE, Step.SUBMIT, Step.FINISH})

MOVES: Mapping[Step, frozenset[Step]] = MappingProxyType(
    {
        # finish: an audio-only job has nothing to generate
        Step.PREPARE: frozenset({Step.SCREEN, Step.GENERATE, Step.SUBMIT, Step.FINISH}),
        Step.SCREEN: frozenset({Step.GENERATE, Step.SUBMIT}),
        # generate and submit: the next route of the same job
        Step.GENERATE: frozenset(
            {Step.FINISH, Step.REVIEW, Step.DONE, Step.GENERATE, Step.SUBMIT}
        ),
        Step.SUBMIT: frozenset(
            {Step.AWAIT, Step.RECONCILE, Step.SUBMIT, Step.GENERATE}
        ),
        Step.AWAIT: frozenset(
            {Step.COLLECT, Step.RECONCILE, Step.SUBMIT, Step.GENERATE}
        ),
        Step.RECONCILE: frozenset({Step.AWAIT, Step.SUBMIT, Step.GENERATE}),
        Step.COLLECT: frozenset({Step.FINISH, Step.SUBMIT, Step.GENERATE}),
        Step.FINISH: frozenset({Step.REVIEW, Step.DONE}),
        Step.REVIEW: frozenset({Step.DONE}),
        Step.DONE: frozenset(),
    }
)
