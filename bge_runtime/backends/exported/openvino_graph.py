"""An encoder as an OpenVINO model, built operation by operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
from openvino import opset13 as ops

from bge_runtime.backends.exported.rectangles import INPUTS
from bge_runtime.backends.exported.weights import EncoderWeights, Layer, Linear, Norm

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["build"]

ROWS, COLUMNS = np.int64(0), np.int64(1)


def build(weights: EncoderWeights) -> openvino.Model:
    """Return a model with the inputs of `packing.Rectangle` and one output: states, or logits with a head."""
    inputs = {
        name: ops.parameter([-1, 1, 1, -1] if size == 4 else [-1] * size, np.float32 if size == 4 else np.int32, name)
        for name, size in INPUTS.items()
    }
    for name, node in inputs.items():
        node.output(0).get_tensor().set_names({name})
    graph = _Graph(weights, inputs)
    states = graph.embeddings()
    *first, last = weights.layers
    for layer in first:
        states = graph.layer(states, layer)
    states = graph.last_layer(states, last)
    if weights.head is not None:
        dense, logit = weights.head
        states = graph.linear(ops.tanh(graph.linear(states, dense)), logit)
    return openvino.Model([ops.result(states)], list(inputs.values()), "encoder")


class _Graph:
    def __init__(self, weights: EncoderWeights, inputs: dict[str, Any]) -> None:
        self._weights = weights
        self._inputs = inputs
        self._head_shape = [weights.heads, weights.width // weights.heads]

    def embeddings(self) -> Any:
        words = ops.gather(_constant(self._weights.words), self._inputs["ids"], ROWS)
        places = ops.gather(_constant(self._weights.places), self._inputs["places"], ROWS)
        return self._norm(ops.add(words, places), self._weights.norm)

    def layer(self, states: Any, layer: Layer) -> Any:
        cells = self._cells(self.linear(states, layer.qkv), "pad", 3)
        context = self._attention(*cells)
        return self._after_attention(ops.gather(context, self._inputs["unpad"], ROWS), states, layer)

    def last_layer(self, states: Any, layer: Layer) -> Any:
        """Compute new states for the tokens in `read` only."""
        width = self._weights.width
        residual = ops.gather(states, self._inputs["read"], ROWS)
        (query,) = self._cells(self.linear(residual, layer.qkv.rows(0, width)), "read_pad", 1)
        key, value = self._cells(self.linear(states, layer.qkv.rows(width, 3 * width)), "pad", 2)
        context = self._attention(query, key, value)
        return self._after_attention(ops.gather(context, self._inputs["read_unpad"], ROWS), residual, layer)

    def linear(self, rows: Any, linear: Linear) -> Any:
        bias = _constant(linear.bias[None])
        if linear.int8 is None:
            return ops.add(ops.matmul(rows, _constant(linear.weight), False, True), bias)
        int8 = linear.int8
        low, high = -int8.zero_point * int8.step, (255 - int8.zero_point) * int8.step
        # The input limits differ by channel, the output limits do not: this divides by the smoothing as well.
        rounded = ops.fake_quantize(
            rows,
            _constant(low * int8.smoothing[None]),
            _constant(high * int8.smoothing[None]),
            _constant(np.full((1, 1), low)),
            _constant(np.full((1, 1), high)),
            256,
        )
        weight = ops.multiply(
            ops.convert(ops.constant(np.ascontiguousarray(int8.weight)), np.float32), _constant(int8.scale[:, None])
        )
        return ops.add(ops.matmul(rounded, weight, False, True), bias)

    def _cells(self, rows: Any, pad: str, parts: int) -> list[Any]:
        """Return `parts` arrays [texts, heads, length, size] out of rows that hold them side by side."""
        cells = ops.gather(rows, self._inputs[pad], ROWS)
        cells = ops.reshape(cells, np.array([0, 0, parts, *self._head_shape]), True)
        cells = ops.transpose(cells, np.array([2, 0, 3, 1, 4]))
        return [ops.squeeze(part, np.array([0])) for part in ops.split(cells, ROWS, parts).outputs()]

    def _attention(self, query: Any, key: Any, value: Any) -> Any:
        context = ops.scaled_dot_product_attention(query, key, value, self._inputs["mask"])
        return ops.reshape(ops.transpose(context, np.array([0, 2, 1, 3])), np.array([-1, self._weights.width]), False)

    def _after_attention(self, context: Any, residual: Any, layer: Layer) -> Any:
        states = self._norm(ops.add(self.linear(context, layer.attended), residual), layer.norm1)
        wide = ops.gelu(self.linear(states, layer.up), "erf")
        return self._norm(ops.add(self.linear(wide, layer.down), states), layer.norm2)

    def _norm(self, states: Any, norm: Norm) -> Any:
        even = ops.mvn(states, ops.constant(np.array([-1])), True, float(self._weights.eps), "inside_sqrt")
        return ops.add(ops.multiply(even, _constant(norm.weight[None])), _constant(norm.bias[None]))


def _constant(values: NDArray[Any]) -> Any:
    return ops.constant(np.ascontiguousarray(values, dtype=np.float32))
