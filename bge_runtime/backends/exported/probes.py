"""Inputs whose result is known, run when a graph is made and at each start.

A graph that gives another result is refused, so that a wrong one is never used in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bge_runtime.backends.base import Backend
from bge_runtime.errors import BackendError
from bge_runtime.inputs.tokenizing import TokenSequence

__all__ = ["Probe", "check"]

FLOAT_TOLERANCE = 1e-4  # of unnormalised values, relative to the largest where that is above 1
ADVICE = "It is not used. Use backend='packed', and report this with the model's name."
INT8_ADVICE = (
    "It is not used. Calibrate it on more texts, and on texts as different as those to come, or use 'bfloat16'."
)
LEAST_COSINE = {"bfloat16": 0.995, "int8": 0.98}
SCORE_TOLERANCE = {"bfloat16": 0.05, "int8": 0.2}  # of a logit, plus the same share of it


@dataclass(frozen=True, slots=True)
class Probe:
    """An input, and by output what the source model makes of it."""

    sequence: TokenSequence
    expected: Mapping[Any, Sequence[float]]

    def as_dict(self) -> dict[str, Any]:
        """Return the probe for a JSON file."""
        return {name: list(value) for name, value in self.sequence._asdict().items()} | {
            "expected": dict(self.expected)
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Probe:
        """Read what `as_dict` returned."""
        return cls(TokenSequence(row["ids"], row["type_ids"]), row["expected"])


def check(backend: Backend, probes: Sequence[Probe], precision: str, name: str) -> None:
    """Compare a backend with the source model, all probes in one batch.

    Raises:
        BackendError: They differ by more than the precision explains.
    """
    for output in probes[0].expected:
        rows = backend.forward([probe.sequence for probe in probes], output)
        for row, probe in zip(rows, probes, strict=True):
            expected = np.asarray(probe.expected[output], np.float32)
            off = _error(np.asarray(row).reshape(-1), expected, output, precision)
            if not off <= 1:
                raise BackendError(
                    f"The {precision} export of {name!r} differs from the model: output {output!r} of a probe of "
                    f"{len(probe.sequence.ids)} tokens is off by {off:.3g} times what {precision} explains. "
                    + (INT8_ADVICE if precision == "int8" else ADVICE)
                )


def _error(row: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], output: str, precision: str) -> float:
    """Return the error as a multiple of the allowed one; NaN where either is NaN."""
    if precision == "float32":
        return float(np.abs(row - expected).max() / (FLOAT_TOLERANCE * max(1.0, float(np.abs(expected).max()))))
    if output == "score":
        allowed = SCORE_TOLERANCE[precision] * (1 + np.abs(expected))
        return float((np.abs(row - expected) / allowed).max())
    cosine = row @ expected / (np.linalg.norm(row) * np.linalg.norm(expected))
    return float((1 - cosine) / (1 - LEAST_COSINE[precision]))
