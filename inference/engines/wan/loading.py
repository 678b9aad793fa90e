"""Reading one part of a checkpoint, and the pipeline object that holds the parts.

Each part is loaded by itself, so that it can be shared between checkpoints, moved away
and read again. Types are those of ``from_pretrained(dtype={"default": bf16, "vae":
fp32})``: what a transformer must keep in fp32 stays fp32. Nothing is ever downloaded.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionModel,
    UMT5EncoderModel,
)

from inference.engines.wan.weights import INDEX
from inference.errors import WeightsMissing

MODULES: dict[str, Any] = {
    "transformer": WanTransformer3DModel,
    "transformer_2": WanTransformer3DModel,
    "vae": AutoencoderKLWan,
    "text_encoder": UMT5EncoderModel,
    "image_encoder": CLIPVisionModel,
}
#: diffusers calls ftfy without importing it when it is absent: a NameError at the first
#: prompt, so its absence is found at start.
PACKAGES = ("ftfy", "regex", "sentencepiece", "accelerate", "safetensors")

diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()


def check_packages() -> None:
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise WeightsMissing(
                f"package {name!r} is not installed; install requirements/gpu.in"
            )


def dtypes(device: torch.device) -> dict[str, torch.dtype]:
    """Return the type of each part. On a CPU all is fp32: its bf16 kernels are slow."""
    half = torch.bfloat16 if device.type == "cuda" else torch.float32
    # CLIP and the VAE in fp32 as in diffusers' own example for Wan.
    wide = {"vae": torch.float32, "image_encoder": torch.float32}
    return dict.fromkeys(MODULES, half) | wide


def load_part(folder: Path, name: str, dtype: torch.dtype) -> torch.nn.Module:
    """Return one part of the checkpoint in ``folder``, on the CPU, ready for inference."""
    module: torch.nn.Module = MODULES[name].from_pretrained(
        folder / name,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
    )
    module.eval().requires_grad_(requires_grad=False)
    if name == "text_encoder":
        check_tied(module)
    return module


def check_tied(text_encoder: torch.nn.Module) -> None:
    """Raise unless the text encoder's two embedding tables are one and not zero.

    Wan's files carry only ``shared.weight``; a loader that does not tie the other one
    leaves it zero and every video is garbage (huggingface/transformers, pull 43880).
    """
    inner = text_encoder.encoder.embed_tokens.weight  # type: ignore[union-attr]  # torch types submodules as tensors
    shared = text_encoder.shared.weight  # type: ignore[union-attr]  # as above
    if inner.data_ptr() != shared.data_ptr() or not bool(shared.any()):  # type: ignore[operator]  # as above
        raise WeightsMissing(
            "the text encoder's embeddings are not tied to shared.weight; "
            "this version of transformers cannot load Wan's text encoder"
        )


def shell(folder: Path) -> WanImageToVideoPipeline:
    """Return the pipeline of a checkpoint without its weights; parts are put in later.

    The VAE's place is held by an empty one, because the pipeline reads its strides once.
    ``boundary_ratio`` and ``expand_timesteps`` are passed on explicitly: building from
    components drops them silently, and then the low-noise expert never runs.
    """
    index = json.loads((folder / INDEX).read_text())
    with torch.device("meta"):
        vae = AutoencoderKLWan.from_config(
            AutoencoderKLWan.load_config(folder / "vae", local_files_only=True)
        )
    pipe = WanImageToVideoPipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=None,
        vae=vae,
        scheduler=UniPCMultistepScheduler.from_pretrained(folder / "scheduler"),
        image_processor=_image_processor(folder),
        boundary_ratio=index.get("boundary_ratio"),
        expand_timesteps=index.get("expand_timesteps", False),
    )
    if _has(index, "transformer_2") and pipe.config.boundary_ratio is None:
        raise WeightsMissing(f"{folder / INDEX} has two experts and no boundary_ratio")
    return pipe


def _image_processor(folder: Path) -> CLIPImageProcessorPil | None:
    path = folder / "image_processor"
    return CLIPImageProcessorPil.from_pretrained(path) if path.is_dir() else None


def _has(index: dict[str, Any], name: str) -> bool:
    value = index.get(name)
    return isinstance(value, list) and value[0] is not None
