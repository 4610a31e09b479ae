"""Fewer token vectors per document: like vectors are merged (token pooling, arXiv:2409.14683)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.errors import ConfigurationError

__all__ = ["check_token_pooling", "pool_each", "pool_tokens"]

MOST_POOLING = 8

# Clustered together at most: distances between all pairs of so many vectors take about 50 MB.
BLOCK_TOKENS = 2048


def check_token_pooling(value: Any, mode: str | None) -> int:
    """Return how many token vectors are merged into one.

    Raises:
        ConfigurationError: It is not a whole number from 1 to 8, or the mode compares more than token vectors.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_POOLING:
        raise ConfigurationError(
            f"token_pooling={value!r} is not allowed. Pass a whole number from 1 (off) to {MOST_POOLING}."
        )
    if value > 1 and mode not in (None, "multi_vector"):
        raise ConfigurationError(
            f"token_pooling={value!r} merges token vectors, and mode={mode!r} does not compare them alone. "
            "Use mode='multi_vector', or leave token_pooling out."
        )
    return value


def pool_tokens(vectors: NDArray[np.float32], token_pooling: int) -> NDArray[np.float32]:
    """Merge the token vectors of a document to one per `token_pooling` of them.

    Ward's clustering of the unit vectors is cut at ceil(tokens / token_pooling) clusters, or fewer where distances
    are equal; each cluster becomes the mean of its vectors, scaled to length 1. Long documents are clustered in
    equal parts of at most 2048 tokens.

    Args:
        vectors: Unit vectors, float32 of shape (tokens, dimension).
        token_pooling: 1 returns them as they are.

    Returns:
        Unit vectors, float32 of shape (clusters, dimension).
    """
    if token_pooling == 1 or len(vectors) < 2:
        return vectors
    parts = np.array_split(vectors, -(-len(vectors) // BLOCK_TOKENS))
    return np.concatenate([_pooled(part, -(-len(part) // token_pooling)) for part in parts])


def pool_each(documents: Sequence[NDArray[np.float32]], token_pooling: int) -> list[NDArray[np.float32]]:
    """Return `pool_tokens` of each document."""
    return [pool_tokens(vectors, token_pooling) for vectors in documents]


def _pooled(vectors: NDArray[np.float32], clusters: int) -> NDArray[np.float32]:
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    # The distance of two unit vectors, from their dot product: much faster than pair by pair.
    distances = np.sqrt(np.maximum(2 - 2 * (vectors @ vectors.T), 0))
    tree = linkage(squareform(distances, checks=False), "ward")
    # Older versions of SciPy leave a pair apart where one cluster is asked for.
    labels = fcluster(tree, clusters, "maxclust") if clusters > 1 else np.ones(len(vectors), np.int32)
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=0))
    sums = np.add.reduceat(vectors[order], starts, axis=0)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.asarray(sums / np.maximum(norms, 1e-12), dtype=np.float32)
