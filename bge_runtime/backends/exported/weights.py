"""The weights of an encoder as NumPy arrays, in float32 or int8: what exported graphs are built from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EncoderWeights", "Layer", "Linear", "Norm", "Quantization", "Range", "linear_inputs", "quantize", "read"]

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


def read(model: Any) -> EncoderWeights:
    """Read a transformers model of a kind that `packed.supports`."""
    config = model.config
    encoder = _encoder(model)
    tables = encoder.embeddings
    positions, segments = _array(tables.position_embeddings.weight), _array(tables.token_type_embeddings.weight)
    return EncoderWeights(
        words=_array(tables.word_embeddings.weight),
        places=np.concatenate([positions + segment for segment in segments]),
        norm=_norm(tables.LayerNorm),
        layers=tuple(_layer(module) for module in encoder.encoder.layer),
        head=_head(model, encoder) if type(model).__name__.endswith("Classification") else None,
        heads=config.num_attention_heads,
        eps=config.layer_norm_eps,
        positions=len(positions),
        pad_id=None if config.model_type == "bert" else int(config.pad_token_id),
    )


def linear_inputs(model: Any) -> dict[tuple[int, str], Any]:
    """Return a torch module with the same input for each linear map, by number of the layer and name of the map."""
    found = {}
    for number, module in enumerate(_encoder(model).encoder.layer):
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


def _encoder(model: Any) -> Any:
    return getattr(model, "bert", None) or getattr(model, "roberta", None) or model


def _layer(module: Any) -> Layer:
    attention, output = module.attention.self, module.attention.output
    return Layer(
        qkv=_linear(attention.query, attention.key, attention.value),
        attended=_linear(output.dense),
        norm1=_norm(output.LayerNorm),
        up=_linear(module.intermediate.dense),
        down=_linear(module.output.dense),
        norm2=_norm(module.output.LayerNorm),
    )


def _head(model: Any, encoder: Any) -> tuple[Linear, Linear]:
    """Return BERT's pooler and classifier, or XLM-R's two layers; two labels become the log-odds of the second."""
    if hasattr(model.classifier, "out_proj"):
        dense, last = _linear(model.classifier.dense), _linear(model.classifier.out_proj)
    else:
        dense, last = _linear(encoder.pooler.dense), _linear(model.classifier)
    if len(last.bias) == 2:
        last = Linear(last.weight[1:] - last.weight[:1], last.bias[1:] - last.bias[:1])
    return dense, last


def _linear(*modules: Any) -> Linear:
    return Linear(
        np.concatenate([_array(module.weight) for module in modules]),
        np.concatenate([_array(module.bias) for module in modules]),
    )


def _norm(module: Any) -> Norm:
    return Norm(_array(module.weight), _array(module.bias))


def _array(tensor: Any) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().float().cpu().numpy()
    return array
