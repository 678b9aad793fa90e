"""Our own seven endpoints are services too: adapters can call them and read them.

Pure round trips without a network: what an adapter writes, the dialect of the same name
parses; what the dialect renders, the adapter reads. Neither side knows the other.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from typing import Any
from urllib.parse import urlsplit

import pytest

from inference.errors import AnswerLost, Fault, ProviderError
from inference.providers.base import HttpCall, HttpReply, Picture, ProviderJob
from jobs import errors
from jobs.dialects import load_dialect
from jobs.dialects.base import (
    Create,
    Dialect,
    JobView,
    ManyJobs,
    ManyResult,
    OneJob,
    Route,
    Upload,
    WireRequest,
    WireResponse,
)
from jobs.requests import JobRequest
from tests.inference.providers.samples import (
    PROVIDERS,
    make_account,
    make_job,
    make_png,
    provider,
)
from tests.wire import pairs

ACCOUNT = make_account("https://zoetrope.example")
PICTURE = Picture(make_png((640, 480)), url="https://files.example/first.png")
WIRE_MODELS = [(name, model) for name in PROVIDERS for model in provider(name).models]
every_provider = pytest.mark.parametrize("name", PROVIDERS)


def dialect_of(name: str) -> Dialect:
    return load_dialect("openai" if name == "openai_videos" else name)


def arrive(call: HttpCall) -> WireRequest:
    files = {
        name: Upload(part.filename, part.media_type, part.data)
        for name, part in call.files.items()
    }
    return WireRequest(
        method=call.method,
        path=urlsplit(call.url).path,
        query=dict(call.params),
        headers={name.lower(): value for name, value in call.headers.items()},
        body=call.json if call.json is not None else dict(call.form),
        files=files,
        base_url="https://zoetrope.example",
    )


def route_for(name: str, wire: WireRequest) -> Route:
    route = pairs.find_route(dialect_of(name), wire)
    assert route is not None, f"{name} has no {wire.method} {wire.path}"
    return route


def leave(answer: WireResponse) -> HttpReply:
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return HttpReply(answer.status, headers, json.dumps(answer.body).encode())


def post(name: str, job: ProviderJob) -> tuple[JobRequest, WireRequest, Route]:
    wire = arrive(provider(name).build_submit(job, ACCOUNT))
    route = route_for(name, wire)
    command = route.parse(wire, pairs.lookup)
    assert isinstance(command, Create)
    return command.request, wire, route


@pytest.mark.parametrize(("name", "model"), WIRE_MODELS)
def test_our_endpoint_understands_what_the_adapter_asks(name, model):
    facts = provider(name).models[model]
    last = PICTURE if facts.last_image_required else None
    seed = 77 if facts.offers("seed") else None
    job = make_job(name, model, image=PICTURE, last_image=last, frames=80, seed=seed)
    request, _, _ = post(name, job)
    assert request.tier == ("720p" if name == "openai_videos" else job.tier)
    assert request.seconds >= job.seconds
    assert request.seed == seed
    assert request.prompt == "a quiet street"
    assert not request.watermark
    assert (request.image.data or request.image.url) is not None


@pytest.mark.parametrize("name", ["novita", "akool"])
def test_our_endpoint_calls_back_where_the_adapter_says(name):
    url = "https://us.example/cb/token-1"
    request, _, _ = post(name, make_job(name, image=PICTURE, callback_url=url))
    assert request.webhook is not None
    assert request.webhook.url == url


def view(name: str, **facts: Any) -> tuple[JobView, WireRequest, Route]:
    request, wire, route = post(name, make_job(name, image=PICTURE))
    make_id = dialect_of(name).new_id
    job_id = make_id() if make_id else str(uuid.uuid4())
    view = pairs.view_of({"id": job_id, "status": "queued", **facts}, request)
    return view, wire, route


@every_provider
def test_the_adapter_reads_our_answer_to_a_submit(name):
    job, wire, route = view(name)
    submitted = provider(name).parse_submit(leave(route.render(job, wire)), ACCOUNT)
    assert submitted.provider_id == job.id


def read_status(name: str, **facts: Any) -> Any:
    adapter = provider(name)
    job, _, _ = view(name, **facts)
    wire = arrive(adapter.build_status([job.id], ACCOUNT))
    route = route_for(name, wire)
    wire = dataclasses.replace(wire, params=pairs.params_of(route, wire.path))
    command = route.parse(wire, pairs.lookup)
    if isinstance(command, ManyJobs):
        assert command.ids == (job.id,)
        answer = route.render(ManyResult([job]), wire)
    else:
        assert isinstance(command, OneJob)
        assert command.id == job.id
        answer = route.render(job, wire)
    return adapter.parse_status(leave(answer), [job.id], ACCOUNT)[job.id]


@every_provider
@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({"status": "queued"}, "queued"),
        ({"status": "running", "progress": 0.5, "stage": "generating"}, "running"),
        (
            {
                "status": "succeeded",
                "progress": 1.0,
                "video_url": "https://s3.example/v.mp4?sig=1",
                "permanent_video_url": "https://zoetrope.example/files/v.mp4",
                "finished_at": "2026-11-20T12:00:00+00:00",
            },
            "succeeded",
        ),
        (
            {
                "status": "failed",
                "error": {"code": "generation_failed", "message": "It did not work."},
                "finished_at": "2026-11-20T12:00:00+00:00",
            },
            "failed",
        ),
        (
            {"status": "canceled", "finished_at": "2026-11-20T12:00:00+00:00"},
            "failed",
        ),
    ],
)
def test_the_adapter_reads_our_states(name, facts, state):
    status = read_status(name, **facts)
    assert status.state == state
    if state == "succeeded":
        assert status.video_url.startswith("https://")
    if state == "failed":
        assert status.error.fault is Fault.HEALTH


REFUSALS = [
    (errors.InvalidRequest("prompt", "Too long."), Fault.CUSTOMER),
    (errors.Unauthenticated(), Fault.ACCOUNT),
    (
        errors.InsufficientCredits(
            required_millicredits=50_000, available_millicredits=0
        ),
        Fault.ACCOUNT,
    ),
    (errors.RateLimited(retry_after_seconds=9, limit=60), Fault.BUSY),
    (errors.ServiceUnavailable("Away."), Fault.HEALTH),
]


@every_provider
@pytest.mark.parametrize(
    ("refusal", "fault"),
    [pytest.param(*pair, id=type(pair[0]).__name__) for pair in REFUSALS],
)
def test_the_adapter_knows_whose_fault_our_refusal_is(name, refusal, fault):
    _, wire, _ = post(name, make_job(name, image=PICTURE))
    answer = leave(dialect_of(name).error(refusal, wire))
    with pytest.raises(ProviderError) as refused:
        provider(name).parse_submit(answer, ACCOUNT)
    assert not isinstance(refused.value, AnswerLost)
    assert refused.value.fault is fault


@every_provider
def test_an_id_our_endpoint_does_not_know_reads_as_unknown(name):
    adapter = provider(name)
    wire = arrive(adapter.build_status(["gone"], ACCOUNT))
    route = route_for(name, wire)
    wire = dataclasses.replace(wire, operation=route.operation)
    if name == "akool":
        answer = route.render(ManyResult([], missing=["gone"]), wire)
    else:
        answer = dialect_of(name).error(errors.NotFound(), wire)
    assert adapter.parse_status(leave(answer), ["gone"], ACCOUNT)["gone"].state == (
        "unknown"
    )
