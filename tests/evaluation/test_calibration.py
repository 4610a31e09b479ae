"""Calibrators from arrays with known truth: the map, the thresholds, what they promise, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from bge_runtime import DEFAULT_OFFLINE_MODEL, ConfigurationError, Embedder, InputError, Reranker, ScoreCalibrator
from bge_runtime.evaluation import calibration
from bge_runtime.evaluation.calibration import fit_calibrator, fit_without_labels, measure_calibration


@pytest.fixture(scope="module")
def scorer() -> Embedder:
    return Embedder(DEFAULT_OFFLINE_MODEL)


def truth(scores: Any) -> Any:
    """The probability by which the labels below are drawn."""
    return 1 / (1 + np.exp(-(20 * np.asarray(scores) - 10)))


def drawn(questions: int, seed: int, candidates: int = 5) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    scores = generator.normal(0.45, 0.15, (questions, candidates)).astype(np.float32)
    return scores, generator.random(scores.shape) < truth(scores)


@pytest.fixture(scope="module", params=["isotonic", "platt"])
def fitted(request: pytest.FixtureRequest, scorer: Embedder) -> ScoreCalibrator:
    return fit_calibrator(*drawn(800, 0), scorer=scorer, method=request.param)


def test_the_map_rises_and_comes_near_the_truth(fitted: ScoreCalibrator) -> None:
    scores = np.linspace(0.2, 0.7, 200)
    found = fitted.probabilities(scores)
    assert np.diff(found).min() > 0
    assert np.abs(found - truth(scores)).max() < 0.1


def test_probabilities_hold_on_other_questions_and_tell_them_apart(fitted: ScoreCalibrator) -> None:
    scores, labels = drawn(2000, 1)
    report = measure_calibration(fitted.probabilities(scores), labels)
    assert report.error < 0.03
    assert report.resolution > report.uncertainty / 3
    assert report.reliability < 0.002
    assert sum(each.count for each in report.bins) == scores.size


def test_a_file_gives_back_all_that_was_fitted(fitted: ScoreCalibrator, tmp_path: Path) -> None:
    fitted.save(tmp_path / "c.json")
    again = ScoreCalibrator.read(tmp_path / "c.json")
    assert again == fitted
    assert again.threshold("recall").interval == fitted.threshold("recall").interval


def test_no_block_of_pairs_makes_a_certainty(scorer: Embedder) -> None:
    scores = np.tile(np.linspace(0, 1, 4), (30, 1))
    knots = fit_calibrator(scores, scores > 0.5, scorer=scorer, method="isotonic").knots
    assert 0 < knots[0][1] < knots[-1][1] < 1


def test_auto_takes_the_map_that_foretells_better(scorer: Embedder) -> None:
    generator = np.random.default_rng(0)
    scores = generator.random((400, 5))
    steps = np.where(scores > 0.3, 0.5, 0.02)  # no logistic curve
    assert fit_calibrator(scores, generator.random(scores.shape) < steps, scorer=scorer).method == "isotonic"
    few, labels = drawn(40, 3)
    assert fit_calibrator(few, labels, scorer=scorer).method == "platt"


def test_the_threshold_for_a_precision_reaches_it_on_other_questions(fitted: ScoreCalibrator) -> None:
    found = fitted.threshold("precision")
    assert found.score is not None
    assert found.interval is not None
    scores, labels = drawn(5000, 2)
    reached = labels[scores >= found.score].mean()
    assert found.interval[0] <= reached <= found.interval[1]
    assert found.interval[0] < 0.8 < found.interval[1]


def test_the_threshold_for_a_recall_reaches_it_on_other_questions(fitted: ScoreCalibrator) -> None:
    found = fitted.threshold("recall")
    assert found.score_interval is not None
    assert found.score_interval[0] <= (found.score or 0) <= found.score_interval[1]
    scores, labels = drawn(5000, 2)
    assert labels[scores >= found.score].sum() / labels.sum() == pytest.approx(0.9, abs=0.03)


def test_a_threshold_keeps_the_same_as_a_score_and_as_a_probability(fitted: ScoreCalibrator) -> None:
    scores, _ = drawn(800, 0)
    shown = fitted.probabilities(scores).astype(np.float32)
    for each in fitted.thresholds:
        np.testing.assert_array_equal(shown >= each.probability, scores >= each.score)


def test_the_promise_holds_in_the_other_half_of_the_questions(scorer: Embedder) -> None:
    scores, labels = drawn(1600, 4)
    generator = np.random.default_rng(0)
    held, kept = 0, []
    for _ in range(20):
        order = generator.permutation(1600)
        fit, other = order[:800], order[800:]
        found = calibration._promise(calibration._Pairs.of(scores[fit], labels[fit]), 0.2, 0.95)
        assert found.score is not None
        inside = scores[other] >= found.score
        kept.append(int(inside.sum()))
        held += (1 - labels[other][inside].mean()) <= 0.2
    assert held >= 18
    assert np.mean(kept) > 200


@pytest.mark.parametrize("size", [30, 60, 200])
def test_the_limit_of_the_promise_is_exceeded_as_seldom_as_it_says(size: int) -> None:
    counts = np.arange(size + 1)
    limits = np.array([calibration._prediction_limit(float(count), size, 0.95) for count in counts])
    exceeded = counts[None, :] / size > limits[:, None]
    for share in (0.02, 0.05, 0.1, 0.2, 0.5):
        weights = binom.pmf(counts, size, share)
        assert weights @ exceeded @ weights <= 0.05 + 1e-9


def test_candidates_of_one_question_that_are_wrong_together_count_once() -> None:
    scores = np.repeat(np.linspace(0.5, 1, 60)[:, None], 10, axis=1)
    pairs = calibration._Pairs.of(scores, np.arange(60)[:, None] % 10 * np.ones((1, 10)) > 0)
    sizes = calibration._effective_sizes(pairs)
    assert sizes[-1] == pytest.approx(60)
    assert sizes[99] == pytest.approx(10)


def test_a_promise_that_cannot_be_kept_is_not_made(scorer: Embedder) -> None:
    found = fit_calibrator(*drawn(100, 5), scorer=scorer, wrong=0.001).threshold("wrong")
    assert (found.score, found.probability) == (None, None)
    assert "No threshold keeps the promise" in found.reason


def test_a_precision_that_nothing_reaches_has_no_threshold(scorer: Embedder) -> None:
    scores, _ = drawn(200, 6)
    labels = np.random.default_rng(0).random(scores.shape) < 0.2 * truth(scores)
    found = fit_calibrator(scores, labels, scorer=scorer, precision=0.9).threshold("precision")
    assert found.score is None
    assert "0.9" in found.reason


@pytest.mark.parametrize("given", [False, True], ids=["left out", "given"])
def test_questions_without_an_answer_are_told_by_their_best_score(scorer: Embedder, given: bool) -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(0.3, 0.05, (300, 5))
    scores[:, 2] += 0.4
    labels = np.zeros((300, 5), bool)
    labels[:, 2] = True
    missing = generator.normal(0.3, 0.05, (100, 5)) if given else None
    found = fit_calibrator(scores, labels, scorer=scorer, unanswerable=missing).threshold("answerable")
    assert 0.4 < (found.score or 0) < 0.65
    assert (found.reached or 0) < 0.02
    assert found.interval is not None


def test_a_seed_gives_the_same_calibrator(scorer: Embedder) -> None:
    first, second = (fit_calibrator(*drawn(60, 7), scorer=scorer, seed=5) for _ in range(2))
    assert first == second
    assert first.digest != fit_calibrator(*drawn(60, 7), scorer=scorer, seed=6).digest


def test_what_it_was_fitted_on_is_told(scorer: Embedder) -> None:
    found = fit_calibrator(*drawn(60, 7), scorer=scorer, random_pairs=[0.1, 0.2])
    assert found.identity == scorer.identity
    assert found.scorer["model"] == DEFAULT_OFFLINE_MODEL
    assert (found.fitted["questions"], found.fitted["candidates"]) == (60, 300)
    assert found.fitted["distributions"].keys() == {"relevant", "irrelevant", "random"}
    assert found.fitted["distributions"]["random"]["quantiles"]["100%"] == 0.2


BAD: dict[str, tuple[Any, Any, str]] = {
    "not a number": ([[0.1, float("nan")]] * 30, [[True, False]] * 30, r"scores\[0\]"),
    "no candidates": ([[]] * 30, [[]] * 30, r"scores\[0\]"),
    "other shapes": ([[0.1, 0.2]] * 30, [[True]] * 30, r"scores\[0\] has the shape \(2,\), labels\[0\]"),
    "other numbers": ([[0.1, 0.2]] * 30, [[True, False]] * 29, "30 questions have scores, and 29"),
    "one kind": ([[0.1, 0.2]] * 30, [[True, True]] * 30, "60 relevant and 0 irrelevant"),
    "few questions": ([[0.1, 0.2]] * 3, [[True, False]] * 3, "3 questions are too few"),
    "falling": ([[0.1, 0.2]] * 30, [[True, False]] * 30, "do not score higher"),
    "no labels": ([[0.1, 0.2]] * 30, [[2, 1]] * 30, "are no labels"),
    "texts": ([["a", "b"]] * 30, [[True, False]] * 30, "no lists of numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_arrays_that_cannot_be_fitted_are_refused(scorer: Embedder, name: str) -> None:
    scores, labels, message = BAD[name]
    with pytest.raises(InputError, match=message):
        fit_calibrator(scores, labels, scorer=scorer)


@pytest.mark.parametrize(
    "options",
    [{"method": "beta"}, {"precision": 1.0}, {"recall": 0}, {"wrong": True}, {"confidence": 95}, {"resamples": -1}],
)
def test_an_option_that_is_not_allowed_is_named(scorer: Embedder, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigurationError, match=f"{name}="):
        fit_calibrator(*drawn(30, 0), scorer=scorer, **options)


def test_scores_that_are_not_raw_are_refused(scorer: Embedder) -> None:
    made = fit_calibrator(*drawn(60, 7), scorer=Reranker(scorer))
    for reranker in (Reranker("BAAI/bge-reranker-base", normalize=True), Reranker(scorer, calibrator=made)):
        with pytest.raises(ConfigurationError, match="raw scores"):
            fit_calibrator(*drawn(30, 0), scorer=reranker)
    with pytest.raises(ConfigurationError, match="scorer='minilm'"):
        fit_calibrator(*drawn(30, 0), scorer="minilm")  # type: ignore[arg-type]


def test_without_labels_mutual_neighbours_are_told_from_random_pairs(scorer: Embedder) -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(0.2, 0.05, (50, 200))
    scores[np.arange(50), np.arange(50)] = generator.normal(0.8, 0.02, 50)
    weak = fit_without_labels(scores, scorer=scorer)
    assert weak.weak
    assert "far too high" in weak.fitted["weakness"]
    assert weak.thresholds == ()
    assert weak.fitted["mutual_neighbours"] == 50
    low, high = weak.probabilities([0.2, 0.8])
    assert low < 0.05 < 0.9 < high
    assert "weak" in repr(weak)


def test_without_labels_a_table_without_mutual_neighbours_is_refused(scorer: Embedder) -> None:
    with pytest.raises(InputError, match="1 of 30"):
        fit_without_labels(np.tile(np.arange(40.0), (30, 1)), scorer=scorer)
    with pytest.raises(InputError, match="no finite matrix"):
        fit_without_labels([0.1, 0.2], scorer=scorer)
    with pytest.raises(ConfigurationError, match="candidates=1"):
        fit_without_labels(np.eye(30), scorer=scorer, candidates=1)


def test_calibration_is_measured_by_bins_of_equal_counts() -> None:
    report = measure_calibration([0.1, 0.1, 0.9, 0.9], [0, 1, 1, 1], bins=2)
    assert [(each.count, each.observed) for each in report.bins] == [(2, 0.5), (2, 1.0)]
    assert report.error == pytest.approx((0.4 + 0.1) / 2)
    assert report.uncertainty == pytest.approx(0.75 * 0.25)
    assert report.brier == pytest.approx(report.reliability - report.resolution + report.uncertainty)


@pytest.mark.parametrize(
    ("probabilities", "labels", "bins"), [([0.5], [0, 1], 1), ([1.5], [1], 1), ([], [], 1), ([0.5, 0.5], [0, 1], 3)]
)
def test_what_cannot_be_measured_is_refused(probabilities: Any, labels: Any, bins: int) -> None:
    with pytest.raises((InputError, ConfigurationError)):
        measure_calibration(probabilities, labels, bins=bins)
