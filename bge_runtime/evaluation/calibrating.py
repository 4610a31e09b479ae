"""Calibrators from judged questions: what `bge calibrate` does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_runtime import ConfigurationError, Embedder, InputError, Reranker, ScoreCalibrator, VectorCache
from bge_runtime.evaluation.calibration import (
    CalibrationReport,
    fit_calibrator,
    fit_without_labels,
    measure_calibration,
)
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.subjects import ModelSubject

__all__ = [
    "Candidates",
    "calibrate",
    "calibrate_without_labels",
    "candidates_of",
    "check_calibrator",
    "random_pairs_of",
]

CANDIDATES = 10
# How many of the first stage a reranker gets, as many times what is looked at: candidates that it lifts must be there.
FETCHED = 3
RANDOM_PAIRS = 2000

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """The best few that a search brings for each question.

    Attributes:
        scorer: What gave the scores.
        scores: Raw scores of each question, best first.
        labels: Which of them are judged relevant.
        unanswerable: Raw scores of each question that no document answers.
    """

    scorer: Embedder | Reranker
    scores: list[Floats]
    labels: list[NDArray[np.bool_]]
    unanswerable: list[Floats]


def candidates_of(
    embedder: Embedder,
    data: Judgements,
    *,
    reranker: Reranker | None = None,
    candidates: int = CANDIDATES,
    vector_cache: VectorCache | None = None,
    show_progress: bool = False,
) -> Candidates:
    """Search the documents for every question and return the raw scores of the best.

    Args:
        embedder: Searches, exactly.
        data: Judgements of whole documents, and the documents.
        reranker: Scores three times as many anew, of which the best are returned; its raw scores are taken, whatever
            its `normalize` says.
        candidates: How many of each question.
        vector_cache: Remembers reranker scores; vectors are remembered by the embedder's own.
        show_progress: Whether to show a progress bar on standard error.

    Raises:
        ConfigurationError: `candidates` is not positive, or the reranker gives no raw scores.
        InputError: Places are judged and not documents.
    """
    if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < 1:
        raise ConfigurationError(f"candidates={candidates!r} is not allowed. Pass a whole number of at least 1.")
    if any(data.passages.values()):
        raise InputError(
            f"{data.name!r} judges places in documents, and a score is one of a whole document. Judge those."
        )
    if reranker is not None and (reranker.normalize or reranker.identity != reranker.score_identity):
        raise ConfigurationError(
            "The reranker's scores are scaled, by a sigmoid or a calibrator. Pass Reranker(..., normalize=False)."
        )
    subject = ModelSubject(
        embedder, reranker=reranker, depth=FETCHED * candidates, cache=vector_cache, show_progress=show_progress
    )
    best = {query: found[:candidates] for query, found in subject.rank(data, candidates).items()}
    return Candidates(
        scorer=embedder if reranker is None else reranker,
        scores=[np.array([hit.score for hit in best[query]]) for query in data.queries],
        labels=[np.array([data.grades[query].get(hit.ids[0], 0) > 0 for hit in best[query]]) for query in data.queries],
        unanswerable=[np.array([hit.score for hit in best[query]]) for query in data.unanswerable],
    )


def calibrate(
    found: Candidates,
    *,
    method: str = "auto",
    precision: float = 0.8,
    recall: float = 0.9,
    wrong: float = 0.1,
    confidence: float = 0.95,
    random_pairs: Floats | None = None,
    seed: int = 0,
) -> ScoreCalibrator:
    """Fit a calibrator and its thresholds; see `fit_calibrator`.

    Questions without an answer come from the data, where it has any; else they are made, by leaving out what is
    relevant.
    """
    return fit_calibrator(
        found.scores,
        found.labels,
        scorer=found.scorer,
        method=method,  # type: ignore[arg-type] # checked there
        precision=precision,
        recall=recall,
        wrong=wrong,
        confidence=confidence,
        unanswerable=found.unanswerable or None,
        random_pairs=random_pairs,
        seed=seed,
    )


def calibrate_without_labels(
    embedder: Embedder, data: Judgements, *, candidates: int = CANDIDATES, seed: int = 0
) -> ScoreCalibrator:
    """Fit a weak calibrator of an embedder's cosines without judgements; see `fit_without_labels`."""
    scores = embedder.encode_queries(data.queries.values()) @ embedder.encode_documents(data.documents.values()).T
    return fit_without_labels(scores, scorer=embedder, candidates=candidates, seed=seed)


def random_pairs_of(embedder: Embedder, data: Judgements, *, seed: int = 0) -> Floats:
    """Return the raw scores of pairs drawn at random from questions and documents."""
    random = np.random.default_rng(seed)
    queries = embedder.encode_queries(data.queries.values())
    documents = embedder.encode_documents(data.documents.values())
    rows = random.integers(0, len(queries), RANDOM_PAIRS), random.integers(0, len(documents), RANDOM_PAIRS)
    return np.asarray((queries[rows[0]] * documents[rows[1]]).sum(axis=1), dtype=np.float64)


def check_calibrator(calibrator: ScoreCalibrator, found: Candidates, *, bins: int = 10) -> CalibrationReport:
    """Measure on other questions how well a calibrator's probabilities hold.

    Raises:
        ConfigurationError: The calibrator is of another scorer.
    """
    calibrator.check(found.scorer)
    return measure_calibration(
        calibrator.probabilities(np.concatenate(found.scores)), np.concatenate(found.labels), bins=bins
    )
