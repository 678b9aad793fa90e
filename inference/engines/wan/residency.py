"""What stays on the device: a plan, not the doing of it (``memory`` does).

Parts (a text encoder, a VAE, one expert…) live on the device, in pinned host memory or
on disk only. ``want`` answers what to move so that the parts a phase needs, and its
working memory, fit. The least recently used family leaves first, its least recently
used part first, but never before parts this job is done with: what it still needs goes
last, furthest need first. A part already in pinned memory leaves for nothing. Pure
bookkeeping.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Tier = Literal["device", "pinned", "disk"]
GB = 10**9
#: CUDA context, allocator slack and the encoder's share; a guess of ours, not measured.
RESERVE_BYTES = 2 * GB
_NEVER = 10**6


def pinned_budget(host_bytes: int) -> int:
    """Return how many bytes of weights may be pinned on a host with this much memory.

    Half of it: the rest is for loading, encoding and the OS. torch 2.13 rounds each
    pinned tensor up to a power of two (CachingHostAllocator.h, allocate), which makes
    1.5 to 1.7 of Wan's weights, calculated: 28.6 GB of an expert take 44.
    """
    return host_bytes * 3 // 10


class TooSmall(Exception):
    """A phase does not fit even alone."""

    def __init__(self, needed: int, available: int) -> None:
        super().__init__(
            f"needs {needed / GB:.1f} GB on the device, {available / GB:.1f} GB are there"
        )
        self.needed, self.available = needed, available


@dataclass(frozen=True)
class Part:
    """A loadable module. ``family`` leaves together; shared parts have their own."""

    name: str
    size_bytes: int
    family: str


@dataclass(frozen=True)
class Move:
    part: str
    origin: Tier
    to: Tier
    size_bytes: int


class Residency:
    """Who is where. Pinned memory keeps copies of parts that are also on the device."""

    def __init__(self, *, device_bytes: int, pinned_bytes: int) -> None:
        self.device_bytes, self.pinned_bytes = device_bytes, pinned_bytes
        self._device: dict[str, Part] = {}
        self._pinned: dict[str, Part] = {}
        self._families: dict[str, int] = {}
        self._parts: dict[str, int] = {}
        self._clock = 0

    def tier(self, name: str) -> Tier:
        if name in self._device:
            return "device"
        return "pinned" if name in self._pinned else "disk"

    def on_device(self) -> tuple[str, ...]:
        return tuple(self._device)

    def want(
        self,
        parts: Sequence[Part],
        *,
        working_bytes: int = 0,
        later: Sequence[str] = (),
        alone: bool = False,
    ) -> list[Move]:
        """Return the moves, in order, after which ``parts`` are on the device.

        ``later`` names what this job needs after this, soonest first; ``alone`` sends
        everything else away. Raises TooSmall, leaving everything as it was, when they do
        not fit alone.
        """
        needed = _size(parts) + working_bytes
        if needed > self.device_bytes:
            raise TooSmall(needed, self.device_bytes)
        self._clock += 1
        for part in parts:
            self._parts[part.name] = self._families[part.family] = self._clock
        names = {part.name for part in parts}
        room = 0 if alone else self.device_bytes - needed
        moves = [
            move
            for part in self._victims(names, later=later, room=room)
            for move in self._leave(part)
        ]
        for part in parts:
            if part.name not in self._device:
                origin = self.tier(part.name)
                self._device[part.name] = part
                moves.append(Move(part.name, origin, "device", part.size_bytes))
        return moves

    def forget(self, name: str) -> None:
        """Drop a part from every tier (its weights failed to load or changed)."""
        self._device.pop(name, None)
        self._pinned.pop(name, None)

    def _victims(
        self, wanted: set[str], *, later: Sequence[str], room: int
    ) -> list[Part]:
        """Return who must leave so that the others take at most ``room``."""
        staying = [part for part in self._device.values() if part.name not in wanted]
        wait = {name: place for place, name in reversed(list(enumerate(later, 1)))}
        staying.sort(key=lambda p: (-wait.get(p.name, _NEVER), self._age(p)))
        leaving = []
        while _size(staying) > room:
            leaving.append(staying.pop(0))
        # A large part that left last may have made the first ones' leaving needless.
        spared: list[Part] = []
        for part in leaving:
            if _size([*staying, *spared, part]) <= room:
                spared.append(part)
        return [part for part in leaving if part not in spared]

    def _age(self, part: Part) -> tuple[int, int]:
        return self._families[part.family], self._parts[part.name]

    def _leave(self, part: Part) -> list[Move]:
        del self._device[part.name]
        if part.name in self._pinned:
            return [Move(part.name, "device", "pinned", 0)]
        if part.size_bytes > self.pinned_bytes:
            return [Move(part.name, "device", "disk", 0)]
        moves = []
        for other in sorted(self._pinned.values(), key=self._age):
            if _size(self._pinned.values()) + part.size_bytes <= self.pinned_bytes:
                break
            del self._pinned[other.name]
            moves.append(Move(other.name, "pinned", "disk", 0))
        self._pinned[part.name] = part
        return [*moves, Move(part.name, "device", "pinned", part.size_bytes)]


@dataclass(frozen=True)
class Phase:
    """One stretch of a job: the parts it needs at once and the memory beside them."""

    name: str
    parts: tuple[str, ...]
    working_bytes: int


def phases(part_bytes: Mapping[str, int], *, working_bytes: int) -> tuple[Phase, ...]:
    """Return a job's phases for a checkpoint with these parts, in order."""
    text_bytes = min(working_bytes, GB)
    image = tuple(name for name in ("vae", "image_encoder") if name in part_bytes)
    experts = [name for name in ("transformer", "transformer_2") if name in part_bytes]
    return (
        Phase("text", ("text_encoder",), text_bytes),
        Phase("image", image, working_bytes),
        *(Phase(name, (name,), working_bytes) for name in experts),
        Phase("decode", ("vae",), working_bytes),
    )


@dataclass(frozen=True)
class Fit:
    """How a model lives on a card, calculated. ``moved_bytes`` is per job, once warm."""

    fits: bool
    moved_bytes: int
    peak_bytes: int
    reason: str = ""


def fit(
    part_bytes: Mapping[str, int],
    *,
    working_bytes: int,
    device_bytes: int,
    pinned_bytes: int,
) -> Fit:
    """Return how a job of this checkpoint would run on a card with nothing else on it."""
    plan = Residency(
        device_bytes=device_bytes - RESERVE_BYTES, pinned_bytes=pinned_bytes
    )
    parts = {name: Part(name, size, "it") for name, size in part_bytes.items()}
    moved = peak = 0
    order = phases(part_bytes, working_bytes=working_bytes)
    for _job in ("cold", "warm"):
        moved = 0
        for place, phase in enumerate(order):
            later = [name for after in order[place + 1 :] for name in after.parts]
            wanted = [parts[name] for name in phase.parts]
            try:
                moves = plan.want(
                    wanted, working_bytes=phase.working_bytes, later=later
                )
            except TooSmall as error:
                reason = f"{phase.name} {error}"
                return Fit(
                    fits=False, moved_bytes=0, peak_bytes=error.needed, reason=reason
                )
            moved += sum(m.size_bytes for m in moves if m.to == "device")
            held = sum(part_bytes[name] for name in plan.on_device())
            peak = max(peak, held + phase.working_bytes)
    return Fit(fits=True, moved_bytes=moved, peak_bytes=peak)


def _size(parts: Iterable[Part]) -> int:
    return sum(part.size_bytes for part in parts)
