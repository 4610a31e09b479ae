"""Vectors in one byte or one bit per dimension, and the search over them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bge_runtime.errors import ConfigurationError, InputError, check_count

__all__ = ["quantization_ranges", "quantize_embeddings", "rescore", "search_quantized"]

logger = logging.getLogger("bge_runtime")

Precision = Literal["int8", "uint8", "binary", "ubinary"]
PRECISIONS = ("int8", "uint8", "binary", "ubinary")
# As many as sentence-transformers asks for before it warns.
ENOUGH_FOR_RANGES = 100
STEPS = 255
# Rows of a corpus that are widened at a time, and queries that are compared with all of it.
BLOCK = 8192
GROUP = 32
SIGN = np.uint8(0x80)
BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)


def quantize_embeddings(
    embeddings: NDArray[np.floating[Any]],
    precision: Precision = "int8",
    *,
    ranges: NDArray[np.floating[Any]] | None = None,
    calibration_embeddings: NDArray[np.floating[Any]] | None = None,
) -> NDArray[np.int8] | NDArray[np.uint8]:
    """Return vectors in one byte (`int8`, `uint8`) or one bit (`binary`, `ubinary`) per dimension.

    The results are those of `sentence_transformers.util.quantize_embeddings`, without torch. A byte says in which
    of 256 equal parts of its dimension's range a value lies; a bit says whether it is above zero, eight to a byte,
    the first dimension in the highest bit. `int8` and `binary` are `uint8` and `ubinary` less 128.

    Args:
        embeddings: Float array of shape (n, dimension), or (dimension,).
        precision: `int8`, `uint8`, `binary` or `ubinary`.
        ranges: Smallest and largest value of each dimension, of shape (2, dimension), for `int8` and `uint8`: queries,
            and vectors added later, need those of the index. See `quantization_ranges`.
        calibration_embeddings: Vectors to take the ranges from; `None` takes them from `embeddings`.

    Returns:
        Array of shape (n, dimension) for a byte per dimension and (n, dimension / 8, rounded up) for a bit, of dtype
        int8 for `int8` and `binary`, uint8 for `uint8` and `ubinary`; without the first axis for a single vector.

    Raises:
        ConfigurationError: The precision does not exist, or `ranges` has another shape.
        InputError: The vectors are not finite floats, or too few to take ranges from.
    """
    if precision not in PRECISIONS:
        raise ConfigurationError(
            f"precision={precision!r} is not allowed. Use {', '.join(map(repr, PRECISIONS))}; "
            "float32 vectors are what an embedder returns."
        )
    vectors = _floats(embeddings, "embeddings")
    if precision in ("binary", "ubinary"):
        bits: NDArray[np.uint8] = np.packbits(vectors > 0, axis=-1)
        if precision == "ubinary":
            return bits
        return _signed(bits)
    if ranges is None and len(vectors):
        ranges = quantization_ranges(vectors if calibration_embeddings is None else calibration_embeddings)
    elif ranges is None:
        ranges = np.zeros((2, vectors.shape[-1]))  # for no vectors any will do
    starts, steps = _scale(ranges, vectors.shape[-1])
    levels = np.clip(np.floor((vectors - starts) / steps), 0, STEPS).astype(np.uint8)
    return _signed(levels) if precision == "int8" else levels


def quantization_ranges(embeddings: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return the smallest and the largest value of each dimension: keep them with an index in `int8` or `uint8`.

    Args:
        embeddings: Float array of shape (n, dimension); a few thousand vectors like those to come are enough.

    Returns:
        Array float32 of shape (2, dimension).

    Raises:
        InputError: The vectors are not finite floats, or fewer than two.
    """
    vectors = _floats(embeddings, "embeddings")
    if vectors.ndim != 2 or len(vectors) < 2:
        raise InputError(
            f"Ranges cannot be taken from an array of shape {vectors.shape}. Pass at least two vectors, better some "
            "thousands, or the ranges= of the index."
        )
    if len(vectors) < ENOUGH_FOR_RANGES:
        logger.warning("Ranges of %d vectors only: take them from more, as values outside are cut.", len(vectors))
    return np.vstack((vectors.min(axis=0), vectors.max(axis=0))).astype(np.float32)


def search_quantized(
    queries: NDArray[np.floating[Any]],
    corpus: NDArray[np.int8] | NDArray[np.uint8],
    *,
    top_k: int = 10,
    rescore_multiplier: int = 4,
    ranges: NDArray[np.floating[Any]] | None = None,
    vectors: NDArray[np.floating[Any]] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the best rows of a quantised corpus for each query, which stays in float.

    Bits are compared by Hamming distance, and the best are scored again. Bytes are compared by the dot product of
    `rescore`, and the best are scored again only where `vectors` is given. Every row is looked at. Bits and bytes are
    told apart by the number of columns.

    Args:
        queries: Float array of shape (n, dimension), or (dimension,) for one query.
        corpus: What `quantize_embeddings` returned, in any precision.
        top_k: How many rows to return for each query; fewer when the corpus has fewer.
        rescore_multiplier: How many times `top_k` candidates are scored again.
        ranges: Ranges that the corpus was quantised with; needed for bytes.
        vectors: Float vectors of the corpus, of shape (rows, dimension), to score candidates by: any array that can be
            indexed by row numbers, such as an `np.memmap`. `None` scores them by their quantised rows; see `rescore`.

    Returns:
        Row numbers int64 and scores float32, both of shape (n, top_k), best first, equal scores in row order.

    Raises:
        ConfigurationError: `top_k`, `rescore_multiplier` or `ranges` does not fit.
        InputError: Queries, corpus and vectors do not belong together, or hold NaN or infinities.
    """
    asked = np.atleast_2d(_floats(queries, "queries"))
    count = min(check_count(top_k, "top_k") or 1, len(corpus))
    multiplier = check_count(rescore_multiplier, "rescore_multiplier") or 1
    is_packed = _is_packed(corpus, asked.shape[1], ranges)
    if vectors is not None and vectors.shape != (len(corpus), asked.shape[1]):
        raise InputError(
            f"vectors has shape {vectors.shape}; pass those of the corpus, {(len(corpus), asked.shape[1])}."
        )
    candidates = count * multiplier if is_packed or vectors is not None else count
    indices = np.empty((len(asked), count), np.int64)
    scores = np.empty((len(asked), count), np.float32)
    for start in range(0, len(asked), GROUP):
        group = asked[start : start + GROUP]
        first = -_distances(group, corpus) if is_packed else _dot(group, corpus, ranges)
        for row, query in enumerate(group):
            found = np.sort(_best(first[row], candidates))
            if vectors is not None:
                score = np.asarray(vectors[found] @ query)
                _check_scores(score, found)
            else:
                score = rescore(query, corpus[found], ranges=ranges) if is_packed else first[row][found]
            order = _best(score, count)
            indices[start + row], scores[start + row] = found[order], score[order]
    return indices, scores


def rescore(
    query: NDArray[np.floating[Any]],
    candidates: NDArray[np.int8] | NDArray[np.uint8],
    *,
    ranges: NDArray[np.floating[Any]] | None = None,
) -> NDArray[np.float32]:
    """Score quantised candidates, which any search brought, against a query in float.

    Bytes are widened to the middle of their part of the range and multiplied with the query. Bits count as -1 and 1,
    divided by the square root of the dimension: the score of a query of length 1 is its cosine with the signs.

    Args:
        query: Float array of shape (dimension,).
        candidates: Rows of a quantised corpus, of shape (n, columns).
        ranges: Ranges that the corpus was quantised with; needed for bytes.

    Returns:
        Array float32 of shape (n,), higher is better.

    Raises:
        ConfigurationError: `ranges` is missing or does not fit.
        InputError: Query and candidates do not belong together.
    """
    vector = _floats(query, "query")
    if vector.ndim != 1:
        raise InputError(f"query has shape {vector.shape}. Pass one vector.")
    if not _is_packed(candidates, len(vector), ranges):
        return np.asarray(_dot(vector[None], candidates, ranges)[0])
    bits = np.unpackbits(_unsigned(candidates), axis=1, count=len(vector))
    signs = bits.astype(np.float32) * 2 - 1
    return np.asarray(signs @ vector / np.sqrt(len(vector)), dtype=np.float32)


def _check_scores(scores: NDArray[Any], rows: NDArray[np.int64]) -> None:
    whole = np.isfinite(scores)
    if not whole.all():
        raise InputError(
            f"vectors holds NaN or infinity in row {rows[~whole][0]}, which has no score. Leave such rows out of the "
            "corpus and of vectors."
        )


def _floats(vectors: Any, name: str) -> NDArray[np.floating[Any]]:
    array = np.asarray(vectors)
    if not np.issubdtype(array.dtype, np.floating) or array.ndim not in (1, 2):
        raise InputError(
            f"{name} is an array of {array.dtype} of shape {array.shape}. Pass floats of shape (n, dimension)."
        )
    with np.errstate(over="ignore"):
        whole = np.isfinite(array.astype(np.float32, copy=False)).all()  # float32 is what it is computed in
    if not whole:
        raise InputError(
            f"{name} holds NaN, infinity or numbers beyond float32, which have no quantised value. "
            "Leave those vectors out."
        )
    return array


def _scale(ranges: Any, dimension: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the start of each dimension's range, and the width of one of its 256 parts."""
    array = np.asarray(ranges)
    if array.shape != (2, dimension) or not np.isfinite(array.astype(np.float32)).all():
        raise ConfigurationError(
            f"ranges has shape {array.shape}; pass the smallest and the largest value of each dimension, "
            f"(2, {dimension}), as quantization_ranges() returns them."
        )
    starts, ends = array.astype(np.float32)
    steps = (ends - starts) / STEPS
    return starts, np.where(steps == 0, np.float32(1), steps)


def _is_packed(corpus: Any, dimension: int, ranges: Any) -> bool:
    if not isinstance(corpus, np.ndarray) or corpus.dtype not in (np.int8, np.uint8) or corpus.ndim != 2:
        shown = f"{corpus.dtype} {corpus.shape}" if isinstance(corpus, np.ndarray) else type(corpus).__name__
        raise InputError(f"The corpus is {shown}. Pass the int8 or uint8 rows that quantize_embeddings() returned.")
    if corpus.shape[1] == (dimension + 7) // 8 and dimension > 1:
        return True
    if corpus.shape[1] != dimension:
        raise InputError(
            f"The corpus has {corpus.shape[1]} columns, which are neither the bytes nor the bits of queries with "
            f"{dimension} dimensions. Pass vectors of the same embedder."
        )
    if ranges is None:
        raise ConfigurationError("A corpus in bytes needs the ranges= that it was quantised with.")
    return False


def _signed(values: NDArray[Any]) -> NDArray[np.int8]:
    """Return the values less 128."""
    return np.asarray(values ^ SIGN, dtype=np.uint8).view(np.int8)


def _unsigned(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(values if values.dtype == np.uint8 else values.view(np.uint8) ^ SIGN, dtype=np.uint8)


def _blocks(corpus: NDArray[Any]) -> Iterator[tuple[slice, NDArray[Any]]]:
    for start in range(0, len(corpus), BLOCK):
        part = slice(start, start + BLOCK)
        yield part, corpus[part]


def _dot(queries: NDArray[Any], corpus: NDArray[Any], ranges: Any) -> NDArray[np.float32]:
    """Return the dot products [queries, rows] with the widened rows: the queries take on the steps, not the rows."""
    starts, steps = _scale(ranges, queries.shape[1])
    weights = (queries * steps).astype(np.float32)
    middle = 0.5 + (128 if corpus.dtype == np.int8 else 0)
    products = np.empty((len(queries), len(corpus)), np.float32)
    for part, block in _blocks(corpus):
        products[:, part] = weights @ block.astype(np.float32).T
    return np.asarray(products + (queries @ starts + middle * weights.sum(axis=1))[:, None], dtype=np.float32)


def _distances(queries: NDArray[Any], corpus: NDArray[Any]) -> NDArray[np.int32]:
    """Return how many bits of each row differ from each query's, [queries, rows]."""
    bits = np.packbits(queries > 0, axis=1)
    bits = bits if corpus.dtype == np.uint8 else bits ^ SIGN
    distances = np.empty((len(queries), len(corpus)), np.int32)
    for part, block in _blocks(corpus):
        rows = block.view(np.uint8)
        for number, query in enumerate(bits):
            distances[number, part] = BITS_OF_BYTE[rows ^ query].sum(axis=1, dtype=np.int32)
    return distances


def _best(scores: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Return the places of the highest scores, best first; equal ones in their order."""
    places = np.arange(len(scores))
    if count < len(scores):
        places = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    return np.asarray(places[np.argsort(-scores[places], kind="stable")][:count], dtype=np.int64)
