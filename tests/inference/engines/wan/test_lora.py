"""LoRAs: checked before a weight is touched, merged, and taken out bit for bit."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from safetensors.torch import save_file

from inference.contracts import Lora, Progress
from inference.egress import Egress
from inference.engines.wan import lora_files, synthetic
from inference.engines.wan.engine import WanEngine
from inference.engines.wan.lora import Merged, Parser, check_fits
from inference.engines.wan.lora_files import Alias, LoraFile, LoraFiles, permitted
from inference.engines.wan.profiles import Distilled
from inference.errors import InputRejected, Unsupported
from inference.testing import DirectoryStorage
from tests.inference.engines.wan.conftest import (
    MakeEngine,
    ask,
    make_frames,
    profile,
)
from tests.inference.engines.wan.test_jobs import clip

WIDTH, FFN, RANK = 24, 32, 3


def matrices(seed: int, prefix: str = "transformer.") -> dict[str, torch.Tensor]:
    """A LoRA for the tiny transformer in diffusers' own keys."""
    numbers = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=numbers)

    state: dict[str, torch.Tensor] = {}
    for block in range(2):
        for name in ("attn1.to_q", "attn1.to_out.0", "attn2.to_v"):
            key = f"{prefix}blocks.{block}.{name}.lora_"
            state |= {
                f"{key}A.weight": some(RANK, WIDTH),
                f"{key}B.weight": some(WIDTH, RANK),
            }
        key = f"{prefix}blocks.{block}.ffn.net.0.proj.lora_"
        state |= {
            f"{key}A.weight": some(RANK, WIDTH),
            f"{key}B.weight": some(FFN, RANK),
        }
    return state


def saved(
    path: Path, state: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> LoraFile:
    save_file(state, path, metadata=metadata)
    return LoraFile(path, lora_files.file_sha256(path))


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    folder = tmp_path / "stored"
    folder.mkdir()
    return folder


@pytest.fixture
def with_loras(make_engine: MakeEngine, shelf: Path) -> Callable[..., WanEngine]:
    """An engine whose storage holds the given LoRAs, each under its own name."""

    def make(kind: str, **states: dict[str, torch.Tensor]) -> WanEngine:
        aliases = {}
        for name, state in states.items():
            file = saved(shelf / f"{name}.safetensors", state)
            aliases[name] = Alias(f"{name}.safetensors", file.sha256)
        return make_engine(kind, storage=DirectoryStorage(shelf), lora_aliases=aliases)

    return make


def weights_of(engine: WanEngine) -> dict[str, torch.Tensor]:
    (model,) = engine._models.values()
    found: dict[str, torch.Tensor] = {}
    for name in engine.profile.experts:
        state = getattr(model.pipe, name).state_dict()
        found |= {f"{name}.{key}": value.clone() for key, value in state.items()}
    return found


def changed(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]
) -> set[str]:
    return {key for key in before if not torch.equal(before[key], after[key])}


# Merging


@pytest.mark.parametrize("form", ["diffusers", "comfyui", "musubi"])
def test_a_merged_lora_is_what_peft_would_compute(form: str, tmp_path: Path) -> None:
    if form == "diffusers":
        state = matrices(1)
        config = {"transformer.r": RANK, "transformer.lora_alpha": 6.0}
        header = {"lora_adapter_metadata": json.dumps(config)}
        targets = sorted({k.split(".lora_")[0].split(".", 1)[1] for k in state})
        config["transformer.target_modules"] = targets  # type: ignore[assignment]  # JSON
        header = {"lora_adapter_metadata": json.dumps(config)}
    else:
        state, header = _foreign(form), {}
    file = saved(tmp_path / "a.safetensors", state, header)
    merged, adapted = synthetic.tiny("2.1"), synthetic.tiny("2.1")
    adapter = Parser().parse(file, name="a")
    check_fits(adapter, merged.transformer, name="a")
    own = Merged(merged.transformer)
    from inference.engines.wan.lora import Weighted

    own.apply([Weighted(adapter, 0.7)])
    adapted.load_lora_weights(str(file.path), adapter_name="a", use_safetensors=True)
    adapted.set_adapters(["a"], [0.7])
    one, other = (_forward(pipe.transformer) for pipe in (merged, adapted))
    plain = _forward(synthetic.tiny("2.1").transformer)
    assert (one - other).abs().max() < 3e-5 * other.abs().max()
    assert (one - plain).abs().max() > 1e-3
    own.restore()
    assert torch.equal(_forward(merged.transformer), plain)


def _foreign(form: str) -> dict[str, torch.Tensor]:
    numbers = torch.Generator().manual_seed(1)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=numbers)

    state = {}
    for block in range(2):
        for module in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o",
                       "cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.o",
                       "ffn.0", "ffn.2"):  # fmt: skip
            wide = (FFN, WIDTH) if module == "ffn.0" else (WIDTH, WIDTH)
            wide = (WIDTH, FFN) if module == "ffn.2" else wide
            if form == "comfyui":
                key = f"diffusion_model.blocks.{block}.{module}"
            else:
                key = f"lora_unet_blocks_{block}_{module.replace('.', '_')}"
            state[f"{key}.lora_down.weight"] = some(RANK, wide[1]) * 0.2
            state[f"{key}.lora_up.weight"] = some(wide[0], RANK) * 0.2
            state[f"{key}.alpha"] = torch.tensor(2.0)
    return state


@torch.no_grad()
def _forward(transformer: Any) -> torch.Tensor:
    numbers = torch.Generator().manual_seed(3)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=numbers)

    made: torch.Tensor = transformer(
        hidden_states=some(1, 36, 2, 4, 4),
        timestep=torch.tensor([500]),
        encoder_hidden_states=some(1, 512, 32),
        encoder_hidden_states_image=some(1, 1025, 4),
        return_dict=False,
    )[0]
    return made


def test_a_bias_is_merged_and_restored_too(tmp_path: Path) -> None:
    from inference.engines.wan.lora import Weighted

    state = matrices(1) | {
        "transformer.blocks.0.attn1.to_q.lora_B.bias": torch.ones(WIDTH)
    }
    transformer = synthetic.tiny("2.1").transformer
    before = transformer.blocks[0].attn1.to_q.bias.clone()
    adapter = Parser().parse(saved(tmp_path / "a.safetensors", state), name="a")
    merged = Merged(transformer)
    merged.apply([Weighted(adapter, 0.5)])
    assert torch.equal(transformer.blocks[0].attn1.to_q.bias, before + 0.5)
    merged.restore()
    assert torch.equal(transformer.blocks[0].attn1.to_q.bias, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    from inference.engines.wan.lora import Weighted

    transformer = synthetic.tiny("2.1").transformer.to(dtype)
    before = {k: v.clone() for k, v in transformer.state_dict().items()}
    adapters = [
        Parser().parse(saved(tmp_path / f"{n}.safetensors", matrices(n)), name="a")
        for n in (1, 2, 3)
    ]
    merged = Merged(transformer)
    for chosen in ([0], [0, 1, 2], [2]):
        merged.apply([Weighted(adapters[n], 1.5) for n in chosen])
        assert changed(before, transformer.state_dict())
    merged.restore()
    assert not changed(before, transformer.state_dict())


def test_a_lora_recompiles_nothing(tmp_path: Path) -> None:
    from inference.engines.wan.lora import Weighted

    torch._dynamo.reset()
    graphs = 0

    def count(module: Any, _inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return module.forward

    transformer = synthetic.tiny("2.1").transformer.requires_grad_(requires_grad=False)
    transformer.compile_repeated_blocks(fullgraph=True, backend=count)
    plain = _forward(transformer)
    first = graphs
    merged = Merged(transformer)
    adapter = Parser().parse(saved(tmp_path / "a.safetensors", matrices(1)), name="a")
    for scale in (1.0, 0.5):
        merged.apply([Weighted(adapter, scale)])
        assert not torch.equal(_forward(transformer), plain)
    merged.restore()
    assert torch.equal(_forward(transformer), plain)
    assert first > 0
    assert graphs == first
    torch._dynamo.reset()


# In a job


def test_a_lora_changes_the_video_and_is_gone_with_the_next_job(
    with_loras: Callable[..., WanEngine],
) -> None:
    engine = with_loras("2.1", paper=matrices(1))
    plain = ask("2.1")
    before, weights = clip(engine, plain), weights_of(engine)
    styled = clip(engine, plain.replace(loras=(Lora("paper"),)))
    assert not np.array_equal(styled, before)
    assert np.array_equal(clip(engine, plain), before)
    assert not changed(weights, weights_of(engine))


def test_the_same_set_is_merged_once(
    with_loras: Callable[..., WanEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = with_loras("2.1", paper=matrices(1), ink=matrices(2))
    request = ask("2.1", loras=(Lora("paper", 0.8), Lora("ink", 0.4)))
    first = clip(engine, request)
    monkeypatch.setattr(Merged, "_add", None)  # a second merge would fail
    assert np.array_equal(clip(engine, request), first)


def test_a_pair_goes_to_its_experts(with_loras: Callable[..., WanEngine]) -> None:
    engine = with_loras("2.2", high=matrices(1), low=matrices(2))
    plain = clip(engine, ask("2.2", steps=4))
    before = weights_of(engine)

    def touched(lora: Lora) -> set[str]:
        made = clip(engine, ask("2.2", steps=4, loras=(lora,)))
        assert not np.array_equal(made, plain)
        names = changed(before, weights_of(engine))
        return {name.split(".")[0] for name in names}

    assert touched(Lora("high", path_low="low")) == {"transformer", "transformer_2"}
    assert touched(Lora("high")) == {"transformer", "transformer_2"}
    assert touched(Lora("high", scale_low=0.0)) == {"transformer"}
    assert touched(Lora("high", scale=0.0, scale_low=1.0)) == {"transformer_2"}


def test_the_fingerprint_names_the_loras(with_loras: Callable[..., WanEngine]) -> None:
    engine = with_loras("2.2", high=matrices(1), low=matrices(2))
    request = ask("2.2", loras=(Lora("high", 0.5, path_low="low"),))
    high, low = engine.fingerprint(request)["loras"].split(";")
    assert high.endswith("@0.5")
    assert low.endswith("@0.5")
    assert high != low


def test_a_pair_on_a_model_with_one_transformer_is_refused(
    with_loras: Callable[..., WanEngine],
) -> None:
    engine = with_loras("2.1", high=matrices(1))
    with pytest.raises(Unsupported) as refused:
        clip(engine, ask("2.1", loras=(Lora("high", path_low="high"),)))
    assert refused.value.field == "loras"


def test_the_four_step_lora_replaces_steps_and_guidance(
    make_engine: MakeEngine, weights: Path, tmp_path: Path
) -> None:
    import dataclasses

    names = ("four-high.safetensors", "four-low.safetensors")
    folder = tmp_path / "weights"
    (folder / "loras").mkdir(parents=True)
    (folder / "tiny-2.2").symlink_to(weights / "tiny-2.2")
    for seed, name in enumerate(names):
        saved(folder / "loras" / name, matrices(seed))
    quick = dataclasses.replace(
        profile("2.2"), distilled=Distilled(names, "published: 14 s against 216 s")
    )
    engine = make_engine("2.2", profile=quick, weights=folder)
    (model,) = engine._models.values()
    forwards: list[str] = []
    for name in ("transformer", "transformer_2"):
        getattr(model.pipe, name).register_forward_hook(
            lambda *_, name=name: forwards.append(name)
        )
    request = ask("2.2", steps=40, quality="fast")
    fast = clip(engine, request)
    assert forwards == ["transformer"] * 2 + ["transformer_2"] * 2
    assert engine.fingerprint(request)["mode"] == (
        "fast: published: 14 s against 216 s"
    )
    assert engine.fingerprint(request)["cache"] == "none"
    assert np.array_equal(clip(engine, request), fast)


# Files that must not get near the weights


def _write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))


def _write_torch(path: Path) -> None:
    torch.save({"a": torch.ones(1)}, path)


def _with(change: dict[str, torch.Tensor | None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        state = {**matrices(1), **change}
        save_file({k: v for k, v in state.items() if v is not None}, path)

    return write


def _headed(header: str) -> Callable[[Path], None]:
    metadata = {"lora_adapter_metadata": header}
    return lambda path: save_file(matrices(1), path, metadata=metadata)


_Q = "transformer.blocks.0.attn1.to_q.lora_"
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickle": (_write_pickle, "pickle"),
    "torch file": (_write_torch, "pickle"),
    "text": (lambda path: path.write_text("hello, world"), "not a safetensors"),
    "empty": (lambda path: path.write_bytes(b""), "not a safetensors"),
    "giant header": (
        lambda path: path.write_bytes(b"\xff\xff\xff\xff\x00\x00\x00\x00" + b"{}"),
        "not a safetensors",
    ),
    "damaged header": (
        lambda path: path.write_bytes((8).to_bytes(8, "little") + b"{]{]{]{]"),
        "damaged header",
    ),
    "cut off": (
        lambda path: (_with({})(path), path.write_bytes(path.read_bytes()[:-9])),
        "cannot be read",
    ),
    "wrong width": (_with({_Q + "A.weight": torch.ones(RANK, 7)}), "24 x 24"),
    "wrong height": (_with({_Q + "B.weight": torch.ones(7, RANK)}), "24 x 24"),
    "ranks differ": (_with({_Q + "A.weight": torch.ones(2, WIDTH)}), "24 x 24"),
    "huge rank": (
        _with({
            _Q + "A.weight": torch.ones(600, WIDTH),
            _Q + "B.weight": torch.ones(WIDTH, 600),
        }),
        "rank 600",
    ),
    "one half": (_with({_Q + "B.weight": None}), "one half"),
    "another model": (
        lambda path: save_file(
            {k.replace("blocks.", "blocks.9"): v for k, v in matrices(1).items()}, path
        ),
        "0 of 8 layers match",
    ),
    "other keys": (_with({"transformer.pos_embed": torch.ones(2)}), "no Wan LoRA key"),
    "not linear": (
        _with({
            "transformer.patch_embedding.lora_A.weight": torch.ones(1, 2),
            "transformer.patch_embedding.lora_B.weight": torch.ones(2, 1),
        }),
        "no linear layer",
    ),
    "integers": (
        _with({_Q + "A.weight": torch.ones(RANK, WIDTH, dtype=torch.int64)}),
        "not fp32",
    ),
    "not a number": (
        _with({_Q + "A.weight": torch.full((RANK, WIDTH), float("nan"))}),
        "not finite",
    ),
    "nothing": (_with({_Q + "A.weight": torch.ones(0, WIDTH)}), "holds nothing"),
    "a lone number": (_with({_Q + "A.weight": torch.tensor(1.0)}), "has"),
    **{
        f"header {header}": (_headed(header), "damaged alpha")
        for header in (
            "[]",
            '{"transformer.lora_alpha": "abc"}',
            '{"transformer.lora_alpha": NaN}',
            '{"transformer.lora_alpha": 1e400}',
            '{"transformer.lora_alpha": 1e30}',
            '{"transformer.alpha_pattern": [1]}',
            '{"transformer.alpha_pattern": {"blocks.0.attn1.to_q": []}}',
        )
    },
    "half a musubi file": (
        lambda path: save_file(
            {"lora_unet_blocks_0_self_attn_q.lora_down.weight": torch.ones(2, 2)}, path
        ),
        "cannot be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_the_customers_fault_and_touches_nothing(
    case: str, make_engine: MakeEngine, shelf: Path, shared: dict[str, WanEngine]
) -> None:
    write, why = BAD[case]
    write(shelf / "bad.safetensors")
    digest = lora_files.file_sha256(shelf / "bad.safetensors")
    engine = shared.setdefault("2.1", make_engine("2.1"))
    engine._files._aliases = {"bad": Alias("bad.safetensors", digest)}
    object.__setattr__(engine._context, "storage", DirectoryStorage(shelf))
    before = weights_of(engine)
    with pytest.raises(InputRejected) as rejected:
        clip(engine, ask("2.1", loras=(Lora("bad"),)))
    assert rejected.value.field == "loras"
    assert why in str(rejected.value)
    assert "'bad'" in str(rejected.value)
    assert not changed(before, weights_of(engine))


def test_a_lora_the_model_cannot_bear_is_named_after_one_step(
    make_engine: MakeEngine, shelf: Path
) -> None:
    huge = {key: tensor * 1e30 for key, tensor in matrices(1).items()}
    file = saved(shelf / "huge.safetensors", huge)
    engine = make_engine(
        "2.1",
        storage=DirectoryStorage(shelf),
        lora_aliases={"huge": Alias("huge.safetensors", file.sha256)},
    )
    before = weights_of(engine)
    told: list[Progress] = []
    with pytest.raises(InputRejected, match="'huge'") as rejected:
        clip(engine, ask("2.1", steps=8, loras=(Lora("huge"),)), told=told)
    assert (rejected.value.field, rejected.value.permanent) == ("loras", True)
    assert max(progress.fraction for progress in told) < 0.5
    assert not changed(before, weights_of(engine))


@pytest.fixture(scope="module")
def shared() -> dict[str, WanEngine]:
    return {}


def test_a_file_over_the_cap_is_refused_before_it_is_copied(
    shelf: Path, make_engine: MakeEngine
) -> None:
    file = saved(shelf / "big.safetensors", matrices(9))
    engine = make_engine(
        "2.1",
        storage=DirectoryStorage(shelf),
        lora_aliases={"big": Alias("big.safetensors", file.sha256)},
    )
    engine._files._file_bytes = 1000
    with pytest.raises(InputRejected, match="at most 1000 bytes"):
        clip(engine, ask("2.1", loras=(Lora("big"),)))


# Where a name leads


class FakeEgress(Egress):
    """Serves files by address and counts the visits."""

    def __init__(self, files: dict[str, Path]) -> None:
        self.files, self.visits = files, 0

    def fetch_to(self, url: str, target: Path, **how: Any) -> int:
        self.visits += 1
        assert how["max_bytes"] == lora_files.FILE_BYTES
        assert how["field"] == "loras"
        self.may_lead_to = how["may_lead_to"]
        return target.write_bytes(self.files[url].read_bytes())


def files(tmp_path: Path, **options: Any) -> LoraFiles:
    from inference.contracts import Context

    return LoraFiles(
        Context(
            storage=options.pop("storage", None),
            egress=options.pop("egress", None),
            workdir=tmp_path,
            weights=tmp_path / "weights",
            options=options,
        ),
        folder_bytes=options.pop("folder_bytes", 10**9),
    )


def test_the_operators_table_comes_before_any_address(tmp_path: Path) -> None:
    shelf = tmp_path / "stored"
    shelf.mkdir()
    name = "https://huggingface.co/a/b/resolve/main/c.safetensors"
    file = saved(shelf / "own.safetensors", matrices(1))
    egress = FakeEgress({})
    found = files(
        tmp_path,
        storage=DirectoryStorage(shelf),
        egress=egress,
        lora_aliases={name: {"key": "own.safetensors", "sha256": file.sha256}},
        lora_sources=["huggingface.co"],
    ).get(name)
    assert found.sha256 == file.sha256
    assert egress.visits == 0


def test_a_stored_file_that_is_not_the_approved_one_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "own.safetensors", matrices(1))
    table = {"paper": {"key": "own.safetensors", "sha256": "0" * 64}}
    with pytest.raises(InputRejected, match="not the file that was approved"):
        files(tmp_path, storage=DirectoryStorage(tmp_path), lora_aliases=table).get(
            "paper"
        )
    assert not list((tmp_path / "weights" / ".loras").glob("*"))


def test_a_listed_host_is_visited_once(tmp_path: Path) -> None:
    file = saved(tmp_path / "c.safetensors", matrices(1))
    address = "https://huggingface.co/a/b/resolve/main/c.safetensors"
    egress = FakeEgress({address: file.path})
    known = files(tmp_path, egress=egress, lora_sources=["huggingface.co"])
    for name in (address, "a/b/c.safetensors"):
        assert known.get(name).sha256 == file.sha256
    assert egress.visits == 1


def test_a_redirect_leads_only_to_listed_hosts_and_the_hubs_own_stores(
    tmp_path: Path,
) -> None:
    file = saved(tmp_path / "c.safetensors", matrices(1))

    def followed(source: str, *hosts: str) -> list[str]:
        address = f"https://{source}/a.safetensors"
        egress = FakeEgress({address: file.path})
        place = tmp_path / source
        files(place, egress=egress, lora_sources=[source]).get(address)
        return [host for host in hosts if egress.may_lead_to(host)]

    stores = ("cdn-lfs.hf.co", "cas-bridge.xethub.hf.co")
    others = ("evil.example", "hf.co.evil.example", "evilhf.co", "cdn-lfs.hf.co:8443")
    assert followed("huggingface.co", *stores, *others) == [*stores]
    assert followed("hub.example", "hub.example", *stores, *others) == ["hub.example"]


@pytest.mark.parametrize(
    "name",
    [
        "unknown",
        "https://evil.example/a.safetensors",
        "http://huggingface.co/a/b/resolve/main/c.safetensors",
        "https://huggingface.co:8443/a.safetensors",
        "https://user@huggingface.co/a.safetensors",
        "https://huggingface.co.evil.example/a.safetensors",
        "a/../../etc/passwd",
        "/etc/passwd",
        "file:///etc/passwd",
    ],
)
def test_every_other_name_is_refused_without_a_visit(name: str, tmp_path: Path) -> None:
    sources = ["huggingface.co"]
    assert not permitted(name, aliases={}, sources=sources)
    egress = FakeEgress({})
    with pytest.raises(InputRejected, match="not known here"):
        files(tmp_path, egress=egress, lora_sources=sources).get(name)
    assert egress.visits == 0


def test_without_sources_nothing_outside_is_known() -> None:
    name = "https://huggingface.co/a/b/resolve/main/c.safetensors"
    assert not permitted(name, aliases=(), sources=())
    assert permitted(name, aliases=(), sources=("huggingface.co",))
    assert permitted("paper", aliases={"paper": 1}, sources=())


def test_the_folder_keeps_the_files_used_last(tmp_path: Path) -> None:
    import os

    addresses = {
        f"https://hub.example/{seed}.safetensors": saved(
            tmp_path / f"{seed}.safetensors", matrices(seed)
        ).path
        for seed in (1, 2, 3)
    }
    size = (tmp_path / "1.safetensors").stat().st_size
    egress = FakeEgress(addresses)
    known = files(
        tmp_path, egress=egress, lora_sources=["hub.example"],
        folder_bytes=2 * size + 10,
    )  # fmt: skip
    known._folder_bytes = 2 * size + 10
    first, second, third = addresses
    for age, address in ((300, first), (200, second)):
        path = known.get(address).path
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    known.get(third)
    assert egress.visits == 3
    known.get(second)
    assert egress.visits == 3  # still there
    known.get(first)
    assert egress.visits == 4  # had to go


@pytest.mark.parametrize("kind", ["storage", "network"])
def test_a_file_that_another_process_evicts_is_fetched_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    file = saved(tmp_path / "own.safetensors", matrices(1))
    address = "https://hub.example/own.safetensors"
    known = files(
        tmp_path,
        storage=DirectoryStorage(tmp_path),
        egress=FakeEgress({address: file.path}),
        lora_aliases={"paper": {"key": "own.safetensors", "sha256": file.sha256}},
        lora_sources=["hub.example"],
    )
    name = "paper" if kind == "storage" else address
    known.get(name)
    real = os.utime

    def late(path: Any, *how: Any, **more: Any) -> None:
        monkeypatch.setattr(os, "utime", real)
        Path(path).resolve().unlink()
        real(path, *how, **more)

    monkeypatch.setattr(os, "utime", late)
    found = known.get(name)
    assert found.sha256 == file.sha256
    assert lora_files.file_sha256(found.path) == file.sha256


def test_what_a_killed_worker_left_half_fetched_is_cleared_away(tmp_path: Path) -> None:
    import os

    file = saved(tmp_path / "own.safetensors", matrices(1))
    table = {"paper": {"key": "own.safetensors", "sha256": file.sha256}}
    folder = tmp_path / "weights" / ".loras"
    folder.mkdir(parents=True)
    left, going = folder / ".ab.1.part.Fe01", folder / ".cd.2.part"
    for path in (left, going):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    files(tmp_path, storage=DirectoryStorage(tmp_path), lora_aliases=table).get("paper")
    assert not left.exists()
    assert going.exists()


def test_a_lora_from_a_pipeline_that_fails_leaves_the_weights_alone(
    with_loras: Callable[..., WanEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = with_loras("2.2", paper=matrices(1))
    before = weights_of(engine)
    stops = iter([False] * 8 + [True])
    with pytest.raises(Exception, match="asked to stop"):
        list(
            make_frames(
                engine,
                ask("2.2", steps=4, loras=(Lora("paper"),)),
                should_stop=lambda: next(stops),
            )
        )
    assert not changed(before, weights_of(engine))


def test_stock_refuses_what_we_refuse(tmp_path: Path) -> None:
    """The oracle for shapes: PEFT raises for the same file."""
    pipe: WanImageToVideoPipeline = synthetic.tiny("2.1")
    state = matrices(1) | {f"{_Q}A.weight": torch.ones(RANK, 7)}
    with pytest.raises(RuntimeError, match="size mismatch"):
        pipe.load_lora_weights(state, adapter_name="a")
