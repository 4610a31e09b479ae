"""A linear layer with its activation or residual, on the fastest kernel that the machine has.

On CPUs `torch.nn.functional.linear` goes through MKL, which takes a slow path on AMD processors; oneDNN with
weights packed ahead of time does not, and fuses what follows the product. torch offers it under private names, so
their presence is checked and a test pins their results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.nn import functional

__all__ = ["Linear", "has_onednn"]

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
    """y = activation(x W^T + b) or x W^T + b + residual, for x of shape (rows, inputs)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Pack the weight [outputs, inputs] when oneDNN can use it."""
        self._weight = weight.detach().contiguous()
        self._bias = bias.detach().contiguous()
        self._packed = weight.device.type == "cpu" and has_onednn(weight.dtype)
        if self._packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight, PACKING_ROWS)

    @classmethod
    def of(cls, *layers: torch.nn.Linear) -> Linear:
        """Return one layer that computes several of the same input, side by side."""
        return cls(torch.cat([each.weight for each in layers]), torch.cat([each.bias for each in layers]))

    def __call__(
        self, rows: torch.Tensor, activation: Literal["none", "gelu"] = "none", residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Apply the layer to `rows`."""
        if self._packed:
            run: Callable[..., torch.Tensor] = torch.ops.mkldnn._linear_pointwise
            if residual is not None:
                return run(rows, residual, self._weight, self._bias, "add")
            return run(rows, self._weight, self._bias, activation, [], "none" if activation == "gelu" else "")
        product = functional.linear(rows, self._weight, self._bias)
        if activation == "gelu":
            return functional.gelu(product)
        return product if residual is None else product + residual
