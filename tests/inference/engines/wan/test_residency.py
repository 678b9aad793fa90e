"""Which parts live on which card: calculated from published sizes, not measured."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from inference.catalogue import MODELS
from inference.engines.wan import flops
from inference.engines.wan.host import Card, fits
from inference.engines.wan.memory import Residence
from inference.engines.wan.profiles import PROFILES, Checkpoint, profile_for
from inference.engines.wan.residency import (
    GB,
    Move,
    Part,
    Residency,
    TooSmall,
    fit,
    pinned_budget,
)
from inference.errors import OutOfMemory
from tests.inference.engines.wan.conftest import ask

T5 = Part("t5", 11 * GB, "t5")
VAE = Part("vae", 1 * GB, "vae")
HIGH, LOW = (Part(name, 29 * GB, "a14b") for name in ("high", "low"))
SMALL = Part("small", 10 * GB, "5b")


def names(moves: list[Move]) -> list[tuple[str, str, str]]:
    return [(move.part, move.origin, move.to) for move in moves]


def plan(device: int, pinned: int = 64) -> Residency:
    return Residency(device_bytes=device * GB, pinned_bytes=pinned * GB)


def test_what_fits_stays() -> None:
    residency = plan(100)
    for part in (T5, VAE, HIGH, LOW):
        residency.want([part], working_bytes=12 * GB)
    assert residency.want([T5], working_bytes=12 * GB) == []
    assert residency.on_device() == ("t5", "vae", "high", "low")


def test_the_family_used_longest_ago_leaves_first() -> None:
    residency = plan(60)
    for part in (SMALL, HIGH, T5):
        residency.want([part])
    moves = residency.want([LOW])
    assert names(moves) == [
        ("small", "device", "pinned"),
        ("t5", "device", "pinned"),  # its sibling stays: one family
        ("low", "disk", "device"),
    ]


def test_nothing_leaves_in_vain() -> None:
    residency = plan(48)
    for part in (SMALL, HIGH):
        residency.want([part])
    assert names(residency.want([LOW]))[0] == ("high", "device", "pinned")
    assert residency.tier("small") == "device"


def test_what_this_job_still_needs_leaves_last() -> None:
    residency = plan(60)
    for part in (HIGH, SMALL, T5):
        residency.want([part])
    moves = residency.want([LOW], later=["high"])
    assert [move.part for move in moves if move.origin == "device"] == ["small", "t5"]
    # 29 + 29 fit now
    assert set(residency.on_device()) == {"high", "low"}


def test_the_furthest_need_goes_before_the_nearest() -> None:
    residency = plan(50)
    for part in (HIGH, SMALL, VAE):
        residency.want([part])
    moves = residency.want([T5], later=["small", "high"], working_bytes=9 * GB)
    assert names(moves) == [("high", "device", "pinned"), ("t5", "disk", "device")]


def test_a_part_with_a_pinned_copy_leaves_for_nothing() -> None:
    residency = plan(40)
    residency.want([HIGH])
    residency.want([LOW])  # high to pinned: copied once
    residency.want([HIGH])  # low to pinned; high comes from there
    (leaves, comes) = residency.want([LOW])
    assert (leaves.to, leaves.size_bytes) == ("pinned", 0)
    assert (comes.origin, comes.to) == ("pinned", "device")


def test_pinned_memory_is_a_budget_too() -> None:
    residency = plan(30, pinned=30)
    residency.want([HIGH])
    residency.want([SMALL])
    assert residency.tier("high") == "pinned"
    residency.want([LOW])
    moves = residency.want([HIGH], working_bytes=GB)
    assert ("low", "device", "pinned") in names(moves)
    assert residency.tier("small") == "disk"
    tight = plan(30, pinned=5)
    tight.want([HIGH])
    assert names(tight.want([LOW]))[0] == ("high", "device", "disk")


def test_too_small_a_card_changes_nothing_and_says_by_how_much() -> None:
    residency = plan(24)
    residency.want([T5])
    with pytest.raises(TooSmall, match=r"needs 41.0 GB.*24.0 GB are there"):
        residency.want([HIGH], working_bytes=12 * GB)
    assert residency.on_device() == ("t5",)


# The cards of the book, calculated

FITS = {
    # model, card in GB: fits at its default clip, GB moved per warm job
    ("wan2.1-i2v", 24): None,
    ("wan2.1-i2v", 48): 46,
    ("wan2.1-i2v", 80): 0,
    ("wan2.1-i2v", 141): 0,
    ("wan2.1-flf2v", 48): None,
    ("wan2.1-flf2v", 80): 11,
    ("wan2.1-flf2v", 141): 0,
    ("wan2.2-ti2v-5b", 24): 24,
    ("wan2.2-ti2v-5b", 48): 0,
    ("wan2.2-ti2v-5b", 80): 0,
    ("wan2.2-ti2v-5b", 141): 0,
}


@pytest.mark.parametrize(("name", "size"), FITS)
def test_each_model_on_each_card(name: str, size: int) -> None:
    profile = profile_for(name)
    assert profile is not None
    found = fits(MODELS[name], profile, Card("card", size * GB, is_gpu=True))
    want = FITS[name, size]
    assert found.fits == (want is not None), found
    if want is not None:
        assert found.peak_bytes <= (size - 2) * GB
        assert found.moved_bytes // GB == want


@pytest.mark.parametrize(
    ("size", "tier", "moved"),
    [
        (24, "480p", None),
        (48, "480p", 68),  # one expert at a time
        (48, "720p", None),
        (80, "480p", 11),  # the text encoder leaves for the experts
        (80, "720p", 57),  # the experts change places at the boundary
        (141, "480p", 0),
        (141, "720p", 0),
    ],
)
def test_the_two_experts_on_each_card(size: int, tier: str, moved: int | None) -> None:
    profile = PROFILES["wan2.2-i2v-a14b"]
    width, height = {"480p": (832, 480), "720p": (1280, 720)}[tier]
    found = fit(
        profile.part_bytes(),
        working_bytes=profile.working_bytes(width, height, 81),
        device_bytes=size * GB,
        pinned_bytes=128 * GB,
    )
    assert found.fits == (moved is not None), found
    if moved is not None:
        assert found.moved_bytes // GB == moved


def test_working_memory_goes_through_the_published_peaks() -> None:
    profile = PROFILES["wan2.2-i2v-a14b"]
    assert profile.working_bytes(832, 480, 81) == pytest.approx(12 * GB, rel=0.01)
    assert profile.working_bytes(1280, 720, 81) == pytest.approx(31 * GB, rel=0.01)
    assert profile.working_bytes(832, 480, 17) >= 0


# Doing what the plan says


def residence(device: int, pinned: int) -> Residence:
    return Residence(
        torch.device("cpu"), Residency(device_bytes=device, pinned_bytes=pinned)
    )


def layer(loads: list[str], name: str) -> torch.nn.Module:
    loads.append(name)
    torch.manual_seed(len(name))
    return torch.nn.Linear(4, 4).requires_grad_(requires_grad=False)


def filled(device: int, pinned: int) -> tuple[Any, list[str]]:
    loads: list[str] = []
    held = residence(device, pinned)
    for name in ("a", "bb"):
        held.add(Part(name, 10, name), partial(layer, loads, name))
    return held, loads


@pytest.mark.parametrize(("pinned", "reads"), [(100, 2), (0, 4)])
def test_parts_come_back_with_the_same_bits(pinned: int, reads: int) -> None:
    held, loads = filled(device=15, pinned=pinned)
    (first,) = held.want(["a"])
    before = first.weight.clone()
    (other,) = held.want(["bb"])
    assert (len(first.weight) == 0) == (pinned == 0)
    (again,) = held.want(["a"])
    assert torch.equal(again.weight, before)
    held.want(["bb"])
    assert len(loads) == reads
    assert (again is first) == (pinned > 0)
    assert other is not None


def test_a_dropped_copy_is_gone_although_a_pipeline_points_to_it() -> None:
    held, _loads = filled(device=15, pinned=10)
    held.add(Part("ccc", 10, "ccc"), partial(layer, [], "ccc"))
    (first,) = held.want(["a"])
    held.want(["bb"])
    assert first.weight.numel() == 16  # in host memory
    held.want(["ccc"])  # there is room for one copy: now that of bb
    assert held.plan.tier("a") == "disk"
    assert first.weight.numel() == first.bias.numel() == 0


def test_a_copy_dropped_for_another_does_not_take_the_part_off_the_device() -> None:
    held = residence(20, 10)
    for name, size in (("x", 10), ("y", 10), ("large", 15), ("whole", 20)):
        held.add(Part(name, size, name), partial(layer, [], name))
    for names in (["x"], ["large"], ["x"], ["y"]):
        held.want(names)
    held.want(["whole"], later=["x"])  # y needs the place of x's copy, then x leaves
    assert held.want(["x", "y"])


@pytest.mark.parametrize(
    ("width", "ffn"), [(5120, 13824), (3072, 14336), (4096, 10240)]
)
def test_rounded_up_pinned_weights_take_at_most_half_of_the_host(
    width: int, ffn: int
) -> None:
    # A block's matrices: 8 of attention, 2 or 3 of the feed-forward net, in bf16.
    sizes = [2 * width * width] * 8 + [2 * width * ffn] * 2
    rounded = sum(2 ** (size - 1).bit_length() for size in sizes)
    host = 256 * GB
    assert pinned_budget(host) * rounded / sum(sizes) <= host / 2


def test_a_pinned_copy_is_not_the_weights_themselves() -> None:
    held, _loads = filled(device=15, pinned=100)
    (first,) = held.want(["a"])
    before = first.weight.clone()
    held.want(["bb"])
    held.want(["a"])
    first.weight.data.add_(1)
    held.want(["bb"])
    held.want(["a"])
    assert torch.equal(first.weight, before)


def test_whoever_changed_a_part_is_told_before_it_leaves() -> None:
    held, _loads = filled(device=15, pinned=100)
    told: list[torch.nn.Module] = []
    held.before_leaving(told.append)
    (first,) = held.want(["a"])
    held.want(["bb"])
    assert told == [first]


def test_a_part_that_fails_to_load_can_be_tried_again() -> None:
    held = residence(15, 15)
    tries = []

    def load() -> torch.nn.Module:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("disk")
        return torch.nn.Linear(1, 1)

    held.add(Part("a", 10, "a"), load)
    with pytest.raises(OSError, match="disk"):
        held.want(["a"])
    assert held.want(["a"])


def test_a_move_that_fails_leaves_nothing_believed_to_be_there() -> None:
    held, loads = filled(device=25, pinned=100)
    tries = []

    def load() -> torch.nn.Module:
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return layer(loads, "ccc")

    held.add(Part("ccc", 10, "ccc"), load)
    with pytest.raises(torch.OutOfMemoryError):
        held.want(["ccc", "a"])
    assert held.plan.on_device() == ()
    assert len(held.want(["ccc", "a"])) == 2


def test_a_phase_alone_sends_everything_else_away() -> None:
    residency = plan(100)
    for part in (T5, VAE, HIGH, LOW):
        residency.want([part])
    moves = residency.want([LOW], alone=True)
    assert {move.part for move in moves} == {"t5", "vae", "high"}
    assert residency.on_device() == ("low",)


def test_a_job_that_cannot_fit_is_a_permanent_failure() -> None:
    held, _loads = filled(device=15, pinned=100)
    with pytest.raises(OutOfMemory) as failed:
        held.want(["a"], working_bytes=20)
    assert failed.value.permanent


# Counting


@pytest.mark.parametrize(
    ("kind", "size", "teraflops"),
    [
        ("2.1", (832, 480, 81), 1686),
        ("2.2", (832, 480, 81), 1678),
        ("2.2", (1280, 720, 81), 6523),
        ("2.2", (832, 480, 17), 242),
        ("2.2", (832, 480, 161), 4910),
        ("5b", (1280, 704, 121), 521),
    ],
)
def test_a_forward_costs_what_was_counted_on_the_full_models(
    kind: str, size: tuple[int, int, int], teraflops: float
) -> None:
    made = flops.SHAPES[kind].forward(*size) / 1e12
    assert made == pytest.approx(teraflops, rel=0.01)


def test_the_formula_agrees_with_torchs_own_counter() -> None:
    from diffusers import WanTransformer3DModel
    from torch.utils.flop_counter import FlopCounterMode

    shape = flops.Shape(256, 512, 3, stride=16, text_width=64)
    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=128,
            ffn_dim=512,
            num_layers=3,
            text_dim=64,
            in_channels=36,
            out_channels=16,
        )
        inputs = {
            "hidden_states": torch.empty(1, 36, 5, 16, 24),
            "timestep": torch.empty(1),
            "encoder_hidden_states": torch.empty(1, 512, 64),
        }
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**inputs)
    counted = counter.get_total_flops()
    assert shape.forward(192, 128, 17) == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(
    ("width", "height", "asked", "shift"),
    [(832, 480, None, 3.0), (1280, 720, None, 5.0), (832, 480, 5.0, 5.0)],
)
def test_each_checkpoint_has_the_flow_shift_that_wan_gives_it(
    width: int, height: int, asked: float | None, shift: float
) -> None:
    request = ask("2.1", width=width, height=height, flow_shift=asked)
    settings = PROFILES["wan2.1-i2v-14b"].settings(request)
    assert settings.flow_shift == shift


def test_the_largest_checkpoint_takes_the_largest_sizes() -> None:
    profile = PROFILES["wan2.1-i2v-14b"]

    def chosen(width: int, height: int) -> Checkpoint:
        return profile.checkpoint_for(width, height)

    assert chosen(832, 480).name == "Wan2.1-I2V-14B-480P"
    assert chosen(480, 832).name == "Wan2.1-I2V-14B-480P"
    assert chosen(1280, 720).name == "Wan2.1-I2V-14B-720P"
