"""BERT and XLM-R encoders without padding, over the weights that sentence-transformers loads.

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

from bge_runtime.backends import torch as plain
from bge_runtime.backends.base import Backend, LoadRequest, Output, check_table, without_layers
from bge_runtime.backends.packed.attention import Layout, choose_attention, on_device
from bge_runtime.backends.packed.int8 import QuantizedLinear, check_int8
from bge_runtime.backends.packed.linear import Linear
from bge_runtime.backends.registry import ENCODERS
from bge_runtime.errors import UnsupportedModelError
from bge_runtime.inputs.tokenizing import TokenSequence

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PackedBackend", "load", "supports"]

POOLINGS = ("cls", "mean", "last")


def load(request: LoadRequest) -> Backend:
    """Load a model folder; an architecture unknown here keeps the plain forward, except in int8.

    Raises:
        ConfigurationError: int8 does not run on this machine.
        UnsupportedModelError: int8 of an architecture unknown here.
    """
    quantized = request.precision == "int8"
    if quantized:
        check_int8()
        request = replace(request, precision="float32")
    loaded = plain.load(request)
    if quantized:
        plain.check_weights(loaded.model, request.name)
    if supports(loaded):
        return PackedBackend(loaded, quantized=quantized)
    if quantized:
        raise UnsupportedModelError(
            f"{request.name!r} is of an architecture or activation that backend='packed' does not compute in int8 "
            f"(it knows {', '.join(ENCODERS)} encoders with GELU). Use precision='bfloat16' or 'float32'."
        )
    return loaded


def supports(loaded: plain.TorchBackend) -> bool:
    """Return whether this executor computes the loaded model exactly."""
    model: Any = loaded.model
    config = model.config
    return (
        config.model_type in ENCODERS
        and type(model).__name__.endswith(("BertModel", "RobertaModel", "ForSequenceClassification"))
        and config.hidden_act == "gelu"
        and not getattr(config, "is_decoder", False)
        and getattr(config, "position_embedding_type", "absolute") in (None, "absolute")
        and loaded.own_pooling in (None, *POOLINGS)
    )


class PackedBackend:
    """An encoder, and its classification head if it has one."""

    pads = False

    def __init__(self, loaded: plain.TorchBackend, *, quantized: bool = False) -> None:
        """Take over the weights; nothing of the module tree is kept but tables, norms and the head."""
        model: Any = loaded.model
        config = model.config
        encoder = getattr(model, "bert", None) or getattr(model, "roberta", None) or model
        self.tokenizing = loaded.tokenizing
        self._own_pooling = loaded.own_pooling
        self._device = encoder.embeddings.word_embeddings.weight.device
        build = _Build(config, encoder.dtype, self._device, quantized=quantized)
        self._embed = _Embeddings(encoder.embeddings, build)
        *first, last = encoder.encoder.layer
        self._layers = [_Layer(layer, build) for layer in first]
        self._last = _LastLayer(last, build)
        self._head = _head_layers(model, encoder) if type(model).__name__.endswith("Classification") else ()
        for layer in self._head:
            layer.to(build.states)
        kept = [*build.tensors, *(weight for layer in self._head for weight in layer.parameters())]
        self.parameters = sum(weight.numel() for weight in kept) + sum(each.parameters for each in build.linears)
        self.bytes = sum(weight.nbytes for weight in kept) + sum(each.bytes for each in build.linears)

    def forward(self, batch: Sequence[TokenSequence], output: Output) -> Sequence[NDArray[np.float32]]:
        """Run one batch; see `Backend.forward`."""
        kind = without_layers(output)
        order = sorted(range(len(batch)), key=lambda index: -len(batch[index].ids))
        with torch.inference_mode(), plain.device_errors(self._device, len(batch)):
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
            states = plain.one_logit(last(torch.tanh(dense(states))))
        return list(states.float().cpu().numpy())


class _Embeddings:
    """Word, position and segment tables, and the first layer norm."""

    def __init__(self, module: Any, build: _Build) -> None:
        types = module.token_type_embeddings.weight.detach()
        self._words = build.keep(module.word_embeddings.weight.detach().to(build.table))
        # Nearly every token is of segment 0, so its vector is added to the positions once and for all.
        self._positions = build.keep((module.position_embeddings.weight.detach() + types[0]).to(build.table))
        self._types = build.keep((types - types[0]).to(build.table))
        self._states = build.states
        self._norm = _Norm(module.LayerNorm, build)
        self._pad_id = None if build.config.model_type == "bert" else int(build.config.pad_token_id)

    def __call__(self, batch: Sequence[TokenSequence], layout: Layout) -> torch.Tensor:
        ids = np.fromiter((token for sequence in batch for token in sequence.ids), np.int64, layout.ends[-1])
        check_table("token", int(ids.max(initial=0)), len(self._words))
        starts = np.repeat(layout.ends - layout.lengths, layout.lengths)
        positions = np.arange(len(ids)) - starts
        if self._pad_id is not None:
            positions = self._roberta_positions(ids, starts, positions)
        columns = [ids, positions]
        if any(sequence.type_ids[-1] for sequence in batch):
            columns.append(np.fromiter((kind for sequence in batch for kind in sequence.type_ids), np.int64, len(ids)))
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
    def __init__(self, module: Any, build: _Build) -> None:
        self._weight = build.keep(module.weight.detach().to(build.states))
        self._bias = build.keep(module.bias.detach().to(build.states))
        self._eps = build.config.layer_norm_eps

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(states, self._weight.shape, self._weight, self._bias, self._eps)


class _Build:
    """What all parts of a model have in common, and the weights that they hold."""

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device, *, quantized: bool) -> None:
        self.config = config
        # On CPUs float32 sums and norms cost no more than bfloat16 ones.
        self.states = torch.float32 if device.type == "cpu" else dtype
        # 16 bits are plenty for tables whose rows are brought to 8 right after.
        self.table = torch.bfloat16 if quantized else dtype
        self.attend = choose_attention(device, dtype)
        self.tensors: list[torch.Tensor] = []
        self.linears: list[Linear | QuantizedLinear] = []
        self._kind = QuantizedLinear if quantized else Linear

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a tensor that a part holds."""
        self.tensors.append(tensor)
        return tensor

    def linear(self, *modules: torch.nn.Linear) -> Linear | QuantizedLinear:
        """Return one layer that computes several of the same input, side by side."""
        self.linears.append(self._kind(*modules))
        return self.linears[-1]


class _Layer:
    """One transformer layer over packed rows."""

    def __init__(self, module: Any, build: _Build) -> None:
        attention, output = module.attention.self, module.attention.output
        heads = build.config.num_attention_heads
        self._shape = (heads, build.config.hidden_size // heads)
        self._attend = build.attend
        self._project(attention, build)
        self._attended = build.linear(output.dense)
        self._norm1 = _Norm(output.LayerNorm, build)
        self._up = build.linear(module.intermediate.dense)
        self._down = build.linear(module.output.dense)
        self._norm2 = _Norm(module.output.LayerNorm, build)

    def _project(self, attention: Any, build: _Build) -> None:
        self._qkv = build.linear(attention.query, attention.key, attention.value)

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

    def _project(self, attention: Any, build: _Build) -> None:
        self._query = build.linear(attention.query)
        self._key_value = build.linear(attention.key, attention.value)

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


def _head_layers(model: Any, encoder: Any) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    """Return the two layers over first-token rows: XLM-R's classifier, or BERT's pooler and classifier."""
    if hasattr(model.classifier, "out_proj"):
        return model.classifier.dense, model.classifier.out_proj
    return encoder.pooler.dense, model.classifier
