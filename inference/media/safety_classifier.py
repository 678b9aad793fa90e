"""A ViT that tells unsafe pictures from safe ones (Falconsai/nsfw_image_detection class).

Reads a transformers folder: config.json with its label names, model.safetensors and
preprocessor_config.json. Nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageClassification

from inference.errors import WeightsMissing

#: Labels that count as unsafe, over the classifiers in use (Falconsai, AdamCodd, LAION).
UNSAFE = frozenset({"nsfw", "unsafe", "porn", "hentai", "sexy", "explicit"})


class ViTClassifier:
    def __init__(self, folder: Path) -> None:
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            self._model = AutoModelForImageClassification.from_pretrained(
                folder, config=config, local_files_only=True
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise WeightsMissing(f"{folder}: {error}") from error
        self._unsafe = [
            index
            for index, label in config.id2label.items()
            if str(label).lower() in UNSAFE
        ]
        if not self._unsafe:
            raise WeightsMissing(
                f"{folder}: none of its labels {sorted(config.id2label.values())} "
                "is known to mean unsafe"
            )
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = self._model.to(self._device).eval()
        self._side, self._mean, self._std = _preprocessing(folder, config.image_size)

    @torch.inference_mode()
    def scores(self, images: Sequence[Image.Image]) -> list[float]:
        batch = torch.stack([self._tensor(image) for image in images])
        logits = self._model(pixel_values=batch.to(self._device)).logits
        unsafe = logits.float().softmax(dim=-1)[:, self._unsafe].sum(dim=-1)
        return [float(score) for score in unsafe.cpu()]

    def _tensor(self, image: Image.Image) -> torch.Tensor:
        small = image.resize((self._side, self._side), Image.Resampling.BILINEAR)
        pixels = np.asarray(small, np.float32) / 255
        return torch.from_numpy((pixels - self._mean) / self._std).permute(2, 0, 1)


def _preprocessing(
    folder: Path, default_side: int
) -> tuple[int, np.ndarray, np.ndarray]:
    path = folder / "preprocessor_config.json"
    wish = json.loads(path.read_text()) if path.exists() else {}
    size = wish.get("size", default_side)
    side = size if isinstance(size, int) else size.get("height", default_side)
    mean = wish.get("image_mean", [0.5, 0.5, 0.5])
    std = wish.get("image_std", [0.5, 0.5, 0.5])
    return side, np.array(mean, np.float32), np.array(std, np.float32)
