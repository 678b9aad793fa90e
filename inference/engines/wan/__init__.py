"""Wan image-to-video on diffusers: one profile per checkpoint, one process per GPU.

``engine.WanEngine`` makes frames; ``profiles`` says what each checkpoint can do;
``weights`` finds the files; ``residency`` decides what stays on the device; ``host``
says what this machine can serve and warms it up. Only ``profiles``, ``weights``,
``residency``, ``flops``, ``lora_files`` and ``host`` may be imported without torch.
"""

from __future__ import annotations
