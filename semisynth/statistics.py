"""Means over seeds with intervals, differences paired by seed, and Holm's correction for many of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Interval = tuple[float, float]
RESAMPLES = 10_000


@dataclass(frozen=True)
class Paired:
    """The mean of n paired differences, its 95 % intervals, and the two-sided p of the paired t test."""

    n: int
    mean: float
    t: Interval
    bootstrap: Interval
    p: float


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean, without the rounding of a running sum."""
    return math.fsum(values) / len(values)


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval of the mean; a single value bounds nothing: (-inf, inf)."""
    from scipy.special import stdtrit

    if len(values) < 2:
        return -math.inf, math.inf
    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * _standard_error(values)
    centre = float(np.mean(values))
    return centre - half, centre + half


def bootstrap_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Percentile interval of the mean over 10,000 resamples, the same ones each time; (-inf, inf) for one value."""
    if len(values) < 2:
        return -math.inf, math.inf
    picks = np.random.RandomState(0).randint(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.asarray(values)[picks].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired(a: Sequence[float], b: Sequence[float]) -> Paired:
    """The mean of a - b, element by element; both need the same length, at least 1."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = float(np.mean(differences))
    return Paired(len(a), mean, t_interval(differences), bootstrap_interval(differences), _p(differences, mean))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the k-th smallest of m times m - k + 1, made monotone, at most 1."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def _p(differences: Sequence[float], mean: float) -> float:
    from scipy.special import stdtr

    if len(differences) < 2:
        return 1.0
    error = _standard_error(differences)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * float(stdtr(len(differences) - 1, -abs(mean) / error))


def _standard_error(values: Sequence[float]) -> float:
    # Of equal values it is exactly 0, where the rounding of their mean would leave a trace.
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(set(values)) > 1 else 0.0
