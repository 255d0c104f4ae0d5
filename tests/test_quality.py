"""The measures of image quality against loops, an independent implementation, and cases whose value is known."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from semisynth import quality
from semisynth.errors import UserError


def normal(n: int, d: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, d, generator=source, dtype=torch.float64)


def test_fid_is_that_of_a_matrix_square_root() -> None:
    for seed in range(3):
        a, b = normal(60, 6, seed) @ normal(6, 6, seed + 10), normal(80, 6, seed + 20, 0.3, 1.5)
        (m, s), (m_, s_) = ((np.mean(x.numpy(), 0), np.cov(x.numpy().T)) for x in (a, b))
        expected = ((m - m_) ** 2).sum() + np.trace(s + s_ - 2 * linalg.sqrtm(s @ s_).real)
        assert quality.fid(a, b) == pytest.approx(expected, rel=1e-8)


def test_fid_of_diagonal_normals_is_known() -> None:
    a = torch.tensor([[1.0, 0], [-1, 0], [0, 2], [0, -2]], dtype=torch.float64)
    b = 3 * a + 5
    # Variances 2/3, 8/3 and nine times these; means 0 and 5.
    assert quality.fid(a, b) == pytest.approx(2 * 25 + (1 - 3) ** 2 * (2 / 3 + 8 / 3))
    assert quality.fid(a, a) == pytest.approx(0, abs=1e-12)


def test_fid_of_fewer_images_than_features_is_finite() -> None:
    assert 0 < quality.fid(normal(5, 20, 0), normal(6, 20, 1)) < math.inf


def test_kid_is_that_of_a_loop_and_unbiased() -> None:
    a, b = normal(5, 3, 0), normal(4, 3, 1, 0.5)

    def k(x: Tensor, y: Tensor) -> float:
        return (sum(p * q for p, q in zip(x.tolist(), y.tolist(), strict=True)) / 3 + 1) ** 3

    within = [
        sum(k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j) / (len(x) * (len(x) - 1))
        for x in (a, b)
    ]
    across = sum(k(x, y) for x in a for y in b) / 20
    assert quality.kid(a, b) == pytest.approx(sum(within) - 2 * across, rel=1e-12)
    found = [quality.kid(normal(20, 3, 2 * s), normal(20, 3, 2 * s + 1)) for s in range(300)]
    error = torch.tensor(found).std().item() / 300**0.5
    assert abs(sum(found) / 300) < 4 * error and min(found) < 0


def distances(a: Tensor, b: Tensor) -> list[list[float]]:
    return [[math.dist(x, y) for y in b.tolist()] for x in a.tolist()]


def test_neighbourhoods_are_those_of_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "BLOCK", 7)  # which must not matter
    real, synthetic, k = normal(30, 2, 0), normal(20, 2, 1, 0.8), 3
    radius = [sorted(row)[k] for row in distances(real, real)]
    to_real = distances(synthetic, real)
    precise = [any(d <= r for d, r in zip(row, radius, strict=True)) for row in to_real]
    dense = [sum(d < r for d, r in zip(row, radius, strict=True)) for row in to_real]
    covered = [min(column) < r for column, r in zip(zip(*to_real, strict=True), radius, strict=True)]
    assert quality.precision(real, synthetic, k) == pytest.approx(sum(precise) / 20)
    assert quality.density(real, synthetic, k) == pytest.approx(sum(dense) / 20 / k)
    assert quality.coverage(real, synthetic, k) == pytest.approx(sum(covered) / 30)
    assert 0 < sum(precise) < 20 and 0 < sum(covered) < 30
    assert quality.nearest(real, synthetic).tolist() == [row.index(min(row)) for row in to_real]


def test_copies_are_told_from_fresh_images() -> None:
    real, fresh = normal(200, 4, 0), normal(200, 4, 1)
    copied, close = quality.copies(real, real[:50] + 1e-6)
    assert copied == close == 1
    copied, close = quality.copies(real, fresh)
    assert copied < 0.02 and 0.3 < close < 0.6


def test_what_is_alike_and_what_is_not() -> None:
    real = normal(300, 4, 0)
    same, far = quality.measure(real, normal(300, 4, 1)), quality.measure(real, normal(300, 4, 2, 10.0))
    assert same.fid < 0.3 < far.fid and abs(same.kid) < 0.1 < far.kid
    assert min(same.precision, same.recall, same.coverage) > 0.85 and 0.8 < same.density < 1.2
    assert (far.precision, far.recall, far.density, far.coverage, far.close) == (0, 0, 0, 0, 0)
    narrow = quality.measure(real, normal(300, 4, 3, 0.0, 0.2))
    assert narrow.precision > 0.95 and narrow.recall < 0.3 and narrow.coverage < 0.7
    found = asdict(narrow)
    assert found["recall"] == narrow.recall and len(found) == 8


def test_too_few_images_are_told() -> None:
    with pytest.raises(UserError, match="5 images are too few"):
        quality.measure(normal(5, 2, 0), normal(50, 2, 1))


def test_a_real_image_that_is_there_twice_hides_no_copy() -> None:
    real = torch.randn(60, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert quality.copies(real, real[:20])[0] == 1.0
    twice = torch.cat([real, real[:1]])
    assert quality.copies(twice, real[:20])[0] == 1.0
    assert quality.copies(torch.ones(9, 3), torch.ones(2, 3)) == (1.0, 1.0)


def test_fid_is_that_of_torchmetrics() -> None:
    """On the same features, which its feature extractor passes on."""
    fid = pytest.importorskip("torchmetrics.image.fid")
    source = torch.Generator().manual_seed(0)
    real, made = (torch.randn(200, 12, dtype=torch.float64, generator=source) * s + m for s, m in ((1, 0), (1.5, 0.3)))

    class Features(torch.nn.Module):
        num_features = 12

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    metric = fid.FrechetInceptionDistance(feature=Features(), normalize=True).set_dtype(torch.float64)
    for x, is_real in ((real, True), (made, False)):
        metric.update(x[:, :, None, None], real=is_real)
    assert quality.fid(real, made) == pytest.approx(metric.compute().item(), abs=1e-4)
