"""BERT and XLM-R encoders without padding.

The tokens of a batch stand in one matrix, so that no arithmetic is spent on padding. Query, key and value are
one product, and the last layer is computed only for the rows that the pooling reads. On CPUs the products run on
oneDNN with weights packed ahead of time, in 8 bits if asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from bge_runtime.backends import encoder_files
from bge_runtime.backends.base import Backend, LoadRequest, Output, check_table, without_layers
from bge_runtime.backends.encoder_files import Encoder
from bge_runtime.backends.packed.attention import Layout, choose_attention, on_device
from bge_runtime.backends.packed.int8 import QuantizedLinear, check_int8
from bge_runtime.backends.packed.linear import Linear
from bge_runtime.backends.registry import ENCODERS
from bge_runtime.backends.results import Computing, one_logit
from bge_runtime.errors import UnsupportedModelError
from bge_runtime.inputs.tokenizing import TokenSequence

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PackedBackend", "load"]


def load(request: LoadRequest) -> Backend:
    """Load a model folder; an architecture unknown here keeps the plain forward, except in int8.

    Raises:
        ConfigurationError: int8 does not run on this machine.
        UnsupportedModelError: int8 of an architecture unknown here.
        ModelNotFoundError: Weights are missing.
    """
    quantized = request.precision == "int8"
    if quantized:
        check_int8()
    encoder = encoder_files.read_files(request)
    if encoder is None:
        from bge_runtime.backends import torch as plain  # imports transformers, which a plain folder does without

        loaded = plain.load(replace(request, precision="float32") if quantized else request)
        encoder = encoder_files.take_apart(loaded, request)
        if encoder is None and not quantized:
            return loaded
    if encoder is None:
        raise UnsupportedModelError(
            f"{request.name!r} is of an architecture or activation that backend='packed' does not compute in int8 "
            f"(it knows {', '.join(ENCODERS)} encoders with GELU). Use precision='bfloat16' or 'float32'."
        )
    dtype = torch.float32 if quantized else getattr(torch, request.precision)
    return PackedBackend(encoder, dtype, torch.device(request.device), quantized=quantized)


class PackedBackend:
    """An encoder, and its classification head if it has one."""

    pads = False

    def __init__(self, encoder: Encoder, dtype: torch.dtype, device: torch.device, *, quantized: bool = False) -> None:
        """Bring the weights into the form that the products need; `encoder` can be let go of."""
        self.tokenizing = encoder.tokenizing
        self._own_pooling = encoder.own_pooling
        self._device = device
        self._computing = Computing(device)
        build = _Build(encoder, dtype, device, quantized=quantized)
        self._embed = _Embeddings(encoder, build)
        *first, last = encoder.layers
        self._layers = [_Layer(layer, build) for layer in first]
        self._last = _LastLayer(last, build)
        self._head = [(build.keep(each.weight), build.keep(each.bias)) for each in encoder.head or ()]
        self.parameters = sum(weight.numel() for weight in build.tensors)
        self.parameters += sum(linear.parameters for linear in build.linears)
        self.bytes = sum(weight.nbytes for weight in build.tensors) + sum(linear.bytes for linear in build.linears)

    def forward(self, batch: Sequence[TokenSequence], output: Output) -> Sequence[NDArray[np.float32]]:
        """Run one batch; see `Backend.forward`."""
        kind = without_layers(output)
        order = sorted(range(len(batch)), key=lambda index: -len(batch[index].ids))
        with self._computing(batch):
            rows = self._run([batch[index] for index in order], self._own_pooling if kind == "model" else kind)
        results: list[Any] = [None] * len(batch)
        for index, row in zip(order, rows, strict=True):
            results[index] = row
        return results

    def _run(self, batch: Sequence[TokenSequence], output: str | None) -> Sequence[NDArray[np.float32]]:
        layout = Layout.of([len(sequence.ids) for sequence in batch], self._device)
        states = self._embed(batch, layout)
        for layer in self._layers:
            states = layer(states, layout)
        if output in ("mean", "tokens"):
            states = self._last(states, layout).float().cpu()
            parts = torch.split(states[: layout.ends[-1]], layout.lengths.tolist())
            return [(part if output == "tokens" else part.mean(0)).numpy() for part in parts]
        read = layout.ends - 1 if output == "last" else layout.ends - layout.lengths
        states = self._last.read(states, layout, on_device(_filled(read, layout.texts), self._device))[: len(batch)]
        if output == "score" and self._head:
            dense, last = self._head
            states = one_logit(functional.linear(torch.tanh(functional.linear(states, *dense)), *last))
        return list(states.float().cpu().numpy())


class _Embeddings:
    """Word, position and segment tables, and the first layer norm."""

    def __init__(self, encoder: Encoder, build: _Build) -> None:
        types = build.cast(encoder.segments)
        self._words = build.keep(encoder.words, build.table)
        # Nearly every token is of segment 0, so its vector is added to the positions once and for all.
        self._positions = build.keep(build.cast(encoder.places) + types[0], build.table)
        self._types = build.keep(types - types[0], build.table)
        self._states = build.states
        self._norm = _Norm(encoder.norm, build)
        self._pad_id = encoder.pad_id

    def __call__(self, batch: Sequence[TokenSequence], layout: Layout) -> torch.Tensor:
        ids = np.concatenate([sequence.ids for sequence in batch], dtype=np.int64)
        check_table("token", int(ids.max(initial=0)), len(self._words))
        starts = np.repeat(layout.ends - layout.lengths, layout.lengths)
        positions = np.arange(len(ids)) - starts
        if self._pad_id is not None:
            positions = self._roberta_positions(ids, starts, positions)
        columns = [ids, positions]
        if any(sequence.type_ids[-1] for sequence in batch):
            kinds = b"".join(bytes(sequence.type_ids) for sequence in batch)
            columns.append(np.frombuffer(kinds, np.uint8).astype(np.int64))
            check_table("segment", int(columns[-1].max()), len(self._types))
        indices = on_device(np.stack([_filled(column, layout.rows) for column in columns]), self._words.device)
        states = functional.embedding(indices[0], self._words).to(self._states)
        states += functional.embedding(indices[1], self._positions)
        if len(indices) == 3:
            states += functional.embedding(indices[2], self._types)
        return self._norm(states)

    def _roberta_positions(
        self, ids: NDArray[np.int64], starts: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Count from the padding id on; a literal `<pad>` in a text stands still, as in transformers."""
        assert self._pad_id is not None
        real = ids != self._pad_id
        if real.all():
            return positions + self._pad_id + 1
        count = np.concatenate([[0], np.cumsum(real)])
        return np.where(real, count[1:] - count[starts], 0) + self._pad_id


class _Norm:
    def __init__(self, norm: encoder_files.Linear, build: _Build) -> None:
        self._weight, self._bias = build.keep(norm.weight), build.keep(norm.bias)
        self._eps = build.eps

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(states, self._weight.shape, self._weight, self._bias, self._eps)


class _Build:
    """What all parts of a model have in common, and the weights that they hold."""

    def __init__(self, encoder: Encoder, dtype: torch.dtype, device: torch.device, *, quantized: bool) -> None:
        width = encoder.words.shape[1]
        self.heads = (encoder.heads, width // encoder.heads)
        self.eps = encoder.eps
        # On CPUs float32 sums and norms cost no more than bfloat16 ones.
        self.states = torch.float32 if device.type == "cpu" else dtype
        # 16 bits are plenty for tables whose rows are brought to 8 right after.
        self.table = torch.bfloat16 if quantized else dtype
        self.attend = choose_attention(device, dtype)
        self.tensors: list[torch.Tensor] = []
        self.linears: list[Linear | QuantizedLinear] = []
        self._dtype = dtype
        self._device = device
        self._kind = QuantizedLinear if quantized else Linear

    def cast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a stored tensor as the model computes with it."""
        return tensor.to(self._device, self._dtype)

    def keep(self, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Copy and count a tensor that a part holds; in `dtype`, else that of the states."""
        # A copy in any case: the original may be a view of the file, which somebody can write to.
        kept = self.cast(tensor).to(dtype or self.states, copy=True)
        self.tensors.append(kept)
        return kept

    def linear(self, *layers: encoder_files.Linear) -> Linear | QuantizedLinear:
        """Return one layer that computes several of the same input, side by side."""
        weight = torch.cat([self.cast(each.weight) for each in layers])
        self.linears.append(self._kind(weight, torch.cat([self.cast(each.bias) for each in layers])))
        return self.linears[-1]


class _Layer:
    """One transformer layer over packed rows."""

    def __init__(self, layer: encoder_files.Layer, build: _Build) -> None:
        self._shape = build.heads
        self._attend = build.attend
        self._project(layer, build)
        self._attended = build.linear(layer.attended)
        self._norm1 = _Norm(layer.norm1, build)
        self._up = build.linear(layer.up)
        self._down = build.linear(layer.down)
        self._norm2 = _Norm(layer.norm2, build)

    def _project(self, layer: encoder_files.Layer, build: _Build) -> None:
        self._qkv = build.linear(layer.query, layer.key, layer.value)

    def __call__(self, states: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return the new states of all rows."""
        query, key, value = self._split(self._qkv(states), 3)
        return self._after_attention(self._attend(query, key, value, layout), states)

    def _split(self, rows: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
        return tuple(part.view(len(part), *self._shape) for part in rows.chunk(parts, 1))

    def _after_attention(self, context: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Return new states; the old ones are used up."""
        states = self._norm1(states.add_(self._attended(context)))
        return self._norm2(states.add_(self._down(self._up(states, "gelu"), overwrite=True)))


class _LastLayer(_Layer):
    """A layer that can also be computed for one row of each text only."""

    def _project(self, layer: encoder_files.Layer, build: _Build) -> None:
        self._query = build.linear(layer.query)
        self._key_value = build.linear(layer.key, layer.value)

    def __call__(self, states: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return the new states of all rows."""
        return self._attention(states, states, layout)

    def read(self, states: torch.Tensor, layout: Layout, read: torch.Tensor) -> torch.Tensor:
        """Return one new state per text: that of the row with this index."""
        return self._attention(states[read], states, layout, one_query=True)

    def _attention(
        self, asking: torch.Tensor, states: torch.Tensor, layout: Layout, *, one_query: bool = False
    ) -> torch.Tensor:
        (query,) = self._split(self._query(asking), 1)
        key, value = self._split(self._key_value(states), 2)
        return self._after_attention(self._attend(query, key, value, layout, one_query=one_query), asking)


def _filled(column: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Return the column with zeros for the idle rows behind it."""
    return np.concatenate([column, np.zeros(rows - len(column), np.int64)])
