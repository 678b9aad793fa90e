"""Random weights of the real classes: tiny ones on the spot, full-size ones for timing.

``save`` writes a tiny pipeline of any kind as a folder of weights; from there it takes
the same path as real ones. ``random_transformer`` fills a full-size transformer on a
device in seconds. Nothing here is ever downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

# As a table: a linter takes "…token=" for a password.
_SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-"


def save(kind: str, folder: Path) -> None:
    """Write a tiny random checkpoint of ``kind`` (2.1, flf, 2.2, 5b) to ``folder``."""
    with torch.random.fork_rng(devices=[]):
        tiny(kind).save_pretrained(folder)


def tiny(kind: str, *, flow_shift: float = 5.0) -> WanImageToVideoPipeline:
    """Return a tiny pipeline; the same weights each time. Sets torch's random state."""
    words = _tokenizer()
    parts: dict[str, Any] = {
        "tokenizer": words,
        "text_encoder": _text_encoder(len(words)),
        "vae": _vae(kind),
        "transformer": _transformer(kind, 0),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=flow_shift,
        ),
    }
    if kind in {"2.1", "flf"}:
        parts["image_encoder"] = _image_encoder()
        parts["image_processor"] = CLIPImageProcessorPil(crop_size=32, size=32)
    if kind == "2.2":
        parts |= {"transformer_2": _transformer(kind, 1), "boundary_ratio": 0.9}
    if kind == "5b":
        parts["expand_timesteps"] = True
    return WanImageToVideoPipeline(**parts)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a unigram tokenizer with byte fallback: any text encodes."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -8.0) for byte in range(256)]
    pieces += [("\u2581", -2.0), *((letter, -4.0) for letter in _LETTERS)]
    words = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=512,
        **_SPECIAL,
    )


def _text_encoder(vocabulary: int) -> UMT5EncoderModel:
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return UMT5EncoderModel(config).eval()


def _vae(kind: str) -> AutoencoderKLWan:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "base_dim": 3,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "z_dim": 16,
    }
    if kind == "5b":
        shape |= {
            "z_dim": 48,
            "in_channels": 12,
            "out_channels": 12,
            "is_residual": True,
            "patch_size": 2,
            "latents_mean": [0.0] * 48,
            "latents_std": [1.0] * 48,
            "scale_factor_spatial": 16,
            "scale_factor_temporal": 4,
        }
    return AutoencoderKLWan(**shape).eval()


def _transformer(kind: str, seed: int) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "text_dim": 32,
        "freq_dim": 256,
        "ffn_dim": 32,
        "num_layers": 2,
        "in_channels": 48 if kind == "5b" else 36,
        "out_channels": 48 if kind == "5b" else 16,
    }
    if kind in {"2.1", "flf"}:
        shape |= {"image_dim": 4, "added_kv_proj_dim": 24}
    if kind == "flf":
        shape["pos_embed_seq_len"] = 2 * (32 * 32 + 1)
    return WanTransformer3DModel(**shape).eval()


def _image_encoder() -> CLIPVisionModel:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=4,
        projection_dim=4,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        intermediate_size=16,
        patch_size=1,
    )
    return CLIPVisionModel(config).eval()


def random_transformer(
    device: str, *, seed: int = 0, dtype: torch.dtype = torch.bfloat16, **config: Any
) -> WanTransformer3DModel:
    """Return a transformer of any size with random weights, made on ``device``.

    The parameters' types are those of ``from_pretrained(dtype=…)``: what the model keeps
    in fp32 stays fp32.
    """
    keep = WanTransformer3DModel._keep_in_fp32_modules
    with torch.device("meta"):
        model = WanTransformer3DModel(**config)
    for name, weight in model.named_parameters():
        if not any(kept in name.split(".") for kept in keep):
            weight.data = weight.data.to(dtype)
    model = model.to_empty(device=device).eval().requires_grad_(requires_grad=False)
    numbers = torch.Generator(device).manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith("scale_shift_table") or weight.ndim > 1:
            weight.normal_(0, 0.02, generator=numbers)
        elif "norm" in name and name.endswith("weight"):
            weight.fill_(1)
        else:
            weight.zero_()
    rope = type(model.rope)  # its buffers were meta
    model.rope = rope(
        model.config.attention_head_dim,
        model.config.patch_size,
        model.config.rope_max_seq_len,
    ).to(device)
    return model
