"""What the simple detector tells apart, and what it does not; its features and the ranking against loops."""

from __future__ import annotations

import cmath
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from semisynth.errors import UserError
from semisynth.separable import BINS, FLOOR, auroc, features, rank_auroc


def noisy(n: int, seed: int, power: float = 1.0) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) ** power


def test_images_of_one_kind_are_not_told_apart() -> None:
    assert 0.35 < auroc(noisy(200, 1), noisy(200, 2)) < 0.65


def test_another_histogram_is_seen() -> None:
    assert auroc(noisy(100, 1), noisy(60, 2, power=2.0)) > 0.95


def test_another_spectrum_of_the_same_values_is_seen() -> None:
    smooth = noisy(100, 1).flatten(1).sort().values.view(-1, 1, 8, 8)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    rough = noisy(100, 2).flatten(1).sort().values[:, order].view(-1, 1, 8, 8)
    assert auroc(smooth, rough) == 1


def test_eight_bits_count_as_floats_and_a_seed_gives_the_same_folds() -> None:
    one, other = ((255 * noisy(30, seed, power)).round().to(torch.uint8) for seed, power in ((1, 1.0), (2, 1.2)))
    found = auroc(one, other, seed=3)
    assert found == auroc(one, other, seed=3) == auroc(one.float() / 255, other.double() / 255, seed=3)
    assert found != auroc(one, other, seed=4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 9)])
def test_features_are_those_of_a_loop(shape: tuple[int, int, int]) -> None:
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0, 0, 0, 0], x[1] = 1.0, 0.5
    c, h, w = shape
    radii = max(h, w) // 2 + 1
    found = features(x)
    assert found.shape == (2, BINS + radii)
    for image, row in zip(x.tolist(), found, strict=True):
        values = [value for plane in image for line in plane for value in line]
        counts = [sum(min(int(value * BINS), BINS - 1) == k for value in values) / len(values) for k in range(BINS)]
        np.testing.assert_allclose(row[:BINS], counts, atol=1e-12)
        rings: dict[int, list[float]] = {}
        for u, v in itertools.product(range(-(h // 2), (h + 1) // 2), range(-(w // 2), (w + 1) // 2)):
            power = 0.0
            for plane in image:
                turns = [
                    value * cmath.exp(-2j * math.pi * (u * i / h + v * j / w))
                    for i, line in enumerate(plane)
                    for j, value in enumerate(line)
                ]
                power += abs(sum(turns)) ** 2 / (h * w) / c
            rings.setdefault(round(math.hypot(u, v)), []).append(power)
        expected = [math.log(sum(rings[r]) / len(rings[r]) + FLOOR) for r in range(radii)]
        np.testing.assert_allclose(row[BINS:], expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_ranking_is_the_share_of_pairs_in_order(seed: int) -> None:
    source = np.random.default_rng(seed)
    scores, flags = source.integers(0, 6, 40), source.integers(0, 2, 40).astype(bool)
    pairs = list(itertools.product(scores[flags].tolist(), scores[~flags].tolist()))
    expected = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
    assert rank_auroc(scores, flags) == pytest.approx(expected, abs=1e-12)
    assert rank_auroc(-scores, flags) == pytest.approx(1 - expected, abs=1e-12)


def test_too_few_images_are_told() -> None:
    with pytest.raises(UserError, match="20 real and 4 synthetic images are too few for 5 folds"):
        auroc(noisy(20, 1), noisy(4, 2))
    with pytest.raises(UserError, match="3 images are flagged and 0 are not"):
        rank_auroc([1, 2, 3], [1, 1, 1])
