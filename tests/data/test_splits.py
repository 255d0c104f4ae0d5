from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from semisynth.data.splits import draw_labels, stratified
from semisynth.errors import UserError

UNEVEN = torch.from_numpy(np.random.RandomState(0).permutation(np.repeat(range(4), [50, 30, 17, 3])))


def fingerprint(*parts: Tensor) -> str:
    return hashlib.sha256(b"|".join(part.numpy().astype("<i8").tobytes() for part in parts)).hexdigest()[:16]


def test_split_of_digits_is_the_same_on_every_machine():
    parts = stratified(torch.from_numpy(load_digits().target), [500, 300], seed=0)
    assert fingerprint(*parts) == "71592ea9a7b203cf"


def test_drawn_labels_are_the_same_on_every_machine():
    assert fingerprint(*draw_labels(torch.arange(997) % 10, 2, seed=100)) == "810c808cf3b8a0af"


@pytest.mark.parametrize("sizes", [[20, 30], [1, 2, 3], [100], [0, 7], []])
def test_parts_are_disjoint_cover_everything_and_have_their_sizes(sizes):
    parts = stratified(UNEVEN, sizes, seed=1)
    assert [len(part) for part in parts] == [*sizes, 100 - sum(sizes)]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(100))
    assert all(torch.equal(part, part.sort().values) and part.dtype == torch.int64 for part in parts)


@pytest.mark.parametrize("seed", range(5))
def test_parts_keep_the_class_proportions_within_one_image(seed):
    for size in range(1, 100):
        part = stratified(UNEVEN, [size], seed)[0]
        quota = UNEVEN.bincount() * (size / 100)
        assert (UNEVEN[part].bincount(minlength=4) - quota).abs().max() < 1


def test_split_is_drawn_by_the_seed():
    first, again, other = (stratified(UNEVEN, [40], seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("sizes", [[60, 41], [-1]])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(UserError, match=r"cannot split 100 images into sizes \[.*give sizes of at least 0 that sum"):
        stratified(UNEVEN, sizes, seed=0)


@pytest.mark.parametrize("per_class", [1, 2, 3])
def test_labels_are_balanced_and_the_rest_remains(per_class):
    labeled, rest = draw_labels(UNEVEN, per_class, seed=3)
    assert UNEVEN[labeled].bincount().tolist() == [per_class] * 4
    assert torch.equal(torch.cat([labeled, rest]).sort().values, torch.arange(100))
    assert all(torch.equal(part, part.sort().values) and part.dtype == torch.int64 for part in (labeled, rest))


def test_labels_of_different_seeds_are_independent():
    y = torch.arange(1000) % 10
    draws = [set(draw_labels(y, 10, seed)[0].tolist()) for seed in range(40)]
    assert draws[0] == set(draw_labels(y, 10, 0)[0].tolist())
    overlap = np.mean([len(a & b) for i, a in enumerate(draws) for b in draws[:i]])
    assert overlap == pytest.approx(10, abs=0.5)  # of 100: a tenth of each class is drawn
    assert len(set().union(*draws)) > 970  # 1000 (1 - 0.9^40) = 985 expected


def test_too_many_labels_names_the_class_and_its_count():
    with pytest.raises(UserError, match="labels_per_class is 4, but class 3 has only 3 images: give at most 3"):
        draw_labels(UNEVEN, 4, seed=0)


def test_too_few_labels_are_refused():
    with pytest.raises(UserError, match="labels_per_class is 0: give at least 1"):
        draw_labels(UNEVEN, 0, seed=0)


def test_global_random_state_is_left_alone():
    np.random.seed(7)
    stratified(UNEVEN, [10], seed=0)
    draw_labels(UNEVEN, 1, seed=0)
    assert np.random.random_sample() == np.random.RandomState(7).random_sample()


def test_weights_are_what_each_takes_of_a_size():
    y = torch.tensor([0] * 20 + [1] * 20)
    weights = torch.tensor(([1] * 10 + [2] * 5 + [30] * 5) * 2)
    part, rest = stratified(y, [20], 0, weights)
    assert weights[part].sum() == 20 and 30 not in weights[part] and weights[part][y[part] == 0].sum() == 10
    assert sorted([*part.tolist(), *rest.tolist()]) == list(range(40))
    assert [p.tolist() for p in stratified(y, [7, 9], 3, torch.ones_like(y))] == [
        p.tolist() for p in stratified(y, [7, 9], 3)
    ]
    uneven, _ = stratified(y, [20], 0, torch.where(y == 0, 3, 1))
    assert y[uneven].bincount().tolist() == [5, 5]
    heavy, _ = stratified(y, [10], 0, torch.full_like(y, 9))
    assert len(heavy) == 0
