"""Late interaction: an embedder's token vectors as a reranker.

The score of a pair is the mean over the query's token vectors of the best cosine with the document's (MaxSim of
ColBERT, arXiv:2004.12832, as a mean).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bge_runtime.embedder import Embedder
from bge_runtime.ranking import max_similarity
from bge_runtime.steps import Steps

__all__ = ["late_scores"]

TOKEN_WINDOW = 256  # documents whose token vectors are held at a time


def late_scores(
    embedder: Embedder, pairs: Sequence[tuple[str, str]], *, bulk: bool, on_progress: Callable[[int], object]
) -> Steps[tuple[NDArray[np.float32], int, int]]:
    """Score (query, document) pairs; each distinct text is computed once.

    Args:
        embedder: Gives the token vectors.
        pairs: Checked, distinct pairs.
        bulk: Whether interactive work goes first.
        on_progress: Called with the number of documents just finished.

    Returns:
        Scores float32 of shape (number of pairs,), the number of texts cut to the model's length, and of all texts.
    """
    queries = list(dict.fromkeys(query for query, _ in pairs))
    vectors, cut = yield from embedder.token_steps(queries)
    query_vectors = dict(zip(queries, vectors, strict=True))
    places: dict[str, list[int]] = defaultdict(list)
    for index, (_, document) in enumerate(pairs):
        places[document].append(index)
    documents = sorted(places, key=len)  # windows of like lengths
    scores = np.empty(len(pairs), dtype=np.float32)
    for start in range(0, len(documents), TOKEN_WINDOW):
        window = documents[start : start + TOKEN_WINDOW]
        vectors, more = yield from embedder.token_steps(window, bulk=bulk)
        cut += more
        for document, rows in zip(window, vectors, strict=True):
            for index in places[document]:
                scores[index] = max_similarity(query_vectors[pairs[index][0]], rows)
        on_progress(len(window))
    return scores, cut, len(queries) + len(documents)
