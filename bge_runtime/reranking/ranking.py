"""Order by score, and the arithmetic of late interaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_runtime.inputs.checks import check_count

__all__ = [
    "Ranked",
    "Ranking",
    "best_passages",
    "max_similarity",
    "mix",
    "order_scores",
    "sigmoid",
    "sparse_product",
]


@dataclass(frozen=True, slots=True)
class Ranked:
    """One document of a ranking.

    Attributes:
        index: Its place in the input.
        score: Its relevance; higher is better.
    """

    index: int
    score: float


class Ranking(list[Ranked]):
    """Documents, best first.

    Attributes:
        partial: Whether time ran out before every document was scored. Those left over stand last, in their input
            order, with NaN as their score.
    """

    def __init__(self, documents: Iterable[Ranked] = (), *, partial: bool = False) -> None:
        """Take the documents in their order."""
        super().__init__(documents)
        self.partial = partial


def order_scores(
    scores: Sequence[float] | NDArray[np.floating],
    top_n: int | None = None,
    score_threshold: float | None = None,
) -> list[Ranked]:
    """Order documents, best first.

    Equal scores keep their input order. NaN comes last, and never passes a threshold.

    Args:
        scores: One per document.
        top_n: How many to return; `None` returns all.
        score_threshold: Lowest score to return.

    Raises:
        ConfigurationError: `top_n` is not positive.
    """
    limit = check_count(top_n, "top_n")
    values = np.asarray(scores, dtype=np.float64)
    # Stable, and NaN sorts to the end whatever its sign.
    order = np.argsort(-values, kind="stable")
    if score_threshold is not None:
        order = order[values[order] >= score_threshold]
    return [Ranked(int(index), float(values[index])) for index in order[:limit]]


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1 / (1 + exp(-x)) in float32; the form with exp(-|x|) neither overflows nor cancels."""
    small = np.exp(-np.abs(logits.astype(np.float32)))
    return np.asarray(np.where(logits >= 0, 1, small) / (1 + small), dtype=np.float32)


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


def mix(scores: NDArray[np.float32], dense: NDArray[np.float32], dense_weight: float) -> NDArray[np.float32]:
    """Return the weighted sum of two score lists, each standardised to mean 0 and deviation 1."""
    standardised = [(each - each.mean()) / max(float(each.std()), 1e-9) for each in (scores, dense)]
    return np.asarray((1 - dense_weight) * standardised[0] + dense_weight * standardised[1], dtype=np.float32)
