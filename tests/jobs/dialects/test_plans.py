"""Every honoured field of every dialect reaches the engine, a provider or the bill.

Two requests that differ in one field alone must lead to different plans: the engine's
complete RenderRequest, the order sent to each provider that makes the model, what is
fetched, what is charged for, or whom the result is told to. A field that is read,
stored and then forgotten is found here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inference.catalogue import MODELS
from jobs import outside, renders
from jobs.dialects.base import CreateMany
from jobs.requests import JobRequest
from tests.jobs.dialects import (
    test_aimlapi,
    test_akool,
    test_dashscope,
    test_magicoal,
    test_novita,
    test_openai,
    test_sinancode,
    wires,
)

PICTURE_SIZE = (640, 480)
OTHER = "https://example.com/another.jpg"
SOUND = "https://example.com/a.mp3"
HOOK = "https://hooks.example.com/in"

FIRST = {"type": "first_frame", "url": wires.PHOTO_URL}
TRIAL = {"url": HOOK, "test_mode": {"enabled": True}}

#: dialect, path, a good body, headers
CREATES: dict[str, tuple[str, str, dict[str, Any], dict[str, str]]] = {
    "native": (
        "native",
        "/v1/jobs",
        {"image": wires.PHOTO_URL, "prompt": "waves", "seed": 1},
        {},
    ),
    "native wan": (
        "native",
        "/v1/jobs",
        {
            "model": "wan2.2-i2v",
            "image": wires.PHOTO_URL,
            "prompt": "waves",
            "seed": 1,
        },
        {},
    ),
    "magicoal": ("magicoal", test_magicoal.CREATE, test_magicoal.GOOD, {}),
    "aimlapi": ("aimlapi", test_aimlapi.CREATE, test_aimlapi.GOOD, {}),
    "sinancode": ("sinancode", test_sinancode.CREATE, test_sinancode.GOOD, {}),
    "akool": ("akool", test_akool.CREATE, test_akool.GOOD, {}),
    "akool batch": ("akool", test_akool.BATCH, test_akool.MANY, {}),
    "dashscope": (
        "dashscope",
        test_dashscope.VIDEO,
        test_dashscope.GOOD,
        test_dashscope.ASYNC,
    ),
    "dashscope media": (
        "dashscope",
        test_dashscope.VIDEO,
        {
            "model": "wan2.7-i2v",
            "input": {"media": [FIRST]},
            "parameters": {"seed": 1},
        },
        test_dashscope.ASYNC,
    ),
    "dashscope kf2v": (
        "dashscope",
        test_dashscope.KF2V,
        {
            "model": "wan2.2-kf2v-flash",
            "input": {
                "first_frame_url": wires.PHOTO_URL,
                "last_frame_url": wires.PHOTO_URL,
            },
            "parameters": {"seed": 1},
        },
        test_dashscope.ASYNC,
    ),
    "native akool": (
        "native",
        "/v1/jobs",
        {"model": "akool-i2v", "image": wires.PHOTO_URL, "seed": 1},
        {},
    ),
    "novita flat": (
        "novita",
        "/v3/async/wan2.6-i2v",
        {"image_url": wires.PHOTO_URL, "prompt": "waves", "seed": 1},
        {},
    ),
    "openai": ("openai", test_openai.CREATE, test_openai.GOOD, {}),
    **{
        f"novita {path}": ("novita", path, good, {})
        for path, good in test_novita.GOOD.items()
    },
}

#: what else each field may say than in the good body
CHANGES: dict[str, list[tuple[str, Any]]] = {
    "native": [
        ("model", "wan2.6-i2v"),
        ("image", OTHER),
        ("prompt", "rain"),
        ("resolution", "480p"),
        ("aspect_ratio", "9:16"),
        ("size", "640x640"),
        ("seconds", 3),
        ("frames", 20),
        ("fps", 24),
        ("seed", 2),
        ("shot_type", "multi"),
        ("watermark", True),
        ("safety_checker", False),
        ("prompt_expansion", True),
        ("audio", "generate"),
        ("audio", {"mode": "url", "url": SOUND}),
        ("webhook", HOOK),
        ("webhook", {"url": HOOK, "events": ["job.running"]}),
        ("effect", "squish"),
        ("priority", 3),
        ("retention_seconds", 3600),
        ("metadata", {"order": "1"}),
    ],
    "native akool": [("premium", True)],
    "native wan": [
        ("negative_prompt", "fog"),
        ("steps", 12),
        ("guidance_scale", 2.5),
        ("guidance_scale_2", 2.5),
        ("flow_shift", 4.0),
        ("quality", "fast"),
        ("loras", [{"path": "a/b"}]),
        ("last_image", OTHER),
    ],
    "magicoal": [
        ("image", OTHER),
        ("prompt", "rain"),
        ("num_frames", 17),
        ("guidance_scale", 9.5),
        ("seed", 2),
    ],
    "aimlapi": [
        ("model", test_aimlapi.WAN27),
        ("prompt", "rain"),
        ("image_url", OTHER),
        ("audio_url", SOUND),
        ("resolution", "720P"),
        ("duration", "10"),
        ("enable_prompt_expansion", False),
        ("enhance_prompt", False),
        ("negative_prompt", "fog"),
        ("seed", 2),
        ("watermark", True),
        ("shot_type", "multi"),
        ("generate_audio", False),
        ("aspect_ratio", "9:16"),
    ],
    "sinancode": [
        ("image_url", OTHER),
        ("audio", False),
        ("audio_url", "https://example.com/a.wav"),
        ("duration", 10),
        ("negative_prompt", "fog"),
        ("prompt", "rain"),
        ("prompt_extend", False),
        ("resolution", "720P"),
        ("seed", 2),
        ("shot_type", "multi"),
        ("template", "flying"),
        ("watermark", True),
    ],
    "akool": [
        ("image_url", OTHER),
        ("prompt", "rain"),
        ("negative_prompt", "snow"),
        ("extend_prompt", True),
        ("resolution", "1080p"),
        ("resolution", "4k"),
        ("audio_type", 1),
        ("audio_url", SOUND),
        ("video_length", 10),
        ("is_premium_model", True),
        ("effect_code", "squish"),
        ("webhookurl", HOOK),
    ],
    "akool batch": [
        ("image_url", OTHER),
        ("prompt", "rain"),
        ("negative_prompt", "snow"),
        ("extend_prompt", True),
        ("resolution", "4k"),
        ("generate_audio", True),
        ("audio_type", 1),
        ("audio_url", SOUND),
        ("last_image_url", OTHER),
        ("video_length", 10),
        ("is_premium_model", True),
        ("effect_code", "squish"),
        ("webhookurl", HOOK),
        ("model_name", "motion"),
    ],
    "dashscope": [
        ("model", "wan2.6-i2v-flash"),
        ("input.img_url", OTHER),
        ("input.prompt", "rain"),
        ("input.negative_prompt", "fog"),
        ("input.audio_url", SOUND),
        ("input.template", "flying"),
        ("parameters.resolution", "720P"),
        ("parameters.duration", 10),
        ("parameters.prompt_extend", False),
        ("parameters.watermark", True),
        ("parameters.audio", False),
        ("parameters.shot_type", "multi"),
        ("parameters.seed", 2),
        ("parameters.size", "1280*720"),
        ("parameters.ratio", "9:16"),
    ],
    "dashscope media": [
        ("input.media", [{**FIRST, "url": OTHER}]),
        ("input.media", [FIRST, {"type": "last_frame", "url": OTHER}]),
        ("input.media", [FIRST, {"type": "driving_audio", "url": SOUND}]),
    ],
    "dashscope kf2v": [
        ("input.first_frame_url", OTHER),
        ("input.last_frame_url", OTHER),
    ],
    "novita flat": [
        change
        for change in test_novita.HONOURED["/v3/async/wan2.7-i2v"]
        if change[0] != "last_frame_url"  # this model has none, and says so
    ],
    "openai": [
        ("prompt", "rain"),
        ("model", "wan2.7-i2v"),
        ("seconds", "8"),
        ("size", "1280x720"),
        ("input_reference", {"image_url": OTHER}),
    ],
    **{
        f"novita {path}": [
            *some,
            *([("parameters.watermark", True)] if "2.2" in path else []),
            ("extra.webhook", {"url": HOOK}),
            ("extra.webhook", TRIAL),
        ]
        for path, some in test_novita.HONOURED.items()
    },
}
#: a field that says nothing alone, and what it needs beside it
COMPANIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("akool", "audio_url"): {"audio_type": 2},
    ("akool batch", "audio_url"): {"audio_type": 2},
    ("akool batch", "last_image_url"): {"model_name": "wan2.7-i2v"},
}
#: fields that can say one thing only, are refused, or are parts of one tried whole
ELSEWHERE: dict[str, set[str]] = {
    "sinancode": {"model"},
    "akool batch": {"count"},  # how many such jobs
    f"novita {test_novita.WAN_21}": {"model_name", "width", "height"},  # see below
    "novita /v3/async/wan-2.2-i2v": {"parameters.duration"},
    "novita /v3/async/wan2.7-i2v": {"first_clip_url"},
    "novita /v3/async/wan2.6-i2v": {"first_clip_url", "last_frame_url"},
}
HOOKS = "extra.webhook"


def request_of(case: str, **changes: Any) -> JobRequest:
    dialect, path, body, headers = CREATES[case]
    for name, value in changes.items():
        body = wires.changed(body, name.replace("__", "."), value)
    command = wires.send(dialect, "POST", path, body, headers=headers)
    if isinstance(command, CreateMany):
        return command.requests[0]
    request: JobRequest = command.request  # type: ignore[union-attr]
    return request


def plan(request: JobRequest) -> dict[str, Any]:
    """Return everything that is done differently for this request."""
    request = request if request.seed is not None else request.replace(seed=0)
    # What preparing decides, in short: the words and the rules it works by.
    resolved = renders.resolve(request, PICTURE_SIZE)
    resolved["safety_policy"] = "block" if request.safety_checker else "flag"
    if request.effect is not None:
        resolved["prompt"] = f"effect {request.effect}"
    elif request.prompt_expansion:
        resolved["prompt"] = f"{request.prompt}, expanded"
    sound = request.audio.url
    rendered = renders.render_request(
        reference="r",
        request=request,
        route={"profile": "p", "queue": "cpu", "simulates": True},
        resolved=resolved,
        image=Path("image"),
        last_image=Path("last") if request.last_image else None,
        audio=Path("sound") if sound else None,
    )
    orders = {
        route.runner: outside.order(
            request,
            reference="r",
            wire_model=route.profile,
            provider=route.runner,
            prompt=resolved.get("prompt"),
            audio_url=sound,
        )
        for route in MODELS[request.model].routes
        if route.kind == "provider"
    }
    return {
        "engine": rendered,
        "providers": orders,
        "fetched": (request.image, request.last_image, sound),
        "priced": (request.tier, request.frames, request.premium, request.audio.mode),
        "told": request.webhook,
        "judged": resolved["safety_policy"],
        "ours": (request.priority, request.retention_seconds, request.metadata),
    }


@pytest.mark.parametrize(
    ("case", "field", "other"),
    [(case, *change) for case, changes in CHANGES.items() for change in changes],
)
def test_a_field_makes_another_plan(case: str, field: str, other: Any) -> None:
    beside = COMPANIONS.get((case, field), {})
    plain = plan(request_of(case))
    changed = plan(request_of(case, **{field.replace(".", "__"): other}, **beside))
    assert changed != plain


def test_novitas_pair_of_sides_makes_another_plan() -> None:
    case = f"novita {test_novita.WAN_21}"
    wide = plan(request_of(case, width=1280, height=720))
    assert wide != plan(request_of(case))


@pytest.mark.parametrize("case", CREATES)
def test_every_documented_field_is_tried(case: str) -> None:
    dialect, path, _, _ = CREATES[case]
    documented = {row.name for row in wires.route_of(dialect, "POST", path).fields}
    same = [name for name in CREATES if CREATES[name][:2] == (dialect, path)]
    known = {name for other in same for name, _ in CHANGES.get(other, [])}
    known = known.union(*(ELSEWHERE.get(other, set()) for other in same))
    if HOOKS in known:
        known |= {name for name in documented if name.startswith(f"{HOOKS}.")}
    if "dashscope" in case:
        # Both of its paths take the same fields; each is tried on one.
        known = known.union(
            *({f for f, _ in CHANGES[c]} for c in CHANGES if "dashscope" in c)
        )
    assert documented - known == set()
