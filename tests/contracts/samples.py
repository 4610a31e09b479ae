"""Texts of all lengths and kinds, things that are no texts, and comparison of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from types import MappingProxyType

import numpy as np
import pytest

__all__ = ["ENGLISH", "NOT_LISTS", "NOT_TEXTS", "SHOWN", "TEXTS", "TITLE", "TOLERANCE", "array", "assert_same"]

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
# What a message says of them: the type.
SHOWN = "(str|bytes|bytearray|NoneType|int|dict|mappingproxy|set|frozenset|float64|ndarray|tuple)"
NOT_LISTS = [
    pytest.param("panda", id="text"),
    pytest.param(b"panda", id="bytes"),
    pytest.param(bytearray(b"panda"), id="bytearray"),
    pytest.param(None, id="none"),
    pytest.param(7, id="int"),
    pytest.param({"q1": "panda"}, id="dict"),
    pytest.param(MappingProxyType({"q1": "panda"}), id="view of a dict"),
    pytest.param({"panda", "cat"}, id="set"),
    pytest.param(frozenset({"panda"}), id="frozenset"),
    pytest.param(np.arange(3.0), id="numbers"),
    pytest.param(np.array("panda"), id="scalar array"),
]


class Title(str, Enum):  # noqa: UP042 - older code has them
    """Texts of an enumeration, whose members print as their names."""

    PANDA = "The giant panda"


TITLE = Title.PANDA


def array(rows: Sequence[Sequence[float]]) -> np.ndarray:
    return np.asarray(rows, dtype=np.float64)


def assert_same(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> None:
    np.testing.assert_allclose(array(left), array(right), atol=TOLERANCE)
