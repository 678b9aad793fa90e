"""The denoising loop: stock's result bit for bit, with guidance decided per stage.

The stock pipeline looks at the high-noise scale only: (1, 3.5) runs without guidance in
the low stage, (3.5, 1) pays two forwards where one is enough. Here each expert's own
scale decides. The oracle is ``WanImageToVideoPipeline.__call__`` of diffusers 0.42.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from PIL import Image

from inference.engines.wan.checks import check_finite

Scheduler: TypeAlias = UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler
#: called (forwards done); raises to stop
Tick = Callable[[int], None]


@dataclass(frozen=True)
class Conditions:
    """What the loop starts from. ``mask`` is set for models that expand timesteps."""

    latents: torch.Tensor  # (1, channels, latent frames, height/s, width/s) fp32 noise
    condition: torch.Tensor
    mask: torch.Tensor | None
    image_embeds: torch.Tensor | None


def unipc(pipe: WanImageToVideoPipeline, flow_shift: float) -> UniPCMultistepScheduler:
    """Return a new scheduler: it keeps state, so no two jobs may share one."""
    return UniPCMultistepScheduler.from_config(
        pipe.scheduler.config, flow_shift=flow_shift
    )


def euler(flow_shift: float) -> FlowMatchEulerDiscreteScheduler:
    """Return the scheduler that distilled weights were made for."""
    return FlowMatchEulerDiscreteScheduler(shift=flow_shift)


def set_steps(scheduler: Scheduler, steps: int, device: torch.device) -> torch.Tensor:
    """Set and return the timesteps; Euler at shift 5 and 4 steps: 1000, 937, 833, 625."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        # Its own spacing ends near 0; distilled models were trained on 1 - i/n.
        sigmas = [1 - step / steps for step in range(steps)]
        scheduler.set_timesteps(sigmas=sigmas, device=device)
    else:
        scheduler.set_timesteps(steps, device=device)
    return scheduler.timesteps


@torch.no_grad()
def conditions(
    pipe: WanImageToVideoPipeline,
    image: Image.Image,
    last: Image.Image | None,
    *,
    width: int,
    height: int,
    frames: int,
    generator: torch.Generator,
    device: torch.device,
) -> Conditions:
    """Encode the picture(s) and draw the noise. ``frames`` is 4k + 1."""

    def pixels(picture: Image.Image) -> torch.Tensor:
        made = pipe.video_processor.preprocess(picture, height=height, width=width)
        return made.to(device, dtype=torch.float32)

    embeds = None
    if pipe.image_encoder is not None:
        embeds = pipe.encode_image(image if last is None else [image, last], device)
    made = pipe.prepare_latents(
        pixels(image),
        1,
        pipe.vae.config.z_dim,
        height,
        width,
        frames,
        torch.float32,
        device,
        generator,
        None,
        None if last is None else pixels(last),
    )
    mask = made[2] if pipe.config.expand_timesteps else None
    return Conditions(made[0], made[1], mask, embeds)


def is_high(pipe: WanImageToVideoPipeline, timesteps: torch.Tensor) -> list[bool]:
    """Say for each step whether the high-noise expert takes it."""
    ratio = pipe.config.boundary_ratio
    if ratio is None:
        return [True] * len(timesteps)
    high: list[bool] = (
        timesteps >= ratio * pipe.scheduler.config.num_train_timesteps
    ).tolist()
    return high


def forwards(high: list[bool], guidance: float, guidance_low: float) -> int:
    """Return how many transformer forwards a job takes."""
    return sum(2 if (guidance if it else guidance_low) > 1 else 1 for it in high)


@torch.no_grad()
def denoise(
    pipe: WanImageToVideoPipeline,
    scheduler: Scheduler,
    start: Conditions,
    *,
    prompt: torch.Tensor,
    negative: torch.Tensor | None,
    guidance: float,
    guidance_low: float,
    timesteps: torch.Tensor,
    expert: Callable[[int], WanTransformer3DModel],
    tick: Tick,
) -> torch.Tensor:
    """Return the clean latents.

    ``expert(0)`` gives the high-noise transformer ready to run, ``expert(1)`` the other;
    each is asked for before its first step. ``tick`` is called after every forward.
    """
    latents, condition, mask = start.latents, start.condition, start.mask
    stages: dict[bool, _Stage] = {}
    done = 0
    for t, high in zip(timesteps, is_high(pipe, timesteps), strict=True):
        is_first = high not in stages
        if is_first:
            model = expert(0 if high else 1)
            scale = guidance if high else guidance_low
            stages[high] = _Stage.of(model, start, prompt, negative, scale)
        stage = stages[high]
        if mask is not None:
            seen = (1 - mask) * condition + mask * latents
            when = (mask[0][0][:, ::2, ::2] * t).flatten().unsqueeze(0)
        else:
            seen = torch.cat([latents, condition], dim=1)
            when = t.expand(1)
        seen = seen.to(stage.prompt.dtype)
        # Guidance stays sequential: at 30,000 tokens batching gains nothing and doubles
        # the activations.
        flow = stage.forward("cond", stage.prompt, seen, when)
        done += 1
        if stage.guidance > 1 and stage.negative is not None:
            tick(done)
            away = stage.forward("uncond", stage.negative, seen, when)
            flow = away + stage.guidance * (flow - away)
            done += 1
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            flow = flow.to(latents.dtype)  # it answers in the flow's type: keep fp32
        latents = scheduler.step(flow, t, latents, return_dict=False)[0]
        if is_first:
            # A LoRA that breaks this expert does so at once: save the other steps.
            check_finite(latents)
        tick(done)
    return latents if mask is None else (1 - mask) * condition + mask * latents


@dataclass(frozen=True)
class _Stage:
    """One expert with its inputs in its own type."""

    model: WanTransformer3DModel
    prompt: torch.Tensor
    negative: torch.Tensor | None
    image_embeds: torch.Tensor | None
    guidance: float

    @classmethod
    def of(
        cls,
        model: WanTransformer3DModel,
        start: Conditions,
        prompt: torch.Tensor,
        negative: torch.Tensor | None,
        guidance: float,
    ) -> _Stage:
        to, embeds = (start.latents.device, model.dtype), start.image_embeds
        return cls(
            model,
            prompt.to(*to),
            None if negative is None else negative.to(*to),
            None if embeds is None else embeds.to(*to),
            guidance,
        )

    def forward(
        self, name: str, text: torch.Tensor, seen: torch.Tensor, when: torch.Tensor
    ) -> torch.Tensor:
        with self.model.cache_context(name):
            made: torch.Tensor = self.model(
                hidden_states=seen,
                timestep=when,
                encoder_hidden_states=text,
                encoder_hidden_states_image=self.image_embeds,
                return_dict=False,
            )[0]
        return made
