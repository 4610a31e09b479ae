"""Probabilities of being relevant from what a vector store gives."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from bge_runtime import ConfigurationError, Embedder, ScoreCalibrator
from langchain_bge.embeddings import BGEEmbeddings
from langchain_bge.scores import known_cosine_of

__all__ = ["Measure", "probability_of", "relevance_score_fn"]

Measure = Literal["cosine", "cosine_distance", "squared_l2"]


def relevance_score_fn(
    calibrator: ScoreCalibrator | str | os.PathLike[str],
    embeddings: BGEEmbeddings,
    *,
    measure: Measure,
) -> Callable[[float], float]:
    """Make the `relevance_score_fn` of a vector store: from its own score to the probability of being relevant.

    For stores that take such a function, such as Chroma and FAISS, and use it in
    `similarity_search_with_relevance_scores` and in retrievers with `search_type="similarity_score_threshold"`.

    Args:
        calibrator: A `bge_runtime.ScoreCalibrator` that was fitted on the cosines of these embeddings, or the path of
            its file.
        embeddings: What fills and queries the store. Its vectors must have length 1, unless `measure` is `cosine` or
            `cosine_distance` of a store that scales them itself.
        measure: What the store's own score is: `cosine`, such as the inner product of FAISS; `cosine_distance`, 1 -
            cosine, such as Chroma's with `hnsw:space` `cosine` or `ip`; `squared_l2`, the squared Euclidean distance,
            the default of Chroma and FAISS.

    Returns:
        A function of one score.

    Raises:
        ConfigurationError: The calibrator was fitted on something else, or an argument has a value that is not allowed.

    Examples:
        ```python
        relevance = relevance_score_fn("calibrator.json", embeddings, measure="squared_l2")
        store = Chroma(embedding_function=embeddings, relevance_score_fn=relevance)
        ```
    """
    if measure not in ("cosine", "cosine_distance", "squared_l2"):
        raise ConfigurationError(
            f"measure={measure!r} is not allowed. Use 'cosine', 'cosine_distance' or 'squared_l2'."
        )
    embedder = _embedder(embeddings)
    if measure == "squared_l2" and not embedder.normalize:
        raise ConfigurationError(
            f"The squared distance of vectors of other lengths than 1 does not say the cosine, and {embedder!r} has "
            "normalize=False. Pass embeddings with normalize=True, or a store that measures the cosine."
        )
    used = ScoreCalibrator.of(calibrator)
    used.check(embedder)

    def relevance(score: float) -> float:
        value = float(score)
        cosine = {"cosine": value, "cosine_distance": 1 - value, "squared_l2": 1 - value / 2}[measure]
        return _probability(used, cosine)

    return relevance


def probability_of(store: VectorStore, calibrator: ScoreCalibrator) -> Callable[[float], float]:
    """Return what makes the probability of a cosine, for a store whose scores are cosines once `cosine_of` is through.

    Raises:
        ConfigurationError: The store has no `BGEEmbeddings`, others than the calibrator was fitted on, or does not
            tell the cosine.
    """
    calibrator.check(_embedder(store.embeddings))
    if known_cosine_of(store) is None:
        raise ConfigurationError(
            f"calibrator= needs the cosine, and the score of {type(store).__name__} is not known to be one. "
            "InMemoryVectorStore, Chroma and FAISS tell theirs. With another store pass reranker=BGERerank(..., "
            "calibrator=...), or relevance_score_fn to the store."
        )
    return partial(_probability, calibrator)


def _embedder(embeddings: Embeddings | None) -> Embedder:
    if not isinstance(embeddings, BGEEmbeddings):
        raise ConfigurationError(
            f"{embeddings!r} has no identity that a calibrator could be checked against. Pass BGEEmbeddings, or a "
            "store that uses them."
        )
    return embeddings.embedder


def _probability(calibrator: ScoreCalibrator, cosine: float) -> float:
    # In float32, as rerankers give theirs, and as the thresholds of calibrators are noted.
    return float(np.float32(calibrator.probabilities(np.float32(cosine))))
