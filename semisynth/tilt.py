"""The likelihood of a mixture of two densities, of which one is the other tilted, and the interval of its share.

A sample of a density p and one of (1 - s) p + s p exp(a + b'f) are given, and p is unrestricted.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
SHARES = np.arange(51) / 50
WIDEST = 2.5  # length of a tilt: synthetic images that are told apart better than 0.96 need no audit
Floats = npt.NDArray[np.float64]


def profile(f: Floats, real: int, detectable: float) -> tuple[Floats, Floats]:
    """At each of `SHARES` the largest log-likelihood ratio to a share of 0, and where it is, theta = (a, b).

    b is held to a length (in the spread of the real images) from what `detectable` means for a normal f to `WIDEST`.
    From small shares to large and back, each fit begins at the one before.
    """
    from scipy.optimize import minimize
    from scipy.special import ndtri

    k = f.shape[1]
    spread = np.cov(f[:real].T) + 1e-3 * np.eye(k)
    low, high = 2 * ndtri(detectable) ** 2, WIDEST**2

    def cost(theta: Floats, share: float) -> tuple[float, Floats]:
        value, slope = likelihood(theta, share, f, real)
        length = float(theta[1:] @ spread @ theta[1:])
        miss = length - min(max(length, low), high)
        return 100 * miss**2 - value, np.r_[0.0, 400 * miss * (spread @ theta[1:])] - slope

    toward = np.linalg.solve(spread, f[real:].mean(0) - f[:real].mean(0))
    toward *= 1.2 / np.sqrt(toward @ spread @ toward + 1e-12)
    starts = [np.r_[-np.log(np.exp(f @ b).mean()), b] for b in (toward, -toward)]
    found, theta = np.full(len(SHARES), -np.inf), np.zeros((len(SHARES), k + 1))
    found[0] = 0.0
    for order in (range(1, len(SHARES)), range(len(SHARES) - 1, 0, -1)):
        begin = starts
        for i in order:
            for start in begin:
                fit = minimize(cost, start, (SHARES[i],), method="L-BFGS-B", jac=True, options={"maxiter": 60})
                if -fit.fun > found[i]:
                    found[i], theta[i] = -fit.fun, fit.x
            begin = [theta[i]]
    return found, theta


def likelihood(theta: Floats, share: float, f: Floats, real: int) -> tuple[float, Floats]:
    """The empirical log-likelihood ratio of r = 1 - s + s exp(a + b'f) to r = 1, and its gradient by (a, b).

    sum over the pool of log r - sum over all of log(1 + m (r - 1)), where m makes the mean of r under p one
    (Qin 1999). Minus a million where no weights could do that.
    """
    tilt = share * np.exp((theta[0] + f @ theta[1:]).clip(-30, 30))
    rest = tilt - share  # r - 1
    if rest.min() >= 0 or rest.max() <= 0:
        return -1e6 * (1 + abs(theta[0])), np.zeros_like(theta)
    m = _multiplier(rest, 1 - real / len(f))
    slope = -m * tilt / (1 + m * rest)
    slope[real:] += tilt[real:] / (1 + rest[real:])
    value = np.log1p(rest[real:]).sum() - np.log1p(m * rest).sum()
    return float(value), np.r_[slope.sum(), slope @ f]


def _multiplier(rest: Floats, start: float) -> float:
    """m with sum rest / (1 + m rest) = 0, by Newton's method, and by halving where that leaves the bracket."""
    low, high = -1 / rest.max() + 1e-9, -1 / rest.min() - 1e-9
    m = min(max(start, 0.99 * low), 0.99 * high)
    for _ in range(50):
        part = rest / (1 + m * rest)
        value = part.sum()
        low, high = (m, high) if value > 0 else (low, m)
        step = m + value / (part @ part)
        step = step if low < step < high else (low + high) / 2
        if abs(step - m) < 1e-10:
            break
        m = step
    return float(m)


def interval(likelihood: Floats, alike: bool, k: int) -> tuple[float, float]:
    """The shares that are as likely as the joint interval of a share and k parameters allows; 0 too if `alike`."""
    from scipy.stats import chi2

    excess = 2 * (likelihood.max() - likelihood) - chi2.ppf(LEVEL, k + 1)
    inside = excess <= 0
    inside[0] |= alike
    first, last = np.flatnonzero(inside)[[0, -1]]

    def end(inner: int, outer: int) -> float:
        if not 0 <= outer < len(SHARES) or excess[inner] > 0:
            return float(SHARES[inner])
        part = excess[inner] / (excess[inner] - excess[outer])
        return float(SHARES[inner] + part * (SHARES[outer] - SHARES[inner]))

    return end(first, first - 1), end(last, last + 1)
