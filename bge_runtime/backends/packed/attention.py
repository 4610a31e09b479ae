"""Attention over packed rows: each text's queries meet its own keys and values only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from bge_runtime.backends.packed.linear import rounded
from bge_runtime.locks import cached_property

__all__ = ["Attention", "Layout", "by_boundaries", "by_group", "choose_attention", "find_varlen", "on_device"]

# Where a function that computes texts of any lengths in one call may be found.
VARLEN_FUNCTIONS = (("torch.nn.attention.varlen", "varlen_attn"), ("flash_attn", "flash_attn_varlen_func"))

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """Where the texts of a batch stand in its matrix of tokens.

    Attributes:
        lengths: Tokens of each text, in the order of their rows.
        rows: Rows of the matrix; those behind the last text are idle.
        texts: Rows of a matrix with one row per text, some idle too.
        device: Where the matrix is.
    """

    lengths: NDArray[np.int64]
    rows: int
    texts: int
    device: torch.device

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Layout:
        """Lay out texts of these lengths."""
        rows, texts = sum(lengths), len(lengths)
        if device.type == "cpu":
            rows, texts = rounded(rows), rounded(texts)
        return cls(np.asarray(lengths, np.int64), rows, texts, device)

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Row behind the last one of each text."""
        return np.cumsum(self.lengths)

    @cached_property
    def groups(self) -> list[tuple[slice, slice]]:
        """Rows and texts of each run of equal lengths."""
        changes = np.flatnonzero(np.diff(self.lengths)) + 1
        firsts, lasts = [0, *changes.tolist()], [*changes.tolist(), len(self.lengths)]
        edges = [0, *self.ends.tolist()]
        return [(slice(edges[a], edges[b]), slice(a, b)) for a, b in zip(firsts, lasts, strict=True)]

    @cached_property
    def boundaries(self) -> torch.Tensor:
        """First row of each text, and the end of the last: int32 [texts + 1], on the device."""
        return on_device(np.concatenate([[0], self.ends]).astype(np.int32), self.device)

    @cached_property
    def counted(self) -> torch.Tensor:
        """0, 1, ... up to the number of texts: the boundaries when each text has one query."""
        return torch.arange(len(self.lengths) + 1, dtype=torch.int32, device=self.device)


class Attention(Protocol):
    """Query [rows, heads, size], or [texts, heads, size] if `one_query`; key and value [rows, heads, size].

    Returns the context, [rows or texts, heads * size]; idle rows hold anything finite.
    """

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, *, one_query: bool = False
    ) -> torch.Tensor:
        """Attend."""
        ...


def on_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Copy an array to a device without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def choose_attention(
    device: torch.device, dtype: torch.dtype, find: Callable[[torch.device], Kernel | None] | None = None
) -> Attention:
    """Return the fastest attention for a device and a number format.

    Args:
        device: Where the model runs.
        dtype: Number format of queries, keys and values.
        find: Returns a function that computes texts of any lengths in one call, if there is one.
    """
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        function = (find or find_varlen)(device)
        if function is not None:
            return by_boundaries(function)
    return by_group(functional.scaled_dot_product_attention)


def find_varlen(device: torch.device) -> Callable[..., Any] | None:
    """Return torch's or flash-attn's function for texts of any lengths, `None` without either."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return None
    for module, name in VARLEN_FUNCTIONS:
        try:
            return getattr(import_module(module), name)  # type: ignore[no-any-return]
        except (ImportError, AttributeError):
            continue
    return None


def by_boundaries(function: Callable[..., Any]) -> Attention:
    """Return an attention that hands all texts to `function(query, key, value, ends, ends, longest, longest)`."""

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, *, one_query: bool = False
    ) -> torch.Tensor:
        longest = int(layout.lengths.max())
        asked = (layout.counted, 1) if one_query else (layout.boundaries, longest)
        context = function(query, key, value, asked[0], layout.boundaries, asked[1], longest)
        return context.flatten(1)  # type: ignore[no-any-return]

    return attend


def by_group(kernel: Kernel) -> Attention:
    """Return an attention that calls `kernel` [texts, heads, tokens, size] once per run of equal lengths."""

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, *, one_query: bool = False
    ) -> torch.Tensor:
        context = torch.zeros_like(query, memory_format=torch.contiguous_format)
        for rows, texts in layout.groups:
            count, asked = texts.stop - texts.start, texts if one_query else rows
            parts = (query[asked], key[rows], value[rows])
            parts_by_text = (part.view(count, -1, *part.shape[1:]).transpose(1, 2) for part in parts)
            attended = kernel(*parts_by_text).transpose(1, 2)
            context[asked].view(attended.shape).copy_(attended)
        return context.flatten(1)

    return attend
