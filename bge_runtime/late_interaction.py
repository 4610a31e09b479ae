"""Pairs scored by an embedder: every text is read once, and pairs are compared by what was read.

Late interaction is the mean over the query's token vectors of the best cosine with the document's (MaxSim of
ColBERT, arXiv:2004.12832, as a mean). Models with trained heads (bge-m3) also compare lexical weights and dense
vectors, from the same forward pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.cache import VectorCache
from bge_runtime.deadline import Deadline
from bge_runtime.embedder import Embedder
from bge_runtime.modes import Mode
from bge_runtime.outputs import TextOutputs, pack_outputs, unpack_outputs
from bge_runtime.ranking import max_similarity, sparse_product
from bge_runtime.steps import Steps

__all__ = ["Comparison", "comparison_of", "late_scores"]

Weights = tuple[float, float, float]
NOTHING = TextOutputs(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))

# Documents whose token vectors are held at a time, and their numbers (256 MB).
TOKEN_WINDOW = 256
WINDOW_VALUES = 64_000_000
LARGE_DIMENSION = 1024
CHARACTERS_PER_TOKEN = 2  # hardly ever fewer


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How texts are read and compared.

    Attributes:
        read: Body that computes one value per passage of each text; arguments of `Embedder.token_steps`.
        score: Relevance of a document's value for a query's.
        identity: What changes values, for a cache.
        to_numbers: A value as numbers, for a cache.
        from_numbers: The value of such numbers.
        whole_numbers: Whether the numbers hold token ids, which need a cache of float32.
    """

    read: Callable[..., Steps[Any]]
    score: Callable[[Any, Any], float]
    identity: Callable[[], str]
    to_numbers: Callable[[Any], NDArray[np.float32]]
    from_numbers: Callable[[NDArray[np.float32]], Any]
    whole_numbers: bool


def comparison_of(embedder: Embedder, mode: Mode, weights: Weights) -> Comparison:
    """Return the comparison of a mode.

    Args:
        embedder: Reads the texts.
        mode: `multi_vector` takes the model's trained head, or where it has none the states of all tokens.
        weights: Of the dense, the sparse and the multi-vector score in `hybrid`.
    """
    if mode == "multi_vector" and "multi_vector" not in embedder.spec.outputs:
        return Comparison(
            read=embedder.token_steps,
            score=max_similarity,
            identity=lambda: embedder.token_identity,
            to_numbers=_flat,
            from_numbers=_rows,
            whole_numbers=False,
        )
    dense, sparse, vectors = {
        "dense": (1.0, 0.0, 0.0),
        "sparse": (0.0, 1.0, 0.0),
        "multi_vector": (0.0, 0.0, 1.0),
        "hybrid": weights,
    }[mode]

    def score(query: TextOutputs, document: TextOutputs) -> float:
        total = 0.0
        if dense:
            total += dense * float(query.dense @ document.dense)
        if sparse:
            total += sparse * sparse_product(query.ids, query.weights, document.ids, document.weights)
        if vectors:
            total += vectors * max_similarity(query.vectors, document.vectors)
        return total / (dense + sparse + vectors)

    only_vectors = mode == "multi_vector"
    return Comparison(
        read=embedder.output_steps,
        score=score,
        identity=lambda: f"{embedder.output_identity} {'vectors' if only_vectors else 'all'}",
        to_numbers=(lambda value: _flat(value.vectors)) if only_vectors else pack_outputs,
        from_numbers=(lambda numbers: NOTHING._replace(vectors=_rows(numbers))) if only_vectors else unpack_outputs,
        whole_numbers=not only_vectors,
    )


def late_scores(
    embedder: Embedder,
    pairs: Sequence[tuple[str, str]],
    comparison: Comparison,
    *,
    bulk: bool,
    overlap: int | None = None,
    deadline: Deadline | None = None,
    cache: VectorCache | None = None,
    on_progress: Callable[[int], object],
) -> Steps[tuple[NDArray[np.float32], int, int]]:
    """Score (query, document) pairs; each distinct text is computed once.

    Args:
        embedder: What the comparison reads with.
        pairs: Checked, distinct pairs.
        comparison: How texts are read and compared.
        bulk: Whether interactive work goes first.
        overlap: Tokens shared by two passages of a long document, whose best passage counts; `None` cuts it.
        deadline: When to stop; what is not scored by then is NaN.
        cache: Remembers what was read; not passages.
        on_progress: Called with the number of documents just finished.

    Returns:
        Scores float32 of shape (number of pairs,), the number of texts cut to the model's length, and of all texts.
    """
    scores = np.full(len(pairs), np.nan, dtype=np.float32)
    reader = _Reader(comparison, deadline)
    queries = list(dict.fromkeys(query for query, _ in pairs))
    query_values, cut = yield from reader.passages(queries, bulk=False, cache=cache)
    places: dict[str, list[int]] = defaultdict(list)
    for index, (query, document) in enumerate(pairs):
        if query in query_values:
            places[document].append(index)
    # Windows of like lengths; when time is short, the first documents first.
    documents = list(places) if deadline else sorted(places, key=len)
    for window in _windows(documents, embedder):
        found, more = yield from reader.passages(window, bulk=bulk, overlap=overlap, cache=None if overlap else cache)
        cut += more
        for document, passages in found.items():
            for index in places[document]:
                (value,) = query_values[pairs[index][0]]
                scores[index] = max(comparison.score(value, passage) for passage in passages)
        on_progress(len(window))
    return scores, cut, len(queries) + len(documents)


class _Reader:
    def __init__(self, comparison: Comparison, deadline: Deadline | None) -> None:
        self._comparison = comparison
        self._deadline = deadline

    def passages(
        self, texts: Sequence[str], *, bulk: bool, overlap: int | None = None, cache: VectorCache | None
    ) -> Steps[tuple[dict[str, list[Any]], int]]:
        """Return the values of each text's passages, and how many texts were cut; late ones are missing."""
        found = self._known(texts, cache)
        missing = [text for text in texts if text not in found]
        if not missing:
            return found, 0
        result = yield from self._comparison.read(missing, bulk=bulk, overlap=overlap, deadline=self._deadline)
        values = iter(result.values)
        computed = {
            text: passages
            for text, size in zip(missing, result.passages, strict=False)
            if len(passages := list(islice(values, size))) == size
        }
        if cache is not None:
            numbers = [self._comparison.to_numbers(value) for (value,) in computed.values()]
            cache.put(self._comparison.identity(), list(computed), numbers)
        return found | computed, result.cut

    def _known(self, texts: Sequence[str], cache: VectorCache | None) -> dict[str, list[Any]]:
        if cache is None:
            return {}
        known = cache.get(self._comparison.identity(), texts)
        return {
            text: [self._comparison.from_numbers(numbers)]
            for text, numbers in zip(texts, known, strict=True)
            if numbers is not None
        }


def _flat(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a matrix as numbers: its width first, since a cache keeps numbers without a shape."""
    return np.concatenate([[rows.shape[1]], rows.ravel()], dtype=np.float32)


def _rows(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    return numbers[1:].reshape(-1, int(numbers[0]))


def _windows(documents: Sequence[str], embedder: Embedder) -> Iterator[list[str]]:
    most_tokens = WINDOW_VALUES // (embedder.spec.dimension or LARGE_DIMENSION)
    window: list[str] = []
    tokens = 0
    for document in documents:
        more = min(len(document) // CHARACTERS_PER_TOKEN + 2, embedder.max_length)
        if window and (len(window) == TOKEN_WINDOW or tokens + more > most_tokens):
            yield window
            window, tokens = [], 0
        window.append(document)
        tokens += more
    if window:
        yield window
