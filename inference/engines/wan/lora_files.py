"""From a LoRA's name in a request to a checked local file.

A name is looked up first in the operator's table (alias → stored key and SHA-256), then,
when it is an https address or a hub name, among the hosts in ``LORA_SOURCES``. Nothing
else is ever reached, by a redirect neither. Files are capped in size and kept in a local folder, least recently
used out first. ``permitted`` answers the same question without fetching, so that a
request can be refused before it is charged. Torch-free.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import struct
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from inference.errors import InputRejected

if TYPE_CHECKING:
    from inference.contracts import Context, Lora

#: A rank-256 LoRA over every linear layer of a 14B expert is 2.5 GB in bf16.
FILE_BYTES = 3 * 2**30
FOLDER_BYTES = 50 * 2**30
#: A part nobody has written to for so long is nobody's.
PART_SECONDS = 3600
HEADER_BYTES = 16 * 2**20
_DTYPES = {"F32", "F16", "BF16"}
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_HUB = "huggingface.co"
#: The hub answers with a redirect to one of its stores, such as cdn-lfs.hf.co.
_HUB_STORES = (".hf.co", ".huggingface.co")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+\.safetensors)?")


@dataclass(frozen=True)
class Alias:
    """A row of the operator's table: a file in our own storage."""

    key: str
    sha256: str


@dataclass(frozen=True)
class LoraFile:
    """A local file and its SHA-256."""

    path: Path
    sha256: str


def permitted(path: str, *, aliases: Collection[str], sources: Collection[str]) -> bool:
    """Say whether ``path`` names a LoRA this installation would try to load."""
    return path in aliases or _address(path, sources) is not None


def _address(path: str, sources: Collection[str]) -> str | None:
    """Return the https address behind ``path`` if its host is in ``sources``."""
    parts = urlsplit(path)
    if parts.scheme == "https" and parts.hostname and not parts.username:
        return path if _host(parts.hostname, parts.port) in sources else None
    if _HUB in sources and _HUB_NAME.fullmatch(path) and ".." not in path:
        owner, name, *rest = path.split("/")
        file = "/".join(rest) or "pytorch_lora_weights.safetensors"
        return f"https://{_HUB}/{owner}/{name}/resolve/main/{quote(file)}"
    return None


def _host(name: str, port: int | None) -> str:
    return name if port in {None, 443} else f"{name}:{port}"


class LoraFiles:
    """The local folder of one process' LoRAs; other processes may share it."""

    def __init__(
        self,
        context: Context,
        *,
        file_bytes: int = FILE_BYTES,
        folder_bytes: int = FOLDER_BYTES,
    ) -> None:
        options = context.options
        self._context = context
        self._folder = context.weights / ".loras"
        # Asked anew each time: it may be a view of a table that operators edit.
        self._aliases: Mapping[str, Alias | Mapping[str, str]] = options.get(
            "lora_aliases", {}
        )
        self._sources = frozenset(options.get("lora_sources", ()))
        self._file_bytes, self._folder_bytes = file_bytes, folder_bytes

    def get(self, path: str) -> LoraFile:
        """Return the file that ``path`` names.

        Raises InputRejected (field ``loras``) for an unknown name, a host that is not
        listed, a file that is too large or differs from the one that was registered.
        """
        row = self._aliases.get(path)
        if row is not None:
            alias = row if isinstance(row, Alias) else Alias(**row)
            return self._from_storage(path, alias)
        address = _address(path, self._sources)
        if address is None:
            raise _rejected(f"LoRA '{path}' is not known here.")
        return self._from_network(path, address)

    def _from_storage(self, name: str, alias: Alias) -> LoraFile:
        target = self._folder / f"{alias.sha256}.safetensors"
        if not _used(target):
            stored = self._context.storage.stat(alias.key)
            if stored is None:
                raise _rejected(f"LoRA '{name}' is registered, but its file is gone.")
            self._check_size(stored.size_bytes)
            part = self._part(alias.sha256)
            try:
                self._context.storage.get_file(alias.key, part)
                if file_sha256(part) != alias.sha256:
                    raise _rejected(f"LoRA '{name}' is not the file that was approved.")
                self._keep(part, target)
            finally:
                part.unlink(missing_ok=True)
        return LoraFile(target, alias.sha256)

    def _from_network(self, name: str, address: str) -> LoraFile:
        # An address is not content: another file may stand there tomorrow. The link from
        # address to content lives as long as the file it points to.
        link = self._folder / hashlib.sha256(address.encode()).hexdigest()
        if not _used(link):
            part = self._part(link.name)
            try:
                self._context.egress.fetch_to(
                    address,
                    part,
                    max_bytes=self._file_bytes,
                    field="loras",
                    may_lead_to=self._may_lead_to,
                )
                digest = file_sha256(part)
                self._keep(part, self._folder / f"{digest}.safetensors")
                part.symlink_to(f"{digest}.safetensors")
                part.replace(link)
            finally:
                part.unlink(missing_ok=True)
        target = self._folder / link.readlink()
        return LoraFile(target, target.stem)

    def _may_lead_to(self, host: str) -> bool:
        if _HUB in self._sources and host.endswith(_HUB_STORES):
            return True
        return host in self._sources

    def _part(self, name: str) -> Path:
        """Return where a file is fetched to; what killed workers left there goes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        old = time.time() - PART_SECONDS
        # Some downloads add an ending of their own.
        for changed, _size, left in _seen(self._folder.glob(".*.part*")):
            if changed < old:
                left.unlink(missing_ok=True)
        return self._folder / f".{name}.{os.getpid()}.part"

    def _keep(self, part: Path, target: Path) -> None:
        size = part.stat().st_size
        self._check_size(size)
        kept = sorted(_seen(self._folder.glob("*.safetensors")))
        total = sum(bytes_ for _changed, bytes_, _path in kept) + size
        for _changed, bytes_, oldest in kept:
            if total <= self._folder_bytes:
                break
            total -= bytes_
            oldest.unlink(missing_ok=True)
        if shutil.disk_usage(self._folder).free < size // 10:
            raise _rejected("There is no room for another LoRA.")
        part.rename(target)

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._file_bytes:
            raise _rejected(f"A LoRA may have at most {self._file_bytes} bytes.")


def _used(path: Path) -> bool:
    """Note that ``path`` is in use; False when it is not there (any more).

    Never makes a file: its name says what is in it, and nobody looks again.
    """
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _seen(paths: Iterable[Path]) -> Iterator[tuple[float, int, Path]]:
    """Yield change time, size and path of those that another process leaves there."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            yield status.st_mtime, status.st_size, path


def check_container(path: Path, name: str, *, file_bytes: int) -> dict[str, str]:
    """Return the metadata of a safetensors file after reading only its header."""
    size = path.stat().st_size
    if size > file_bytes:
        raise unusable(name, f"has {size} bytes; at most {file_bytes} are allowed")
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(_PICKLES):
            raise unusable(name, "is a pickle; only safetensors files are read")
        if len(start) < 8:
            raise unusable(name, "is not a safetensors file")
        (length,) = struct.unpack("<Q", start)
        if not 2 <= length <= min(HEADER_BYTES, size - 8):
            raise unusable(name, "is not a safetensors file")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise unusable(name, "has a damaged header") from error
    if not isinstance(header, dict):
        raise unusable(name, "has a damaged header")
    metadata = header.pop("__metadata__", {})
    for key, entry in header.items():
        if not isinstance(entry, dict) or entry.get("dtype") not in _DTYPES:
            raise unusable(name, f"holds '{key}', which is not fp32, fp16 or bf16")
    return metadata if isinstance(metadata, dict) else {}


def unusable(name: str, why: str) -> InputRejected:
    """Return the customer's error for a file that cannot be used."""
    return _rejected(f"LoRA '{name}' {why}.")


def together_unusable(loras: Iterable[Lora]) -> InputRejected:
    """Return the customer's error for LoRAs with which the model computes nonsense."""
    names = ", ".join(f"'{lora.path}'" for lora in loras)
    return _rejected(f"The model makes no picture with LoRA {names} at this strength.")


def local(path: Path) -> LoraFile:
    """Return an operator's own file; its SHA-256 is computed once per version of it."""
    status = path.stat()
    return LoraFile(path, _known_sha256(path, status.st_mtime_ns, status.st_size))


@functools.lru_cache(maxsize=64)
def _known_sha256(path: Path, changed: int, size: int) -> str:
    return file_sha256(path)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rejected(message: str) -> InputRejected:
    return InputRejected(message, field="loras", code="invalid_lora")
