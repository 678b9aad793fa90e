"""What torch's errors mean for a job and for the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from inference.errors import EngineBroken, EngineFailed, OutOfMemory

# After one of these the CUDA context is lost: every later call fails or, worse, answers.
_STICKY = ("CUDA error", "cuDNN error", "CUDNN_STATUS", "CUBLAS_STATUS", "device-side")
_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


@contextmanager
def translated() -> Iterator[None]:
    """Turn torch's errors into OutOfMemory, EngineBroken or EngineFailed."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(str(error)) from error
    except RuntimeError as error:
        text = str(error)
        if any(sign in text for sign in _MEMORY):
            raise OutOfMemory(text) from error
        if any(sign in text for sign in _STICKY):
            raise EngineBroken(text) from error
        raise EngineFailed(text) from error
