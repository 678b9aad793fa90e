"""Latents to frames, one latent frame at a time, and the places where a VAE can stop.

``stream`` gives the pixels of the stock pipeline bit for bit without ever holding the
clip. On a GPU the next chunk is already being decoded while the caller encodes this one.
``tiled`` is stock's own tiling, for the second try after the memory ran out.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

if TYPE_CHECKING:
    from inference.contracts import Frame

#: called after each piece of work; raises to stop
Tick = Callable[[], None]

# fp32 convolutions run on TF32 tensor cores as long as this stays on; it is torch's
# default and said here because the VAE's share of a job rests on it. With 4-step models
# the VAE is no longer noise: 439 TFLOP at 480p against 6,700 for four forwards (counted).
torch.backends.cudnn.allow_tf32 = True
# Benchmarking picks kernels by timing, so two runs may differ in the last bits; the
# promise is the same latents for the same fingerprint.
torch.backends.cudnn.benchmark = False


@contextmanager
def watched(module: torch.nn.Module, tick: Tick) -> Iterator[None]:
    """Call ``tick`` after each forward of ``module``: once per latent frame (and tile)."""
    handle = module.register_forward_hook(lambda *_: tick())
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def denormalized(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Return ``latents`` as the decoder takes them; the arithmetic is stock's."""
    config = vae.config
    latents = latents.to(vae.device, vae.dtype)
    shape = (1, config.z_dim, 1, 1, 1)
    mean = torch.tensor(config.latents_mean).view(*shape).to(latents)
    std = 1.0 / torch.tensor(config.latents_std).view(*shape).to(latents)
    return latents / std + mean


def stream(
    vae: AutoencoderKLWan, latents: torch.Tensor, tick: Tick
) -> Generator[list[Frame], None, None]:
    """Yield the clip's frames in chunks of 1, 4, 4, 4… as (height, width, 3) uint8."""
    ready = _post_quantized(vae, latents)
    # What the causal convolutions remember belongs to this clip, not to the VAE: stopping
    # here leaves nothing behind.
    memory: list[torch.Tensor | None] = [None] * vae._cached_conv_counts["decoder"]
    waiting: _Leaving | None = None
    for index in range(ready.shape[2]):
        leaving = _Leaving(_decoded(vae, ready, index, memory))
        tick()
        # The next chunk is under way on the device; only now wait for this one.
        if waiting is not None:
            yield waiting.frames()
        waiting = leaving
    if waiting is not None:
        yield waiting.frames()


def tiled(
    vae: AutoencoderKLWan, latents: torch.Tensor, tick: Tick
) -> Generator[list[Frame], None, None]:
    """Yield the clip's frames after decoding it in tiles: less memory, other pixels.

    Costs 20-30 % more time (ostris/ai-toolkit, pull 819); never the first try.
    """
    with tiling(vae), watched(vae.decoder, tick):
        clip = _decoded_whole(vae, latents)
    for index in range(clip.shape[2]):
        yield _Leaving(clip[:, :, index : index + 1]).frames()


@contextmanager
def tiling(vae: AutoencoderKLWan) -> Iterator[None]:
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()
        vae.clear_cache()


class _Leaving:
    """A decoded chunk on its way to the host."""

    def __init__(self, chunk: torch.Tensor) -> None:
        pixels = _uint8(chunk)
        self._event: torch.cuda.Event | None = None
        if pixels.device.type == "cuda":
            host = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
            host.copy_(pixels, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
            pixels = host
        self._pixels = pixels

    def frames(self) -> list[Frame]:
        if self._event is not None:
            self._event.synchronize()
        return list(self._pixels.numpy())


@torch.no_grad()
def _post_quantized(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = vae.post_quant_conv(denormalized(vae, latents))
    return made


@torch.no_grad()
def _decoded(
    vae: AutoencoderKLWan,
    ready: torch.Tensor,
    index: int,
    memory: list[torch.Tensor | None],
) -> torch.Tensor:
    """Return chunk ``index``, (1, 3, 1 or 4, height, width) in -1..1."""
    first = {"first_chunk": True} if index == 0 else {}
    chunk = vae.decoder(
        ready[:, :, index : index + 1],
        feat_cache=memory,
        feat_idx=[0],
        **first,
    )
    if vae.config.patch_size is not None:
        chunk = unpatchify(chunk, patch_size=vae.config.patch_size)
    return chunk.clamp(-1.0, 1.0)


@torch.no_grad()
def _decoded_whole(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    clip: torch.Tensor = vae.decode(denormalized(vae, latents), return_dict=False)[0]
    return clip


@torch.no_grad()
def _uint8(chunk: torch.Tensor) -> torch.Tensor:
    """Return (frames, height, width, 3) uint8 of a (1, 3, frames, …) chunk in -1..1."""
    pixels = (chunk[0].float() * 0.5 + 0.5).clamp(0, 1).mul(255).round()
    return pixels.to(torch.uint8).permute(1, 2, 3, 0).contiguous()
