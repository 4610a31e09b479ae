"""A store's own score as the cosine, where the store tells how it measures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from langchain_bge.embeddings import BGEEmbeddings

__all__ = ["cosine_of", "known_cosine_of"]

# Its distances are these, by the function of LangChain's that it names for its metric: 1 - cosine, the squared
# Euclidean distance, and 1 - inner product. Other stores name the same functions for other numbers, give similarities,
# or name a metric that they do not use (LanceDB's `distance`), so they are not asked.
CHROMA = "langchain_chroma.vectorstores"
# Its index knows how it measures.
FAISS = "langchain_community.vectorstores.faiss"
FAISS_INNER_PRODUCT = 0  # faiss.METRIC_INNER_PRODUCT
FAISS_L2 = 1  # faiss.METRIC_L2, whose distances are squared


def cosine_of(store: VectorStore) -> Callable[[float], float]:
    """Return what makes the cosine of a score of this store; what changes nothing, where that cannot be known."""
    return known_cosine_of(store) or float


def known_cosine_of(store: VectorStore) -> Callable[[float], float] | None:
    """Return what makes the cosine of a score of this store; `None` where that cannot be known."""
    embeddings = store.embeddings
    if not isinstance(embeddings, BGEEmbeddings):
        return None
    if isinstance(store, InMemoryVectorStore):  # which divides by the lengths itself
        return float
    # Of vectors that have another length, a distance does not say the cosine.
    if not embeddings.embedder.normalize:
        return None
    modules = {kind.__module__ for kind in type(store).__mro__}
    if FAISS in modules:
        index: Any = vars(store)["index"]
        measures: dict[int, Callable[[float], float]] = {FAISS_L2: _from_squared, FAISS_INNER_PRODUCT: float}
        return measures.get(index.metric_type)
    if CHROMA not in modules:
        return None
    try:
        named: Any = store._select_relevance_score_fn()
    except (NotImplementedError, ValueError):  # a metric that it has no function for
        return None
    if named is VectorStore._euclidean_relevance_score_fn:
        return _from_squared
    is_complement = named in (VectorStore._cosine_relevance_score_fn, VectorStore._max_inner_product_relevance_score_fn)
    return _from_complement if is_complement else None


def _from_squared(distance: float) -> float:
    return 1 - float(distance) / 2


def _from_complement(distance: float) -> float:
    return 1 - float(distance)
