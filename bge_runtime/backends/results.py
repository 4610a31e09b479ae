"""What a forward pass on torch has around it: threads that fit the machine, and errors of our own."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch

from bge_runtime.backends.base import ModelInput
from bge_runtime.backends.threads import CoreShare
from bge_runtime.errors import BackendError, OutOfMemoryError, UnsupportedModelError

__all__ = ["Computing", "device_errors", "give_memory_back", "one_logit"]

# Activations of ever other sizes leave gaps that the allocator keeps: 4 MB and more for each 2,048 tokens.
TRIM_TOKENS = 128 * 1024


def give_memory_back() -> None:
    """Return to the system what glibc's allocator keeps of freed memory; other allocators do it by themselves."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class Computing:
    """The surroundings of a model's forward passes; one worker thread enters them."""

    def __init__(self, device: torch.device) -> None:
        """Watch the machine's cores and memory, where the model runs on them."""
        self._device = device
        self._share = CoreShare() if device.type == "cpu" else None
        self._tokens = 0

    @contextmanager
    def __call__(self, batch: Sequence[ModelInput]) -> Iterator[None]:
        """Compute a batch.

        Raises:
            OutOfMemoryError: It does not fit.
            BackendError: It fails otherwise.
        """
        threads = self._share.held() if self._share is not None else nullcontext()
        with torch.inference_mode(), device_errors(self._device, len(batch)), threads:
            yield
        if self._share is not None:
            self._tokens += sum(each.length for each in batch)
            if self._tokens >= TRIM_TOKENS:
                self._tokens = 0
                give_memory_back()


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
