"""Where checkpoints come from, and what is said when one is not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.engines.wan import loading, resaving, synthetic, weights
from inference.engines.wan.engine import WanEngine
from inference.engines.wan.profiles import PROFILES, Checkpoint
from inference.engines.wan.weights import Sources, first_missing
from inference.errors import WeightsMissing
from tests.inference.engines.wan.conftest import KINDS, MakeEngine, ask, profile
from tests.inference.engines.wan.test_jobs import clip


@pytest.fixture
def tiny(weights: Path) -> Path:
    return weights / "tiny-2.2"


def checkpoint(source: str = "hub:nobody/nothing") -> Checkpoint:
    return Checkpoint("mine", "2.2", source)


def test_a_local_folder_is_taken_as_it_is(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "mine")
    assert Sources(tmp_path).locate(checkpoint()) == tmp_path / "mine"
    assert Sources(tmp_path).find(checkpoint()) == tmp_path / "mine"


def test_the_operator_may_name_another_folder(tiny: Path, tmp_path: Path) -> None:
    sources = Sources(tmp_path, {"mine": str(tiny)})
    assert sources.locate(checkpoint()) == tiny


@pytest.mark.parametrize(
    "gone",
    [
        "model_index.json",
        "transformer_2/diffusion_pytorch_model.safetensors",
        "transformer/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_the_file_that_is_missing_is_named(
    gone: str, tiny: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny, tmp_path / "mine")
    (tmp_path / "mine" / gone).unlink()
    with pytest.raises(WeightsMissing) as missing:
        Sources(tmp_path).locate(checkpoint())
    assert str(tmp_path / "mine" / gone) in str(missing.value)
    assert f"looked for mine in {tmp_path / 'mine'}" in str(missing.value)
    assert missing.value.public == "The model is not available at present."


def test_one_missing_shard_of_many_is_named(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(tiny, folder)
    part = folder / "transformer"
    whole = part / "diffusion_pytorch_model.safetensors"
    first = "diffusion_pytorch_model-00001-of-00002.safetensors"
    second = first.replace("00001", "00002", 1)
    whole.rename(part / first)
    table = {"a": first, "b": second}
    index = part / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    assert first_missing(folder) == part / second


def test_an_engine_without_weights_takes_no_job(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    with pytest.raises(WeightsMissing, match=r"tiny-2.2.*hub.*nobody/nothing"):
        make_engine("2.2", weights=tmp_path)


def test_a_folder_that_holds_another_kind_is_refused(
    make_engine: MakeEngine, weights: Path, tmp_path: Path
) -> None:
    shutil.copytree(weights / "tiny-2.1", tmp_path / "tiny-2.2")
    with pytest.raises(WeightsMissing, match="image_encoder"):
        make_engine("2.2", weights=tmp_path)


def test_two_experts_need_a_boundary(
    make_engine: MakeEngine, tiny: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny, tmp_path / "tiny-2.2")
    path = tmp_path / "tiny-2.2" / "model_index.json"
    index = json.loads(path.read_text())
    index["boundary_ratio"] = None
    path.write_text(json.dumps(index))
    with pytest.raises(WeightsMissing, match="no boundary_ratio"):
        make_engine("2.2", weights=tmp_path)


def test_random_weights_are_made_on_the_spot_and_only_once(tmp_path: Path) -> None:
    tiny = PROFILES["wan-tiny"].checkpoints[0][1]
    made = Sources(tmp_path).locate(tiny)
    assert made == tmp_path / "wan-tiny"
    assert first_missing(made) is None
    stamp = (made / "model_index.json").stat().st_mtime_ns
    assert Sources(tmp_path).locate(tiny) == made
    assert (made / "model_index.json").stat().st_mtime_ns == stamp


def test_random_weights_are_the_same_everywhere(tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    for name in "ab":
        synthetic.save("2.1", tmp_path / name)
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody's dice touched
    one, other = (weights.digest(tmp_path / n / "transformer") for n in "ab")
    assert one == other


def test_an_unknown_kind_of_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="no source of weights"):
        Sources(tmp_path).locate(checkpoint("ftp://x/y"))
    assert not (tmp_path / "mine").exists()


def test_weights_come_from_the_hub_by_its_own_client(
    tiny: Path, tmp_path: Path
) -> None:
    """The client's cache on disk stands for the network, which tests never reach."""
    commit = "a" * 40
    cached = cache_of_hub(tiny, tmp_path, commit)
    ours = checkpoint("hub:Wan-AI/Wan2.2")
    found = Sources(tmp_path).locate(ours)
    assert found.resolve() == cached / "snapshots" / commit
    assert Sources(tmp_path).find(ours) == found == tmp_path / "mine"
    with pytest.raises(WeightsMissing, match=r"on the hub for Wan-AI/Wan2\.2"):
        Sources(tmp_path).locate(checkpoint("hub:Wan-AI/Wan2.2@other"))


def cache_of_hub(tiny: Path, root: Path, *commits: str) -> Path:
    """Fill the hub client's cache; the last commit is main's."""
    cached = root / ".hub" / "models--Wan-AI--Wan2.2"
    for commit in commits:
        shutil.copytree(tiny, cached / "snapshots" / commit)
    (cached / "refs").mkdir(exist_ok=True)
    (cached / "refs" / "main").write_text(commits[-1])
    return cached


def test_a_restart_takes_no_newer_weights_unless_they_are_pinned(
    tiny: Path, tmp_path: Path
) -> None:
    old, new = "a" * 40, "b" * 40
    cache_of_hub(tiny, tmp_path, old)
    ours = checkpoint("hub:Wan-AI/Wan2.2")
    assert weights.revision(Sources(tmp_path).locate(ours)) == old
    cache_of_hub(tiny, tmp_path, new)
    assert weights.revision(Sources(tmp_path).locate(ours)) == old
    for commit in (new, old):
        pinned = checkpoint(f"hub:Wan-AI/Wan2.2@{commit}")
        assert weights.revision(Sources(tmp_path).locate(pinned)) == commit
        assert Sources(tmp_path).find(pinned) == tmp_path / "mine"


def test_the_fingerprint_names_the_hubs_commit(
    make_engine: MakeEngine, weights: Path, tmp_path: Path
) -> None:
    commit = "a" * 40
    folder = tmp_path / ".hub" / "models--x--y" / "snapshots" / commit
    shutil.copytree(weights / "tiny-2.2", folder)
    (tmp_path / "tiny-2.2").symlink_to(folder)
    engine = make_engine("2.2", weights=tmp_path)
    assert engine.fingerprint(ask("2.2"))["revision"] == commit


def test_weights_come_from_a_prefix_in_s3(
    s3_address: dict[str, str], s3: str, tiny: Path, tmp_path: Path
) -> None:
    import boto3

    access: dict[str, Any] = {
        "endpoint_url": s3_address["S3_ENDPOINT_URL"],
        "aws_access_key_id": s3_address["S3_ACCESS_KEY"],
        "aws_secret_access_key": s3_address["S3_SECRET_KEY"],
        "region_name": "us-east-1",
    }
    bucket = s3_address.get("S3_BUCKET", "zoetrope")
    client = boto3.client("s3", **access)
    for path in tiny.rglob("*"):
        if path.is_file():
            key = f"{s3}weights/{path.relative_to(tiny)}"
            client.upload_file(str(path), bucket, key)
    source = f"s3://{bucket}/{s3}weights"
    sources = Sources(tmp_path, {"mine": source}, access)
    found = sources.locate(checkpoint())
    assert found == tmp_path / "mine"
    part = "transformer/diffusion_pytorch_model.safetensors"
    assert (found / part).read_bytes() == (tiny / part).read_bytes()
    empty = Sources(tmp_path, {"mine": f"s3://{bucket}/{s3}nothing"}, access)
    shutil.rmtree(found)
    with pytest.raises(WeightsMissing, match=r"model_index.json is missing.*s3://"):
        empty.locate(checkpoint())
    client.close()


def test_other_bytes_have_another_name(tiny: Path, tmp_path: Path) -> None:
    for name in ("same", "other"):
        shutil.copytree(tiny / "transformer", tmp_path / name)
    path = tmp_path / "other" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    names = [weights.digest(folder) for folder in sorted(tmp_path.iterdir())]
    assert weights.digest(tiny / "transformer") == names[1]
    assert names[0] != names[1]


@pytest.mark.parametrize("kind", KINDS)
def test_resaved_weights_are_those_a_gpu_worker_would_hold(
    kind: str, weights: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    resaving.resave(weights / f"tiny-{kind}", tmp_path / "half", tell=told.append)
    assert first_missing(tmp_path / "half") is None
    types = loading.dtypes(torch.device("cuda"))
    for name, dtype in types.items():
        if not (weights / f"tiny-{kind}" / name).exists():
            continue
        want = loading.load_part(weights / f"tiny-{kind}", name, dtype).state_dict()
        got = loading.load_part(tmp_path / "half", name, dtype).state_dict()
        assert want.keys() == got.keys()
        for key, tensor in want.items():
            assert tensor.dtype == got[key].dtype, key
            assert torch.equal(tensor, got[key]), key
    path = "transformer/diffusion_pytorch_model.safetensors"
    before = (weights / f"tiny-{kind}" / path).stat().st_size
    assert (tmp_path / "half" / path).stat().st_size < 0.7 * before
    assert "was" in told[-1]


def test_a_loaded_part_has_the_types_the_whole_pipeline_would_give_it(
    weights: Path,
) -> None:
    from diffusers import WanImageToVideoPipeline

    pipe = WanImageToVideoPipeline.from_pretrained(
        weights / "tiny-2.1",
        dtype={
            "default": torch.bfloat16,
            "vae": torch.float32,
            "image_encoder": torch.float32,
        },
    )
    for name, dtype in loading.dtypes(torch.device("cuda")).items():
        whole: Any = getattr(pipe, name, None)
        if whole is None:
            continue
        part = loading.load_part(weights / "tiny-2.1", name, dtype)
        for (key, one), other in zip(
            whole.named_parameters(), part.parameters(), strict=True
        ):
            assert one.dtype == other.dtype, (name, key)


def test_resaving_over_something_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        resaving.resave(tiny, tmp_path, tell=print)
    with pytest.raises(WeightsMissing):
        resaving.resave(tmp_path, tmp_path / "new", tell=print)


def test_wan_tiny_is_a_folder_and_no_branch(tmp_path: Path) -> None:
    from inference.testing import local_context

    engine = WanEngine("wan-tiny", local_context(tmp_path))
    engine.setup()
    made = clip(engine, ask("2.2", width=96, height=64, frames=17))
    assert made.shape == (17, 64, 96, 3)
    assert profile("2.2").kind == engine.profile.kind
