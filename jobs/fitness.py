"""What a worker must have before it takes jobs, checked once when it starts.

A worker that could not finish what it takes says so and stops, so that its jobs go to
one that can.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from inference.media import provenance, safety

if TYPE_CHECKING:
    from inference.contracts import Context

#: Queues whose workers neither judge pictures nor finish files.
_OTHERS = ("webhook", "provider.")


class Unfit(Exception):
    """The host lacks what its settings demand; the text says what, and where."""


def handles_pictures(queues: Iterable[str]) -> bool:
    return any(not queue.startswith(_OTHERS) for queue in queues)


def check(queues: Iterable[str], world: Context) -> None:
    """Raise Unfit when a worker of these queues must not start.

    Makes the development certificate where no other is given.
    """
    if not handles_pictures(queues):
        return
    missing = safety.what_is_missing(world.weights)
    if missing and world.options.get("safety_required"):
        raise Unfit(f"SAFETY_REQUIRE_CLASSIFIER is set, but {missing}")
    home = Path(world.options.get("signing_folder") or world.workdir.parent / "signing")
    try:
        provenance.credential(world.options, home=home)
    except (ValueError, OSError) as error:
        raise Unfit(f"C2PA_CERTIFICATE and C2PA_KEY cannot sign: {error}") from error


def safety_mode(queues: Iterable[str], world: Context) -> str:
    """Return which safety checks a worker of these queues does; "" if none."""
    if not handles_pictures(queues):
        return ""
    return "prompt_only" if safety.what_is_missing(world.weights) else "classifier"
