"""Which attention kernel this host can run; probed once, recorded with every result."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

log = logging.getLogger(__name__)

# Order by published H100 rates, forward, head dim 128, 8-16k tokens: FA3 ~648 and cuDNN
# ~595-600 TFLOP/s against FA2's 370 (the FlashAttention-3 paper; pytorch/benchmark pull
# 2391). cuDNN is first because every CUDA build of torch has it.
CUDA_ORDER = ("_native_cudnn", "_flash_3", "flash", "native")
CPU_ORDER = ("native",)


@dataclass(frozen=True)
class Probed:
    """``name`` is the kernel in use; ``refused`` says why each better one is not."""

    name: str
    refused: dict[str, str]


def probe(device: torch.device, order: Sequence[str] | None = None) -> Probed:
    """Return the first kernel of ``order`` that runs here at Wan's head size."""
    order = order or (CUDA_ORDER if device.type == "cuda" else CPU_ORDER)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    states = torch.randn(1, 64, 2, 128, device=device, dtype=dtype)
    refused: dict[str, str] = {}
    for name in order:
        try:
            with torch.no_grad(), attention_backend(name):
                dispatch_attention_fn(states, states, states, backend=name)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        except (RuntimeError, ValueError, ImportError, AttributeError) as error:
            refused[name] = str(error).partition("\n")[0]
            log.info("attention backend %s: %s", name, refused[name])
        else:
            return Probed(name, refused)
    raise RuntimeError(f"no attention backend runs on {device}: {refused}")


def use(transformer: WanTransformer3DModel, probed: Probed) -> None:
    transformer.set_attention_backend(probed.name)
