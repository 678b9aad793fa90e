"""One job after another in one process: exact, stoppable, and none the wiser."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inference.contracts import OutputPlan, Progress, RenderRequest
from inference.engines.wan import denoise, loading, text, vae
from inference.engines.wan.engine import WanEngine
from inference.errors import (
    EngineBroken,
    EngineFailed,
    InputRejected,
    OutOfMemory,
    Stopped,
    Unsupported,
    WeightsMissing,
)
from tests.inference.engines.wan.conftest import (
    KINDS,
    MakeEngine,
    ask,
    make_frames,
    profile,
)

Engines = Callable[[str], WanEngine]


def clip(engine: WanEngine, request: RenderRequest, **how: Any) -> Any:
    return np.stack(list(make_frames(engine, request, **how)))


# Length, size, pictures


@pytest.mark.parametrize("frames", [1, 5, 6, 7, 8, 17, 18, 19, 33])
def test_a_clip_has_exactly_the_frames_that_were_asked_for(
    frames: int, engines: Engines
) -> None:
    made = clip(engines("2.2"), ask("2.2", frames=frames))
    assert made.shape == (frames, 32, 64, 3)


def test_a_trimmed_clip_is_the_beginning_of_the_longer_one(engines: Engines) -> None:
    long = clip(engines("2.1"), ask("2.1", frames=21))
    short = clip(engines("2.1"), ask("2.1", frames=19))
    assert np.array_equal(short, long[:19])


@pytest.mark.parametrize(
    ("kind", "width", "height"), [("2.1", 48, 32), ("2.2", 32, 48), ("5b", 64, 96)]
)
def test_sides_may_be_any_multiple(
    kind: str, width: int, height: int, engines: Engines
) -> None:
    made = clip(engines(kind), ask(kind, width=width, height=height, frames=5))
    assert made.shape == (5, height, width, 3)


@pytest.mark.parametrize(
    ("kind", "changes", "field"),
    [
        ("2.1", {"width": 40}, "size"),
        ("5b", {"width": 48, "height": 48}, "size"),
        ("2.1", {"width": 1920, "height": 1088}, "size"),
        ("2.1", {"frames": 85}, "frames"),
        ("2.1", {"last_image": Path("x.png")}, "last_image"),
        ("5b", {"last_image": Path("x.png")}, "last_image"),
        ("flf", {"last_image": None}, "last_image"),
        ("2.2", {"last_image": Path("x.png"), "frames": 7}, "frames"),
        ("2.1", {"guidance_scale_2": 2.0}, "guidance_scale_2"),
    ],
)
def test_what_a_checkpoint_cannot_do_is_refused_by_name(
    kind: str, changes: dict[str, Any], field: str, engines: Engines
) -> None:
    with pytest.raises(Unsupported) as refused:
        clip(engines(kind), ask(kind, **changes))
    assert refused.value.field == field
    assert refused.value.permanent


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "LA"])
def test_pictures_of_any_mode_are_flattened(
    mode: str, engines: Engines, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    with Image.open(ask("2.1").image) as photo:
        photo.convert(mode).save(path)
    assert clip(engines("2.1"), ask("2.1", image=path, frames=5)).shape[0] == 5


def test_a_turned_photo_is_turned_upright(engines: Engines, tmp_path: Path) -> None:
    upright, turned = tmp_path / "upright.png", tmp_path / "turned.png"
    with Image.open(ask("2.1").image) as photo:
        photo.save(upright)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be shown turned right
        photo.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    clips = [
        clip(engines("2.1"), ask("2.1", image=path, frames=5))
        for path in (upright, turned)
    ]
    assert np.array_equal(*clips)


def test_a_file_that_is_no_picture_is_the_customers_fault(
    engines: Engines, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"nothing")
    with pytest.raises(InputRejected) as rejected:
        clip(engines("2.1"), ask("2.1", image=path))
    assert rejected.value.field == "image"


# The same again


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_video_and_another_seed_another(
    kind: str, engines: Engines
) -> None:
    first, again, other = (
        clip(engines(kind), ask(kind, seed=seed)) for seed in (7, 7, 8)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_fingerprint_names_what_decides_the_latents(engines: Engines) -> None:
    made = engines("2.2").fingerprint(ask("2.2"))
    assert made["weights.transformer"] != made["weights.transformer_2"]
    assert made["attention"] == "native"
    assert made["device"] == "cpu"
    assert made["mode"] == "quality"
    assert made["torch"] == torch.__version__
    assert made["diffusers"]
    fast = engines("2.2").fingerprint(ask("2.2", quality="fast"))
    assert fast["mode"].startswith("fast: first-block cache; published")


# Progress


@pytest.mark.parametrize("kind", ["2.2", "5b"])
def test_progress_never_falls_and_names_its_stages(kind: str, engines: Engines) -> None:
    told: list[Progress] = []
    clip(engines(kind), ask(kind, steps=6), told=told)
    fractions = [report.fraction for report in told]
    assert fractions == sorted(fractions)
    assert all(0 <= fraction <= 1 for fraction in fractions)
    stages = list(dict.fromkeys(report.stage for report in told))
    assert stages == ["text", "image", "denoise", "decode"]


def test_the_time_left_comes_from_measured_steps(make_engine: MakeEngine) -> None:
    engine = make_engine("2.1")
    ticks = itertools.count()
    engine._clock = lambda: next(ticks) * 1.0
    told: list[Progress] = []
    clip(engine, ask("2.1", steps=6), told=told)
    known = [report.eta_seconds for report in told if report.eta_seconds is not None]
    assert known
    assert known == sorted(known, reverse=True)


def test_at_most_two_reports_a_second(make_engine: MakeEngine) -> None:
    engine = make_engine("2.1")
    engine._clock = lambda: 0.0  # no time passes at all
    told: list[Progress] = []
    clip(engine, ask("2.1", steps=6, frames=17), told=told)
    assert len(told) == 4  # one for entering each stage


# Stopping


class StopAfter:
    """Answers true from the n-th question on."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def questions_of(engine: WanEngine, request: RenderRequest) -> int:
    count = 0

    def ask_once() -> bool:
        nonlocal count
        count += 1
        return False

    clip(engine, request, should_stop=ask_once)
    return count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quality", ["quality", "fast"])
def test_stopped_anywhere_the_next_job_equals_a_fresh_process(
    kind: str, quality: str, engines: Engines, make_engine: MakeEngine
) -> None:
    engine, request = engines(kind), ask(kind, steps=3, quality=quality)
    fresh = clip(make_engine(kind), request)
    total = questions_of(engine, request)
    # 4 stages, 3 latent frames in (one for 5b) and out, 6 forwards
    assert total == 4 + (1 if kind == "5b" else 3) + 6 + 3
    for stop_at in range(total):
        with pytest.raises(Stopped):
            clip(engine, request, should_stop=StopAfter(stop_at))
        if stop_at % 3 == 0:
            assert np.array_equal(clip(engine, request), fresh), stop_at
    assert np.array_equal(clip(engine, request), fresh)
    # and a fast job leaves no cache to a careful one
    careful = request.replace(quality="quality")
    assert np.array_equal(clip(engine, careful), clip(make_engine(kind), careful))


def test_nothing_is_computed_after_a_stop(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model,) = (engine := engines("2.2"))._models.values()
    decoded = []
    handle = model.pipe.vae.decoder.register_forward_hook(lambda *_: decoded.append(1))
    stop = StopAfter(4 + 3)  # in the middle of the first guided step
    with pytest.raises(Stopped):
        clip(engine, ask("2.2"), should_stop=stop)
    handle.remove()
    assert decoded == []


def test_a_caller_that_walks_away_leaves_a_clean_engine(
    engines: Engines, make_engine: MakeEngine
) -> None:
    engine, request = engines("2.1"), ask("2.1", frames=17)
    frames: Any = make_frames(engine, request)
    next(frames)
    next(frames)
    frames.close()
    assert np.array_equal(clip(engine, request), clip(make_engine("2.1"), request))


def test_a_generator_that_was_never_closed_cannot_spoil_the_next_job(
    engines: Engines, make_engine: MakeEngine
) -> None:
    engine, request = engines("2.1"), ask("2.1", frames=17)
    forgotten: Any = make_frames(engine, request)
    next(forgotten)
    following: Any = make_frames(engine, request)
    made = [next(following)]
    forgotten.close()  # as late as the garbage collector likes
    made += list(following)
    assert np.array_equal(np.stack(made), clip(make_engine("2.1"), request))


# When the device is too small or breaks


def out_of_memory() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.70 GiB")


class Failing:
    """Raises at the given calls, counted from 1, else calls through."""

    def __init__(self, through: Callable[..., Any], *at: int, error: Any) -> None:
        self.through, self.at, self.error, self.calls = through, at, error, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls in self.at:
            raise self.error()
        return self.through(*args, **kwargs)


def test_out_of_memory_once_is_tried_again_with_tiles(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, request = engines("2.1"), ask("2.1")
    want = clip(engine, request)
    failing = Failing(denoise.denoise, 1, error=out_of_memory)
    monkeypatch.setattr(denoise, "denoise", failing)
    assert clip(engine, request).shape == want.shape
    assert failing.calls == 2
    assert engine.fingerprint(request)["vae"] == "fp32 tiled"
    monkeypatch.undo()
    assert np.array_equal(clip(engine, request), want)
    assert engine.fingerprint(request)["vae"] == "fp32"


def test_out_of_memory_twice_in_the_decoder_is_one_too(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_decoded", "_decoded_whole"):
        failing = Failing(getattr(vae, name), 1, error=out_of_memory)
        monkeypatch.setattr(vae, name, failing)
    with pytest.raises(OutOfMemory) as failed:
        clip(make_engine("2.1"), ask("2.1"))
    assert failed.value.permanent


@pytest.mark.parametrize("where", ["denoise", "decode"])
def test_the_second_try_has_the_card_to_itself(
    where: str, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine("2.2")
    seen: list[set[str]] = []

    def look(through: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            there = engine.residence.plan.on_device()
            seen.append({name.split(":")[0] for name in there})
            return through(*args, **kwargs)

        return call

    if where == "denoise":
        failing = Failing(look(denoise._Stage.forward), 1, error=out_of_memory)
        monkeypatch.setattr(denoise._Stage, "forward", lambda *args: failing(*args))
    else:
        failing = Failing(vae._decoded, 1, error=out_of_memory)
        monkeypatch.setattr(vae, "_decoded", failing)
    monkeypatch.setattr(vae, "tiled", look(vae.tiled))
    clip(engine, ask("2.2", steps=4))
    if where == "denoise":
        # 8 forwards of one expert at a time, whose weights differ but not their name
        assert seen == [{"transformer"}] * 8 + [{"vae"}]
        assert len(engine.residence.plan.on_device()) == 1
    else:
        assert seen == [{"vae"}]


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_try_of_a_fast_job_computes_what_the_first_would_have(
    kind: str, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, request = make_engine(kind), ask(kind, quality="fast", steps=4)
    (model,) = engine._models.values()
    computed: list[int] = []
    forwards = Failing(denoise._Stage.forward, 5, error=out_of_memory)
    for name in engine.profile.experts:
        # Within the block that the cache skips.
        getattr(model.pipe, name).blocks[1].attn1.register_forward_hook(
            lambda *_: computed.append(forwards.calls)
        )
    monkeypatch.setattr(denoise._Stage, "forward", lambda *args: forwards(*args))
    failed_once = clip(engine, request)
    again = [call - 5 for call in computed if call > 5]
    forwards.calls, computed[:] = 5, []
    near = clip(engine, request).astype(int) - failed_once
    assert again == [call - 5 for call in computed]
    assert len(again) < 8  # of 4 guided steps: some were skipped
    # A CPU's last bits depend on how memory lies; parts have been away in between.
    assert np.abs(near).max() <= 1


def test_out_of_memory_in_the_decoder_goes_on_in_tiles_with_the_next_frame(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, request = engines("2.1"), ask("2.1", frames=17)
    want = clip(engine, request)
    monkeypatch.setattr(vae, "_decoded", Failing(vae._decoded, 4, error=out_of_memory))
    made = clip(engine, request)
    # A clip of one tile: the pixels are the same, however it was decoded.
    assert np.array_equal(made, want)


def test_out_of_memory_twice_is_a_clear_failure(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, request = engines("2.1"), ask("2.1")
    want = clip(engine, request)
    monkeypatch.setattr(
        denoise, "denoise", Failing(denoise.denoise, 1, 2, error=out_of_memory)
    )
    with pytest.raises(OutOfMemory) as failed:
        clip(engine, request)
    assert "too large" in failed.value.public
    assert failed.value.permanent  # nobody spends hours on a third try
    monkeypatch.undo()
    assert np.array_equal(clip(engine, request), want)


def test_a_sticky_cuda_error_ends_the_engine(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine("2.1")
    sticky = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(
        denoise, "denoise", Failing(denoise.denoise, 1, error=lambda: sticky)
    )
    with pytest.raises(EngineBroken):
        clip(engine, ask("2.1"))
    with pytest.raises(EngineBroken, match="no more videos"):
        clip(engine, ask("2.1"))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA out of memory. Tried to allocate", OutOfMemory),
        ("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", OutOfMemory),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", EngineBroken),
        ("CUDA error: device-side assert triggered", EngineBroken),
        ("mat1 and mat2 shapes cannot be multiplied", EngineFailed),
    ],
)
def test_errors_are_told_apart(text: str, kind: type[Exception]) -> None:
    from inference.engines.wan.faults import translated

    with pytest.raises(kind) as raised, translated():
        raise RuntimeError(text)
    assert type(raised.value) is kind


# Is it a video?


def test_latents_that_are_not_numbers_are_never_decoded(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((1, 16, 3, 4, 8), float("nan"))

    monkeypatch.setattr(denoise, "denoise", broken)
    with pytest.raises(EngineFailed, match="not finite"):
        clip(engines("2.1"), ask("2.1"))


@pytest.mark.parametrize(
    ("value", "why"), [("flat", "flat colour"), ("still", "frozen")]
)
def test_a_blank_or_frozen_clip_is_a_failure(
    value: str, why: str, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = np.full((32, 64, 3), 7, np.uint8)
    if value == "still":
        frame[:16] = 200

    def same(*_: Any) -> Iterator[list[Any]]:
        yield from ([frame] for _ in range(9))

    monkeypatch.setattr(vae, "stream", same)
    with pytest.raises(EngineFailed, match=why):
        clip(engines("2.1"), ask("2.1"))


# Text


@pytest.mark.parametrize("prompt", ["", "a", "ein  Stück\n Käse 猫", "word " * 300])
def test_a_remembered_prompt_gives_the_same_bits(
    prompt: str, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, request = engines("2.2"), ask("2.2", prompt=prompt)
    engine._texts = text.TextCache()
    first = clip(engine, request)
    monkeypatch.setattr(text, "encode", None)  # a miss would fail
    assert np.array_equal(clip(engine, request), first)


def test_without_guidance_the_negative_prompt_is_not_even_encoded(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines("2.2")
    engine._texts = text.TextCache()
    counting = Failing(text.encode, error=None)
    monkeypatch.setattr(text, "encode", counting)
    clip(engine, ask("2.2", guidance_scale=1.0))
    assert counting.calls == 1


def test_the_cache_forgets_the_prompt_used_longest_ago() -> None:
    cache, embeds = text.TextCache(entries=2), torch.ones(1, 512, 4)
    for prompt in ("one", "two"):
        cache.put("t5", prompt, embeds)
    assert cache.get("t5", "one") is not None
    cache.put("t5", "three", embeds)
    assert cache.get("t5", "two") is None
    assert cache.get("t5", "  one\n") is not None  # cleaned before it is looked up
    assert cache.get("other", "one") is None


def test_remembered_embeddings_take_only_the_prompts_own_length() -> None:
    cache, embeds = text.TextCache(), torch.zeros(1, 512, 4)
    embeds[:, :9] = 1.0
    cache.put("t5", "one", embeds)
    (kept,) = cache._kept.values()
    assert kept.shape == (1, 9, 4)
    found = cache.get("t5", "one")
    assert found is not None
    assert torch.equal(found, embeds)


# Starting


def test_a_text_encoder_that_is_not_tied_is_found_at_start(weights: Path) -> None:
    encoder: Any = loading.load_part(
        weights / "tiny-2.1", "text_encoder", torch.float32
    )
    encoder.encoder.embed_tokens = torch.nn.Embedding(10, 32)
    with pytest.raises(WeightsMissing, match="not tied"):
        loading.check_tied(encoder)


def test_a_shared_only_text_encoder_is_tied_when_it_is_loaded(
    weights: Path, tmp_path: Path
) -> None:
    # The published files carry shared.weight alone and tie_word_embeddings=false.
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "text_encoder"
    shutil.copytree(weights / "tiny-2.1" / "text_encoder", folder)
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    state.pop("encoder.embed_tokens.weight", None)
    assert "shared.weight" in state
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    loaded: Any = loading.load_part(tmp_path, "text_encoder", torch.float32)
    assert torch.equal(loaded.encoder.embed_tokens.weight, state["shared.weight"])


def test_a_missing_package_is_found_at_start_and_not_by_a_job(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "PACKAGES", ("ftfy", "no_such_package"))
    with pytest.raises(WeightsMissing, match="no_such_package"):
        make_engine("2.1")


def test_a_shared_pipeline_keeps_its_boundary_and_its_time_steps(
    engines: Engines,
) -> None:
    (a14b,) = engines("2.2")._models.values()
    (small,) = engines("5b")._models.values()
    assert a14b.pipe.config.boundary_ratio == 0.9
    assert small.pipe.config.expand_timesteps is True
    assert small.pipe.vae_scale_factor_spatial == 16


@pytest.mark.parametrize(
    "options", [{}, {"wan_compile": True}], ids=["eager", "compiled"]
)
def test_the_first_clips_are_made_before_a_worker_takes_jobs(
    options: dict[str, Any], make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import WanTransformer3DModel

    blocks: list[bool] = []
    monkeypatch.setattr(
        WanTransformer3DModel,
        "compile_repeated_blocks",
        lambda _self, *, fullgraph: blocks.append(fullgraph),
    )
    engine = make_engine("2.2", profile=profile("2.2"), **options)
    engine.warm([(64, 32, 5), (32, 64, 5)])
    assert blocks == [True] * (2 if options else 0)


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({"wan_vae_channels_last": True}, "fp32 channels-last"),
        ({"wan_vae_half": True}, "bf16"),
    ],
)
def test_a_tuned_vae_gives_nearly_the_same_pixels_and_says_so(
    options: dict[str, Any], label: str, engines: Engines, make_engine: MakeEngine
) -> None:
    tuned, request = make_engine("2.1", **options), ask("2.1")
    near = clip(tuned, request).astype(int) - clip(engines("2.1"), request)
    assert np.abs(near).mean() < 2
    assert tuned.fingerprint(request)["vae"] == label


def test_one_frame_is_a_clip_too(engines: Engines) -> None:
    request = ask("2.2", frames=1, output=OutputPlan(64, 32, 16, 1))
    assert clip(engines("2.2"), request).shape == (1, 32, 64, 3)
