"""Out of a model that sentence-transformers loads: everything that its exported form is made from and checked by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
SAMPLED_ROWS = 2  # of each calibration text, to measure that on
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
        seen = _inputs(source, request.task, _calibration(source, request))
        weights = quantize(weights, {key: Range(each.low, each.high) for key, each in seen.items()}, int8_levels)
        weights = without_int8(weights, _inexact(weights, seen))
        linears = [linear for layer in weights.layers for linear in layer.linears]
        held -= 3 * sum(linear.weight.size for linear in linears if linear.int8 is not None)
    return Conversion(
        weights=weights,
        facts=Facts(
            task=request.task,
            own_pooling=source.own_pooling,
            width=weights.width,
            positions=weights.positions,
            words=len(weights.words),
            segments=len(weights.places) // weights.positions,
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


@dataclass(slots=True)
class _Seen:
    """What the calibration texts bring to one linear map: the range of its input, and some rows of it."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    rows: list[NDArray[np.float32]]


def _inputs(
    source: plain.TorchBackend, task: str, calibration: Sequence[TokenSequence]
) -> dict[tuple[int, str], _Seen]:
    """Run the model on the calibration texts and return what came to each linear map."""
    found: dict[tuple[int, str], _Seen] = {}

    def watch(key: tuple[int, str]) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
        def see(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1]).numpy()
            seen = found.setdefault(key, _Seen(rows[0], rows[0], []))
            seen.low, seen.high = np.minimum(seen.low, rows.min(0)), np.maximum(seen.high, rows.max(0))
            seen.rows.append(rows[np.linspace(0, len(rows) - 1, SAMPLED_ROWS + 2, dtype=int)[1:-1]])

        return see

    modules = linear_modules(source.model)
    hooks = [module.register_forward_pre_hook(watch(key)) for key, module in modules.items()]
    try:
        for sequence in calibration:  # one at a time: padding would count
            source.forward([sequence], "score" if task == "score" else "tokens")
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _inexact(weights: EncoderWeights, seen: Mapping[tuple[int, str], _Seen]) -> list[tuple[int, str]]:
    """Return the linear maps whose results int8 changes by more than `MOST_INT8_ERROR` on the calibration texts."""
    found = []
    for (number, name), inputs in seen.items():
        linear: Linear = getattr(weights.layers[number], name)
        rows = np.concatenate(inputs.rows)
        exact = replace(linear, int8=None).rounded(rows)
        if np.linalg.norm(linear.rounded(rows) - exact) > MOST_INT8_ERROR * np.linalg.norm(exact):
            found.append((number, name))
    return found


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
