from __future__ import annotations

import itertools
import json
import threading
import time

import httpx
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from inference.media import expansion, expansion_local
from inference.media.camera import read_moves
from inference.media.expansion import Expander, builtin
from inference.media.safety import judge_prompt

ENDPOINT = {
    "expansion_base_url": "https://llm.example/v1/",
    "expansion_model": "qwen",
    "expansion_api_key": "secret",
}
LONG = "A cat by the window turns its head slowly while warm light falls on its fur."


def _ask(reply, tmp_path, *, shot_type="single", prompt="a cat", **options):
    seen = []

    def handler(request):
        seen.append(request)
        return reply if isinstance(reply, httpx.Response) else reply(request)

    expander = expansion.load(
        ENDPOINT | options, weights=tmp_path, transport=httpx.MockTransport(handler)
    )
    made = expander.expand(prompt, shot_type=shot_type, seconds=5, seed=1)
    return made, seen


def _says(content):
    return httpx.Response(200, json={"choices": [{"message": {"content": content}}]})


def test_an_endpoint_writes_the_prompt_and_is_named(tmp_path):
    made, seen = _ask(_says(f'"{LONG}"\n'), tmp_path)
    assert made.prompt == LONG
    assert made.by == "endpoint:qwen"
    (request,) = seen
    assert str(request.url) == "https://llm.example/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer secret"
    body = json.loads(request.content)
    assert body["model"] == "qwen"
    assert body["messages"][-1] == {"role": "user", "content": "a cat"}


@pytest.mark.parametrize(
    ("shot_type", "word"), [("single", "continuous take"), ("multi", "Shot 1:")]
)
def test_shot_type_shapes_what_the_endpoint_is_asked(tmp_path, shot_type, word):
    _, seen = _ask(_says(LONG), tmp_path, shot_type=shot_type)
    assert word in json.loads(seen[0].content)["messages"][0]["content"]


@pytest.mark.parametrize(
    "reply",
    [
        httpx.Response(500),
        httpx.Response(429, json={"error": "busy"}),
        httpx.Response(200, content=b"<html>"),
        httpx.Response(200, json={"choices": []}),
        httpx.Response(200, json=[1]),
        _says(None),
        _says(""),
        _says("  ok "),
        httpx.Response(200, content=b"x" * 100_000),
    ],
)
def test_a_useless_answer_falls_back_to_the_built_in_expander(tmp_path, reply):
    made, _ = _ask(reply, tmp_path)
    assert made.by == "builtin"
    assert made.prompt.startswith("a cat.")


def test_an_endpoint_that_is_away_falls_back(tmp_path):
    def handler(request):
        raise httpx.ConnectError("refused", request=request)

    assert _ask(handler, tmp_path)[0].by == "builtin"


def test_an_endpoint_that_never_ends_costs_no_more_than_the_budget(tmp_path):
    done = threading.Event()

    def drip():
        for _ in itertools.count():
            yield b" "
            if done.wait(0.02):
                return

    start = time.monotonic()
    made, _ = _ask(
        lambda request: httpx.Response(200, content=drip()),
        tmp_path,
        expansion_budget_seconds=0.3,
    )
    done.set()
    assert made.by == "builtin"
    assert time.monotonic() - start < 1.5


def test_markup_thoughts_and_control_characters_are_taken_out(tmp_path):
    made, _ = _ask(
        _says(f"<think>hm</think>**{LONG}**\x00\u202e\n\n# More of it"), tmp_path
    )
    assert made.prompt == f"{LONG} More of it"


def test_an_endless_answer_is_cut_at_a_word(tmp_path):
    made, _ = _ask(_says("word " * 1000), tmp_path)
    assert len(made.prompt) <= 1500
    assert made.prompt.endswith("word")


@pytest.fixture
def weights(tmp_path):
    """A tiny random language model with its tokenizer, as transformers saves them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, "<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>"
    ).save_pretrained(tmp_path / "expansion")
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=256,
        pad_token_id=256,
    )
    torch.manual_seed(1)  # some random weights write next to nothing
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "expansion")
    return tmp_path


def test_a_local_model_from_a_folder_writes_and_is_named(weights):
    expander = expansion.load({"expansion_budget_seconds": 30}, weights=weights)
    made = expander.expand("a cat", shot_type="single", seconds=5, seed=1)
    assert made.by == "local:expansion"
    assert 10 <= len(made.prompt) <= 1500


def _truncate(path):
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").write_text("{}"),
        lambda folder: (folder / "config.json").write_text("[not json"),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: _truncate(folder / "model.safetensors"),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: _truncate(folder / "tokenizer.json"),
    ],
    ids=["empty", "no json", "no weights", "cut weights", "no words", "cut words"],
)
def test_a_local_model_that_cannot_be_loaded_is_left_out_and_told_of_once(
    weights, caplog, damage
):
    damage(weights / "expansion")
    expander = expansion.load({"expansion_budget_seconds": 30}, weights=weights)
    made = [
        expander.expand("a cat", shot_type="single", seconds=5, seed=1)
        for _ in range(3)
    ]
    assert [one.by for one in made] == ["builtin"] * 3
    assert made[2].seconds < 0.5  # nothing is loaded a second time
    (told,) = (record for record in caplog.records if "left out" in record.message)
    assert str(weights / "expansion") in told.message


def test_a_local_model_that_loads_slowly_is_waited_for_no_longer_than_the_budget(
    weights, monkeypatch
):
    may_load, loads = threading.Event(), []

    class SlowWriter:
        def __init__(self, folder):
            loads.append(folder)
            may_load.wait(5)

        def __call__(self, system, wish, seconds):
            return LONG

    monkeypatch.setattr(expansion_local, "LocalWriter", SlowWriter)
    expander = expansion.load({"expansion_budget_seconds": 0.3}, weights=weights)

    def written():
        return expander.expand("a cat", shot_type="single", seconds=5, seed=1)

    start = time.monotonic()
    assert {written().by for _ in range(3)} == {"builtin"}
    assert time.monotonic() - start < 2
    may_load.set()
    deadline = time.monotonic() + 30
    while (last := written()).by == "builtin":
        assert time.monotonic() < deadline
    assert last.by == "local:expansion"
    assert len(loads) == 1


# -- the built-in expander


def test_without_anything_configured_it_is_built_in_and_the_same_each_time(tmp_path):
    expander = expansion.load({}, weights=tmp_path)
    one, two = (
        expander.expand("A cat blinks", shot_type="single", seconds=5, seed=9)
        for _ in range(2)
    )
    assert one.by == "builtin"
    assert one.prompt == two.prompt
    assert one.prompt.startswith("A cat blinks. ")
    other = builtin("A cat blinks", shot_type="single", seconds=5, seed=10)
    assert other != one.prompt


def test_it_adds_motion_light_camera_and_one_take():
    text = builtin("A coffee cup", shot_type="single", seconds=5, seed=3)
    assert "steam" in text
    assert "Lighting:" in text
    assert "continuous take of 5 seconds" in text
    assert read_moves(text)


def test_it_leaves_camera_and_light_to_a_prompt_that_names_them():
    text = builtin(
        "Zoom out at night, neon signs", shot_type="single", seconds=5, seed=3
    )
    assert "Lighting:" not in text
    assert "The camera" not in text


@pytest.mark.parametrize(("seconds", "shots"), [(5, 2), (10, 3), (15, 3)])
def test_multi_gets_a_shot_plan_that_fills_the_clip(seconds, shots):
    text = builtin("A train", shot_type="multi", seconds=seconds, seed=3)
    assert text.count("Shot ") == shots
    assert f"{seconds:.1f} s)" in text
    assert "One continuous" not in text


@pytest.mark.parametrize("prompt", ["", "   ", "x" * 3000, "<b>hi</b>", "猫在跑"])
def test_odd_prompts_still_give_a_text_that_begins_with_them(prompt):
    text = builtin(prompt, shot_type="multi", seconds=5, seed=0)
    assert text
    assert text.startswith(prompt.strip())


def test_what_it_adds_passes_the_safety_rules():
    for seed in range(40):
        for shot_type in ("single", "multi"):
            text = builtin("a scene", shot_type=shot_type, seconds=10, seed=seed)
            assert not judge_prompt(text).flagged


def test_an_expander_with_no_writers_never_waits():
    made = Expander().expand("a", shot_type="single", seconds=5, seed=0)
    assert made.seconds < 0.2
