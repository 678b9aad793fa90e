"""A small instruction-tuned language model (Qwen class) that expands prompts."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from inference.errors import WeightsMissing

_NEW_TOKENS = 200


class LocalWriter:
    """Loaded when made, or WeightsMissing; to be asked one wish at a time."""

    def __init__(self, folder: Path) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True
            )
            self._model = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True
            ).eval()
            if torch.cuda.is_available():
                self._model = self._model.to("cuda", torch.bfloat16)
        # Anything: `tokenizers` raises Exception itself for a damaged file.
        except Exception as error:
            raise WeightsMissing(
                f"{folder}: {type(error).__name__}: {error}"
            ) from error

    @torch.inference_mode()
    def __call__(self, system: str, wish: str, seconds: float) -> str:
        turns = [
            {"role": "system", "content": system},
            {"role": "user", "content": wish},
        ]
        if self._tokenizer.chat_template:
            text = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        else:
            text = f"{system}\n\n{wish}\n\n"
        given = self._tokenizer(text, return_tensors="pt").to(self._model.device)
        made = self._model.generate(
            **given, max_new_tokens=_NEW_TOKENS, do_sample=False, max_time=seconds
        )
        answer = made[0, given["input_ids"].shape[1] :]
        return str(self._tokenizer.decode(answer, skip_special_tokens=True))
