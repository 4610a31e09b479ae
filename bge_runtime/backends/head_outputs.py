"""What one forward pass of a model with several heads (bge-m3) says of a text."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["TextOutputs", "are_outputs", "pack_outputs", "unpack_outputs"]


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


def are_outputs(row: NDArray[np.float32]) -> bool:
    """Return whether these finite numbers can be what `pack_outputs` packed."""
    count, width = (float(each) for each in row[:2]) if len(row) > 2 else (0.0, 0.0)
    if not (count >= 0 and width >= 1 and count.is_integer() and width.is_integer()):
        return False
    left = len(row) - 2 - int(width) - 2 * int(count)
    return left >= 0 and left % int(width) == 0
