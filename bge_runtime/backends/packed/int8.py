"""A linear layer over 8-bit weights, for processors with VNNI.

Weights are stored in 8 bits with one scale per output; each row of the input is brought to 8 bits with a scale
and an offset of its own when it arrives, so that no row depends on the others in its batch. The product runs on
integers. torch offers the kernel under private names, so their presence is checked and a test pins their results.
"""

from __future__ import annotations

from typing import Any

import torch

from bge_runtime.backends.packed.linear import Activation
from bge_runtime.errors import ConfigurationError

__all__ = ["QuantizedLinear", "check_int8"]

INSTEAD = "Use precision='bfloat16' or 'float32', or backend='onnx' or 'openvino' for int8."
MIDDLE = 128  # the unsigned byte that stands for the middle of a row's range


def check_int8() -> None:
    """Raise unless this torch and this processor can run 8-bit products fast and exactly.

    Raises:
        ConfigurationError: Says what is missing, and what to use instead.
    """
    if not _has_kernel():
        raise ConfigurationError(
            f"precision='int8' with backend='packed' needs oneDNN's 8-bit linear layers, which torch "
            f"{torch.__version__} does not have here. {INSTEAD}"
        )
    if not _has_vnni():
        raise ConfigurationError(
            "precision='int8' with backend='packed' needs a processor with AVX-512 VNNI, and this one has none. "
            f"{INSTEAD}"
        )


def _has_kernel() -> bool:
    ops: Any = torch.ops.onednn
    return bool(torch._C._has_mkldnn) and hasattr(ops, "qlinear_prepack") and hasattr(ops, "qlinear_pointwise")


def _has_vnni() -> bool:
    """Without VNNI the kernel adds pairs of products in 16 bits, which overflow."""
    known = getattr(torch.cpu, "_is_vnni_supported", None)
    return known is not None and bool(known())


class QuantizedLinear:
    """y = activation(x W^T + b), for x of shape (rows, inputs)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Quantise a layer's weight [outputs, inputs]; its bias stays as it is."""
        scales = (weight.abs().amax(1) / 127).clamp_min(1e-12)
        levels = (weight / scales[:, None]).round().to(torch.int8)
        self._scales = scales
        self._zeros = torch.zeros(len(scales), dtype=torch.int64)
        self._weight = torch.ops.onednn.qlinear_prepack(levels, None)
        self._bias = bias
        # What a row whose inputs are all 1 gives: the share of the result that a row's offset has.
        self._ones = (levels.float().sum(1) * scales).contiguous()
        self.parameters = weight.numel() + bias.numel()
        self.bytes = weight.numel() + 4 * (bias.numel() + 2 * len(scales)) + 8 * len(scales)

    def __call__(self, rows: torch.Tensor, activation: Activation = "none", *, overwrite: bool = False) -> torch.Tensor:
        """Apply the layer to `rows`, whose memory may be used if `overwrite`; the result is float32."""
        wide = rows.float()
        levels, scales, middles = _quantised(wide, wide if overwrite or wide is not rows else None)
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            *(levels, 1.0, MIDDLE, self._weight, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], "")
        )
        product.mul_(scales).addcmul_(middles, self._ones).add_(self._bias)
        return torch.ops.aten.gelu_(product) if activation == "gelu" else product


def _quantised(rows: torch.Tensor, space: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return unsigned bytes, and the scale and the middle of each row: rows = (bytes - 128) * scales + middles."""
    low = rows.amin(1, keepdim=True)
    scales = (rows.amax(1, keepdim=True) - low).div_(255).clamp_min_(1e-12)
    middles = torch.add(low, scales, alpha=MIDDLE)
    # torch converts to signed bytes several times as fast as to unsigned ones.
    signed = torch.sub(rows, middles, out=space).mul_(scales.reciprocal()).round_().to(torch.int8)
    return signed.view(torch.uint8).bitwise_xor_(MIDDLE), scales, middles
