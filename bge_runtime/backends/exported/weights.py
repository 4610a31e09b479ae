"""The weights of an encoder as NumPy arrays, in float32 or int8: what exported graphs are built from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from bge_runtime.backends import encoder_files
    from bge_runtime.backends.encoder_files import Encoder

__all__ = [
    "EncoderWeights",
    "Layer",
    "Linear",
    "Norm",
    "Quantization",
    "Range",
    "linear_modules",
    "quantize",
    "read",
    "without_int8",
]

# How much of the spread between an input's channels moves into the weights (SmoothQuant). Measured on
# all-MiniLM-L6-v2: 0.5 and 1.0 both let the lowest cosine fall under 0.985.
SMOOTHING = 0.75
LEVELS = 255  # steps of an 8-bit number


class Range(NamedTuple):
    """Smallest and largest value of each channel of a layer's input, float32 [inputs]."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """How a linear layer computes in int8.

    Its input is divided by `smoothing` and rounded to `zero_point + x / step`; its weights are those of the
    smoothed input, rounded to multiples of `scale`.

    Attributes:
        weight: int8 [outputs, inputs].
        scale: float32 [outputs].
        smoothing: float32 [inputs].
        step: Distance of two levels of the smoothed input.
        zero_point: Level of zero, 0 to 255.
    """

    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    smoothing: NDArray[np.float32]
    step: float
    zero_point: int


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x W^T + b: weight [outputs, inputs], bias [outputs], float32."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    int8: Quantization | None = None

    def rounded(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the layer computes in int8, worked out in float32; without int8, the exact result."""
        int8 = self.int8
        if int8 is None:
            exact: NDArray[np.float32] = rows @ self.weight.T + self.bias
            return exact
        levels = np.clip(np.rint(rows / (int8.smoothing * int8.step)) + int8.zero_point, 0, LEVELS) - int8.zero_point
        product: NDArray[np.float32] = levels @ int8.weight.astype(np.float32).T * (int8.scale * np.float32(int8.step))
        return product + self.bias

    def rows(self, start: int, stop: int) -> Linear:
        """Return the layer that computes only these outputs."""
        part = slice(start, stop)
        int8 = self.int8 and replace(self.int8, weight=self.int8.weight[part], scale=self.int8.scale[part])
        return Linear(self.weight[part], self.bias[part], int8)


class Norm(NamedTuple):
    """Factor and summand of a layer norm."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One transformer layer; query, key and value are one product."""

    qkv: Linear
    attended: Linear
    norm1: Norm
    up: Linear
    down: Linear
    norm2: Norm

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear maps."""
        return self.qkv, self.attended, self.up, self.down


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderWeights:
    """An encoder, and its classification head if it has one.

    Attributes:
        words: Word vectors, [vocabulary, width].
        places: Sum of position and segment vectors, [segments * positions, width], segment by segment.
        norm: Layer norm of the embeddings.
        layers: The layers.
        head: Two linear layers with tanh between them, over first-token rows; the second gives one logit.
        heads: Number of attention heads.
        eps: Summand of the layer norms' variance.
        positions: Rows of the position table.
        pad_id: Padding token from which RoBERTa counts positions; `None` for BERT.
    """

    words: NDArray[np.float32]
    places: NDArray[np.float32]
    norm: Norm
    layers: tuple[Layer, ...]
    head: tuple[Linear, Linear] | None
    heads: int
    eps: float
    positions: int
    pad_id: int | None

    @property
    def width(self) -> int:
        """Length of a token's vector."""
        return int(self.words.shape[1])


def read(encoder: Encoder) -> EncoderWeights:
    """Return the weights of an encoder."""
    places, segments = _array(encoder.places), _array(encoder.segments)
    return EncoderWeights(
        words=_array(encoder.words),
        places=np.concatenate([places + segment for segment in segments]),
        norm=_norm(encoder.norm),
        layers=tuple(_layer(layer) for layer in encoder.layers),
        head=None if encoder.head is None else _head(*encoder.head),
        heads=encoder.heads,
        eps=encoder.eps,
        positions=len(places),
        pad_id=encoder.pad_id,
    )


def linear_modules(model: Any) -> dict[tuple[int, str], Any]:
    """Return a torch module with the same input for each linear map, by number of the layer and name of the map."""
    found = {}
    encoder = getattr(model, "bert", None) or getattr(model, "roberta", None) or model
    for number, module in enumerate(encoder.encoder.layer):
        found[number, "qkv"] = module.attention.self.query
        found[number, "attended"] = module.attention.output.dense
        found[number, "up"] = module.intermediate.dense
        found[number, "down"] = module.output.dense
    return found


def quantize(
    weights: EncoderWeights, ranges: Mapping[tuple[int, str], Range], levels: int = LEVELS // 2
) -> EncoderWeights:
    """Return the weights with int8 versions of the layers' linear maps; tables and head stay float32.

    Args:
        weights: Those of the model.
        ranges: Of each linear layer's input, by layer number and name.
        levels: Flow between zero and the largest weight of an output, 127 at most.
    """
    layers = tuple(
        replace(
            layer,
            qkv=_quantized(layer.qkv, ranges[number, "qkv"], levels),
            attended=_quantized(layer.attended, ranges[number, "attended"], levels),
            up=_quantized(layer.up, ranges[number, "up"], levels),
            down=_quantized(layer.down, ranges[number, "down"], levels),
        )
        for number, layer in enumerate(weights.layers)
    )
    return replace(weights, layers=layers)


def without_int8(weights: EncoderWeights, maps: Collection[tuple[int, str]]) -> EncoderWeights:
    """Return the weights with these linear maps in float32 again.

    Args:
        weights: What `quantize` returned.
        maps: Layer number and name of each.
    """
    layers = tuple(
        replace(layer, **{name: replace(getattr(layer, name), int8=None) for at, name in maps if at == number})
        for number, layer in enumerate(weights.layers)
    )
    return replace(weights, layers=layers)


def _quantized(linear: Linear, seen: Range, levels: int) -> Linear:
    """Round weights per output channel and the input as a whole, after evening out the input's channels."""
    largest = np.maximum(np.maximum(np.abs(seen.low), np.abs(seen.high)), 1e-5)
    columns = np.maximum(np.abs(linear.weight).max(axis=0), 1e-5)
    smoothing = (largest**SMOOTHING / columns ** (1 - SMOOTHING)).astype(np.float32)
    weight = linear.weight * smoothing
    scale = np.maximum(np.abs(weight).max(axis=1), 1e-12) / levels
    low = min(float((seen.low / smoothing).min()), 0.0)
    high = max(float((seen.high / smoothing).max()), 0.0)
    step = max((high - low) / LEVELS, 1e-12)
    int8 = Quantization(
        weight=np.rint(weight / scale[:, None]).astype(np.int8),
        scale=scale.astype(np.float32),
        smoothing=smoothing,
        step=step,
        zero_point=round(-low / step),
    )
    return replace(linear, int8=int8)


def _layer(layer: encoder_files.Layer) -> Layer:
    return Layer(
        qkv=_linear(layer.query, layer.key, layer.value),
        attended=_linear(layer.attended),
        norm1=_norm(layer.norm1),
        up=_linear(layer.up),
        down=_linear(layer.down),
        norm2=_norm(layer.norm2),
    )


def _head(dense: encoder_files.Linear, last: encoder_files.Linear) -> tuple[Linear, Linear]:
    """Return both layers of a classification head; two labels become the log-odds of the second."""
    final = _linear(last)
    if len(final.bias) == 2:
        final = Linear(final.weight[1:] - final.weight[:1], final.bias[1:] - final.bias[:1])
    return _linear(dense), final


def _linear(*layers: encoder_files.Linear) -> Linear:
    return Linear(
        np.concatenate([_array(each.weight) for each in layers]),
        np.concatenate([_array(each.bias) for each in layers]),
    )


def _norm(norm: encoder_files.Linear) -> Norm:
    return Norm(_array(norm.weight), _array(norm.bias))


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().float().cpu().numpy()
    return array
