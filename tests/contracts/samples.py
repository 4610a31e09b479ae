"""Texts of all lengths and kinds, things that are no texts, and comparison of vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

__all__ = ["ENGLISH", "NOT_TEXTS", "TEXTS", "TOLERANCE", "array", "assert_same"]

ENGLISH = "Represent this sentence for searching relevant passages: "
TOLERANCE = 1e-5
TEXTS = [
    "The giant panda is a bear species endemic to China.",
    "cat",
    "How do I turn the query instruction off? Pass an empty string as the instruction. " * 8,
    "",
    "Paris is the capital of France",
    "the dog slept in the garden " * 40,
    "tokens, batches, threads and caches",
    "大熊猫是中国特有的熊类动物，主要以竹子为食。",
]
NOT_TEXTS = [
    pytest.param(None, id="none"),
    pytest.param(3, id="int"),
    pytest.param(1.5, id="float"),
    pytest.param(b"bytes", id="bytes"),
    pytest.param(["nested"], id="nested list"),
    pytest.param({"text": "panda"}, id="dict"),
]


def array(rows: Sequence[Sequence[float]]) -> np.ndarray:
    return np.asarray(rows, dtype=np.float64)


def assert_same(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> None:
    np.testing.assert_allclose(array(left), array(right), atol=TOLERANCE)
