"""What differences of two rankings over the same questions can say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_runtime import InputError

__all__ = ["Difference", "compare_paired", "holm", "interval_of", "smallest_difference"]

ROUNDS = 10_000
CONFIDENCE = 0.95
# Of all signs, where there are so few questions that each can be tried.
MOST_EXACT = 12
# Numbers drawn at a time.
BLOCK = 2**22
# Quantiles of the normal distribution: of 97.5% for a test at 5% on both sides, and of 80% for its power.
Z_TEST = 1.959964
Z_POWER = 0.841621


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The difference of two systems in one metric, over the same questions.

    Attributes:
        mean: Of the second less the first.
        low: Lower end of its bootstrap interval of 95%.
        high: Upper end.
        p: Probability of so large a mean, either way, if the two were exchangeable question by question.
        smallest: The smallest difference that so many questions show four times in five, at 5%.
        questions: How many.
    """

    mean: float
    low: float
    high: float
    p: float
    smallest: float
    questions: int


def compare_paired(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> Difference:
    """Compare two systems question by question.

    A paired randomisation test: whatever two systems reached on a question is swapped at random, which flips the sign
    of the difference (Smucker, Allan and Carterette, CIKM 2007). The interval is the bootstrap's over questions.

    Args:
        first: One value per question.
        second: The other system's, in the same order.
        seed: Of the random numbers.

    Raises:
        InputError: There are no questions, or not the same.
    """
    if len(first) != len(second) or not len(first):
        raise InputError(
            f"{len(first)} and {len(second)} values cannot be paired. Pass one of each for every question."
        )
    differences = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    low, high = interval_of(differences, seed=seed)
    return Difference(
        mean=float(differences.mean()),
        low=low,
        high=high,
        p=_randomisation(differences, seed),
        smallest=smallest_difference(differences),
        questions=len(differences),
    )


def interval_of(values: Sequence[float] | NDArray[np.float64], *, seed: int = 0) -> tuple[float, float]:
    """Return the bootstrap interval of a mean: 2.5% and 97.5% of the means of 10,000 resamples."""
    numbers = np.asarray(values, np.float64)
    random = np.random.default_rng(seed)
    means = np.empty(ROUNDS)
    step = max(BLOCK // len(numbers), 1)
    for start in range(0, ROUNDS, step):
        count = min(step, ROUNDS - start)
        means[start : start + count] = numbers[random.integers(0, len(numbers), (count, len(numbers)))].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


def smallest_difference(differences: NDArray[np.float64]) -> float:
    """Return the difference that a test at 5% finds with a probability of 80%.

    2.8 standard errors of the mean: `(z(0.975) + z(0.8)) * s / sqrt(n)` (Sakai, SIGIR 2016, for paired tests).
    """
    if len(differences) < 2:
        return 1.0
    return float((Z_TEST + Z_POWER) * differences.std(ddof=1) / np.sqrt(len(differences)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for how many there are, by Holm's step-down method (1979), in their order."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    highest = 0.0
    for place, at in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p_values[at]))
        adjusted[at] = highest
    return adjusted.tolist()


def _randomisation(differences: NDArray[np.float64], seed: int) -> float:
    """Return the share of sign flips with a mean as far from zero, the one that was seen among them."""
    moved = differences[differences != 0]
    count = len(moved)
    if not count:
        return 1.0
    # Sums that are equal but for their rounding are as far.
    seen = abs(moved.sum()) * (1 - 1e-12)
    if count <= MOST_EXACT:
        signs = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        return float((np.abs((2 * signs - 1) @ moved) >= seen).mean())
    random = np.random.default_rng(seed)
    step = max(BLOCK // count, 1)
    farther = 0
    for start in range(0, ROUNDS, step):
        flips = random.integers(0, 2, (min(step, ROUNDS - start), count), dtype=np.int8)
        farther += int((np.abs((2 * flips - 1) @ moved) >= seen).sum())
    return (farther + 1) / (ROUNDS + 1)
