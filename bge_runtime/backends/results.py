"""What every forward pass on torch ends with: errors of our own, and one number per pair."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bge_runtime.errors import BackendError, OutOfMemoryError, UnsupportedModelError

__all__ = ["device_errors", "one_logit"]


@contextmanager
def device_errors(device: torch.device, texts: int) -> Iterator[None]:
    """Turn torch's errors into ours."""
    try:
        yield
    except RuntimeError as error:
        # The CPU allocator and MPS raise plain RuntimeError when memory is out.
        if isinstance(error, torch.OutOfMemoryError) or re.search("(not enough|out of) memory", str(error)):
            if device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfMemoryError(f"{texts} texts do not fit in the memory of {device}.") from error
        raise BackendError(f"The forward pass failed: {error}") from error


def one_logit(logits: torch.Tensor) -> torch.Tensor:
    """Return one float32 logit per row; two labels become the log-odds of the second."""
    if logits.ndim == 1 or logits.shape[1] == 1:
        return logits.reshape(len(logits)).float()
    if logits.shape[1] == 2:
        return logits[:, 1].float() - logits[:, 0].float()
    raise UnsupportedModelError(
        f"The classifier has {logits.shape[1]} labels; a reranker has one, or two of which the second means relevant."
    )
