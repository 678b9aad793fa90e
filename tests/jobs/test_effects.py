"""Effects: what a template does to a job, who may use it, how they look and are listed."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.management import call_command
from django.test import Client

from billing.models import Account
from billing.plans import terms_of
from inference.catalogue import MODELS
from inference.contracts import Lora
from inference.media.animation import animate
from jobs import context, effects, intake, lifecycle, previews, routing
from jobs.errors import Forbidden, InvalidRequest, UnsupportedOption
from jobs.models import Effect, Job, Worker
from jobs.models import Lora as StoredLora
from tests.factories import make_account, make_job, make_key, make_request
from tests.jobs.finishing import PHOTO, download, facts, frames, site, work, world

__all__ = ["site", "world"]
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

CLIP: dict[str, Any] = {"seconds": 1, "tier": "480p", "fps": 8}


@pytest.fixture
def alice() -> Account:
    return make_account("alice", credits=100)


def own(**changes: Any) -> Effect:
    effect = Effect.objects.create(code="glow", name="Glow", **changes)
    effects.publish(effect, prompt="push in, everything glows")
    return effect


def test_the_template_replaces_the_prompt_and_the_job_pins_its_version(
    alice: Account,
) -> None:
    effect = own()
    job = make_job(alice, **CLIP, effect="glow", prompt="pan to the left")
    effects.publish(effect, prompt="something else")
    job = work(job)
    assert job.request["prompt"] == "pan to the left"  # shown as it was sent
    assert job.resolved["prompt"] == "push in, everything glows"
    assert job.resolved["effect_version"] == 1
    assert job.resolved["effect_name"] == "Glow"
    assert make_job(alice, **CLIP, effect="glow").resolved["effect_version"] == 2


def test_the_prompt_makes_no_difference_beside_an_effect(
    alice: Account, tmp_path: Path
) -> None:
    own()
    one, other = (
        work(make_job(alice, **CLIP, effect="glow", prompt=prompt, seed=5))
        for prompt in ("pan left", "tilt up")
    )
    pictures = [
        np.concatenate([f.ravel() for f in frames(download(job, tmp_path))])
        for job in (one, other)
    ]
    assert np.array_equal(pictures[0], pictures[1])


def test_wan_gets_the_templates_parameters(alice: Account) -> None:
    plan = terms_of(alice.plan)
    asked = make_request("wan2.2-i2v", effect="hero-push", seed=None)
    applied = effects.apply(asked, plan=plan)
    made = applied.request
    assert made.guidance_scale == 5.5
    assert made.flow_shift == 8.0
    assert made.seed == 101
    assert "watermark" in made.negative_prompt
    assert applied.resolved["prompt"].startswith("The camera pushes in")


def test_the_customers_seed_stays(alice: Account) -> None:
    asked = make_request("motion", effect="hero-push", seed=7)
    assert effects.apply(asked, plan=terms_of(alice.plan)).request.seed == 7


def test_another_try_is_made_with_the_effect_of_today_alone(alice: Account) -> None:
    """Nothing that an earlier version set passes for the customer's wish."""
    Worker.objects.create(name="gpu@a", queues=["gpu.wan2.1"])
    routing.forget()
    for name in ("a", "b", "c", "mine"):
        StoredLora.objects.create(name=name, key=name, sha256="0" * 64)
    effect = own()
    effects.publish(
        effect,
        prompt="old",
        parameters={"*": {"seed": 101, "guidance_scale": 5.5}},
        loras=[{"path": "a"}, {"path": "b"}],
    )
    wish: dict[str, Any] = {
        "model": "wan2.1-i2v",
        "effect": "glow",
        "seed": None,
        "prompt_expansion": True,
        "negative_prompt": "rain",
        "loras": (Lora("mine"),),
    }
    first = make_job(alice, **wish)
    assert first.request["seed"] == 101
    lifecycle.cancel(first, actor="alice")
    effects.publish(
        effect,
        prompt="new",
        parameters={"*": {"seed": 202}},
        loras=[{"path": "a", "scale": 0.8}, {"path": "c"}],
    )
    Job.objects.filter(pk=first.pk).update(
        inputs={"image": {"key": "k", "size": [9, 6]}}
    )
    first.refresh_from_db()
    again = intake.submit_again(first, public_id=None, actor="olga")
    fresh = make_job(alice, **wish)
    for job in (again, fresh):
        assert job.resolved["effect_version"] == 3
        assert (job.request["seed"], job.request["guidance_scale"]) == (202, 5.0)
        assert [(lora["path"], lora["scale"]) for lora in job.request["loras"]] == [
            ("a", 0.8),
            ("c", 1.0),
            ("mine", 1.0),
        ]
    asked = effects.as_asked(again)
    assert (asked.seed, asked.negative_prompt) == (None, "rain")
    shown = Api(alice).get(f"/v1/jobs/{again.pk}").json()["parameters"]
    assert "as_asked" not in shown
    routing.forget()


def test_every_first_effect_fits_every_model(alice: Account) -> None:
    for row in effects.listed():
        template = row.current
        assert effects.problem_with(template.parameters, template.loras) == ""
        for model in MODELS.values():
            assert len(template.prompt) <= model.prompt_max


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ([], "object"),
        ({"nope": {}}, "no model"),
        ({"*": {"colour": 1}}, "none of"),
        ({"wan2.2-i2v": {"guidance_scale": 50}}, "must be 1 to 10"),
        ({"*": {"seed": -1}}, "seed"),
        ({"*": {"steps": True}}, "number"),
        ({"motion": {"shot_type": "many"}}, "shot_type"),
        ({"wan2.1-i2v": {"steps": 20.5}}, "whole number"),
    ],
)
def test_a_template_with_wrong_parameters_is_refused(
    parameters: Any, says: str
) -> None:
    assert says in effects.problem_with(parameters, [])


@pytest.mark.parametrize(
    ("loras", "says"),
    [
        ("glow", "a list"),
        ([{"name": "glow"}], "Each LoRA"),
        ([{"path": 5}], "name or address"),
        ([{"path": ""}], "name or address"),
        ([{"path": "glow", "path_low": 5}], "name or address"),
        ([{"path": "glow", "scale": 1e9}], "-4 to 4"),
        ([{"path": "glow", "scale": "huge"}], "-4 to 4"),
        ([{"path": "glow", "scale_low": float("nan")}], "-4 to 4"),
        ([{"path": "glow"}, {"path": "no-such"}], "no LoRA no-such here"),
        ([{"path": "glow"}] * 4, "At most 3"),
        ([{"path": "glow", "scale": 0.8}], ""),
    ],
)
def test_a_template_brings_only_loras_that_a_job_can_be_made_with(
    loras: Any, says: str
) -> None:
    StoredLora.objects.create(name="glow", key="k", sha256="0" * 64)
    found = effects.problem_with({}, loras)
    assert says in found
    assert bool(says) is bool(found)


def test_a_template_is_no_longer_than_its_models_take() -> None:
    longest = min(model.prompt_max for model in MODELS.values())
    assert effects.problem_with_length("x" * longest, []) == ""
    found = effects.problem_with_length("x" * (longest + 1), [])
    assert f"its models take {longest}" in found
    roomy = max(MODELS.values(), key=lambda model: model.prompt_max)
    assert effects.problem_with_length("x" * (longest + 1), [roomy.name]) == ""


def test_an_unknown_effect_is_refused_naming_the_field(alice: Account) -> None:
    with pytest.raises(InvalidRequest) as refused:
        make_job(alice, **CLIP, effect="no-such-look")
    assert refused.value.field == "effect"


def test_a_disabled_effect_is_unknown(alice: Account) -> None:
    own(is_enabled=False)
    with pytest.raises(InvalidRequest):
        make_job(alice, **CLIP, effect="glow")


def test_an_effect_of_a_higher_plan_is_forbidden() -> None:
    free = make_account("free", plan="free", credits=10)
    with pytest.raises(Forbidden) as refused:
        make_job(free, **CLIP, effect="dutch-spin")
    assert refused.value.field == "effect"


def test_an_effect_that_is_not_for_the_model_names_those_it_is_for(
    alice: Account,
) -> None:
    own(for_models=["wan2.2-i2v"])
    with pytest.raises(UnsupportedOption) as refused:
        make_job(alice, **CLIP, effect="glow")
    assert refused.value.models == ("wan2.2-i2v",)


def test_at_least_twelve_effects_visibly_differ_on_motion(tmp_path: Path) -> None:
    """Pairwise, at the same moments of a clip, well beyond what one look varies."""
    photo = PHOTO
    looks: dict[str, np.ndarray] = {}
    for row in effects.listed():
        template = row.current
        options = effects.options_for(template.parameters, "motion")
        shown = list(
            animate(
                photo,
                width=192,
                height=128,
                frames=24,
                fps=8,
                prompt=template.prompt,
                seed=options["seed"],
                cuts=options.get("shot_type") == "multi",
            )
        )
        looks[row.code] = np.stack(shown[11::12]).astype(np.float32)
    assert len(looks) >= 12
    alike = {
        pair: round(float(np.abs(looks[pair[0]] - looks[pair[1]]).mean()), 1)
        for pair in itertools.combinations(looks, 2)
    }
    closest = min(alike, key=alike.__getitem__)
    assert alike[closest] > 4.0, (closest, alike[closest])


# ------------------------------------------------------------------- the catalogue


class Api:
    def __init__(self, account: Account) -> None:
        self.headers = {"Authorization": f"Bearer {make_key(account)}"}
        self.client = Client(raise_request_exception=False)

    def get(self, path: str) -> Any:
        return self.client.get(path, headers=self.headers)


def test_effects_are_listed_by_the_page(alice: Account) -> None:
    api = Api(alice)
    first = api.get("/v1/effects?limit=5").json()
    assert (len(first["data"]), first["has_more"]) == (5, True)
    assert first["total"] >= 12
    second = api.get("/v1/effects?limit=5&page=2").json()
    codes = {e["code"] for e in first["data"]} & {e["code"] for e in second["data"]}
    assert codes == set()
    beyond = api.get("/v1/effects?page=99").json()
    assert (beyond["data"], beyond["has_more"]) == ([], False)


def test_a_listing_says_what_the_plan_has() -> None:
    api = Api(make_account("free", plan="free"))
    listed = {e["code"]: e for e in api.get("/v1/effects?limit=100").json()["data"]}
    assert listed["hero-push"]["available"]
    assert not listed["dutch-spin"]["available"]


@pytest.mark.parametrize("query", ["page=0", "limit=101", "page=x", "colour=red"])
def test_a_wrong_page_is_refused(alice: Account, query: str) -> None:
    assert Api(alice).get(f"/v1/effects?{query}").status_code == 422


def test_akool_lists_the_same_effects(alice: Account) -> None:
    data = Api(alice).get("/api/open/v4/image2Video/effects").json()["data"]
    assert data["count"] == len(data["result"]) >= 12
    assert {"_id", "create_time", "logo", "name", "video_url", "effect_code"} <= set(
        data["result"][0]
    )


def test_previews_are_rendered_by_our_own_engine(
    alice: Account, tmp_path: Path, s3_address: Any
) -> None:
    out = io.StringIO()
    call_command("render_previews", "crane-up", "--seconds", "1", stdout=out)
    assert "crane-up v1: rendered" in out.getvalue()
    template = Effect.objects.get(pk="crane-up").current
    context.get().storage.get_file(template.preview_key, tmp_path / "p.mp4")
    assert facts(tmp_path / "p.mp4").frames == 16
    listed = Api(alice).get("/v1/effects?limit=100").json()["data"]
    [shown] = [e for e in listed if e["code"] == "crane-up"]
    assert shown["preview_url"].startswith("http")
    assert shown["logo_url"].startswith("http")
    call_command("render_previews", "crane-up", "--seconds", "1", stdout=out)
    assert "crane-up v1: has one" in out.getvalue()


def test_a_preview_needs_only_files_that_a_container_has() -> None:
    root = previews.PHOTO.parent.parent
    copied = (root / "Dockerfile").read_text()
    assert f"COPY {previews.PHOTO.parent.name} " in copied


def test_an_effect_that_is_off_may_be_looked_at_first(s3_address: Any) -> None:
    Effect.objects.filter(pk="crane-up").update(is_enabled=False)
    out = io.StringIO()
    call_command("render_previews", "crane-up", "--seconds", "1", stdout=out)
    assert "crane-up v1: rendered" in out.getvalue()


def test_the_first_effects_are_not_put_back_over_an_operators_edit() -> None:
    Effect.objects.filter(pk="orbit").update(name="Round trip", is_enabled=False)
    effects.install()
    row = Effect.objects.get(pk="orbit")
    assert (row.name, row.is_enabled) == ("Round trip", False)
    assert row.versions.count() == 1
