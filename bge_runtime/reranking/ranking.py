"""Scores to what callers see: scaled, mixed, in order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.errors import ConfigurationError, InputError, check_count, public

__all__ = [
    "Ranked",
    "Ranking",
    "check_budget",
    "mix",
    "order_scores",
    "sigmoid",
]


@public
@dataclass(frozen=True, slots=True)
class Ranked:
    """One document of a ranking.

    Attributes:
        index: Its place in the input.
        score: Its relevance; higher is better.
    """

    index: int
    score: float


@public
class Ranking(list[Ranked]):
    """Documents, best first.

    Attributes:
        partial: Whether time ran out before every document was scored. Those left over stand last, in their input
            order, with NaN as their score.
    """

    def __init__(self, documents: Iterable[Ranked] = (), *, partial: bool = False) -> None:
        """Take the documents in their order."""
        super().__init__(documents)
        self.partial = partial


def order_scores(
    scores: Sequence[float] | NDArray[np.floating],
    top_n: int | None = None,
    score_threshold: float | None = None,
) -> list[Ranked]:
    """Order documents, best first.

    Equal scores keep their input order. NaN comes last, and never passes a threshold.

    Args:
        scores: One per document.
        top_n: How many to return; `None` returns all.
        score_threshold: Lowest score to return.

    Raises:
        ConfigurationError: `top_n` is not positive.
        InputError: The scores are no list of numbers.
    """
    limit = check_count(top_n, "top_n")
    try:
        values = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"scores={scores!r} is no list of numbers ({error}). Pass one number per document.") from error
    if values.ndim != 1:
        raise InputError(f"scores={scores!r} is no list of numbers. Pass one number per document.")
    if score_threshold is not None and not _is_number(score_threshold):
        raise ConfigurationError(f"score_threshold={score_threshold!r} is not a number. Pass one, or None.")
    # Stable, and NaN sorts to the end whatever its sign.
    order = np.argsort(-values, kind="stable")
    if score_threshold is not None:
        order = order[values[order] >= score_threshold]
    return [Ranked(int(index), float(values[index])) for index in order[:limit]]


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, Real) and not math.isnan(float(value))
    except OverflowError:  # a whole number beyond all floats
        return False


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1 / (1 + exp(-x)) in float32; the form with exp(-|x|) neither overflows nor cancels."""
    small = np.exp(-np.abs(logits.astype(np.float32)))
    return np.asarray(np.where(logits >= 0, 1, small) / (1 + small), dtype=np.float32)


def mix(scores: NDArray[np.float32], dense: NDArray[np.float32], dense_weight: float) -> NDArray[np.float32]:
    """Return the weighted sum of two score lists, each standardised to mean 0 and deviation 1."""
    standardised = [(each - each.mean()) / max(float(each.std()), 1e-9) for each in (scores, dense)]
    return np.asarray((1 - dense_weight) * standardised[0] + dense_weight * standardised[1], dtype=np.float32)


def check_budget(time_budget_s: float | None, dense_weight: float) -> float | None:
    """Return the seconds that a ranking may take; `None` for any.

    Raises:
        ConfigurationError: They are not positive, or stand beside `dense_weight`.
    """
    if time_budget_s is None:
        return None
    if isinstance(time_budget_s, bool) or not isinstance(time_budget_s, int | float) or not 0 < time_budget_s < 1e6:
        raise ConfigurationError(f"time_budget_s={time_budget_s!r} is not allowed. Pass seconds above 0, or None.")
    if dense_weight:
        raise ConfigurationError(
            "dense_weight needs the scores of all documents, so time_budget_s cannot hold. Use one."
        )
    return float(time_budget_s)
