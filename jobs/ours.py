"""What our own engines refuse before anyone is charged, and the operators' LoRAs.

A LoRA is asked for by name: a row of ``Lora`` first, else an address whose host is in
``LORA_SOURCES``. The rows' files are checked when they are registered and again, by
SHA-256, when a worker fetches them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from django.conf import settings

from inference.engines.wan import lora_files
from inference.engines.wan.profiles import PROFILES
from inference.errors import Unsupported
from jobs.models import Lora
from jobs.requests import JobRequest

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from inference.storage import Storage


def check(request: JobRequest, *, runner: str, profile: str) -> None:
    """Raise Unsupported, naming the field, for what the route's engine cannot do."""
    if runner == "remote" and request.loras:
        raise Unsupported("This server takes no LoRAs.", field="loras")
    if runner != "wan":
        return
    if request.last_image is not None and request.frames % 4 != 1:
        # Any other length is trimmed at its tail, which is the given last image.
        raise Unsupported(
            "A clip that ends on a given image needs 4k + 1 frames.", field="frames"
        )
    if profile in PROFILES:
        PROFILES[profile].check_loras(request.loras)
    names = {
        name
        for lora in request.loras
        for name in (lora.path, lora.path_low)
        if name is not None
    }
    if not names:
        return
    for name in unknown_loras(names):
        raise Unsupported(f"LoRA '{name}' is not known here.", field="loras")


def unknown_loras(names: Collection[str]) -> list[str]:
    """Return those of ``names`` that are no enabled LoRA and no allowed address."""
    known = set(_enabled().filter(pk__in=names).values_list("pk", flat=True))
    return [
        name
        for name in sorted(names)
        if not lora_files.permitted(name, aliases=known, sources=settings.LORA_SOURCES)
    ]


def register(name: str, file: Path, storage: Storage) -> Lora:
    """Check and store a LoRA's file; customers may ask for it by ``name`` from now on.

    Raises InputRejected for a file that is no safetensors LoRA. Whether it fits a model
    is known once a worker has it.
    """
    lora_files.check_container(file, name, file_bytes=lora_files.FILE_BYTES)
    digest = lora_files.file_sha256(file)
    key = f"loras/{digest}.safetensors"
    storage.put_file(key, file)
    row, _ = Lora.objects.update_or_create(
        name=name, defaults={"key": key, "sha256": digest, "is_enabled": True}
    )
    return row


class LoraTable(Mapping[str, Mapping[str, str]]):
    """The enabled rows as a worker's engine reads them: anew at each question."""

    def __getitem__(self, name: str) -> Mapping[str, str]:
        row = _enabled().filter(pk=name).first()
        if row is None:
            raise KeyError(name)
        return {"key": row.key, "sha256": row.sha256}

    def __iter__(self) -> Iterator[str]:
        return iter(_enabled().values_list("pk", flat=True))

    def __len__(self) -> int:
        return _enabled().count()


def _enabled() -> QuerySet[Lora]:
    return Lora.objects.filter(is_enabled=True)
