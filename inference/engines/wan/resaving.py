"""Writing a checkpoint again in the types it is run in: once per host, then faster starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from inference.engines.wan import loading, weights
from inference.errors import WeightsMissing

#: one part in memory at a time; the largest is an expert of 28.6 GB
SHARD_SIZE = "5GB"


def resave(source: Path, target: Path, *, tell: Callable[[str], None]) -> None:
    missing = weights.first_missing(source)
    if missing is not None:
        raise WeightsMissing(f"{missing} is missing; looked in {source}")
    if target.exists():
        raise FileExistsError(f"{target} exists already")
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    shutil.copy2(source / weights.INDEX, part)
    # The VAE stays fp32: in bf16 it is a choice of quality, not of format.
    types = loading.dtypes(torch.device("cuda"))
    for name in weights.components(source):
        tell(f"{name}…")
        if name in types:
            module: Any = loading.load_part(source, name, types[name])
            module.save_pretrained(part / name, max_shard_size=SHARD_SIZE)
            del module
        else:
            shutil.copytree(source / name, part / name)
    part.rename(target)
    before, after = (_size(folder) for folder in (source, target))
    tell(f"{target}: {after / 1e9:.2f} GB, was {before / 1e9:.2f} GB")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
