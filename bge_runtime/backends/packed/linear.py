"""A linear layer with its activation, on the fastest kernel that the machine has.

On CPUs `torch.nn.functional.linear` goes through MKL, which takes a slow path on AMD processors; oneDNN with
weights packed ahead of time does not, and fuses the activation. torch offers it under private names, so their
presence is checked and a test pins their results.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.nn import functional

__all__ = ["Activation", "Linear", "has_onednn", "rounded"]

Activation = Literal["none", "gelu"]
PACKING_ROWS = 4096  # rows that the packed layout is tuned for


def has_onednn(dtype: torch.dtype) -> bool:
    """Return whether oneDNN's pre-packed linear layers are there for this number format."""
    ops: Any = torch.ops.mkldnn
    if not torch._C._has_mkldnn or not hasattr(ops, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    return dtype == torch.float32 and hasattr(ops, "_reorder_linear_weight")


class Linear:
    """y = activation(x W^T + b), for x of shape (rows, inputs)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Take a layer's weight [outputs, inputs] and bias; pack them when oneDNN can use that."""
        self._weight, self._bias = weight, bias
        self._dtype = self._weight.dtype
        self.parameters = self._weight.numel() + self._bias.numel()
        self.bytes = self._weight.nbytes + self._bias.nbytes
        self._packed = self._weight.device.type == "cpu" and has_onednn(self._dtype)
        if self._packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight, PACKING_ROWS)

    def __call__(self, rows: torch.Tensor, activation: Activation = "none", *, overwrite: bool = False) -> torch.Tensor:
        """Apply the layer to `rows`; whether it may use their memory makes no difference here."""
        rows = rows.to(self._dtype)
        if self._packed:
            # The kernel can add a residual too, but then repacks the weight on every call.
            algorithm = "none" if activation == "gelu" else ""
            packed: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
                rows, self._weight, self._bias, activation, [], algorithm
            )
            return packed
        product = functional.linear(rows, self._weight, self._bias)
        return functional.gelu(product) if activation == "gelu" else product


def rounded(rows: int) -> int:
    """Return `rows` rounded up to one of 16 numbers per power of two.

    oneDNN builds and keeps a kernel of some megabytes for each number of rows that it meets.
    """
    step = max(8, 1 << ((rows - 1).bit_length() - 5)) if rows > 16 else 8
    return -(-rows // step) * step
