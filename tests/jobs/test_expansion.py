"""Prompt expansion on jobs: who wrote the words, what the engine got, what is shown."""

from __future__ import annotations

import dataclasses
import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from billing.models import Account
from inference.catalogue import MODELS
from inference.providers.base import ProviderAccount
from jobs import claims, context, effects, outside, safety, tasks, words
from jobs.claims import Held
from jobs.models import Effect, Job
from jobs.requests import Sound
from jobs.states import Step
from tests.factories import make_account, make_job, make_request
from tests.jobs.finishing import site, work, world

__all__ = ["site", "world"]
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

CLIP: dict[str, Any] = {"seconds": 2, "tier": "480p", "fps": 8}


class Chat:
    """An OpenAI-compatible server that answers as told."""

    def __init__(self) -> None:
        self.words = "A cat walks along a wall in soft light; slow push in."
        self.wait_seconds = 0.0
        self.asked: list[dict[str, Any]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["content-length"])
                outer.asked.append(json.loads(self.rfile.read(size)))
                time.sleep(outer.wait_seconds)
                choice = {"message": {"role": "assistant", "content": outer.words}}
                body = json.dumps({"choices": [choice]}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body)
                except ConnectionError:
                    return

            def log_message(self, *_: Any) -> None:
                return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def chat(world: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chat]:
    server = Chat()
    options = {
        **world.options,
        "expansion_base_url": server.base_url,
        "expansion_model": "small",
        "expansion_budget_seconds": 3.0,
    }
    monkeypatch.setattr(
        context, "get", lambda: dataclasses.replace(world, options=options)
    )
    yield server
    server.stop()


@pytest.fixture
def alice() -> Account:
    return make_account("alice", credits=100)


def prepared(job: Job) -> Job:
    claim = claims.claim_next("media", worker="test")
    assert claim is not None
    tasks._do(Held(claim))
    job.refresh_from_db()
    return job


def test_without_a_writer_the_builtin_rules_write_and_sign(alice: Account) -> None:
    job = work(make_job(alice, **CLIP, prompt="a cat", prompt_expansion=True))
    told = job.resolved
    assert told["expansion"] == "builtin"
    assert told["prompt"] == told["expanded_prompt"]
    assert told["expanded_prompt"].startswith("a cat.")
    assert "2 seconds" in told["expanded_prompt"]
    assert job.request["prompt"] == "a cat"


def test_a_damaged_writer_of_the_operators_fails_no_job(
    alice: Account, world: Any
) -> None:
    folder = world.weights / "expansion"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    job = prepared(make_job(alice, **CLIP, prompt="a cat", prompt_expansion=True))
    assert job.resolved["expansion"] == "builtin"
    assert (job.status, job.error_detail) == ("queued", "")


def test_nothing_is_added_unasked(alice: Account) -> None:
    job = prepared(make_job(alice, **CLIP, prompt="a cat"))
    assert "prompt" not in job.resolved
    assert "expansion" not in job.resolved


def test_an_endpoint_writes_and_the_engine_gets_its_words(
    alice: Account, chat: Chat
) -> None:
    job = prepared(make_job(alice, **CLIP, prompt="a cat", prompt_expansion=True))
    assert job.resolved["expansion"] == "endpoint:small"
    assert job.resolved["prompt"] == chat.words
    assert chat.asked[0]["messages"][1]["content"] == "a cat"


def test_a_late_endpoint_is_not_waited_for(
    alice: Account, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.wait_seconds = 10.0
    world = context.get()
    options = {**world.options, "expansion_budget_seconds": 0.3}
    hurried = dataclasses.replace(world, options=options)
    monkeypatch.setattr(context, "get", lambda: hurried)
    job = prepared(make_job(alice, **CLIP, prompt="a cat", prompt_expansion=True))
    assert job.resolved["expansion"] == "builtin"


def test_unsafe_words_of_the_endpoint_are_not_the_customers_fault(
    alice: Account, chat: Chat
) -> None:
    chat.words = "A nude woman walks along the beach in soft light."
    job = prepared(make_job(alice, **CLIP, prompt="a walk", prompt_expansion=True))
    assert job.resolved["expansion"] == "builtin"
    assert "nude" not in job.resolved["prompt"]


@pytest.mark.parametrize("policy", ["flag", "off"])
@pytest.mark.parametrize(
    ("written", "by"),
    [
        ("A naked young girl dances in the warm light of dusk.", "builtin"),
        ("A naked dancer, and blood and gore all over the stage.", "builtin"),
        ("A naked dancer turns slowly in the warm light of dusk.", "endpoint:small"),
    ],
)
def test_the_endpoint_adds_no_reason_that_a_flagged_wish_had_not(
    chat: Chat, policy: Any, written: str, by: str
) -> None:
    """What no policy allows least of all."""
    chat.words = written
    wish = make_request(
        "wan2.2-i2v", prompt="a naked dancer", prompt_expansion=True, seed=1
    )
    told = words.decide(wish, {"kind": "engine"}, safety.Guard(policy), context.get())
    assert told["expansion"] == by


def test_the_shot_type_shapes_the_words(alice: Account) -> None:
    job = prepared(
        make_job(
            alice, **CLIP, prompt="a cat", prompt_expansion=True, shot_type="multi"
        )
    )
    assert "Shot 1" in job.resolved["prompt"]
    assert "Shot 2" in job.resolved["prompt"]


def test_what_is_heard_is_the_wish_whatever_is_added_to_it(alice: Account) -> None:
    plain, expanded = (
        work(
            make_job(
                alice,
                **CLIP,
                prompt="rain at the window of a café",
                prompt_expansion=expands,
                audio=Sound("generate"),
            )
        )
        for expands in (False, True)
    )
    assert "Water moves" in expanded.resolved["expanded_prompt"]
    assert plain.output["notes"]["audio"]["scenes"] == ["rain", "crowd"]
    assert expanded.output["notes"]["audio"]["scenes"] == ["rain", "crowd"]


def test_what_is_heard_with_an_effect_are_the_effects_words(alice: Account) -> None:
    effect = Effect.objects.create(code="storm", name="Storm")
    effects.publish(effect, prompt="the wind howls")
    job = work(
        make_job(
            alice, **CLIP, prompt="the sea", effect="storm", audio=Sound("generate")
        )
    )
    assert job.output["notes"]["audio"]["scenes"] == ["wind"]


def test_the_words_are_never_longer_than_the_model_takes(world: Any) -> None:
    model = MODELS["wan2.2-i2v-plus"]
    request = make_request(
        model.name, prompt="x" * model.prompt_max, prompt_expansion=True, seed=1
    )
    guard = safety.Guard("block")
    told = words.decide(request, {"kind": "engine"}, guard, world)
    assert len(told["prompt"]) <= model.prompt_max


def test_a_provider_that_expands_itself_gets_the_customers_words(world: Any) -> None:
    request = make_request("wan2.6-i2v", prompt="a cat", prompt_expansion=True, seed=1)
    route = {"kind": "provider", "runner": "dashscope", "profile": "wan2.6-i2v"}
    guard = safety.Guard("block")
    told = words.decide(request, route, guard, world)
    assert told == {"expansion": "provider:dashscope"}
    names: dict[str, Any] = {
        "reference": "r",
        "wire_model": "wan2.6-i2v",
        "provider": "dashscope",
    }
    asked = outside.order(request, **names)
    assert (asked.prompt, asked.prompt_expansion) == ("a cat", True)
    final = outside.order(request, **names, prompt="our words")
    assert (final.prompt, final.prompt_expansion) == ("our words", False)


@pytest.mark.parametrize("provider", ["dashscope", "novita", "sinancode"])
def test_shots_in_final_words_are_no_reason_to_refuse(provider: str) -> None:
    """Of an effect, or of ours where an earlier route did not expand."""
    request = make_request(
        "wan2.6-i2v", prompt="a", prompt_expansion=True, shot_type="multi", seed=1
    )
    adapter = outside.adapter(provider)
    account = ProviderAccount(
        name="main", base_url="https://vendor.example", credentials={"api_key": "k"}
    )
    names: dict[str, Any] = {
        "reference": "r",
        "wire_model": "wan2.6-i2v",
        "provider": provider,
    }
    wish = outside.order(request, **names)
    assert (wish.shot_type, wish.prompt_expansion) == ("multi", True)
    adapter.check(wish, account)
    final = outside.order(request, **names, prompt="Shot 1: a. Shot 2: b.")
    assert (final.shot_type, final.prompt_expansion) == ("single", False)
    adapter.check(final, account)


def test_a_job_that_leaves_such_a_provider_for_our_own_machine_asks_no_writer_there(
    alice: Account, chat: Chat
) -> None:
    """A GPU waits for no network: the built-in rules write at once."""
    job = make_job(alice, **CLIP, prompt="a cat", prompt_expansion=True)
    ours = job.route
    elsewhere = {
        **ours,
        "kind": "provider",
        "runner": "dashscope",
        "profile": "wan2.6-i2v",
        "queue": "provider.dashscope",
    }
    Job.objects.filter(pk=job.pk).update(route=elsewhere)
    assert prepared(job).resolved["expansion"] == "provider:dashscope"
    Job.objects.filter(pk=job.pk).update(
        route=ours, step=Step.GENERATE, queue=ours["queue"]
    )
    job = work(job)
    assert (job.status, chat.asked) == ("succeeded", [])
    assert job.resolved["expansion"] == "builtin"
    assert job.resolved["prompt"] == job.resolved["expanded_prompt"]
    assert job.resolved["prompt"].startswith("a cat.")
