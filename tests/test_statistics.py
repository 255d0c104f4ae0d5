"""Intervals and p values against hand values and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from semisynth.statistics import bootstrap_interval, holm, paired, t_interval

A = [0.81, 0.78, 0.90, 0.84, 0.79, 0.88]
B = [0.80, 0.70, 0.85, 0.86, 0.71, 0.80]


def test_t_interval_by_hand() -> None:
    # Mean 2, standard error sqrt(1 / 3), t of 2 degrees at 97.5 %: 4.30265.
    assert t_interval([1, 2, 3]) == pytest.approx((2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), abs=1e-4)


def test_t_interval_is_scipys_at_any_level() -> None:
    expected = stats.t.interval(0.9, len(A) - 1, np.mean(A), stats.sem(A))
    assert t_interval(A, 0.9) == pytest.approx(expected)


def test_one_value_bounds_nothing() -> None:
    assert t_interval([0.8]) == bootstrap_interval([0.8]) == (-math.inf, math.inf)
    found = paired([0.8], [0.7])
    assert (found.n, found.p) == (1, 1.0)
    assert found.mean == pytest.approx(0.1)


def test_paired_is_scipys_paired_t_test() -> None:
    found, expected = paired(A, B), stats.ttest_rel(A, B)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.t == pytest.approx(tuple(expected.confidence_interval()))
    assert found.mean == pytest.approx(np.mean(A) - np.mean(B))
    assert paired(B, A).p == pytest.approx(found.p)


def test_paired_differences_that_are_all_equal() -> None:
    assert paired([0.1, 0.1, 0.1], [0.1, 0.1, 0.1]).p == 1.0
    certain = paired([0.75, 1.0], [0.25, 0.5])
    assert (certain.p, certain.t) == (0.0, (0.5, 0.5))


def test_paired_needs_the_same_length() -> None:
    with pytest.raises(ValueError):
        paired([0.1, 0.2], [0.1])


def test_bootstrap_is_scipys_percentile_interval_and_the_same_each_time() -> None:
    low, high = bootstrap_interval(A)
    scipys = stats.bootstrap((A,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
    assert (low, high) == pytest.approx(tuple(scipys.confidence_interval), abs=2e-3)
    assert bootstrap_interval(A) == (low, high)
    narrower = bootstrap_interval(A, 0.5)
    assert low < narrower[0] < np.mean(A) < narrower[1] < high


def test_holm_by_hand() -> None:
    # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 (raised to what came before), 0.5 * 1.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
