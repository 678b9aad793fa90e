"""The effects as first installed; the operator edits the rows.

The words decide what `motion` does (moves, tempo, cuts) and what a diffusion model is
told; ``parameters`` what else each model gets. Seeds belong to the look: they decide
what the words leave open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: What no effect wants of a diffusion model.
NEGATIVE = (
    "blurry, low quality, jpeg artifacts, watermark, subtitles, deformed, extra limbs, "
    "flickering, sudden cuts"
)
#: Calm looks follow the picture more, wild ones the words. Guidance as the Wan guides
#: have it; a higher shift moves more.
CALM: Mapping[str, Any] = {"guidance_scale": 3.5, "flow_shift": 3.0}
USUAL: Mapping[str, Any] = {"guidance_scale": 4.0, "flow_shift": 5.0}
WILD: Mapping[str, Any] = {"guidance_scale": 5.5, "flow_shift": 8.0}


@dataclass(frozen=True)
class FirstEffect:
    code: str
    name: str
    prompt: str
    description: str
    seed: int
    wan: Mapping[str, Any]
    motion: Mapping[str, Any] = field(default_factory=dict)
    plans: tuple[str, ...] = ()
    negative_prompt: str = NEGATIVE

    @property
    def parameters(self) -> dict[str, Any]:
        """Return options by model, as `EffectVersion.parameters` keeps them."""
        every = {"seed": self.seed, **self.wan}
        by_model = {"motion": dict(self.motion)} if self.motion else {}
        return {"*": every, **by_model}


FIRST_EFFECTS: tuple[FirstEffect, ...] = (
    FirstEffect(
        "hero-push",
        "Hero push-in",
        "The camera pushes in dramatically, fast, towards the subject while light flares "
        "behind it; the background falls into soft focus.",
        "A fast, dramatic push towards the subject.",
        101,
        WILD,
    ),
    FirstEffect(
        "slow-reveal",
        "Slow reveal",
        "The camera slowly pulls back and reveals the whole scene; dust drifts through "
        "warm evening light.",
        "A calm pull-back that opens the scene.",
        202,
        CALM,
    ),
    FirstEffect(
        "orbit",
        "Orbit",
        "The camera orbits around the subject with strong parallax and depth, near things "
        "passing faster than far ones.",
        "An arc around the subject, with depth.",
        303,
        USUAL,
    ),
    FirstEffect(
        "sweep-left",
        "Sweep left",
        "The camera pans to the left across the scene at an even pace, like a train "
        "window gliding past.",
        "An even pan to the left.",
        404,
        USUAL,
    ),
    FirstEffect(
        "sweep-right",
        "Sweep right",
        "The camera pans to the right across the scene at an even pace, following an "
        "unseen passer-by.",
        "An even pan to the right.",
        505,
        USUAL,
    ),
    FirstEffect(
        "crane-up",
        "Crane up",
        "The camera cranes up quickly from the ground to the sky as the wind lifts "
        "everything loose.",
        "A quick rise over the scene.",
        606,
        WILD,
    ),
    FirstEffect(
        "descend",
        "Descend",
        "The camera tilts down and descends towards the ground; shadows grow longer.",
        "A descent into the scene.",
        707,
        USUAL,
    ),
    FirstEffect(
        "weightless",
        "Weightless",
        "Everything floats weightlessly; the view sways as if under water, hair and cloth "
        "drifting.",
        "A dreamy sway, as if under water.",
        808,
        CALM,
    ),
    FirstEffect(
        "found-footage",
        "Found footage",
        "Handheld camera shake, quick and rough: found footage of a breathless run, "
        "rolling light leaks.",
        "A shaky hand and a running pulse.",
        909,
        WILD,
    ),
    FirstEffect(
        "dutch-spin",
        "Dutch spin",
        "The camera rolls clockwise into a dutch angle while it pushes in; the room turns "
        "around the subject.",
        "A clockwise roll with a push-in.",
        1010,
        WILD,
        plans=("pro", "enterprise"),
    ),
    FirstEffect(
        "unwind",
        "Unwind",
        "The camera rolls counter-clockwise and pulls out slowly, as if waking from a "
        "dream.",
        "A slow counter-roll that lets go.",
        1111,
        CALM,
        plans=("pro", "enterprise"),
    ),
    FirstEffect(
        "vertigo",
        "Vertigo",
        "A vertigo effect: the camera pulls out fast with parallax and depth while the "
        "background seems to rush closer.",
        "The background rushes past the subject.",
        1212,
        WILD,
    ),
    FirstEffect(
        "storyboard",
        "Storyboard",
        "A short story in shots: a wide view, then close on the subject, then a detail; "
        "the camera pans to the right.",
        "Cuts: wide, close, detail.",
        1313,
        USUAL,
        motion={"shot_type": "multi"},
    ),
    FirstEffect(
        "living-portrait",
        "Living portrait",
        "Static camera on a tripod, a living portrait: a breath, a blink, a hint of a "
        "smile.",
        "Almost still; the subject breathes.",
        1414,
        CALM,
    ),
)
