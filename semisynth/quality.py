"""How near synthetic images come to real ones, measured on features: distances of distributions, and copies.

All arguments are features (n, d) of real and synthetic images; everything is computed in float64 on their device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from semisynth.errors import UserError

NEIGHBOURS = 5
BLOCK = 1000  # rows whose distances to all others are held at a time


@dataclass(frozen=True)
class Quality:
    """What is told of a set of synthetic images.

    fid, kid: distances of the two distributions, lower is better; precision, density: how much of what is synthetic
    lies among real images; recall, coverage: how much of what is real lies among synthetic ones; copies: the share of
    synthetic images nearer to a real one than any two real ones are, `close` that below the median such distance.
    """

    fid: float
    kid: float
    precision: float
    recall: float
    density: float
    coverage: float
    copies: float
    close: float


def measure(real: Tensor, synthetic: Tensor) -> Quality:
    """All of these; `UserError` for fewer images of a kind than NEIGHBOURS + 1."""
    fewest = min(len(real), len(synthetic))
    if fewest <= NEIGHBOURS:
        raise UserError(f"{fewest} images are too few to measure their quality: give at least {NEIGHBOURS + 1}.")
    return Quality(
        fid(real, synthetic),
        kid(real, synthetic),
        precision(real, synthetic),
        precision(synthetic, real),
        density(real, synthetic),
        coverage(real, synthetic),
        *copies(real, synthetic),
    )


def fid(real: Tensor, synthetic: Tensor) -> float:
    """|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)), of means and covariances (Heusel et al. 2017, eq. 6).

    It falls as images become more: compare only what is measured on equally many.
    """
    (m, s), (m_, s_) = ((x.double().mean(0), x.double().T.cov().reshape(x.shape[1], -1)) for x in (real, synthetic))
    # The eigenvalues of S S' are those of a product of positive semidefinite matrices: real and not negative.
    roots = torch.linalg.eigvals(s @ s_).real.clamp_min(0).sqrt()
    return float((m - m_).square().sum() + s.trace() + s_.trace() - 2 * roots.sum())


def kid(real: Tensor, synthetic: Tensor) -> float:
    """The unbiased squared maximum mean discrepancy under (x.y / d + 1)^3 (Binkowski et al. 2018), over all images."""
    x, y = real.double(), synthetic.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        k, n = kernel(a, a), len(a)
        return (k.sum() - k.trace()) / (n * (n - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def precision(real: Tensor, synthetic: Tensor, k: int = NEIGHBOURS) -> float:
    """The share of synthetic images within the k-th neighbour's distance of some real one (Kynkäänniemi et al. 2019).

    With the two exchanged it is their recall.
    """
    radius = _radius(real, k)
    inside = [(part <= radius).any(1) for part in _distances(synthetic, real)]
    return torch.cat(inside).double().mean().item()


def density(real: Tensor, synthetic: Tensor, k: int = NEIGHBOURS) -> float:
    """How many of such spheres around real images hold a synthetic one, over k (Naeem et al. 2020, eq. 5)."""
    radius = _radius(real, k)
    inside = [(part < radius).sum(1) for part in _distances(synthetic, real)]
    return (torch.cat(inside).double().mean() / k).item()


def coverage(real: Tensor, synthetic: Tensor, k: int = NEIGHBOURS) -> float:
    """The share of such spheres that hold any synthetic image (Naeem et al. 2020, eq. 6)."""
    nearest = torch.cat([part.min(1).values for part in _distances(real, synthetic)])
    return (nearest < _radius(real, k)).double().mean().item()


def copies(real: Tensor, synthetic: Tensor) -> tuple[float, float]:
    """The shares of synthetic images that are nearer to a real one than the nearest two real ones, and than is usual.

    Images drawn as the real ones were are nearer than the median distance about half of the time.
    """
    usual, nearest = _radius(real, 1), torch.cat([part.min(1).values for part in _distances(synthetic, real)])
    apart = usual[usual > 0]  # real images that are there twice must not hide copies
    bounds = (apart.min(), usual.median()) if len(apart) else (usual.new_tensor(1e-12), usual.new_tensor(1e-12))
    below = [(nearest < bound).double().mean().item() for bound in bounds]
    return below[0], below[1]


def nearest(real: Tensor, synthetic: Tensor) -> Tensor:
    """The index of the real image nearest to each synthetic one (m,)."""
    return torch.cat([part.argmin(1) for part in _distances(synthetic, real)])


def _radius(x: Tensor, k: int) -> Tensor:
    """The distance of each row to its k-th nearest other one (n,)."""
    # The nearest is the row itself, or one that is equal.
    return torch.cat([part.kthvalue(k + 1, 1).values for part in _distances(x, x)])


def _distances(a: Tensor, b: Tensor) -> list[Tensor]:
    """Euclidean distances of the rows of a to all of b, in blocks of rows."""
    y = b.double()
    exact = "donot_use_mm_for_euclid_dist"  # by products, a row's distance to itself is not zero
    return [torch.cdist(part.double(), y, compute_mode=exact) for part in a.split(BLOCK)]
