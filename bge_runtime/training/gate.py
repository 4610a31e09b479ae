"""Whether a trained model is handed over: what it gained where it was trained for, and what it lost elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any, Literal

from bge_runtime import ConfigurationError, VectorCache
from bge_runtime.evaluation.evaluation import Evaluation, evaluate
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.statistics import Difference, compare_paired

__all__ = [
    "METRIC",
    "TOLERANCE",
    "Gate",
    "Measured",
    "check_tolerance",
    "general_questions",
    "measure_with",
    "pass_gate",
]

METRIC = "nDCG@10"
# What a model may lose on the guard set.
TOLERANCE = 0.01

Purpose = Literal["development", "guard"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One collection before and after.

    Attributes:
        name: `unseen`, `seen`, or the guard's name.
        purpose: Where the model was trained for, or elsewhere.
        data: Name of the collection.
        before: Mean nDCG@10 of what was there before.
        after: The same of the trained model.
        difference: Question by question.
    """

    name: str
    purpose: Purpose
    data: str
    before: float
    after: float
    difference: Difference


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """The decision.

    Attributes:
        measured: What it was taken by.
        reasons: Why the model is not handed over; empty where it is.
        tolerance: By how much the guard may fall.
        forced: Whether the caller wants it all the same.
    """

    measured: tuple[Measured, ...]
    reasons: tuple[str, ...]
    tolerance: float
    forced: bool = False

    @property
    def is_open(self) -> bool:
        """Whether the model is handed over."""
        return self.forced or not self.reasons

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "open": self.is_open,
            "forced": self.forced,
            "reasons": list(self.reasons),
            "tolerance": self.tolerance,
            "metric": METRIC,
            "measured": [asdict(each) for each in self.measured],
        }


def measure_with(
    subject: Any, cache: VectorCache | None, *, reranker: Any = None, depth: int = 20
) -> Callable[[Judgements], Evaluation]:
    """Return what measures a model on a collection."""
    return lambda data: evaluate(subject, data, reranker=reranker, depth=depth, metrics=[METRIC], vector_cache=cache)


def pass_gate(
    before: Callable[[Judgements], Evaluation],
    after: Callable[[Judgements], Evaluation],
    *,
    development: Mapping[str, Judgements],
    guard: Judgements,
    tolerance: float = TOLERANCE,
    force: bool = False,
) -> Gate:
    """Measure before and after, and decide.

    A model is not handed over where it is significantly worse on a development set (the whole 95% interval of the
    difference is below 0), where it is significantly better on none of them, since then it has learned nothing that a
    user would see, or where the guard set falls by more than the tolerance.

    Args:
        before: Measures what was there before.
        after: Measures the trained model.
        development: Sets held out from training, by name.
        guard: Questions of another kind.
        tolerance: By how much the mean on the guard may fall.
        force: Hand it over whatever comes out.

    Raises:
        ConfigurationError: `tolerance` is not allowed.
    """
    check_tolerance(tolerance)
    measured = [_measured(name, "development", data, before(data), after(data)) for name, data in development.items()]
    measured.append(_measured("guard", "guard", guard, before(guard), after(guard)))
    return Gate(
        measured=tuple(measured), reasons=tuple(_reasons(measured, tolerance)), tolerance=tolerance, forced=force
    )


def check_tolerance(tolerance: Any) -> None:
    """Refuse a tolerance that is none.

    Raises:
        ConfigurationError: Says what is allowed.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < 1:
        raise ConfigurationError(f"tolerance={tolerance!r} is not allowed. Pass 0 or more, and less than 1.")


def general_questions() -> Judgements:
    """Return the questions of general knowledge that ship with the package, in English."""
    rows = [
        json.loads(line)
        for line in files("bge_runtime.training").joinpath("general_questions.jsonl").read_text("utf-8").splitlines()
    ]
    asked = {row["id"]: row for row in rows if "query" in row}
    return Judgements(
        name="general questions",
        queries={name: row["query"] for name, row in asked.items()},
        grades={name: dict.fromkeys(row["positives"], 1) for name, row in asked.items()},
        documents={row["id"]: row["text"] for row in rows if "text" in row},
    )


def _measured(name: str, purpose: Purpose, data: Judgements, before: Evaluation, after: Evaluation) -> Measured:
    values = [[each.per_query[METRIC][query] for query in data.queries] for each in (before, after)]
    return Measured(
        name=name,
        purpose=purpose,
        data=data.name,
        before=before.metrics[METRIC],
        after=after.metrics[METRIC],
        difference=compare_paired(*values),
    )


def _reasons(measured: Sequence[Measured], tolerance: float) -> list[str]:
    reasons = []
    development = [each for each in measured if each.purpose == "development"]
    for each in development:
        if each.difference.high < 0:
            reasons.append(f"it is worse on {each.name!r} questions: {_told(each)}")
    if development and not any(each.difference.low > 0 for each in development):
        told = "; ".join(f"{each.name!r} {_told(each)}" for each in development)
        reasons.append(f"it gained nothing that {len(development)} development sets can show: {told}")
    for each in measured:
        if each.purpose == "guard" and each.difference.mean < -tolerance:
            reasons.append(
                f"it lost more than {tolerance:g} on {each.data!r}, which it was not trained for: {_told(each)}"
            )
    return reasons


def _told(each: Measured) -> str:
    gain = each.difference
    return (
        f"{METRIC} {each.before:.4f} to {each.after:.4f} over {gain.questions} questions ({gain.mean:+.4f}, 95% "
        f"interval {gain.low:+.4f} to {gain.high:+.4f})"
    )
