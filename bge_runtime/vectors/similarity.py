"""How vectors are scaled and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_passages", "lexical_score", "max_similarity", "sparse_product", "unit_rows"]


def max_similarity(query: NDArray[np.float32], document: NDArray[np.float32]) -> float:
    """Return the mean over query vectors of the best dot product with a document vector (ColBERT's MaxSim).

    Args:
        query: Unit vectors, shape (query tokens, dimension).
        document: Unit vectors, shape (document tokens, dimension).
    """
    return float((query @ document.T).max(axis=1).mean())


def sparse_product(
    left_ids: NDArray[np.int64],
    left_weights: NDArray[np.float32],
    right_ids: NDArray[np.int64],
    right_weights: NDArray[np.float32],
) -> float:
    """Return the dot product of two sparse vectors, each given as distinct ids and their weights."""
    _, left, right = np.intersect1d(left_ids, right_ids, assume_unique=True, return_indices=True)
    return float(left_weights[left] @ right_weights[right])


def best_passages(scores: Sequence[float] | NDArray[np.floating], sizes: Sequence[int]) -> NDArray[np.float32]:
    """Return the best score of each document.

    Args:
        scores: One per passage, document after document; those at the end may be missing.
        sizes: Number of passages of each document, at least 1.

    Returns:
        Array float32 of shape (documents whose passages are all scored,).
    """
    ends = np.cumsum(sizes)
    whole = int(np.searchsorted(ends, len(scores), side="right"))
    if not whole:
        return np.empty(0, dtype=np.float32)
    starts = np.concatenate([[0], ends[: whole - 1]])
    return np.maximum.reduceat(np.asarray(scores, dtype=np.float32)[: ends[whole - 1]], starts)


def lexical_score(query: Mapping[int, float], document: Mapping[int, float]) -> float:
    """Return the sum over shared tokens of the products of their weights."""
    small, large = (query, document) if len(query) <= len(document) else (document, query)
    return sum(weight * large[token] for token, weight in small.items() if token in large)


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows scaled to length 1, in float32; a zero row stays zero, one with infinities becomes NaN."""
    with np.errstate(over="ignore", invalid="ignore"):  # of numbers that are refused by who asked for them
        norms = np.linalg.norm(rows, axis=-1, keepdims=True)
        norms[np.isinf(norms)] = np.nan  # a length beyond float32 would make zeros of the row
        # The floor of torch.nn.functional.normalize.
        return np.asarray(rows / np.maximum(norms, 1e-12), dtype=np.float32)
