"""A real picture classifier, tiny and made on the spot: bright pictures are unsafe."""

from __future__ import annotations

import json
from pathlib import Path


def write(weights: Path) -> Path:
    """Put a ViT with two labels into ``weights/safety``: white is nsfw, black normal."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        id2label={0: "normal", 1: "nsfw"},
        label2id={"normal": 0, "nsfw": 1},
    )
    model = ViTForImageClassification(config).eval()
    white, black = torch.ones(1, 3, 32, 32), -torch.ones(1, 3, 32, 32)
    with torch.inference_mode():
        one, two = (model.vit(pixel_values=x)[0][0, 0] for x in (white, black))
    direction = one - two
    with torch.no_grad():
        scale = 8 / direction.dot(direction)
        model.classifier.weight.copy_(torch.stack([-direction, direction]) * scale)
        offset = float(direction.dot((one + two) / 2) * scale)
        model.classifier.bias.copy_(torch.tensor([offset, -offset]))
    folder = weights / "safety"
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3})
    )
    return folder
