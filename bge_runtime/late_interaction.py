"""Late interaction: an embedder's token vectors as a reranker.

The score of a pair is the mean over the query's token vectors of the best cosine with the document's (MaxSim of
ColBERT, arXiv:2004.12832, as a mean).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from bge_runtime.cache import VectorCache
from bge_runtime.deadline import Deadline
from bge_runtime.embedder import Embedder
from bge_runtime.ranking import max_similarity
from bge_runtime.steps import Steps

__all__ = ["late_scores"]

# Documents whose token vectors are held at a time.
TOKEN_WINDOW = 256
WINDOW_CHARACTERS = 500_000


def late_scores(
    embedder: Embedder,
    pairs: Sequence[tuple[str, str]],
    *,
    bulk: bool,
    overlap: int | None = None,
    deadline: Deadline | None = None,
    cache: VectorCache | None = None,
    on_progress: Callable[[int], object],
) -> Steps[tuple[NDArray[np.float32], int, int]]:
    """Score (query, document) pairs; each distinct text is computed once.

    Args:
        embedder: Gives the token vectors.
        pairs: Checked, distinct pairs.
        bulk: Whether interactive work goes first.
        overlap: Tokens shared by two passages of a long document, whose best passage counts; `None` cuts it.
        deadline: When to stop; what is not scored by then is NaN.
        cache: Remembers token vectors; not those of passages.
        on_progress: Called with the number of documents just finished.

    Returns:
        Scores float32 of shape (number of pairs,), the number of texts cut to the model's length, and of all texts.
    """
    scores = np.full(len(pairs), np.nan, dtype=np.float32)
    read = partial(_passages, embedder, overlap=overlap, deadline=deadline, cache=None if overlap else cache)
    queries = list(dict.fromkeys(query for query, _ in pairs))
    query_vectors, cut = yield from _passages(embedder, queries, bulk=False, deadline=deadline, cache=cache)
    places: dict[str, list[int]] = defaultdict(list)
    for index, (query, document) in enumerate(pairs):
        if query in query_vectors:
            places[document].append(index)
    # Windows of like lengths; when time is short, the first documents first.
    documents = list(places) if deadline else sorted(places, key=len)
    for window in _windows(documents):
        found, more = yield from read(window, bulk=bulk)
        cut += more
        for document, passages in found.items():
            for index in places[document]:
                (vectors,) = query_vectors[pairs[index][0]]
                scores[index] = max(max_similarity(vectors, passage) for passage in passages)
        on_progress(len(window))
    return scores, cut, len(queries) + len(documents)


def _passages(
    embedder: Embedder,
    texts: Sequence[str],
    *,
    bulk: bool,
    overlap: int | None = None,
    deadline: Deadline | None,
    cache: VectorCache | None,
) -> Steps[tuple[dict[str, list[NDArray[np.float32]]], int]]:
    """Return the token vectors of each text's passages, and how many texts were cut; late ones are missing."""
    found: dict[str, list[NDArray[np.float32]]] = {}
    if cache is not None:
        known = cache.get(embedder.token_identity, texts)
        # The first number is the length of a vector, since a cache keeps numbers without a shape.
        found = {
            text: [flat[1:].reshape(-1, int(flat[0]))]
            for text, flat in zip(texts, known, strict=True)
            if flat is not None
        }
    missing = [text for text in texts if text not in found]
    if not missing:
        return found, 0
    result = yield from embedder.token_steps(missing, bulk=bulk, overlap=overlap, deadline=deadline)
    values = iter(result.values)
    computed = {
        text: passages
        for text, size in zip(missing, result.passages, strict=False)
        if len(passages := list(islice(values, size))) == size
    }
    if cache is not None:
        flat = [np.concatenate([[rows.shape[1]], rows.ravel()]) for (rows,) in computed.values()]
        cache.put(embedder.token_identity, list(computed), flat)
    return found | computed, result.cut


def _windows(documents: Sequence[str]) -> Iterator[list[str]]:
    window: list[str] = []
    characters = 0
    for document in documents:
        if window and (len(window) == TOKEN_WINDOW or characters + len(document) > WINDOW_CHARACTERS):
            yield window
            window, characters = [], 0
        window.append(document)
        characters += len(document)
    if window:
        yield window
