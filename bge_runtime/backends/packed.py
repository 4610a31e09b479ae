"""BERT and XLM-R encoders without padding, over the weights that sentence-transformers loads.

The tokens of a batch stand in one matrix, so that no arithmetic is spent on padding. Query, key and value are
one product; attention runs once per group of equal lengths and needs no mask; the last layer is computed only for
the rows that the pooling reads. On CPUs the products run on oneDNN with weights packed ahead of time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from bge_runtime.backends import torch as plain
from bge_runtime.backends.base import Backend, LoadRequest, Output
from bge_runtime.backends.linear import Linear
from bge_runtime.tokenizing import TokenSequence

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PackedBackend", "load", "supports"]

ARCHITECTURES = ("bert", "xlm-roberta", "roberta")
POOLINGS = ("cls", "mean", "last")

_Group = tuple[int, int, int]  # first row, number of texts, their length


def load(request: LoadRequest) -> Backend:
    """Load a model folder; an architecture unknown here keeps the plain forward."""
    loaded = plain.load(request)
    return PackedBackend(loaded) if supports(loaded) else loaded


def supports(loaded: plain.TorchBackend) -> bool:
    """Return whether this executor computes the loaded model exactly."""
    model: Any = loaded.model
    config = model.config
    return (
        config.model_type in ARCHITECTURES
        and type(model).__name__.endswith(("BertModel", "RobertaModel", "ForSequenceClassification"))
        and config.hidden_act == "gelu"
        and not getattr(config, "is_decoder", False)
        and getattr(config, "position_embedding_type", "absolute") in (None, "absolute")
        and loaded.own_pooling in (None, *POOLINGS)
    )


class PackedBackend:
    """An encoder, and its classification head if it has one."""

    pads = False

    def __init__(self, loaded: plain.TorchBackend) -> None:
        """Take over the weights; nothing of the module tree is kept but the tables."""
        model: Any = loaded.model
        config = model.config
        encoder = getattr(model, "bert", None) or getattr(model, "roberta", None) or model
        self.tokenizing = loaded.tokenizing
        self.parameters = loaded.parameters
        self.bytes = loaded.bytes
        self._own_pooling = loaded.own_pooling
        self._device = encoder.embeddings.word_embeddings.weight.device
        self._embed = _Embeddings(encoder.embeddings, config)
        *first, last = encoder.encoder.layer
        self._layers = [_Layer(layer, config) for layer in first]
        self._last = _LastLayer(last, config)
        self._head = _head(model, encoder) if type(model).__name__.endswith("Classification") else None

    def forward(self, batch: Sequence[TokenSequence], output: Output) -> Sequence[NDArray[np.float32]]:
        """Run one batch; see `Backend.forward`."""
        order = sorted(range(len(batch)), key=lambda index: -len(batch[index].ids))
        with torch.inference_mode(), plain.device_errors(self._device, len(batch)):
            rows = self._run([batch[index] for index in order], self._own_pooling if output == "model" else output)
        results: list[Any] = [None] * len(batch)
        for index, row in zip(order, rows, strict=True):
            results[index] = row
        return results

    def _run(self, batch: Sequence[TokenSequence], output: str | None) -> Sequence[NDArray[np.float32]]:
        lengths = [len(sequence.ids) for sequence in batch]
        groups = _groups(lengths)
        ends = np.cumsum(lengths)
        states = self._embed(batch, ends)
        for layer in self._layers:
            states = layer(states, groups)
        if output in ("mean", "tokens"):
            states = self._last(states, groups).float().cpu()
            parts = torch.split(states[: ends[-1]], lengths)
            return [(part if output == "tokens" else part.mean(0)).numpy() for part in parts]
        rows = np.zeros(_rounded(len(batch)), np.int64)
        rows[: len(batch)] = ends - 1 if output == "last" else ends - lengths
        read = torch.from_numpy(rows).to(self._device)
        states = self._last.read(states, groups, read)[: len(batch)]
        if output == "score" and self._head is not None:
            states = plain.one_logit(self._head(states))
        return list(states.float().cpu().numpy())


class _Embeddings:
    """Word, position and segment tables, and the first layer norm."""

    def __init__(self, module: Any, config: Any) -> None:
        self._words = module.word_embeddings.weight.detach()
        types = module.token_type_embeddings.weight.detach()
        # Nearly every token is of segment 0, so its vector is added to the positions once and for all.
        self._positions = module.position_embeddings.weight.detach() + types[0]
        self._types = types - types[0]
        self._norm = _Norm(module.LayerNorm, config)
        self._pad_id = None if config.model_type == "bert" else int(config.pad_token_id)

    def __call__(self, batch: Sequence[TokenSequence], ends: NDArray[np.int64]) -> torch.Tensor:
        lengths = np.diff(ends, prepend=0)
        ids = np.fromiter((token for sequence in batch for token in sequence.ids), np.int64, ends[-1])
        starts = np.repeat(ends - lengths, lengths)
        positions = np.arange(len(ids)) - starts
        if self._pad_id is not None:
            positions = self._roberta_positions(ids, starts, positions)
        idle = np.zeros(_rounded(len(ids)) - len(ids), np.int64)
        ids, positions = np.concatenate([ids, idle]), np.concatenate([positions, idle])
        device = self._words.device
        states = functional.embedding(torch.from_numpy(ids).to(device), self._words)
        states += functional.embedding(torch.from_numpy(positions).to(device), self._positions)
        if any(sequence.type_ids[-1] for sequence in batch):
            types = np.fromiter((kind for sequence in batch for kind in sequence.type_ids), np.int64, ends[-1])
            types = np.concatenate([types, idle])
            states += functional.embedding(torch.from_numpy(types).to(device), self._types)
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
    def __init__(self, module: Any, config: Any) -> None:
        self._weight, self._bias = module.weight.detach(), module.bias.detach()
        self._eps = config.layer_norm_eps

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(states, self._weight.shape, self._weight, self._bias, self._eps)


class _Layer:
    """One transformer layer over packed rows."""

    def __init__(self, module: Any, config: Any) -> None:
        attention, output = module.attention.self, module.attention.output
        self._heads = config.num_attention_heads
        self._width = config.hidden_size
        self._qkv = Linear.of(attention.query, attention.key, attention.value)
        self._attended = Linear.of(output.dense)
        self._norm1 = _Norm(output.LayerNorm, config)
        self._up = Linear.of(module.intermediate.dense)
        self._down = Linear.of(module.output.dense)
        self._norm2 = _Norm(module.output.LayerNorm, config)

    def __call__(self, states: torch.Tensor, groups: Sequence[_Group]) -> torch.Tensor:
        """Return the new states of all rows."""
        qkv = self._qkv(states)
        context = torch.zeros_like(states)
        size = self._width // self._heads
        for start, count, length in groups:
            rows = slice(start, start + count * length)
            query, key, value = qkv[rows].view(count, length, 3, self._heads, size).permute(2, 0, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(query, key, value)
            context[rows].view(count, length, self._heads, size).copy_(attended.transpose(1, 2))
        return self._after_attention(context, states)

    def _after_attention(self, context: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        states = self._norm1(self._attended(context, residual=states))
        return self._norm2(self._down(self._up(states, "gelu"), residual=states))


class _LastLayer(_Layer):
    """A layer that can also be computed for one row of each text only."""

    def __init__(self, module: Any, config: Any) -> None:
        super().__init__(module, config)
        attention = module.attention.self
        self._query = Linear.of(attention.query)
        self._key_value = Linear.of(attention.key, attention.value)

    def read(self, states: torch.Tensor, groups: Sequence[_Group], read: torch.Tensor) -> torch.Tensor:
        """Return one new state per text: that of the row with this index."""
        residual = states[read]
        queries, keys_values = self._query(residual), self._key_value(states)
        context = torch.zeros_like(residual)
        size = self._width // self._heads
        text = 0
        for start, count, length in groups:
            rows, texts = slice(start, start + count * length), slice(text, text + count)
            key, value = keys_values[rows].view(count, length, 2, self._heads, size).permute(2, 0, 3, 1, 4)
            query = queries[texts].view(count, self._heads, 1, size)
            attended = functional.scaled_dot_product_attention(query, key, value)
            context[texts] = attended.reshape(count, self._width)
            text += count
        return self._after_attention(context, residual)


def _rounded(rows: int) -> int:
    """Return `rows` rounded up to one of 16 numbers per power of two.

    oneDNN builds and keeps a kernel of some megabytes for each number of rows that it meets.
    """
    step = max(8, 1 << ((rows - 1).bit_length() - 5)) if rows > 16 else 8
    return -(-rows // step) * step


def _groups(lengths: Sequence[int]) -> list[_Group]:
    """Return a group for each run of equal lengths."""
    groups: list[_Group] = []
    start = 0
    for length in lengths:
        if groups and groups[-1][2] == length:
            first, count, _ = groups[-1]
            groups[-1] = (first, count + 1, length)
        else:
            groups.append((start, 1, length))
        start += length
    return groups


def _head(model: Any, encoder: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the classifier over first-token rows: BERT's pooler and linear layer, or XLM-R's two layers."""
    if hasattr(model.classifier, "out_proj"):
        dense, last = model.classifier.dense, model.classifier.out_proj
    else:
        dense, last = encoder.pooler.dense, model.classifier

    def head(rows: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = last(torch.tanh(dense(rows)))
        return scores

    return head
