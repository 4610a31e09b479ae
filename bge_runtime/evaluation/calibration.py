"""Fits what makes probabilities of scores, with thresholds and what they can promise; and measures how well it holds.

Everything is about one population: the candidates, the best few that a search brings for a question. Questions are the
units: the candidates of one question say less than as many of different ones, so folds, resamples and effective
numbers are formed over questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit
from scipy.stats import betabinom

from bge_runtime import (
    ConfigurationError,
    Embedder,
    InputError,
    Reranker,
    ScoreCalibrator,
    ScoreThreshold,
    score_facts,
)

__all__ = ["Bin", "CalibrationReport", "fit_calibrator", "fit_without_labels", "measure_calibration"]

FOLDS = 5
FEWEST_QUESTIONS = 20  # below, neither folds nor resamples say anything
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
# Of the thresholds that are tried for the promise: where chains of them begin, as multiples of what the least could
# pass with, and how many times more each step keeps.
STARTS = (1, 2, 4, 8)
GROWTH = 1.1
RANDOM_PAIRS = 20_000
# Of probabilities: float32, in which rerankers give them, still parts what lies between.
LEAST_RISE = 1e-5
END_RISE = 1e-3
WEAKNESS = (
    "Fitted without labels: mutual nearest neighbours stand for relevant pairs and random pairs for the others. What a "
    "search brings is nearer than random pairs, relevant or not, so the probabilities are far too high among the best "
    "candidates: on SciFact, with the cosines of all-MiniLM-L6-v2, by 0.5 on average, where labels leave 0.02. Use "
    "them to compare, not as probabilities."
)

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Method = Literal["auto", "isotonic", "platt"]


def fit_calibrator(
    scores: Iterable[ArrayLike],
    labels: Iterable[ArrayLike],
    *,
    scorer: Reranker | Embedder,
    method: Method = "auto",
    precision: float = 0.8,
    recall: float = 0.9,
    wrong: float = 0.1,
    confidence: float = 0.95,
    unanswerable: Iterable[ArrayLike] | None = None,
    random_pairs: ArrayLike | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> ScoreCalibrator:
    """Fit a calibrator and its thresholds on judged candidates.

    The probability is that of being judged relevant, for a candidate among the best k that a search brings: k is the
    number of scores per question here, and another k is another population. Maps: isotonic regression by pooling
    adjacent violators (Barlow et al. 1972; Zadrozny and Elkan, KDD 2002), linear between the means of its blocks,
    whose values are drawn in by half a pair of each kind (Krichevsky and Trofimov 1981), since no block of finitely
    many pairs shows a probability of 0 or 1; or the logistic curve of Platt (1999), with his targets.

    Thresholds: `precision` is the lowest score whose kept candidates are expected to be relevant in that share, by
    the isotonic map; `recall` the highest that keeps that share of the relevant candidates. Their intervals come from
    resampling questions. `wrong` is the promise that of what is kept at most that share is wrong: thresholds are
    tested along four chains, each with a quarter of the error and until one of its thresholds fails, in an order that
    labels have no part in (fixed-sequence testing with several starts: Angelopoulos et al., Learn then Test,
    arXiv:2110.01052). A test asks for the share in another sample that keeps as many candidates, whose own chance is
    thus allowed for, by the binomial's prediction limit (the beta-binomial distribution; Hahn and Meeker, Statistical
    Intervals, 1991). It counts the candidates of one question by their effective number, as if they were right or
    wrong together (Kish 1965; Korn and Graubard, Survey Methodology 24, 1998). `answerable` parts questions with an
    answer from those without by the best score, at the least balanced error.

    Args:
        scores: Per question the raw scores of its candidates, best k of a search: floats of shape (k,), k may vary.
        labels: Per question which of them are relevant: booleans, or 0 and 1, of the same shape.
        scorer: What gave the scores: an `Embedder` for its cosines, or a `Reranker` without sigmoid and calibrator.
        method: `isotonic`, `platt`, or `auto`: the one with the smaller logarithmic loss over five folds of questions.
        precision: Share of what is kept to be relevant, 0 to 1.
        recall: Share of the relevant candidates to be kept, 0 to 1.
        wrong: Largest share of what is kept that may be wrong, 0 to 1.
        confidence: Of the intervals and of the promise, 0 to 1.
        unanswerable: Per question without an answer the scores of its candidates; `None` takes the questions with
            their relevant candidates left out.
        random_pairs: Raw scores of random questions and documents; only their distribution is noted.
        resamples: How many resamples of the questions the intervals come from; 0 leaves the intervals out.
        seed: Of folds and resamples.

    Returns:
        The calibrator, its thresholds in the order `precision`, `recall`, `wrong`, `answerable`.

    Raises:
        InputError: The arrays do not fit together, hold no finite numbers, or one of the two kinds is missing.
        ConfigurationError: An option has a value that is not allowed, or the scorer's scores are not raw.
    """
    _check_options(method, {"precision": precision, "recall": recall, "wrong": wrong, "confidence": confidence})
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 0:
        raise ConfigurationError(f"resamples={resamples!r} is not allowed. Pass a whole number of at least 0.")
    if isinstance(scorer, Reranker) and (scorer.calibrator is not None or scorer.normalize):
        what = "normalize=True" if scorer.calibrator is None else f"calibrator={scorer.calibrator!r}"
        raise ConfigurationError(f"{scorer!r} has {what}. Calibrators are fitted on raw scores: leave it out.")
    pairs = _Pairs.of(scores, labels)
    missing = None if unanswerable is None else _best(_arrays(unanswerable, "unanswerable"))
    identity, words = score_facts(scorer)
    generator = np.random.default_rng(seed)
    chosen = _choose(pairs, generator) if method == "auto" else method
    calibrated = _mapped(pairs.scores, pairs.relevant, None, chosen)
    drawn = pairs.resampled(generator, resamples)
    found = (
        _precision_threshold(pairs, drawn, precision, confidence),
        _recall_threshold(pairs, drawn, recall, confidence),
        _promise(pairs, wrong, confidence),
        _answerable(pairs, missing, confidence, generator, resamples),
    )
    maker = ScoreCalibrator(**calibrated, identity=identity, scorer=words)
    noted = {"random": np.asarray(random_pairs, np.float64).ravel()} if random_pairs is not None else {}
    return ScoreCalibrator(
        **calibrated,
        identity=identity,
        scorer=words,
        thresholds=tuple(_with_probability(each, maker) for each in found),
        fitted={
            "labels": "judged",
            "questions": pairs.questions,
            "candidates": len(pairs.scores),
            "relevant": int(pairs.relevant.sum()),
            "candidates_per_question": round(len(pairs.scores) / pairs.questions, 2),
            "unanswerable": "relevant candidates left out" if missing is None else f"{len(missing)} questions",
            "method_asked": method,
            "seed": seed,
            "distributions": _distributions(
                {"relevant": pairs.scores[pairs.relevant], "irrelevant": pairs.scores[~pairs.relevant], **noted}
            ),
        },
    )


def fit_without_labels(
    scores: ArrayLike, *, scorer: Reranker | Embedder, candidates: int = 10, seed: int = 0
) -> ScoreCalibrator:
    """Fit a calibrator without labels, a weak one: mutual nearest neighbours against random pairs.

    A question and a document are mutual nearest neighbours where each is the other's best: such pairs stand for
    relevant ones, random pairs for the others, weighted as one relevant among `candidates`. The map is Platt's, since
    the two kinds hardly overlap. There are no thresholds: none could be held to what it says.

    Args:
        scores: Raw scores of every question with every document, floats of shape (questions, documents).
        scorer: What gave the scores.
        candidates: How many candidates a search will bring for a question.
        seed: Of the random pairs.

    Returns:
        A calibrator with `weak=True`, which says in `fitted["weakness"]` what that means.

    Raises:
        InputError: The scores are no finite matrix, or there are hardly any mutual neighbours.
        ConfigurationError: `candidates` is below 2.
    """
    if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < 2:
        raise ConfigurationError(f"candidates={candidates!r} is not allowed. Pass a whole number of at least 2.")
    table = np.asarray(scores)
    if table.ndim != 2 or min(table.shape) < 2 or not np.isfinite(table).all():
        raise InputError(f"scores of shape {table.shape} are no finite matrix. Pass questions by documents.")
    best = table.argmax(axis=1)
    rows = np.arange(len(table))
    mutual = table.argmax(axis=0)[best] == rows
    if mutual.sum() < FEWEST_QUESTIONS:
        raise InputError(
            f"Only {int(mutual.sum())} of {len(table)} questions have a mutual nearest neighbour, and at least "
            f"{FEWEST_QUESTIONS} are needed. Pass more questions and documents."
        )
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, table.size, RANDOM_PAIRS)
    near = table[rows, best][mutual].astype(np.float64)
    far = table.ravel()[drawn].astype(np.float64)
    values = np.concatenate([near, far])
    flags = np.arange(len(values)) < len(near)
    weights = np.where(flags, 1 / len(near), (candidates - 1) / len(far)) * len(near)
    identity, words = score_facts(scorer)
    return ScoreCalibrator(
        **_mapped(values, flags, weights, "platt"),
        identity=identity,
        scorer=words,
        weak=True,
        fitted={
            "labels": "none",
            "weakness": WEAKNESS,
            "questions": len(table),
            "mutual_neighbours": len(near),
            "random_pairs": len(far),
            "candidates_per_question": candidates,
            "seed": seed,
            "distributions": _distributions({"mutual": near, "random": far}),
        },
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """Candidates of like probability.

    Attributes:
        count: How many.
        predicted: Mean of their probabilities.
        observed: Share of them that is relevant.
    """

    count: int
    predicted: float
    observed: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationReport:
    """How well probabilities hold.

    Attributes:
        error: Expected calibration error over the bins (Naeini et al., AAAI 2015): mean distance between predicted and
            observed, weighted by count, 0 to 1.
        brier: Mean squared distance from 0 or 1.
        reliability: Its part for being wrong about the bins (Murphy 1973); 0 is perfect.
        resolution: Its part for telling the bins apart; what says the base rate of everything has 0.
        uncertainty: Its part that is the data's: base rate times what is left to 1.
        bins: Of equal counts, least probability first.
    """

    error: float
    brier: float
    reliability: float
    resolution: float
    uncertainty: float
    bins: tuple[Bin, ...]


def measure_calibration(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 10) -> CalibrationReport:
    """Measure how well probabilities hold, over bins of equal counts.

    Args:
        probabilities: Of being relevant, floats of any shape, 0 to 1.
        labels: Which are, booleans, or 0 and 1, of the same shape.
        bins: How many bins.

    Raises:
        InputError: They do not fit together, or are no probabilities.
        ConfigurationError: `bins` is not positive, or larger than there are probabilities.
    """
    values = np.asarray(probabilities, np.float64).ravel()
    flags = _flags(np.asarray(labels).ravel(), "labels")
    if len(values) != len(flags) or not len(values) or not ((values >= 0) & (values <= 1)).all():
        raise InputError(
            f"{len(values)} probabilities with {len(flags)} labels: pass as many of both, each probability 0 to 1."
        )
    if isinstance(bins, bool) or not isinstance(bins, int) or not 1 <= bins <= len(values):
        raise ConfigurationError(f"bins={bins!r} is not allowed. Pass a whole number from 1 to {len(values)}.")
    parts = np.array_split(np.argsort(values, kind="stable"), bins)
    made = tuple(
        Bin(count=len(part), predicted=float(values[part].mean()), observed=float(flags[part].mean())) for part in parts
    )
    base = float(flags.mean())
    return CalibrationReport(
        error=_mean(made, lambda each: abs(each.predicted - each.observed)),
        brier=float(np.mean((values - flags) ** 2)),
        reliability=_mean(made, lambda each: (each.predicted - each.observed) ** 2),
        resolution=_mean(made, lambda each: (each.observed - base) ** 2),
        uncertainty=base * (1 - base),
        bins=made,
    )


def _mean(bins: Sequence[Bin], value: Callable[[Bin], float]) -> float:
    return sum(each.count * value(each) for each in bins) / sum(each.count for each in bins)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The candidates of all questions, one after the other, by falling score.

    Attributes:
        scores: Float64 [pairs].
        relevant: Bool [pairs].
        owners: Which question each belongs to, int [pairs].
        questions: How many questions.
    """

    scores: Floats
    relevant: Flags
    owners: NDArray[np.intp]
    questions: int

    @classmethod
    def of(cls, scores: Iterable[ArrayLike], labels: Iterable[ArrayLike]) -> _Pairs:
        """Check and join; see `fit_calibrator`."""
        values, marks = _arrays(scores, "scores"), [np.asarray(each) for each in labels]
        if len(values) != len(marks):
            raise InputError(f"{len(values)} questions have scores, and {len(marks)} have labels. Pass both of each.")
        for index, (value, mark) in enumerate(zip(values, marks, strict=True)):
            if value.shape != mark.shape:
                raise InputError(f"scores[{index}] has the shape {value.shape}, labels[{index}] has {mark.shape}.")
        if len(values) < FEWEST_QUESTIONS:
            raise InputError(f"{len(values)} questions are too few to fit on. Pass at least {FEWEST_QUESTIONS}.")
        flags = [_flags(mark, f"labels[{index}]") for index, mark in enumerate(marks)]
        joined, relevant = np.concatenate(values), np.concatenate(flags)
        owners = np.repeat(np.arange(len(values)), [len(each) for each in values])
        kinds = int(relevant.sum()), int((~relevant).sum())
        if not all(kinds):
            raise InputError(
                f"There are {kinds[0]} relevant and {kinds[1]} irrelevant candidates; both kinds are needed. "
                "Pass more candidates per question, or questions that have an answer."
            )
        order = np.argsort(-joined, kind="stable")
        return cls(joined[order], relevant[order], owners[order], len(values))

    @property
    def ends(self) -> NDArray[np.intp]:
        """The last place of each distinct score: what can be kept ends there."""
        return np.append(np.flatnonzero(np.diff(self.scores)), len(self.scores) - 1)

    def per_question(self, kept: Flags) -> NDArray[np.int64]:
        """Return how many of the pairs that are marked each question has."""
        return np.bincount(self.owners[kept], minlength=self.questions)

    def resampled(self, generator: np.random.Generator, times: int) -> NDArray[np.int64]:
        """Return how often each question is drawn, int [times, questions]."""
        return generator.multinomial(self.questions, np.full(self.questions, 1 / self.questions), times)

    def part(self, wanted: Flags) -> _Pairs:
        """Return the pairs of some of the questions."""
        inside = wanted[self.owners]
        return _Pairs(self.scores[inside], self.relevant[inside], self.owners[inside], self.questions)


def _arrays(given: Iterable[ArrayLike], name: str) -> list[Floats]:
    try:
        arrays = [np.asarray(each, dtype=np.float64) for each in given]
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} are no lists of numbers ({error}). Pass one list per question.") from error
    for index, each in enumerate(arrays):
        if each.ndim != 1 or not len(each) or not np.isfinite(each).all():
            raise InputError(f"{name}[{index}]={each!r} is no list of finite numbers. Pass one score per candidate.")
    return arrays


def _flags(marks: NDArray[Any], name: str) -> Flags:
    if marks.dtype != np.bool_ and not np.isin(marks, (0, 1)).all():
        raise InputError(f"{name}={marks!r} are no labels. Pass True and False, or 1 and 0.")
    return marks.astype(np.bool_)


def _best(arrays: Sequence[Floats]) -> Floats:
    return np.array([each.max() for each in arrays])


def _check_options(method: str, shares: dict[str, float]) -> None:
    if method not in ("auto", "isotonic", "platt"):
        raise ConfigurationError(f"method={method!r} is not allowed. Use 'auto', 'isotonic' or 'platt'.")
    for name, value in shares.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise ConfigurationError(f"{name}={value!r} is not allowed. Pass a number between 0 and 1.")


# Maps


def _mapped(scores: Floats, relevant: Flags, weights: Floats | None, method: str) -> dict[str, Any]:
    """Return the map as arguments of `ScoreCalibrator`."""
    own = np.ones(len(scores)) if weights is None else weights
    return _platt(scores, relevant, own) if method == "platt" else _isotonic(scores, relevant, own)


def _isotonic(scores: Floats, relevant: Flags, weights: Floats) -> dict[str, Any]:
    values, counts, hits = _by_score(scores, relevant, weights)
    blocks = isotonic_regression(hits / counts, weights=counts).blocks
    sizes = np.add.reduceat(counts, blocks[:-1])
    found = np.add.reduceat(hits, blocks[:-1])
    centres = np.add.reduceat(values * counts, blocks[:-1]) / sizes
    drawn_in = np.maximum.accumulate((found + 0.5) / (sizes + 1))
    rising = np.append(True, np.diff(drawn_in) > LEAST_RISE)
    if rising.sum() < 2:
        raise _falling()
    inner = [(float(score), float(value)) for score, value in zip(centres[rising], drawn_in[rising], strict=True)]
    # Flat ends would tie scores that a threshold parts.
    low, high = inner[0][1], inner[-1][1]
    below = [(float(values[0]), low - min(END_RISE, low / 2))] if values[0] < inner[0][0] else []
    above = [(float(values[-1]), high + min(END_RISE, (1 - high) / 2))] if values[-1] > inner[-1][0] else []
    return {"method": "isotonic", "knots": (*below, *inner, *above)}


def _platt(scores: Floats, relevant: Flags, weights: Floats) -> dict[str, Any]:
    """Return the curve of the least logarithmic loss, with the targets of Platt (1999), on standardised scores."""
    total, hits, misses = weights.sum(), weights[relevant].sum(), weights[~relevant].sum()
    targets = np.where(relevant, (hits + 1) / (hits + 2), 1 / (misses + 2))
    centre = float(weights @ scores / total)
    width = max(float(np.sqrt(weights @ (scores - centre) ** 2 / total)), 1e-12)
    design = np.column_stack([(scores - centre) / width, np.ones(len(scores))])

    def loss(line: Floats) -> tuple[float, Floats]:
        logits = design @ line
        value = weights @ (np.logaddexp(0, logits) - targets * logits) / total
        return float(value), design.T @ (weights * (expit(logits) - targets)) / total

    line = minimize(loss, np.array([0.0, math.log((hits + 1) / (misses + 1))]), jac=True, method="BFGS").x
    if not line[0] > 0:
        raise _falling()
    return {
        "method": "platt",
        "slope": float(line[0] / width),
        "intercept": float(line[1] - line[0] * centre / width),
    }


def _falling() -> InputError:
    return InputError("Relevant candidates do not score higher than irrelevant ones, so no map rises with the score.")


def _by_score(scores: Floats, relevant: Flags, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the distinct scores, rising, with the weight of all and of the relevant pairs at each."""
    values, places = np.unique(scores, return_inverse=True)
    counts: Floats = np.bincount(places, weights=weights).astype(np.float64)
    return values, counts, np.bincount(places, weights=weights * relevant).astype(np.float64)


def _choose(pairs: _Pairs, generator: np.random.Generator) -> str:
    """Return the map with the smaller logarithmic loss on questions that it was not fitted on."""
    folds = generator.permutation(pairs.questions) % FOLDS
    losses = {"platt": 0.0, "isotonic": 0.0}
    for fold in range(FOLDS):
        inside, outside = pairs.part(folds != fold), pairs.part(folds == fold)
        for method in losses:
            try:
                fitted = _mapped(inside.scores, inside.relevant, None, method)
            except InputError:  # this part's scores do not rise with relevance
                losses[method] = math.inf
                continue
            maker = ScoreCalibrator(**fitted, identity="fold", scorer={})
            probability = np.clip(maker.probabilities(outside.scores), 1e-9, 1 - 1e-9)
            losses[method] -= float(np.log(np.where(outside.relevant, probability, 1 - probability)).sum())
    return min(losses, key=lambda method: losses[method])


# Thresholds


def _precision_threshold(
    pairs: _Pairs, resamples: NDArray[np.int64], target: float, confidence: float
) -> ScoreThreshold:
    score = _expected_precision(pairs, np.ones(len(pairs.scores)), target)
    if score is None:
        return _none("precision", target, confidence, f"Not even the best candidates reach a precision of {target}.")
    kept = pairs.scores >= score
    hits, all_kept = pairs.per_question(kept & pairs.relevant), pairs.per_question(kept)
    drawn = [_expected_precision(pairs, row[pairs.owners].astype(np.float64), target) for row in resamples]
    return ScoreThreshold(
        purpose="precision",
        target=target,
        score=score,
        probability=None,
        score_interval=_interval([each for each in drawn if each is not None], confidence),
        reached=float(hits.sum() / all_kept.sum()),
        interval=_interval(_shares(resamples @ hits, resamples @ all_kept), confidence),
        confidence=confidence,
        kept=int(kept.sum()),
    )


def _expected_precision(pairs: _Pairs, weights: Floats, target: float) -> float | None:
    """Return the lowest score whose kept pairs are expected to be relevant in that share, by isotonic regression."""
    inside = weights > 0
    values, counts, hits = _by_score(pairs.scores[inside], pairs.relevant[inside], weights[inside])
    smooth = isotonic_regression(hits / counts, weights=counts).x
    # Falling scores: the mean of what is kept falls with every score that is added.
    shares = np.cumsum((smooth * counts)[::-1]) / np.cumsum(counts[::-1])
    reaching = np.flatnonzero(shares >= target - 1e-12)
    return float(values[::-1][reaching[-1]]) if len(reaching) else None


def _recall_threshold(pairs: _Pairs, resamples: NDArray[np.int64], target: float, confidence: float) -> ScoreThreshold:
    score = _recalling(pairs, np.ones(len(pairs.scores)), target)
    kept = pairs.scores >= score
    hits, wanted = pairs.per_question(kept & pairs.relevant), pairs.per_question(pairs.relevant)
    drawn = [_recalling(pairs, row[pairs.owners].astype(np.float64), target) for row in resamples if (row @ wanted)]
    return ScoreThreshold(
        purpose="recall",
        target=target,
        score=score,
        probability=None,
        score_interval=_interval(drawn, confidence),
        reached=float(hits.sum() / wanted.sum()),
        interval=_interval(_shares(resamples @ hits, resamples @ wanted), confidence),
        confidence=confidence,
        kept=int(kept.sum()),
    )


def _recalling(pairs: _Pairs, weights: Floats, target: float) -> float:
    found = np.cumsum(weights * pairs.relevant)
    place = int(np.argmax(found >= target * found[-1] - 1e-9))
    return float(pairs.scores[place])


def _promise(pairs: _Pairs, wrong: float, confidence: float) -> ScoreThreshold:
    """Test thresholds along several chains, each until one fails; see `fit_calibrator`."""
    sizes = _effective_sizes(pairs)
    shares = np.cumsum(~pairs.relevant) / np.arange(1, len(pairs.scores) + 1)
    each = 1 - (1 - confidence) / len(STARTS)
    passed: tuple[int, float] | None = None
    for chain in _chains(pairs.ends, sizes, wrong, each):
        for end in chain:
            limit = _prediction_limit(float(sizes[end] * shares[end]), float(sizes[end]), each)
            if limit > wrong:
                break
            if passed is None or end > passed[0]:
                passed = end, limit
    if passed is None:
        reason = (
            f"No threshold keeps the promise that at most {wrong:.0%} of what is kept is wrong with {confidence:.0%} "
            f"confidence, on {pairs.questions} questions. Ask for less, or judge more questions."
        )
        return _none("wrong", wrong, confidence, reason)
    end, limit = passed
    return ScoreThreshold(
        purpose="wrong",
        target=wrong,
        score=float(pairs.scores[end]),
        probability=None,
        score_interval=None,
        reached=float(shares[end]),
        interval=(0.0, limit),
        confidence=confidence,
        kept=end + 1,
    )


def _chains(ends: NDArray[np.intp], sizes: Floats, wrong: float, confidence: float) -> list[list[int]]:
    """Return the last places of what the tested thresholds keep, by effective number: labels have no part in it.

    The first chain begins where keeping nothing wrong would suffice: fewer could not pass whatever the labels are.
    """
    least = next((size for size in range(1, int(sizes[-1]) + 1) if _prediction_limit(0, size, confidence) <= wrong), 0)
    chains = []
    for start in STARTS if least else ():
        chain: list[int] = []
        size = float(least * start)
        while (place := int(np.argmax(sizes[ends] >= size))) or sizes[ends[0]] >= size:
            chain.append(int(ends[place]))
            size = max(size, float(sizes[ends[place]])) * GROWTH
        chains.append(chain)
    return chains


def _effective_sizes(pairs: _Pairs) -> Floats:
    """Return for each place the effective number of the pairs up to it: n^2 over the sum of squares of clusters."""
    order = np.argsort(pairs.owners, kind="stable")
    firsts = np.flatnonzero(np.append(True, np.diff(pairs.owners[order])))
    earlier = np.empty(len(order), np.intp)  # how many of the same question stand before
    earlier[order] = np.arange(len(order)) - np.repeat(firsts, np.diff(np.append(firsts, len(order))))
    squares = np.cumsum(2 * earlier + 1)
    counts = np.arange(1, len(order) + 1)
    return np.asarray(counts**2 / squares, np.float64)


def _prediction_limit(misses: float, count: float, confidence: float) -> float:
    """Return the share wrong that another sample of the same size exceeds with at most 1 - confidence."""
    size = int(count)  # of the other sample
    if size < 1:
        return 1.0
    return float(betabinom.ppf(confidence, size, misses + 1, max(count - misses, 1e-9))) / size


def _answerable(
    pairs: _Pairs, missing: Floats | None, confidence: float, generator: np.random.Generator, resamples: int
) -> ScoreThreshold:
    """Part the best scores of questions with their relevant candidates from those without."""
    with_answer = np.full(pairs.questions, -np.inf)
    without = np.full(pairs.questions, -np.inf)
    np.maximum.at(with_answer, pairs.owners, pairs.scores)
    np.maximum.at(without, pairs.owners[~pairs.relevant], pairs.scores[~pairs.relevant])
    paired = missing is None
    others = without if missing is None else missing
    usable = np.isfinite(others) if paired else np.ones(len(others), np.bool_)
    if not usable.any():
        return _none("answerable", None, confidence, "Every candidate is relevant, so leaving them out leaves nothing.")
    score, error = _parting(with_answer, others[usable])
    scores, errors = [], []
    for _ in range(resamples):
        drawn = generator.integers(0, pairs.questions, pairs.questions)
        other = drawn if paired else generator.integers(0, len(others), len(others))
        left = others[other][usable[other]]
        if len(left):
            scores.append(_parting(with_answer[drawn], left)[0])
            errors.append(_balanced_error(with_answer[drawn], left, score))
    return ScoreThreshold(
        purpose="answerable",
        target=None,
        score=score,
        probability=None,
        score_interval=_interval(scores, confidence),
        reached=error,
        interval=_interval(errors, confidence),
        confidence=confidence,
        kept=int((with_answer >= score).sum()),
    )


def _parting(with_answer: Floats, without: Floats) -> tuple[float, float]:
    """Return the score that parts both at the least balanced error, and that error."""
    tried = np.unique(np.concatenate([with_answer, without]))
    refused = np.searchsorted(np.sort(with_answer), tried, side="left") / len(with_answer)
    let_through = 1 - np.searchsorted(np.sort(without), tried, side="left") / len(without)
    errors = (refused + let_through) / 2
    best = int(np.argmin(errors))
    return float(tried[best]), float(errors[best])


def _balanced_error(with_answer: Floats, without: Floats, score: float) -> float:
    return float(((with_answer < score).mean() + (without >= score).mean()) / 2)


def _none(
    purpose: Literal["precision", "wrong", "answerable"], target: float | None, confidence: float, reason: str
) -> ScoreThreshold:
    return ScoreThreshold(
        purpose=purpose,
        target=target,
        score=None,
        probability=None,
        score_interval=None,
        reached=None,
        interval=None,
        confidence=confidence,
        kept=0,
        reason=reason,
    )


def _with_probability(threshold: ScoreThreshold, calibrator: ScoreCalibrator) -> ScoreThreshold:
    if threshold.score is None:
        return threshold
    # In float32, as rerankers give theirs: what lies at the threshold is kept.
    probability = np.float32(calibrator.probabilities(threshold.score))
    values = {name: getattr(threshold, name) for name in ScoreThreshold.__slots__}
    return ScoreThreshold(**{**values, "probability": float(probability)})


def _shares(parts: NDArray[np.int64], wholes: NDArray[np.int64]) -> list[float]:
    there = wholes > 0
    return [float(each) for each in parts[there] / wholes[there]]


def _interval(values: Sequence[float], confidence: float) -> tuple[float, float] | None:
    if not values:
        return None
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _distributions(scores: dict[str, Floats]) -> dict[str, Any]:
    """Return the number and the quantiles of each kind of pair."""
    return {
        name: {
            "count": len(values),
            "quantiles": {f"{share:.0%}": float(np.quantile(values, share)) for share in QUANTILES},
        }
        for name, values in scores.items()
        if len(values)
    }
