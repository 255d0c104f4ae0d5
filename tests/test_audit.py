"""The statistics of an audit: its features against definitions, and findings where the truth is known."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
import torch

from semisynth import audit
from semisynth.audit import measure
from semisynth.data import datasets
from semisynth.errors import UserError
from semisynth.separable import rank_auroc


def measures(real: int, synthetic: int, seed: int = 0) -> np.ndarray:
    """Measures of real images and, after them, of synthetic ones, which are nearer to one another and less sharp."""
    random = np.random.RandomState(seed)
    one, other = random.randn(real, 17), random.randn(synthetic, 17)
    other[:, :-1] *= 0.6
    other[:, -1] -= 1.0
    return np.concatenate([one, other]).astype(np.float32)


# ---- features --------------------------------------------------------------------------------------------------------


def test_a_measure_is_a_small_copy_and_the_share_of_high_frequencies() -> None:
    x = torch.randint(256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = measure([x[:1], x[1:]])
    assert found.shape == (2, 3 * 64 + 1)
    np.testing.assert_allclose(found[:, :-1], x.flatten(1) / 255, atol=1e-6)
    for image, last in zip((x / 255).tolist(), found[:, -1], strict=True):
        power = {"high": 0.0, "all": 0.0}
        for u in range(-4, 4):
            for v in range(-4, 4):
                for plane in image if u or v else ():
                    turns = [cmath.exp(-2j * cmath.pi * (u * i + v * j) / 8) for i in range(8) for j in range(8)]
                    pixels = [pixel for line in plane for pixel in line]
                    value = sum(p * turn for p, turn in zip(pixels, turns, strict=True)) / 8
                    power["all"] += abs(value) ** 2 / 3
                    power["high"] += (math.hypot(u, v) / 8 > 3 / 16) * abs(value) ** 2 / 3
        assert math.isclose(last, math.log((power["high"] + 1e-6) / (power["all"] + 1e-6)), rel_tol=1e-3)


def test_a_constant_image_has_no_frequency_and_larger_images_are_made_small() -> None:
    found = measure([torch.full((1, 1, 40, 24), 51, dtype=torch.uint8)])
    np.testing.assert_allclose(found[0], [0.2] * 64 + [0.0], atol=1e-5)


def one_class(n: int) -> np.ndarray:
    return np.zeros(n, np.int64)


def test_features_leave_an_image_itself_out_and_know_nothing_of_labels() -> None:
    seen = measures(40, 20)
    features = audit._Features(seen, one_class(40))
    inside = features(seen, inside=True)
    np.testing.assert_allclose(inside.mean(0), 0, atol=0.05)
    point = features._point(seen)
    apart = np.sort(np.linalg.norm(point[:, None] - point, axis=2))
    near = np.log(apart[:, 1:3].mean(1) + 1e-3)
    expected = np.clip((near - near.mean()) / near.std(), -4, 4)
    np.testing.assert_allclose(inside[:, 0], expected, atol=1e-5)
    order = np.random.RandomState(1).permutation(60)
    np.testing.assert_allclose(
        audit._Features(seen[order], one_class(40))(seen[order], inside=True), inside[order], atol=1e-6
    )
    outside = features(seen, inside=False)
    assert (outside[:, 0] < inside[:, 0]).all() and np.allclose(outside[:, 1], inside[:, 1])


def test_an_image_is_of_the_class_of_the_nearest_labeled_one_and_compared_with_its_like() -> None:
    seen = measures(200, 0)
    seen[::2, :8] += 20  # two classes, far apart, of which one is of blurred images
    seen[1::2, 8:16] += 20
    seen[::2, -1] -= 5
    features = audit._Features(seen, np.where(np.arange(50) % 2 == 0, 7, 3))
    kinds = features.kinds(seen, inside=True)
    assert kinds.tolist() == [1, 0] * 100 and features.kinds(seen[60:], inside=False).tolist() == [1, 0] * 70
    f = features(seen, inside=True)
    assert abs(f[::2].mean(0) - f[1::2].mean(0)).max() < 0.6 and 0.5 < f[::2].std(0).min() < f[::2].std(0).max() < 1.2
    seen[:100, :-1] = 0.01 * seen[:100, :-1] - 30  # brightness and contrast are nothing to go by
    assert features.kinds(seen, inside=False).tolist() == [1, 0] * 100
    alone = audit._Features(seen, np.array([3] * 49 + [7]))  # its nearest labeled image is not itself
    assert alone.kinds(seen, inside=True)[49] == 0


# ---- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_the_interval_holds_the_share_and_the_suspicion_is_calibrated(share: float) -> None:
    real, count = 60, round(400 * share)
    images = measures(real + 400 - count, count)
    found = audit.audit(images[:real], images[real:])
    truth = np.arange(400) >= 400 - count
    low, high = found.interval
    assert 0.05 < low <= share <= high and high - low < 0.7 and low <= found.share <= high and found.p <= 0.025
    assert rank_auroc(found.suspicion, truth) > 0.9 and (found.evidence.argsort() == found.suspicion.argsort()).all()
    assert abs(found.suspicion.mean() - found.share) < 0.06 and abs(found.share - share) < 0.15
    again = audit.audit(images[:real], images[real:])
    assert (again.suspicion == found.suspicion).all() and again.interval == found.interval


def test_nothing_is_found_where_nothing_is() -> None:
    images = measures(360, 0)
    found = audit.audit(images[:60], images[60:])
    assert found.share == 0 and found.interval[0] == 0 and 0 < found.interval[1] < 0.8 and found.p > 0.025
    assert (found.suspicion == 0).all() and len(set(found.evidence)) == 300


@pytest.mark.parametrize("kinds", [1, 4])
def test_the_p_of_a_clean_pool_is_uniform(kinds: int) -> None:
    ps = []
    for seed in range(60):
        f = np.random.RandomState(seed).standard_gamma(2, (120, 2))
        ps += [audit._test(f, np.arange(120) % kinds, 30, 0.7, np.random.RandomState(seed))]
    counts = np.histogram(ps, [0, 0.05, 0.5, 1])[0]
    assert counts[0] <= 8 and 18 <= counts[2] <= 42


def test_images_are_permuted_within_their_kind() -> None:
    kinds, ps = np.r_[np.ones(60, np.int64), np.zeros(140, np.int64)], []
    for seed in range(30):  # the first 50 are nearly all of the kind that spreads the most
        random = np.random.RandomState(seed)
        f = np.where(kinds[:, None] == 1, 2.0, 0.3) * random.randn(200, 2)
        ps += [audit._test(f, kinds, 50, 0.7, random)]
    assert 0.2 < np.mean(ps) < 0.8 and sum(p <= 0.025 for p in ps) <= 2
    f[:, 0] += 5.0 * kinds  # another mean is nothing either, unless it is not known to be the kind's
    assert audit._test(f, kinds, 50, 0.7, np.random.RandomState(0)) > 0.03
    assert audit._test(f, 0 * kinds, 50, 0.7, np.random.RandomState(0)) == 0.001


def test_an_assumption_of_better_detection_makes_the_upper_end_lower() -> None:
    images = measures(360, 0)
    ends = [audit.audit(images[:60], images[60:], detectable).interval[1] for detectable in (0.6, 0.8)]
    assert ends[1] < ends[0] - 0.1


def test_of_a_large_pool_a_part_is_looked_at_and_all_are_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MOST", 250)
    images = measures(60 + 200, 200)
    found = audit.audit(images[:60], images[60:])
    assert found.interval[0] <= 0.5 <= found.interval[1]
    assert rank_auroc(found.suspicion, np.arange(400) >= 200) > 0.85


# ---- coverage, and where it ends -------------------------------------------------------------------------------------


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Measures and classes of real digits."""
    data = datasets.load("digits-pool")
    return measure(data.pool.batches(1000)), data.pool.y.numpy()


def drawn(random: np.random.RandomState, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ten of each class, and all others."""
    labeled = np.concatenate([random.permutation(np.flatnonzero(y == c))[:10] for c in range(10)])
    return labeled, np.setdiff1d(np.arange(len(y)), labeled)


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
def test_of_twenty_intervals_nineteen_hold_the_share(share: float) -> None:
    held = found = 0
    for seed in range(20):
        count = round(300 * share)
        images = measures(360 - count, count, seed)
        finding = audit.audit(images[:60], images[60:])
        held += finding.interval[0] <= share <= finding.interval[1]
        found += finding.share > 0
    assert held >= 19 and (found <= 2 if share == 0 else found >= 19)


def test_of_clean_pools_few_are_suspected() -> None:
    x, y = digits()
    parts = [drawn(np.random.RandomState(seed), y) for seed in range(10)]
    assert sum(audit.audit(x[real], x[others], classes=y[real]).share > 0 for real, others in parts) <= 1


def test_classes_may_be_less_balanced_than_the_labeled_images_if_these_tell_them() -> None:
    x, y = digits()
    found = {"classes": 0, "none": 0}
    for seed in range(6):
        random = np.random.RandomState(seed)
        labeled, others = drawn(random, y)
        tail = x[others[random.rand(len(others)) < (0.5 ** y[others]).clip(0.03)]]
        found["classes"] += audit.audit(x[labeled], tail, classes=y[labeled]).share > 0
        found["none"] += audit.audit(x[labeled], tail).share > 0
    assert found["classes"] <= 3 and found["none"] == 6  # of pools that are all real: a known limit


def test_a_known_limit_of_two_kinds_that_differ_in_opposite_ways_the_upper_end_is_too_low() -> None:
    below = above = 0
    for seed in range(6):
        images = measures(160, 0, seed)
        near, far = measures(0, 120, 100 + seed), measures(120, 0, 200 + seed)
        far *= 1.6
        far[:, -1] += 1.0
        low, high = audit.audit(images[:60], np.concatenate([images[60:], near, far])).interval
        below += low <= 240 / 340
        above += high >= 240 / 340
    assert below == 6 and above <= 3


@pytest.mark.parametrize(
    "real, pool, detectable, message",
    [
        (
            19,
            60,
            0.7,
            "there are 19 of the real labeled images to compare, copies left out: an audit needs 20 at least",
        ),
        (20, 49, 0.7, "there are 49 of the pool's images to compare, copies left out: an audit needs 50 at least"),
        (20, 60, 0.5, "detectable is 0.5: give a number from 0.55 to 0.95"),
    ],
)
def test_mistakes(real: int, pool: int, detectable: float, message: str) -> None:
    images = measures(real + pool, 0)
    with pytest.raises(UserError, match=message):
        audit.audit(images[:real], images[real:], detectable)
