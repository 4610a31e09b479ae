"""Pairs scored by an embedder: every text is read once, and pairs are compared by what was read.

Late interaction is the mean over the query's token vectors of the best cosine with the document's (MaxSim of
ColBERT, arXiv:2004.12832, as a mean). Models with trained heads (bge-m3) also compare lexical weights and dense
vectors, from the same forward pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.backends.head_outputs import TextOutputs, pack_outputs, unpack_outputs
from bge_runtime.embedding.embedder import Embedder
from bge_runtime.embedding.instructions import Role
from bge_runtime.engine.deadline import Deadline
from bge_runtime.engine.flow import Steps
from bge_runtime.reranking.comparison import Mode
from bge_runtime.reranking.ranking import max_similarity, sparse_product
from bge_runtime.vectors.cache import VectorCache
from bge_runtime.vectors.token_pooling import pool_each

__all__ = ["Comparison", "comparison_of", "document_vectors", "late_scores", "query_vectors"]

Weights = tuple[float, float, float]
NOTHING = TextOutputs(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))

# Documents whose token vectors are held at a time, and their numbers: 256 MB, or 512 MB of one character per token.
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
        vectors: The token vectors of a value.
        with_vectors: A value with other token vectors.
        token_pooling: How many token vectors of a document are merged into one.
        computed_identity: What changes values that are not pooled.
        to_numbers: A value as numbers, for a cache.
        from_numbers: The value of such numbers.
        whole_numbers: Whether the numbers hold token ids, which need a cache of float32.
    """

    read: Callable[..., Steps[Any]]
    score: Callable[[Any, Any], float]
    vectors: Callable[[Any], NDArray[np.float32]]
    with_vectors: Callable[[Any, NDArray[np.float32]], Any]
    token_pooling: int
    computed_identity: Callable[[], str]
    to_numbers: Callable[[Any], NDArray[np.float32]]
    from_numbers: Callable[[NDArray[np.float32]], Any]
    whole_numbers: bool

    def identity(self, role: Role) -> str:
        """Return what changes values, for a cache; queries are never pooled."""
        pooled = role == "document" and self.token_pooling > 1
        return f"{self.computed_identity()} pooled {self.token_pooling}" if pooled else self.computed_identity()

    def pooled(self, values: Sequence[Any]) -> list[Any]:
        """Return the values of documents with their token vectors merged."""
        vectors = pool_each([self.vectors(value) for value in values], self.token_pooling)
        return [self.with_vectors(value, each) for value, each in zip(values, vectors, strict=True)]


def comparison_of(embedder: Embedder, mode: Mode, weights: Weights, token_pooling: int = 1) -> Comparison:
    """Return the comparison of a mode.

    Args:
        embedder: Reads the texts.
        mode: `multi_vector` takes the model's trained head, or where it has none the states of all tokens.
        weights: Of the dense, the sparse and the multi-vector score in `hybrid`.
        token_pooling: How many token vectors of a document are merged into one.
    """
    if mode == "multi_vector" and "multi_vector" not in embedder.spec.outputs:
        return Comparison(
            read=embedder.token_steps,
            score=max_similarity,
            vectors=lambda value: value,
            with_vectors=lambda _, vectors: vectors,
            token_pooling=token_pooling,
            computed_identity=lambda: embedder.token_identity,
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
        vectors=lambda value: value.vectors,
        with_vectors=lambda value, vectors: value._replace(vectors=vectors),
        token_pooling=token_pooling,
        computed_identity=lambda: f"{embedder.output_identity} {'vectors' if only_vectors else 'all'}",
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
    query_values, cut = yield from reader.passages(queries, role="query", cache=cache)
    places: dict[str, list[int]] = defaultdict(list)
    for index, (query, document) in enumerate(pairs):
        if query in query_values:
            places[document].append(index)
    # Windows of like lengths; when time is short, the first documents first.
    documents = list(places) if deadline else sorted(places, key=len)
    for window in _windows(documents, embedder):
        found, more = yield from reader.passages(
            window, role="document", bulk=bulk, overlap=overlap, cache=None if overlap else cache
        )
        cut += more
        for document, passages in found.items():
            for index in places[document]:
                (value,) = query_values[pairs[index][0]]
                scores[index] = max(comparison.score(value, passage) for passage in passages)
        found.clear()  # or two windows would be held while the next one is read
        on_progress(len(window))
    return scores, cut, len(queries) + len(documents)


def query_vectors(
    query: str, comparison: Comparison, *, cache: VectorCache | None
) -> Steps[tuple[NDArray[np.float32], int]]:
    """Return a query's token vectors, float32 of shape (tokens, dimension), and whether it was cut (0 or 1)."""
    found, cut = yield from _Reader(comparison, None).passages([query], role="query", cache=cache)
    (value,) = found[query]
    return comparison.vectors(value), cut


def document_vectors(
    embedder: Embedder,
    texts: Sequence[str],
    comparison: Comparison,
    *,
    overlap: int | None,
    cache: VectorCache | None,
    keep: Callable[[str, list[NDArray[np.float32]]], object],
    on_progress: Callable[[int], object],
) -> Steps[int]:
    """Read documents a few hundred at a time, those of like lengths together.

    Args:
        embedder: What the comparison reads with.
        texts: Checked, distinct texts.
        comparison: How texts are read.
        overlap: As for `late_scores`.
        cache: As for `late_scores`.
        keep: Called once per text with the token vectors of its passages, float32 of shape (tokens, dimension).
        on_progress: Called with the number of texts just read.

    Returns:
        The number of texts cut to the model's length.
    """
    reader = _Reader(comparison, None)
    cut = 0
    for window in _windows(sorted(texts, key=len), embedder):
        found, more = yield from reader.passages(
            window, role="document", bulk=True, overlap=overlap, cache=None if overlap else cache
        )
        cut += more
        for text, passages in found.items():
            keep(text, [comparison.vectors(value) for value in passages])
        found.clear()
        on_progress(len(window))
    return cut


class _Reader:
    def __init__(self, comparison: Comparison, deadline: Deadline | None) -> None:
        self._comparison = comparison
        self._deadline = deadline

    def passages(
        self,
        texts: Sequence[str],
        *,
        role: Role,
        bulk: bool = False,
        overlap: int | None = None,
        cache: VectorCache | None,
    ) -> Steps[tuple[dict[str, list[Any]], int]]:
        """Return the values of each text's passages, and how many texts were cut; late ones are missing."""
        found = self._known(texts, role, cache)
        missing = [text for text in texts if text not in found]
        if not missing:
            return found, 0
        result = yield from self._comparison.read(missing, bulk=bulk, overlap=overlap, deadline=self._deadline)
        if role == "document" and self._comparison.token_pooling > 1:
            result.values = yield partial(self._comparison.pooled, result.values)
        values = iter(result.values)
        computed = {
            text: passages
            for text, size in zip(missing, result.passages, strict=False)
            if len(passages := list(islice(values, size))) == size
        }
        if cache is not None:
            numbers = [self._comparison.to_numbers(value) for (value,) in computed.values()]
            cache.put(self._comparison.identity(role), list(computed), numbers)
        return found | computed, result.cut

    def _known(self, texts: Sequence[str], role: Role, cache: VectorCache | None) -> dict[str, list[Any]]:
        if cache is None:
            return {}
        known = cache.get(self._comparison.identity(role), texts)
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
