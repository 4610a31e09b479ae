"""Out of a model that sentence-transformers loads: everything that its exported form is made from and checked by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bge_runtime.backends import torch as plain
from bge_runtime.backends.base import LoadRequest
from bge_runtime.backends.exported.calibration import calibration_texts
from bge_runtime.backends.exported.probes import Probe
from bge_runtime.backends.exported.session import Facts
from bge_runtime.backends.exported.weights import EncoderWeights, Range, linear_inputs, quantize, read
from bge_runtime.backends.packed import encoder as packed
from bge_runtime.backends.registry import ENCODERS
from bge_runtime.errors import UnsupportedModelError
from bge_runtime.inputs.tokenizing import Tokenizing, TokenSequence

__all__ = ["Conversion", "convert"]

CALIBRATION_TOKENS = 512
PROBE_TOKENS = 96
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
    if not packed.supports(source):
        raise UnsupportedModelError(
            f"backend={backend!r} does not know the architecture {source.model.config.model_type!r} of "
            f"{request.name!r}; it runs {', '.join(ENCODERS)}. Use backend='torch'."
        )
    probes = _probes(source, request.task)
    weights = read(source.model)
    held = source.bytes
    if request.precision == "int8":
        plain.check_weights(source.model, request.name)
        weights = quantize(weights, _input_ranges(source, request), int8_levels)
        held -= 3 * sum(linear.weight.size for layer in weights.layers for linear in layer.linears)
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


def _input_ranges(source: plain.TorchBackend, request: LoadRequest) -> dict[tuple[int, str], Range]:
    """Run the model on the calibration texts and return the range of each linear layer's input."""
    lowest: dict[tuple[int, str], torch.Tensor] = {}
    highest: dict[tuple[int, str], torch.Tensor] = {}

    def watch(key: tuple[int, str]) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
        def see(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            low, high = rows.amin(0), rows.amax(0)
            lowest[key] = torch.minimum(lowest.get(key, low), low)
            highest[key] = torch.maximum(highest.get(key, high), high)

        return see

    hooks = [module.register_forward_pre_hook(watch(key)) for key, module in linear_inputs(source.model).items()]
    try:
        for sequence in _calibration(source, request):  # one at a time: padding would count
            source.forward([sequence], "score" if request.task == "score" else "tokens")
    finally:
        for hook in hooks:
            hook.remove()
    return {key: Range(low.numpy(), highest[key].numpy()) for key, low in lowest.items()}


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
