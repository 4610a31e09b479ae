"""Exact search: every document is compared with every question, in blocks that bound the memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bge_runtime import InputError

__all__ = ["search"]

# Documents that are compared at a time, and numbers of the products held at once: 64 MiB of them.
DOCUMENTS = 8192
PRODUCTS = 2**24


def search(
    queries: NDArray[np.float32], documents: NDArray[np.float32], top_k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the documents of the highest dot products with each query.

    Args:
        queries: Array float32 of shape (n, dimension).
        documents: Array float32 of shape (m, dimension), in memory or as an `np.memmap`.
        top_k: How many to return; fewer where there are fewer documents.

    Returns:
        Row numbers int64 and products float32, both of shape (n, min(top_k, m)), best first; of equal ones the
        earlier document first.

    Raises:
        InputError: The vectors have different dimensions, or a product is not finite.
    """
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise InputError(
            f"Vectors of shape {queries.shape} cannot be compared with {documents.shape}. Use one embedder for both."
        )
    count = min(top_k, len(documents))
    group = max(PRODUCTS // DOCUMENTS, 1)
    rows = np.empty((len(queries), count), np.int64)
    scores = np.empty((len(queries), count), np.float32)
    for start in range(0, len(queries), group):
        part = slice(start, start + group)
        rows[part], scores[part] = _best_of(queries[part], documents, count)
    return rows, scores


def _best_of(
    queries: NDArray[np.float32], documents: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Keep the best so far of each query, and look at those of a block only that beat the last of them."""
    best_rows = np.empty((len(queries), 0), np.int64)
    best = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(documents), DOCUMENTS):
        products = queries @ documents[start : start + DOCUMENTS].T
        if not np.isfinite(products.sum()):
            raise InputError(f"A score of documents {start} to {start + products.shape[1]} is not finite.")
        if best.shape[1] < count:
            rows = np.broadcast_to(np.arange(start, start + products.shape[1]), products.shape)
            best_rows, best = _cut(np.hstack((best_rows, rows)), np.hstack((best, products)), count)
            continue
        # Few: after m documents, one more is among the best k with the probability k / m.
        beats, places = np.nonzero(products > best[:, -1:])
        if not len(beats):
            continue
        found = np.bincount(beats, minlength=len(queries))
        width = int(found.max())
        columns = np.arange(len(beats)) - np.repeat(np.cumsum(found) - found, found)
        more = np.full((len(queries), width), -np.inf, np.float32)
        more_rows = np.full((len(queries), width), len(documents), np.int64)
        more[beats, columns] = products[beats, places]
        more_rows[beats, columns] = start + places
        touched = np.flatnonzero(found)
        best_rows[touched], best[touched] = _cut(
            np.hstack((best_rows[touched], more_rows[touched])), np.hstack((best[touched], more[touched])), count
        )
    return best_rows, best


def _cut(
    rows: NDArray[np.int64], scores: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the best of each line, best first, of equal ones the one that stands first."""
    if 4 * count < scores.shape[1]:
        # All that are not below the last that counts, in their order, since a partition alone breaks ties at will.
        least = np.partition(scores, -count, axis=1)[:, -count][:, None]
        keep = np.argsort(scores < least, axis=1, kind="stable")
        width = int((scores >= least).sum(axis=1).max())
        keep = keep[:, :width]
        rows, scores = np.take_along_axis(rows, keep, axis=1), np.take_along_axis(scores, keep, axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
