"""Paired tests: what chance alone shows, and what it does not."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from bge_runtime import InputError
from bge_runtime.evaluation import statistics
from bge_runtime.evaluation.statistics import compare_paired, holm


def test_two_hundred_comparisons_of_alike_systems_are_significant_in_one_of_twenty(monkeypatch):
    monkeypatch.setattr(statistics, "ROUNDS", 2000)
    random = np.random.default_rng(7)
    called = 0
    for seed in range(200):
        one = random.beta(0.4, 0.4, 300)
        other = np.clip(one + random.normal(0, 0.2, 300), 0, 1)
        swapped = random.random(300) < 0.5
        called += compare_paired(np.where(swapped, one, other), np.where(swapped, other, one), seed=seed).p < 0.05
    assert 6 <= called <= 16


def test_the_same_as_scipy_permutes():
    random = np.random.default_rng(1)
    one, other = random.random((2, 40))
    other += 0.1
    theirs = scipy.stats.permutation_test(
        (other - one,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        random_state=0,
    )
    assert compare_paired(one, other).p == pytest.approx(theirs.pvalue, abs=0.02)
    few = compare_paired(one[:8], other[:8])
    exact = scipy.stats.permutation_test(
        (other[:8] - one[:8],), lambda x, axis: x.mean(axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    assert few.p == pytest.approx(exact.pvalue, abs=1e-12)


def test_the_interval_holds_the_true_difference_as_often_as_it_says():
    random = np.random.default_rng(2)
    held = 0
    for seed in range(100):
        found = compare_paired(np.zeros(60), random.normal(0.1, 0.3, 60), seed=seed)
        held += found.low <= 0.1 <= found.high
    assert 88 <= held <= 99


def test_the_smallest_difference_is_found_four_times_in_five(monkeypatch):
    monkeypatch.setattr(statistics, "ROUNDS", 2000)
    random = np.random.default_rng(3)
    smallest = compare_paired(np.zeros(100), random.normal(0, 0.3, 100)).smallest
    found = sum(
        compare_paired(np.zeros(100), random.normal(smallest, 0.3, 100), seed=seed).p < 0.05 for seed in range(150)
    )
    assert 0.7 < found / 150 < 0.92


def test_equal_systems_and_a_single_question_are_no_evidence():
    assert compare_paired([0.5, 0.5], [0.5, 0.5]).p == 1
    one = compare_paired([0.0], [1.0])
    assert (one.p, one.smallest) == (1.0, 1.0)
    with pytest.raises(InputError, match="cannot be paired"):
        compare_paired([], [])


def test_holms_adjustment_is_that_of_his_paper():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
