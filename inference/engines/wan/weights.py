"""Where a checkpoint's files are, and whether they are all there.

A checkpoint is a folder in diffusers layout under the weights folder. When it is not
there it is brought once: from a prefix in S3 (``s3://bucket/prefix``), from the hub
(``hub:owner/name[@revision]``), from another local folder, or made on the spot from
random numbers (``synthetic:KIND``). ``WeightsMissing`` names the first file that is
missing and every place that was looked at.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.errors import WeightsMissing

if TYPE_CHECKING:
    from inference.contracts import Context
    from inference.engines.wan.profiles import Checkpoint

INDEX = "model_index.json"
_CONFIGS = {
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "image_processor": "preprocessor_config.json",
}
# The hub's copies also hold the original .pth files; never fetch what is never read.
_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt")
_SAMPLES, _SAMPLE_BYTES = 16, 64 * 1024


@dataclass(frozen=True)
class Sources:
    """Where this host looks. ``table`` is the operator's: checkpoint name → address."""

    root: Path
    table: Mapping[str, str] = field(default_factory=dict)
    s3: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, context: Context) -> Sources:
        options = context.options
        return cls(
            context.weights,
            options.get("weights_sources", {}),
            options.get("weights_s3", {}),
        )

    def find(self, checkpoint: Checkpoint) -> Path | None:
        """Return the complete local folder, None when something would have to come."""
        folder = self.folder(checkpoint)
        return folder if folder and first_missing(folder) is None else None

    def folder(self, checkpoint: Checkpoint) -> Path | None:
        given = self.table.get(checkpoint.name, "")
        if given and ":" not in given:
            return Path(given)
        folder = self.root / checkpoint.name
        source = given or checkpoint.source
        return folder if folder.exists() and _is_wanted(folder, source) else None

    def locate(self, checkpoint: Checkpoint) -> Path:
        """Return the complete folder, bringing or making it first if need be."""
        source = self.table.get(checkpoint.name, checkpoint.source)
        found = self.folder(checkpoint)
        folder = found or self.root / checkpoint.name
        looked = [str(folder)]
        if found is None and ":" in source:
            looked.append(source)
            with self._alone(checkpoint.name):
                if self.folder(checkpoint) is None:
                    folder = self._bring(source, folder)
        missing = first_missing(folder)
        if missing is not None:
            raise _missing(checkpoint, missing, looked)
        return folder

    def _bring(self, source: str, folder: Path) -> Path:
        scheme, _, rest = source.partition(":")
        if scheme == "hub":
            return self._from_hub(rest, folder)
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        if scheme == "s3":
            self._from_s3(rest.removeprefix("//"), part)
        elif scheme == "synthetic":
            from inference.engines.wan import synthetic

            synthetic.save(rest, part)
        else:
            raise WeightsMissing(f"{source!r} is no source of weights")
        if any(part.iterdir()):
            part.rename(folder)  # a folder with this name is always a finished one
        else:
            part.rmdir()
        return folder

    def _from_s3(self, address: str, target: Path) -> None:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, _, prefix = address.partition("/")
        prefix = prefix.strip("/") + "/"
        client = boto3.client("s3", **self.s3)
        try:
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=prefix
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    path = target / entry["Key"].removeprefix(prefix)
                    if not path.resolve().is_relative_to(target.resolve()):
                        raise WeightsMissing(f"s3://{bucket}/{entry['Key']} leads out")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    client.download_file(bucket, entry["Key"], str(path))
        except (BotoCoreError, ClientError) as error:
            shutil.rmtree(target, ignore_errors=True)
            raise WeightsMissing(
                f"s3://{address} cannot be read: {error}", permanent=False
            ) from error

    def _from_hub(self, address: str, folder: Path) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        name, _, revision = address.partition("@")
        try:
            found = snapshot_download(
                name,
                revision=revision or None,
                cache_dir=self.root / ".hub",
                allow_patterns=list(_PATTERNS),
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise WeightsMissing(
                f"{folder / INDEX} is missing; looked in {folder} and on the hub for "
                f"{name}: {error}",
                permanent=False,
            ) from error
        if first_missing(Path(found)) is not None:
            return Path(found)
        # From now on the hub is not asked: a restart takes no other weights.
        link = folder.with_name(f".{folder.name}.link")
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(found, folder.parent))
        link.replace(folder)
        return folder

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """One process per host brings a checkpoint; the others wait for it."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def revision(folder: Path) -> str:
    """Return the hub's commit that a checkpoint is, "" for one from elsewhere."""
    snapshot = folder.resolve()
    return snapshot.name if snapshot.parent.name == "snapshots" else ""


def _is_wanted(folder: Path, source: str) -> bool:
    """Return whether ``folder`` is no link to another commit than ``source`` pins."""
    scheme, _, address = source.partition(":")
    pinned = address.partition("@")[2] if scheme == "hub" else ""
    if not pinned or not folder.is_symlink():
        return True
    ref = folder.resolve().parent.parent / "refs" / pinned
    return revision(folder) == (ref.read_text().strip() if ref.is_file() else pinned)


def first_missing(folder: Path) -> Path | None:
    """Return the first file a checkpoint in ``folder`` lacks, None when complete."""
    index = folder / INDEX
    if not index.is_file():
        return index
    for name in components(folder):
        part = folder / name
        config = part / _CONFIGS.get(name, "config.json")
        if not config.is_file():
            return config
        if name in _CONFIGS:
            continue
        lacking = _first_missing_shard(part, name)
        if lacking is not None:
            return lacking
    return None


def components(folder: Path) -> list[str]:
    """Return the names of the parts that ``model_index.json`` says are there."""
    entries = json.loads((folder / INDEX).read_text())
    return [
        name
        for name, value in entries.items()
        if isinstance(value, list) and value[0] is not None
    ]


def weight_files(part: Path) -> list[Path]:
    """Return the safetensors files of one part, whether they exist or not."""
    for index in sorted(part.glob("*.safetensors.index.json")):
        shards = json.loads(index.read_text())["weight_map"].values()
        return [part / shard for shard in sorted(set(shards))]
    return sorted(part.glob("*.safetensors"))


def digest(part: Path) -> str:
    """Return a short name for the weights in ``part``: same bytes, same name.

    Sampled (16 spots of 64 KiB per file beside its length and header), so that 57 GB are
    named in milliseconds: it tells checkpoints apart, it does not prove integrity.
    """
    total = hashlib.sha256()
    for path in [*sorted(part.glob("*config.json")), *weight_files(part)]:
        size = path.stat().st_size
        total.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for spot in range(_SAMPLES):
                file.seek(spot * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                total.update(file.read(_SAMPLE_BYTES))
    return total.hexdigest()[:16]


def _first_missing_shard(part: Path, name: str) -> Path | None:
    files = weight_files(part)
    if not files:
        text = name in {"text_encoder", "image_encoder"}
        return part / ("model.safetensors" if text else _DIFFUSION_FILE)
    for path in files:
        if not path.is_file() or not os.access(path, os.R_OK):
            return path
    return None


_DIFFUSION_FILE = "diffusion_pytorch_model.safetensors"


def _missing(checkpoint: Checkpoint, path: Path, looked: list[str]) -> WeightsMissing:
    return WeightsMissing(
        f"{path} is missing; looked for {checkpoint.name} in {', then '.join(looked)}"
    )
