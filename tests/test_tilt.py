"""The likelihood of a tilted mixture and its interval, against definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import approx_fprime, brentq

from semisynth import tilt
from semisynth.tilt import SHARES


@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_the_likelihood_is_that_of_the_best_weights_and_its_gradient_is_right(share: float) -> None:
    f, real, theta = np.random.RandomState(0).randn(30, 2), 8, np.array([-0.3, 0.7, -0.2])
    value, slope = tilt.likelihood(theta, share, f, real)
    r = 1 - share + share * np.exp(theta[0] + f @ theta[1:])
    m = brentq(lambda m: ((r - 1) / (1 + m * (r - 1))).sum(), -1 / (r.max() - 1) + 1e-6, -1 / (r.min() - 1) - 1e-6)
    p = 1 / (30 * (1 + m * (r - 1)))
    np.testing.assert_allclose([p.sum(), (p * r).sum()], 1, atol=1e-8)
    assert math.isclose(value, np.log(30 * p).sum() + np.log(r[real:]).sum(), rel_tol=1e-9)
    numeric = approx_fprime(theta, lambda theta: tilt.likelihood(theta, share, f, real)[0], 1e-6)
    np.testing.assert_allclose(slope, numeric, rtol=1e-3, atol=1e-4)


def test_a_tilt_that_no_weights_allow_is_ruled_out() -> None:
    assert tilt.likelihood(np.array([9.0, 0.0]), 0.5, np.random.RandomState(0).randn(9, 1), 3)[0] < -1e6


def test_the_profile_finds_the_tilt_of_a_normal_and_the_share() -> None:
    random = np.random.RandomState(0)
    real, pool = random.randn(1500, 2), random.randn(3000, 2)
    pool[:1500] += [1.5, 0.0]
    found, theta = tilt.profile(np.concatenate([real, pool]), 1500, 0.7)
    best = int(found.argmax())
    assert found[0] == 0 and abs(SHARES[best] - 0.5) <= 0.06
    np.testing.assert_allclose(theta[best], [-(1.5**2) / 2, 1.5, 0.0], atol=0.25)  # N(d, 1) / N(0, 1)


def test_the_interval_is_of_the_joint_level_and_has_0_where_both_are_alike() -> None:
    likelihood = -(((SHARES - 0.5) / 0.1) ** 2)
    half = 0.1 * math.sqrt(7.8147 / 2)  # of chi squared with three degrees of freedom
    np.testing.assert_allclose(tilt.interval(likelihood, False, 2), [0.5 - half, 0.5 + half], atol=2e-3)
    assert tilt.interval(likelihood, True, 2)[0] == 0
    assert tilt.interval(np.zeros(len(SHARES)), False, 2) == (0, 1)
