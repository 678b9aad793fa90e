"""Moving parts between the device, pinned host memory and disk, as ``residency`` plans.

One ``Residence`` per process and device, shared by all its engines: a text encoder that
two checkpoints have in common is loaded once. Weights never change while they are away,
so a part with a pinned copy leaves the device by letting go of its tensors.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from inference.engines.wan.residency import (
    RESERVE_BYTES,
    Move,
    Part,
    Residency,
    TooSmall,
    pinned_budget,
)
from inference.errors import OutOfMemory

Loader = Callable[[], torch.nn.Module]
#: told before a module leaves the device
Leaving = Callable[[torch.nn.Module], None]


@dataclass
class _Held:
    module: torch.nn.Module
    #: host copies of its tensors, by identity of the parameter or buffer
    host: dict[torch.Tensor, torch.Tensor] | None = None
    is_on_device: bool = True


class Residence:
    def __init__(self, device: torch.device, plan: Residency) -> None:
        self.device, self.plan = device, plan
        self._loaders: dict[str, tuple[Part, Loader]] = {}
        self._held: dict[str, _Held] = {}
        self._leaving: list[Leaving] = []

    def add(self, part: Part, load: Loader) -> None:
        """Make a part known; the first to name it says how it is loaded."""
        self._loaders.setdefault(part.name, (part, load))

    def before_leaving(self, call: Leaving) -> None:
        self._leaving.append(call)

    def want(
        self,
        names: Sequence[str],
        *,
        working_bytes: int = 0,
        later: Sequence[str] = (),
        alone: bool = False,
    ) -> list[torch.nn.Module]:
        """Return the parts' modules, all on the device with ``working_bytes`` to spare.

        ``later`` names what the job needs after this; ``alone`` leaves nothing else on
        the device. Raises OutOfMemory when they cannot fit.
        """
        parts = [self._loaders[name][0] for name in names]
        try:
            moves = self.plan.want(
                parts, working_bytes=working_bytes, later=later, alone=alone
            )
        except TooSmall as error:
            raise OutOfMemory(f"{', '.join(names)}: {error}", permanent=True) from error
        for place, move in enumerate(moves):
            try:
                self._make(move)
            except BaseException:
                # The plan counts these as done: read them from disk when next wanted.
                for undone in moves[place:]:
                    self._forget(undone.part)
                raise
        return [self._held[name].module for name in names]

    def _make(self, move: Move) -> None:
        if move.to == "device":
            self._bring(move.part)
        elif move.to == "pinned":
            self._take_off(move.part)
        else:
            self._drop(move.part, copy_only=move.origin == "pinned")

    def _bring(self, name: str) -> None:
        held = self._held.get(name)
        if held is None:
            module = self._loaders[name][1]().to(self.device)
            self._held[name] = _Held(module)
        elif held.host is not None:
            for tensor, copy in held.host.items():
                tensor.data = copy.to(self.device, non_blocking=True, copy=True)
            held.is_on_device = True

    def _take_off(self, name: str) -> None:
        held = self._held[name]
        self._tell_leaving(held.module)
        if held.host is None:
            held.host = {t: _host_copy(t.data) for t in _tensors(held.module)}
        for tensor, copy in held.host.items():
            tensor.data = copy
        held.is_on_device = False

    def _drop(self, name: str, *, copy_only: bool) -> None:
        held = self._held[name]
        if copy_only and held.is_on_device:
            held.host = None
            return
        del self._held[name]
        self._tell_leaving(held.module)
        # A pipeline may still point to the module; its memory goes all the same.
        for tensor in _tensors(held.module):
            tensor.data = torch.empty(0, dtype=tensor.dtype)

    def _forget(self, name: str) -> None:
        self.plan.forget(name)
        if name in self._held:
            self._drop(name, copy_only=False)

    def _tell_leaving(self, module: torch.nn.Module) -> None:
        for call in self._leaving:
            call(module)


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _host_copy(data: torch.Tensor) -> torch.Tensor:
    pinned = data.device.type == "cuda"
    copy = torch.empty(data.shape, dtype=data.dtype, pin_memory=pinned)
    return copy.copy_(data)


@functools.cache
def residence_for(device: torch.device, pinned_bytes: int | None = None) -> Residence:
    """Return this process's residence on ``device``, sized by what the card has."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # On a CPU there is nowhere to move to: nothing is planned, everything stays.
    total = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 2**62
    pinned = pinned_budget(host) if pinned_bytes is None else pinned_bytes
    plan = Residency(device_bytes=total - RESERVE_BYTES, pinned_bytes=pinned)
    return Residence(device, plan)
