"""What our own engines refuse before anyone is charged, and LoRAs by name."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from inference.catalogue import MODELS
from inference.contracts import Lora as Asked
from inference.errors import InputRejected, Unsupported
from inference.testing import DirectoryStorage
from jobs import context, ours
from jobs.models import Lora
from jobs.requests import JobRequest, Picture

pytestmark = pytest.mark.django_db


def ask(model: str = "wan2.2-i2v", **options: Any) -> JobRequest:
    picture = Picture(url="https://photos.example/a.jpg")
    return JobRequest.build(MODELS[model], image=picture, **options)


def check(request: JobRequest) -> None:
    """Check it for the model's own engine route."""
    (route,) = (r for r in MODELS[request.model].routes if r.runner == "wan")
    ours.check(request, runner="wan", profile=route.profile)


def safetensors(path: Path) -> Path:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return path


@pytest.fixture(autouse=True)
def fresh_context() -> Iterator[None]:
    """The process's context is built once; here it must see this test's services."""
    context.get.cache_clear()
    yield
    context.get.cache_clear()


@pytest.fixture
def storage(tmp_path: Path) -> DirectoryStorage:
    return DirectoryStorage(tmp_path / "stored")


def test_a_registered_lora_may_be_asked_for_by_its_name(
    tmp_path: Path, storage: DirectoryStorage
) -> None:
    request = ask(loras=(Asked("paper"),))
    with pytest.raises(Unsupported, match="'paper' is not known here") as refused:
        check(request)
    assert refused.value.field == "loras"
    row = ours.register("paper", safetensors(tmp_path / "a.safetensors"), storage)
    check(request)
    assert dict(ours.LoraTable()["paper"]) == {"key": row.key, "sha256": row.sha256}
    stored = storage.stat(row.key)
    assert stored is not None
    assert stored.sha256 == row.sha256


def test_a_lora_that_was_switched_off_is_not_known(
    tmp_path: Path, storage: DirectoryStorage
) -> None:
    ours.register("paper", safetensors(tmp_path / "a.safetensors"), storage)
    Lora.objects.update(is_enabled=False)
    with pytest.raises(Unsupported):
        check(ask(loras=(Asked("paper"),)))
    assert "paper" not in ours.LoraTable()
    assert list(ours.LoraTable()) == []
    assert len(ours.LoraTable()) == 0


def test_both_halves_of_a_pair_must_be_known(
    tmp_path: Path, storage: DirectoryStorage
) -> None:
    ours.register("high", safetensors(tmp_path / "a.safetensors"), storage)
    with pytest.raises(Unsupported, match="'low'"):
        check(ask(loras=(Asked("high", path_low="low"),)))


@pytest.mark.parametrize("model", ["wan2.1-i2v", "wan2.2-ti2v-5b"])
@pytest.mark.parametrize("pair", [{"path_low": "low"}, {"scale_low": 0.5}])
def test_a_pair_is_refused_where_there_is_one_transformer(
    tmp_path: Path, storage: DirectoryStorage, model: str, pair: dict[str, Any]
) -> None:
    for name in ("high", "low"):
        ours.register(name, safetensors(tmp_path / f"{name}.safetensors"), storage)
    check(ask(model, loras=(Asked("high"),)))
    with pytest.raises(Unsupported, match="one transformer") as refused:
        check(ask(model, loras=(Asked("high", **pair),)))
    assert refused.value.field == "loras"
    check(ask("wan2.2-i2v", loras=(Asked("high", **pair),)))


def test_an_address_needs_its_host_in_the_list(settings: Any) -> None:
    request = ask(
        loras=(Asked("https://huggingface.co/a/b/resolve/main/c.safetensors"),)
    )
    with pytest.raises(Unsupported):
        check(request)
    settings.LORA_SOURCES = ["huggingface.co"]
    check(request)


def test_a_clip_to_a_last_image_keeps_its_last_frame() -> None:
    last = Picture(url="https://photos.example/b.jpg")
    check(ask(last_image=last, frames=81))
    with pytest.raises(Unsupported, match="4k") as refused:
        check(ask(last_image=last, frames=83))
    assert refused.value.field == "frames"


def test_other_engines_are_asked_nothing_of_ours() -> None:
    ours.check(ask("motion"), runner="motion", profile="")
    with pytest.raises(Unsupported) as refused:
        ours.check(ask(loras=(Asked("paper"),)), runner="remote", profile="")
    assert refused.value.field == "loras"


def test_a_file_that_is_no_lora_is_not_registered(
    tmp_path: Path, storage: DirectoryStorage
) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"PK\x03\x04 a pickle in a zip")
    with pytest.raises(InputRejected, match="pickle"):
        ours.register("bad", bad, storage)
    assert not Lora.objects.exists()
    with pytest.raises(CommandError, match="pickle"):
        call_command("addlora", "bad", str(bad))


def test_the_command_registers(
    s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("addlora", "paper", str(safetensors(tmp_path / "a.safetensors")))
    assert capsys.readouterr().out.startswith("paper ")
    assert str(Lora.objects.get()) == "paper"
