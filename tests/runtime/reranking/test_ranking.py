"""Order by score: stable, NaN last."""

from __future__ import annotations

import numpy as np
import pytest

from bge_runtime import ConfigurationError, order_scores
from bge_runtime.reranking.ranking import sigmoid

NAN = float("nan")


def indices(ranking):
    return [row.index for row in ranking]


def test_best_first_and_equal_scores_in_input_order():
    assert indices(order_scores([0.1, 0.9, 0.1, 0.5, 0.9])) == [1, 4, 3, 0, 2]


def test_nan_comes_last_in_input_order_whatever_its_sign():
    assert indices(order_scores([NAN, 1.0, -NAN, 3.0, float("-inf")])) == [3, 1, 4, 0, 2]


def test_nan_passes_no_threshold():
    assert indices(order_scores([NAN, -5.0, 2.0], score_threshold=-1e30)) == [2, 1]


def test_a_score_equal_to_the_threshold_passes():
    assert indices(order_scores([0.5, 0.4999], score_threshold=0.5)) == [0]


def test_top_n_counts_after_the_threshold():
    assert indices(order_scores([1.0, 3.0, 2.0, 0.0], top_n=2, score_threshold=0.5)) == [1, 2]
    assert indices(order_scores([1.0], top_n=10)) == [0]


def test_scores_and_indices_are_python_numbers():
    (row,) = order_scores(np.float32([0.25]))
    assert (type(row.index), type(row.score), row.score) == (int, float, 0.25)


def test_nothing_in_nothing_out():
    assert order_scores([]) == []


@pytest.mark.parametrize("top_n", [0, -1, 1.5, True])
def test_a_top_n_that_is_no_positive_number_is_refused(top_n):
    with pytest.raises(ConfigurationError, match="top_n"):
        order_scores([1.0], top_n=top_n)


def test_the_input_is_left_as_it_is():
    scores = np.float32([2.0, NAN, 1.0])
    order_scores(scores, top_n=1)
    np.testing.assert_array_equal(scores, np.float32([2.0, NAN, 1.0]))


def test_the_sigmoid_is_exact_at_both_ends_and_warns_nowhere():
    logits = np.float32([-200, -100, -20, -1, 0, 1, 20, 100, 200])
    expected = 1 / (1 + np.exp(-logits.astype(np.float64)))
    result = sigmoid(logits)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=2e-6, atol=1e-37)
