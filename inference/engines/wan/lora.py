"""LoRAs merged into the weights and taken out again, bit for bit.

Everything is checked before any weight is touched: the container (safetensors only), its
size, every key, shape and rank. The sum of all adapters is added in fp32 and rounded
once; the originals wait in host memory and come back exactly. Nothing is hooked into
the model, so compiled blocks stay compiled (a loaded adapter recompiles them).
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from diffusers import WanImageToVideoPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file

from inference.engines.wan.lora_files import (
    FILE_BYTES,
    LoraFile,
    check_container,
    unusable,
)

RANK_MAX = 512
#: Far beyond any that was trained (ranks to twice ranks): more is damage, or NaN.
ALPHA_MAX = 1e6
#: parsed files kept in memory
PARSED = 4


@dataclass(frozen=True)
class Pair:
    """One module's adapter: weight += scale * up @ down, bias += scale * bias."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class Adapter:
    """A parsed LoRA: module name → pair. ``sha256`` is the file's."""

    sha256: str
    pairs: Mapping[str, Pair]


@dataclass(frozen=True)
class Weighted:
    """An adapter at a strength, for one transformer."""

    adapter: Adapter
    scale: float

    @property
    def key(self) -> str:
        return f"{self.adapter.sha256}@{self.scale:g}"


class Parser:
    """Parses LoRA files once; keeps the last few."""

    def __init__(self, *, file_bytes: int = FILE_BYTES, parsed: int = PARSED) -> None:
        self._file_bytes, self._parsed = file_bytes, parsed
        self._kept: OrderedDict[str, Adapter] = OrderedDict()

    def parse(self, file: LoraFile, *, name: str) -> Adapter:
        """Return the adapter in ``file``; raises InputRejected naming ``name``."""
        adapter = self._kept.get(file.sha256)
        if adapter is None:
            metadata = check_container(file.path, name, file_bytes=self._file_bytes)
            adapter = Adapter(file.sha256, _pairs(file.path, metadata, name))
            self._kept[file.sha256] = adapter
            while len(self._kept) > self._parsed:
                self._kept.popitem(last=False)
        self._kept.move_to_end(file.sha256)
        return adapter


def _pairs(path: Path, metadata: Mapping[str, str], name: str) -> dict[str, Pair]:
    try:
        state = WanImageToVideoPipeline.lora_state_dict(load_file(path))
    except (
        SafetensorError,
        ValueError,
        KeyError,
        IndexError,
        RuntimeError,
        UnboundLocalError,  # the converter's own, for an alpha without its matrices
    ) as error:
        raise unusable(name, f"cannot be read: {str(error)[:200]}") from error
    strength = _strength(metadata, name)
    downs: dict[str, torch.Tensor] = {}
    ups: dict[str, torch.Tensor] = {}
    biases: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        module, _, kind = key.removeprefix("transformer.").rpartition(".lora_")
        slot = {"A.weight": downs, "B.weight": ups, "B.bias": biases}.get(kind)
        if slot is None or not module:
            raise unusable(name, f"holds '{key}', which is no Wan LoRA key")
        if not tensor.numel():
            raise unusable(name, f"holds nothing at '{key}'")
        if not bool(torch.isfinite(tensor).all()):
            raise unusable(name, f"holds numbers at '{key}' that are not finite")
        slot[module] = torch.atleast_1d(tensor)
    if not downs or downs.keys() != ups.keys() or not biases.keys() <= downs.keys():
        raise unusable(name, "lacks one half of its matrices")
    return {
        module: Pair(down, ups[module], strength(module, down), biases.get(module))
        for module, down in downs.items()
    }


def _strength(
    metadata: Mapping[str, str], name: str
) -> Callable[[str, torch.Tensor], float]:
    """Return alpha / rank by module; 1 where the file does not say.

    The ComfyUI and musubi converters fold alpha into the matrices; files saved by
    diffusers carry it in the header instead.
    """
    damaged = unusable(name, "has a damaged alpha in its header")
    try:
        loaded = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except (ValueError, RecursionError):
        loaded = {}
    if not isinstance(loaded, dict):
        raise damaged
    config: dict[str, Any] = {
        key.removeprefix("transformer."): value for key, value in loaded.items()
    }
    alphas, alpha = config.get("alpha_pattern") or {}, config.get("lora_alpha")
    if not isinstance(alphas, dict):
        raise damaged

    def strength(module: str, down: torch.Tensor) -> float:
        chosen = alphas.get(module, alpha)
        if chosen is None:
            return 1.0
        if type(chosen) not in (int, float) or not abs(chosen) < ALPHA_MAX:
            raise damaged
        rank = down.shape[0]
        return float(chosen) / (math.sqrt(rank) if config.get("use_rslora") else rank)

    return strength


def check_fits(adapter: Adapter, model: torch.nn.Module, *, name: str) -> None:
    """Raise InputRejected unless every matrix fits a linear layer of ``model``."""
    modules = dict(model.named_modules())
    unknown = sorted(adapter.pairs.keys() - modules.keys())
    if unknown:
        known = len(adapter.pairs) - len(unknown)
        raise unusable(
            name,
            f"does not belong to this model: {known} of {len(adapter.pairs)} layers "
            f"match, '{unknown[0]}' does not",
        )
    for module, pair in adapter.pairs.items():
        target = modules[module]
        if not isinstance(target, torch.nn.Linear):
            raise unusable(name, f"changes '{module}', which is no linear layer")
        rank = pair.down.shape[0]
        if not 1 <= rank <= RANK_MAX:
            raise unusable(name, f"has rank {rank} at '{module}'; 1 to {RANK_MAX}")
        fits = pair.down.shape == (rank, target.in_features)
        fits &= pair.up.shape == (target.out_features, rank)
        if pair.bias is not None:
            fits &= target.bias is not None and pair.bias.shape == target.bias.shape
        if not fits:
            shapes = f"{tuple(pair.up.shape)} x {tuple(pair.down.shape)}"
            wanted = f"{target.out_features} x {target.in_features}"
            raise unusable(name, f"has {shapes} at '{module}'; the layer is {wanted}")


class Merged:
    """The adapters in one transformer now, and what it takes to undo them."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = ref(model)
        self._originals: dict[torch.Tensor, torch.Tensor] = {}
        self.key: tuple[str, ...] = ()

    @torch.no_grad()
    def apply(self, adapters: Sequence[Weighted]) -> None:
        """Make exactly ``adapters`` the ones merged. They have been checked."""
        key = tuple(weighted.key for weighted in adapters)
        if key == self.key:
            return
        self.restore()
        model = self._model()
        assert model is not None
        modules = dict(model.named_modules())
        touched: dict[str, list[tuple[Pair, float]]] = {}
        for weighted in adapters:
            for module, pair in weighted.adapter.pairs.items():
                touched.setdefault(module, []).append((pair, weighted.scale))
        for module, pairs in touched.items():
            layer = modules[module]
            assert isinstance(layer, torch.nn.Linear)
            self._add(layer.weight, [(s * p.scale, p.up, p.down) for p, s in pairs])
            biases = [(s * p.scale, p.bias) for p, s in pairs if p.bias is not None]
            if biases:
                self._add(layer.bias, [(s, bias, None) for s, bias in biases])
        self.key = key

    @torch.no_grad()
    def restore(self) -> None:
        for weight, original in self._originals.items():
            weight.data.copy_(original)
        self._originals.clear()
        self.key = ()

    def _add(
        self,
        weight: torch.Tensor,
        terms: Sequence[tuple[float, torch.Tensor, torch.Tensor | None]],
    ) -> None:
        pinned = weight.device.type == "cuda"
        original = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=pinned)
        self._originals[weight] = original.copy_(weight.data)
        total = weight.data.float()
        for scale, left, right in terms:
            term = left.to(weight.device, torch.float32)
            if right is not None:
                term = term @ right.to(weight.device, torch.float32)
            total = total + scale * term
        weight.data.copy_(total)


_merged: WeakKeyDictionary[torch.nn.Module, Merged] = WeakKeyDictionary()


def merged_in(model: torch.nn.Module) -> Merged:
    """Return what is merged into ``model``, whoever merged it."""
    if model not in _merged:
        _merged[model] = Merged(model)
    return _merged[model]
