"""What a worker must have before it takes jobs, checked once when it starts.

A worker that could not finish what it takes says so and stops, so that its jobs go to
one that can.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from inference.errors import CannotSign
from inference.media import provenance
from inference.media.finish import signer_for
from inference.media.safety import what_is_missing
from jobs import safety

if TYPE_CHECKING:
    from inference.contracts import Context

#: Queues whose workers finish no files.
_OTHERS = ("webhook", "provider.", safety.QUEUE)


class Unfit(Exception):
    """The host lacks what its settings demand; the text says what, and where."""


def check(queues: Iterable[str], world: Context) -> None:
    """Raise Unfit when a worker of these queues must not start.

    Makes the development certificate where no other is given.
    """
    queues = list(queues)
    if safety.QUEUE in queues and (missing := what_is_missing(world.weights)):
        demanded = world.options.get("safety_required")
        why = "SAFETY_REQUIRE_CLASSIFIER is set, but " if demanded else ""
        raise Unfit(f"no picture can be judged: {why}{missing}")
    if not _finishes(queues):
        return
    try:
        provenance.prove(signer_for(world))
    except CannotSign as error:
        raise Unfit(f"C2PA_CERTIFICATE and C2PA_KEY cannot sign: {error}") from error


def certificate_until(queues: Iterable[str], world: Context) -> datetime | None:
    """Return when the certificate runs out that a worker of these queues signs with.

    None where it signs nothing.
    """
    return signer_for(world).ends_at() if _finishes(queues) else None


def _finishes(queues: Iterable[str]) -> bool:
    return not all(queue.startswith(_OTHERS) for queue in queues)


def safety_mode(queues: Iterable[str], world: Context) -> str:
    """Return how pictures are judged, as a worker of these queues knows it.

    A media worker decides it for each job, the safety worker does it; "" from others.
    """
    queues = list(queues)
    if safety.QUEUE in queues:
        return safety.CLASSIFIER
    if "media" not in queues:
        return ""
    return safety.CLASSIFIER if safety.is_on(world) else safety.PROMPT_ONLY
