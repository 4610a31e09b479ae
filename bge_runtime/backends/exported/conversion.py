"""Out of a model that sentence-transformers loads: everything that its exported form is made from and checked by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bge_runtime.backends import torch as plain
from bge_runtime.backends.base import LoadRequest
from bge_runtime.backends.encoder_files import take_apart
from bge_runtime.backends.exported.calibration import calibration_texts
from bge_runtime.backends.exported.probes import Probe
from bge_runtime.backends.exported.session import Facts
from bge_runtime.backends.exported.weights import (
    EncoderWeights,
    Linear,
    Range,
    linear_modules,
    quantize,
    read,
    without_int8,
)
from bge_runtime.backends.registry import ENCODERS
from bge_runtime.errors import UnsupportedModelError
from bge_runtime.inputs.tokenizing import Tokenizing, TokenSequence

__all__ = ["Conversion", "convert"]

CALIBRATION_TOKENS = 512
PROBE_TOKENS = 96
# A linear map whose results int8 changes by a larger share stays in float32. In all-MiniLM-L6-v2 these are two of 24,
# both behind the GELU; with them in int8 the lowest cosine of 40 abstracts and 28 questions was 0.9918, without 0.9969.
MOST_INT8_ERROR = 0.025
PROBE_TEXTS = (
    "a",
    "How is bread made?",
    "Bread is baked from flour, water, salt and yeast. " * 3,
    "面包是用面粉做的。",
)
PROBE_PAIRS = (("How is bread made?", PROBE_TEXTS[2]), ("a", "b"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """A model taken apart.

    Attributes:
        weights: Its weights, in int8 where that was asked for.
        facts: What an executor must know besides.
        tokenizing: Its tokenizer.
        probes: Inputs, and what the model makes of them.
    """

    weights: EncoderWeights
    facts: Facts
    tokenizing: Tokenizing
    probes: tuple[Probe, ...]


def convert(request: LoadRequest, backend: str, int8_levels: int) -> Conversion:
    """Load a model, run it on probes and calibration texts, and return its parts.

    Args:
        request: The model.
        backend: Who asks, for messages.
        int8_levels: Flow between zero and an output's largest weight in int8.

    Raises:
        UnsupportedModelError: Its architecture cannot be exported.
    """
    source = plain.load(replace(request, precision="float32", device="cpu"))
    encoder = take_apart(source, request)
    if encoder is None:
        raise UnsupportedModelError(
            f"backend={backend!r} does not know the architecture {source.model.config.model_type!r} of "
            f"{request.name!r}; it runs {', '.join(ENCODERS)}. Use backend='torch'."
        )
    probes = _probes(source, request.task)
    weights = read(encoder)
    held = source.bytes
    if request.precision == "int8":
        calibration = _calibration(source, request)
        weights = quantize(weights, _input_ranges(source, request.task, calibration), int8_levels)
        weights = without_int8(weights, _inexact(source, request.task, calibration, weights))
        linears = [linear for layer in weights.layers for linear in layer.linears]
        held -= 3 * sum(linear.weight.size for linear in linears if linear.int8 is not None)
    return Conversion(
        weights=weights,
        facts=Facts(
            task=request.task,
            own_pooling=source.own_pooling,
            width=weights.width,
            positions=weights.positions,
            pad_id=weights.pad_id,
            parameters=source.parameters,
            bytes=held,
        ),
        tokenizing=source.tokenizing,
        probes=probes,
    )


def _probes(source: plain.TorchBackend, task: str) -> tuple[Probe, ...]:
    if task == "score":
        pairs = source.tokenizing.pairs(PROBE_PAIRS, PROBE_TOKENS).sequences
        return tuple(Probe(pair, {"score": _row(source, pair, "score")}) for pair in pairs)
    texts = source.tokenizing.texts(PROBE_TEXTS, PROBE_TOKENS).sequences
    return tuple(Probe(text, {output: _row(source, text, output) for output in ("cls", "mean")}) for text in texts)


def _row(source: plain.TorchBackend, sequence: TokenSequence, output: Any) -> list[float]:
    values: list[float] = source.forward([sequence], output)[0].reshape(-1).tolist()
    return values


def _input_ranges(
    source: plain.TorchBackend, task: str, calibration: Sequence[TokenSequence]
) -> dict[tuple[int, str], Range]:
    """Run the model on the calibration texts and return the range of each linear map's input."""
    lowest: dict[tuple[int, str], NDArray[np.float32]] = {}
    highest: dict[tuple[int, str], NDArray[np.float32]] = {}

    def see(key: tuple[int, str], rows: NDArray[np.float32]) -> None:
        low, high = rows.min(0), rows.max(0)
        lowest[key] = np.minimum(lowest.get(key, low), low)
        highest[key] = np.maximum(highest.get(key, high), high)

    _watch(source, task, calibration, see)
    return {key: Range(low, highest[key]) for key, low in lowest.items()}


def _inexact(
    source: plain.TorchBackend, task: str, calibration: Sequence[TokenSequence], weights: EncoderWeights
) -> list[tuple[int, str]]:
    """Return the linear maps whose results int8 changes by more than `MOST_INT8_ERROR` on the calibration texts."""
    squares: dict[tuple[int, str], NDArray[np.float64]] = {}

    def see(key: tuple[int, str], rows: NDArray[np.float32]) -> None:
        linear: Linear = getattr(weights.layers[key[0]], key[1])
        exact = replace(linear, int8=None).rounded(rows)
        off = linear.rounded(rows) - exact
        sums = np.array([np.square(off, dtype=np.float64).sum(), np.square(exact, dtype=np.float64).sum()])
        squares[key] = squares.get(key, np.zeros(2)) + sums

    _watch(source, task, calibration, see)
    return [key for key, (off, exact) in squares.items() if off > MOST_INT8_ERROR**2 * exact]


def _watch(
    source: plain.TorchBackend,
    task: str,
    calibration: Sequence[TokenSequence],
    see: Callable[[tuple[int, str], NDArray[np.float32]], None],
) -> None:
    """Run the model on the calibration texts and show the input of each linear map, float32 [tokens, inputs]."""

    def watch(key: tuple[int, str]) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
        return lambda _, inputs: see(key, inputs[0].reshape(-1, inputs[0].shape[-1]).numpy())

    modules = linear_modules(source.model)
    hooks = [first.register_forward_pre_hook(watch(key)) for key, (first, *_) in modules.items()]
    try:
        for sequence in calibration:  # one at a time: padding would count
            source.forward([sequence], "score" if task == "score" else "tokens")
    finally:
        for hook in hooks:
            hook.remove()


def _calibration(source: plain.TorchBackend, request: LoadRequest) -> Sequence[TokenSequence]:
    texts = calibration_texts(request.calibration)
    limit = min(CALIBRATION_TOKENS, _positions(source))
    if request.task == "embed":
        return source.tokenizing.texts(texts, limit).sequences
    following = [*texts[1:], texts[0]]
    return source.tokenizing.pairs(list(zip(texts, following, strict=True)), limit).sequences


def _positions(source: plain.TorchBackend) -> int:
    """Return how many tokens the position table is good for; RoBERTa's first rows are for padding."""
    config = source.model.config
    return int(config.max_position_embeddings) - (0 if config.model_type == "bert" else int(config.pad_token_id) + 1)
