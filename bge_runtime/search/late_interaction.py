"""Late interaction over what a search retrieved.

The runtime's own late interaction counts every token of the question alike. A search has more to go by: which
words of the question tell the candidates apart, and which heading each candidate stands under.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bge_runtime import Embedder
from bge_runtime.search.splitting import Chunk, readable

__all__ = ["late_interaction"]

# The heading's share of a score: the middle of a plateau on tests/cli/tuning_questions.json.
HEADING_SHARE = 0.25


def late_interaction(embedder: Embedder, question: str, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
    """Score chunks for one question: a weighted mean, over its tokens, of the best cosine in chunk and heading.

    Tokens that few candidates contain weigh more (the inverse document frequency of BM25).

    Args:
        embedder: Gives the token vectors.
        question: The question.
        chunks: The candidates.

    Returns:
        Array float32 of shape (number of chunks,), -1 to 1, in input order.
    """
    if not chunks:
        return np.empty(0, dtype=np.float32)
    texts = [chunk.text for chunk in chunks]
    headings = list(dict.fromkeys(readable(chunk.heading) for chunk in chunks))
    query, weights = _query(embedder, readable(question), texts)
    text_scores = [_score(query, weights, rows) for rows in embedder.encode_tokens(texts)]
    rows_of = zip(headings, embedder.encode_tokens(headings), strict=True)
    by_heading = {heading: _score(query, weights, rows) for heading, rows in rows_of}
    scores = [
        (1 - HEADING_SHARE) * score + HEADING_SHARE * by_heading[readable(chunk.heading)] if chunk.heading else score
        for chunk, score in zip(chunks, text_scores, strict=True)
    ]
    return np.asarray(scores, dtype=np.float32)


def _score(query: NDArray[np.float32], weights: NDArray[np.float32], rows: NDArray[np.float32]) -> float:
    return float((query @ rows.T).max(axis=1) @ weights)


def _query(embedder: Embedder, question: str, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the vectors of the question's own tokens, and their weights, which add up to 1."""
    vectors = embedder.encode_tokens([question], role="query")[0]
    specials = embedder.count_tokens([""])[0]
    words = _words(embedder, question)
    # A cut question has fewer vectors than words; one special token of two stands in front.
    content = vectors[specials // 2 :][: min(len(words), len(vectors) - specials)]
    if not len(content):
        return vectors, np.full(len(vectors), 1 / len(vectors), dtype=np.float32)
    frequency = Counter(word for text in texts for word in set(_words(embedder, text)))
    counts = np.array([frequency[word] for word in words[: len(content)]])
    weights = np.log1p((len(texts) - counts + 0.5) / (counts + 0.5))
    return content, np.asarray(weights / weights.sum(), dtype=np.float32)


def _words(embedder: Embedder, text: str) -> list[str]:
    return [text[start:end].lower() for start, end in embedder.token_offsets(text)]
