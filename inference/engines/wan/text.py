"""Prompts to embeddings, remembered: the text encoder is 11 GB and the same words return.

What is remembered is cut to the prompt's own length (at most 4.2 MB each at 512 tokens
of 4,096 bf16) and padded with zeros again, so a hit gives the same bits as a miss.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from diffusers import WanImageToVideoPipeline
from diffusers.pipelines.wan.pipeline_wan_i2v import prompt_clean

#: The attention processor hard-codes 512 text tokens: other lengths run without an error
#: and give another video.
TOKENS = 512
ENTRIES = 1000


def cleaned(prompt: str) -> str:
    words: str = prompt_clean(prompt)
    return words


class TextCache:
    """Embeddings by (text encoder, cleaned prompt), least recently used out first."""

    def __init__(self, entries: int = ENTRIES) -> None:
        self._entries = entries
        self._kept: OrderedDict[tuple[str, str], torch.Tensor] = OrderedDict()

    def get(self, encoder: str, prompt: str) -> torch.Tensor | None:
        """Return (1, 512, width) on the CPU, or None."""
        key = (encoder, cleaned(prompt))
        short = self._kept.get(key)
        if short is None:
            return None
        self._kept.move_to_end(key)
        whole = short.new_zeros(1, TOKENS, short.shape[-1])
        whole[:, : short.shape[1]] = short
        return whole

    def put(self, encoder: str, prompt: str, embeds: torch.Tensor) -> None:
        used = embeds[0].abs().sum(dim=-1).nonzero()
        length = int(used.max()) + 1 if len(used) else 0
        self._kept[encoder, cleaned(prompt)] = embeds[:, :length].to("cpu", copy=True)
        while len(self._kept) > self._entries:
            self._kept.popitem(last=False)


@torch.no_grad()
def encode(
    pipe: WanImageToVideoPipeline, prompt: str, device: torch.device
) -> torch.Tensor:
    """Return (1, 512, width) for one prompt; without a graph, or it would leak."""
    embeds: torch.Tensor = pipe.encode_prompt(
        prompt,
        do_classifier_free_guidance=False,
        max_sequence_length=TOKENS,
        device=device,
    )[0]
    return embeds
