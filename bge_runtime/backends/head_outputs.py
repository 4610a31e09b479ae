"""What one forward pass of a model with several heads (bge-m3) says of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["EncodedTexts", "TextOutputs", "lexical_score", "pack_outputs", "unpack_outputs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedTexts:
    """Vectors of several kinds, each in input order; `None` for kinds that were not asked for.

    Attributes:
        dense: Array float32 of shape (number of texts, dimension), of length 1 if the embedder normalises.
        sparse: Lexical weights, one mapping of token id to weight per text. Weights are positive; the score of a
            pair is the sum over shared tokens of their products (see `lexical_score`).
        multi_vector: One array float32 of shape (tokens - 1, dimension) per text: unit vectors of all tokens but
            the first.
    """

    dense: NDArray[np.float32] | None = None
    sparse: list[dict[int, float]] | None = None
    multi_vector: list[NDArray[np.float32]] | None = None


class TextOutputs(NamedTuple):
    """The outputs for one text.

    Attributes:
        dense: The first token's state, float32 [width], not normalised.
        ids: Token ids with a weight, ascending, int64 [k].
        weights: Their weights, float32 [k].
        vectors: Unit vectors, float32 [tokens - 1, width]; no rows if they were not asked for.
    """

    dense: NDArray[np.float32]
    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    vectors: NDArray[np.float32]

    @property
    def sparse(self) -> dict[int, float]:
        """Weight by token id."""
        return dict(zip(self.ids.tolist(), self.weights.tolist(), strict=True))


def pack_outputs(outputs: TextOutputs) -> NDArray[np.float32]:
    """Return the outputs as one row, which is what a backend returns per input.

    float32 holds every whole number up to 2**24, more than any vocabulary has.
    """
    head = np.array([len(outputs.ids), len(outputs.dense)], np.float32)
    ids = outputs.ids.astype(np.float32)
    return np.concatenate([head, outputs.dense, ids, outputs.weights, outputs.vectors.ravel()])


def unpack_outputs(row: NDArray[np.float32]) -> TextOutputs:
    """Return what `pack_outputs` packed; the arrays are parts of the row."""
    count, width = int(row[0]), int(row[1])
    dense, ids, weights, vectors = np.split(row[2:], [width, width + count, width + 2 * count])
    return TextOutputs(dense, ids.astype(np.int64), weights, vectors.reshape(-1, width))


def lexical_score(query: Mapping[int, float], document: Mapping[int, float]) -> float:
    """Return the sum over shared tokens of the products of their weights."""
    small, large = (query, document) if len(query) <= len(document) else (document, query)
    return sum(weight * large[token] for token, weight in small.items() if token in large)
