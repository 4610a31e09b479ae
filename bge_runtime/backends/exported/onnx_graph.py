"""An encoder as an ONNX graph of onnxruntime's fused operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bge_runtime.backends.exported.onnx_file import ModelWriter
from bge_runtime.backends.exported.rectangles import INPUTS
from bge_runtime.backends.exported.weights import EncoderWeights, Layer, Linear, Norm, Quantization

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["INPUT_KINDS", "build"]

FUSED = "com.microsoft"
# As in `packing.INPUTS`, but that the mask tells the valid cells of the rectangle: int32 [texts, length].
INPUT_KINDS = {name: ("int32", 2 if name == "mask" else size) for name, size in INPUTS.items()}


def build(weights: EncoderWeights) -> tuple[ModelWriter, str]:
    """Return a graph with the inputs of `INPUT_KINDS`, and the name of its output: states, or logits with a head."""
    graph = _Graph(weights)
    states = graph.embeddings()
    *first, last = weights.layers
    for layer in first:
        states = graph.layer(states, layer)
    states = graph.last_layer(states, last)
    if weights.head is not None:
        dense, logit = weights.head
        (states,) = graph.writer.node("Tanh", graph.linear(states, dense))
        states = graph.linear(states, logit)
    return graph.writer, states


class _Graph:
    def __init__(self, weights: EncoderWeights) -> None:
        self.writer = ModelWriter()
        self._weights = weights

    def embeddings(self) -> str:
        words = self._gather(self._constant(self._weights.words), "ids")
        places = self._gather(self._constant(self._weights.places), "places")
        return self._norm(words, places, self._weights.norm)

    def layer(self, states: str, layer: Layer) -> str:
        context = self._attention(*self._split(self._gather(self.linear(states, layer.qkv), "pad"), 3))
        return self._after_attention(self._gather(context, "unpad"), states, layer)

    def last_layer(self, states: str, layer: Layer) -> str:
        """Compute new states for the tokens in `read` only."""
        width = self._weights.width
        residual = self._gather(states, "read")
        query = self._gather(self.linear(residual, layer.qkv.rows(0, width)), "read_pad")
        keys_values = self._gather(self.linear(states, layer.qkv.rows(width, 3 * width)), "pad")
        context = self._attention(query, *self._split(keys_values, 2))
        return self._after_attention(self._gather(context, "read_unpad"), residual, layer)

    def linear(self, rows: str, linear: Linear) -> str:
        if linear.int8 is not None:
            return self._int8(rows, linear.int8, linear.bias)
        bias, weight = self._constant(linear.bias), self._constant(linear.weight)
        return self.writer.node("Gemm", rows, weight, bias, attributes={"transB": 1})[0]

    def _product(self, rows: str, linear: Linear) -> str:
        """Return the layer without its bias, which the next operation adds."""
        if linear.int8 is not None:
            return self._int8(rows, linear.int8, None)
        return self.writer.node("MatMul", rows, self._constant(linear.weight.T))[0]

    def _int8(self, rows: str, int8: Quantization, bias: NDArray[np.float32] | None) -> str:
        (rows,) = self.writer.node("Mul", rows, self._constant(1 / int8.smoothing))
        step = self._constant(np.float32(int8.step))
        zero_point = self.writer.constant(np.array(int8.zero_point, np.uint8))
        (rounded,) = self.writer.node("QuantizeLinear", rows, step, zero_point)
        # Before 1.30 onnxruntime takes the zero point of the weights for given, and keeps them int8 where it is not.
        inputs = [rounded, self.writer.constant(int8.weight.T), step, self._constant(int8.scale), zero_point]
        inputs.append(self.writer.constant(np.array(0, np.int8)))
        if bias is not None:
            inputs.append(self._constant(bias))
        return self.writer.node("MatMulIntegerToFloat", *inputs, domain=FUSED)[0]

    def _split(self, cells: str, parts: int) -> list[str]:
        sizes = self.writer.constant(np.full(parts, self._weights.width, np.int64))
        return self.writer.node("Split", cells, sizes, outputs=parts, attributes={"axis": 2})

    def _attention(self, query: str, key: str, value: str) -> str:
        """Return rows of the rectangle's cells, of which padding is not attended to."""
        heads = {"num_heads": self._weights.heads}
        (context,) = self.writer.node(
            "MultiHeadAttention", query, key, value, "", "mask", domain=FUSED, attributes=heads
        )
        shape = self.writer.constant(np.array([-1, self._weights.width]))
        return self.writer.node("Reshape", context, shape)[0]

    def _after_attention(self, context: str, residual: str, layer: Layer) -> str:
        states = self._norm(self._product(context, layer.attended), residual, layer.norm1, layer.attended.bias)
        bias = self._constant(layer.up.bias)
        (wide,) = self.writer.node("BiasGelu", self._product(states, layer.up), bias, domain=FUSED)
        return self._norm(self._product(wide, layer.down), states, layer.norm2, layer.down.bias)

    def _norm(self, states: str, residual: str, norm: Norm, bias: NDArray[np.float32] | None = None) -> str:
        inputs = [states, residual, self._constant(norm.weight), self._constant(norm.bias)]
        if bias is not None:
            inputs.append(self._constant(bias))
        epsilon = {"epsilon": float(self._weights.eps)}
        return self.writer.node("SkipLayerNormalization", *inputs, domain=FUSED, attributes=epsilon)[0]

    def _gather(self, rows: str, numbers: str) -> str:
        return self.writer.node("Gather", rows, numbers)[0]

    def _constant(self, values: NDArray[Any] | np.float32) -> str:
        return self.writer.constant(np.asarray(values, dtype=np.float32))
