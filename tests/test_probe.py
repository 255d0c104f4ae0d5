"""Probes of features against scikit-learn by hand, the conditions of an optimum and naive loops; what selects."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from semisynth import probe
from semisynth.probe import Labeled, linear, logistic, nearest, neighbours, select

CLASSES, D = 4, 6


def labeled(n: int, seed: int, noise: float = 1.0) -> Labeled:
    """Features of very different scales around a mean of each class."""
    source = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(CLASSES, D, generator=torch.Generator().manual_seed(99))
    y = torch.randint(CLASSES, (n,), generator=source)
    x = means[y] + noise * torch.randn(n, D, generator=source)
    return Labeled(5 + x * 10.0 ** torch.arange(-2, D - 2), y)


TRAIN, VALIDATION, TEST, POOL = labeled(40, 0, 3), labeled(60, 1, 3), labeled(70, 2, 3), labeled(200, 3, 3)


def test_a_logistic_regression_is_at_the_optimum_of_what_it_is_said_to_minimise() -> None:
    x, y = TRAIN.x.double(), TRAIN.y
    x = (x - x.mean(0)) / x.std(0)
    for l2 in (1.0, 0.01):
        model = LogisticRegression(C=1 / (l2 * len(x)), max_iter=10_000, tol=1e-9).fit(x.numpy(), y.numpy())
        w, b = (torch.tensor(part, requires_grad=True) for part in (model.coef_, model.intercept_))
        objective = F.cross_entropy(x @ w.T + b, y) + l2 / 2 * w.square().sum()
        slopes = torch.autograd.grad(objective, [w, b])
        assert max(slope.abs().max().item() for slope in slopes) < 1e-6
        fresh = torch.randn(500, D, dtype=torch.float64)
        agreed = logistic(Labeled(x, y), l2)(fresh) == (fresh @ w.T + b).argmax(1)
        assert agreed.double().mean() > 0.99


def test_a_linear_probe_is_scikit_learns_on_standardised_features() -> None:
    scaler = StandardScaler().fit(POOL.x.double().numpy())
    x, v, t = (scaler.transform(part.x.double().numpy()) for part in (TRAIN, VALIDATION, TEST))
    scores, tests = [], []
    for l2 in probe.L2:
        model = LogisticRegression(C=1 / (l2 * len(x)), max_iter=probe.ITERATIONS).fit(x, TRAIN.y.numpy())
        scores.append(model.score(v, VALIDATION.y.numpy()))
        tests.append(model.score(t, TEST.y.numpy()))
    best = int(np.argmax(scores))  # the first of equals, and so the strongest penalty
    assert len({*tests}) > 1 and 0 < best < len(scores) - 1
    found = linear(TRAIN, VALIDATION, TEST, POOL.x)
    assert found == probe.Chosen(probe.L2[best], pytest.approx(scores[best]), pytest.approx(tests[best]))


def test_features_that_are_constant_over_the_pool_do_no_harm() -> None:
    def padded(part: Labeled) -> Labeled:
        return Labeled(torch.cat([part.x, torch.full((len(part.x), 1), 3.0)], 1), part.y)

    same = linear(*map(padded, (TRAIN, VALIDATION, TEST)), pool=padded(POOL).x)
    assert same == linear(TRAIN, VALIDATION, TEST, POOL.x)


def test_what_has_not_converged_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "ITERATIONS", 1)
    assert 0 <= linear(TRAIN, VALIDATION, TEST, POOL.x).test <= 1


def naive(train: Labeled, x: Tensor, k: int) -> list[int]:
    """Votes of neighbours in plain Python."""

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(p * q for p, q in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    found = []
    for row in x.tolist():
        near = [(cosine(row, other), y) for other, y in zip(train.x.tolist(), train.y.tolist(), strict=True)]
        votes: dict[int, float] = defaultdict(float)
        for similarity, y in sorted(near, reverse=True)[:k]:
            votes[y] += math.exp(similarity / 0.07)
        found.append(max(votes, key=lambda y: votes[y]))
    return found


@pytest.mark.parametrize("k", [1, 3, 40])
def test_neighbours_vote_as_in_a_naive_loop(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "TOGETHER", 16)  # which must not matter
    train, x = (torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in (40, 50))
    known = Labeled(train * torch.rand(40, 1) * 9, torch.arange(40) % 3)
    expected = naive(known, x, k)
    assert len({*expected}) == 3
    assert nearest(known, k)(x).tolist() == expected


def test_k_is_the_best_on_validation_among_those_that_there_are_images_for() -> None:
    known = Labeled(torch.randn(12, 5), torch.arange(12) % 2)
    validation, test = (Labeled(torch.randn(31, 5), torch.randint(2, (31,))) for _ in range(2))
    scores = {}
    for k in (1, 5, 10):
        right = [a == b for a, b in zip(naive(known, validation.x, k), validation.y.tolist(), strict=True)]
        scores[k] = sum(right) / 31
    best = max(scores, key=lambda k: scores[k])
    assert len({*scores.values()}) > 1
    right = [a == b for a, b in zip(naive(known, test.x, best), test.y.tolist(), strict=True)]
    found = neighbours(known, validation, test)
    assert (found.value, found.validation, found.test) == (best, pytest.approx(scores[best]), sum(right) / 31)


def test_the_first_of_equals_is_chosen_and_it_alone_sees_the_test_images() -> None:
    asked = []

    def answering(name: str, answers: list[int]):  # type: ignore[no-untyped-def]
        def classify(x: Tensor) -> Tensor:
            asked.append((name, len(x)))
            return torch.tensor(answers)[: len(x)]

        return classify

    validation = Labeled(torch.zeros(2, 1), torch.tensor([0, 1]))
    test = Labeled(torch.zeros(3, 1), torch.tensor([0, 0, 0]))
    candidates = [(1.0, "a", [1, 1, 1]), (2.0, "b", [0, 1, 0]), (3.0, "c", [0, 1, 1])]
    found = select([(value, answering(name, answers)) for value, name, answers in candidates], validation, test)
    assert (found.value, found.validation, found.test) == (2.0, 1.0, pytest.approx(2 / 3))
    assert asked == [("a", 2), ("b", 2), ("c", 2), ("b", 3)]


def test_labels_of_the_test_images_select_nothing_and_those_of_validation_do() -> None:
    shuffled = [Labeled(part.x, part.y[torch.randperm(len(part.y))]) for part in (VALIDATION, TEST)]
    for chosen in (lambda v, t: linear(TRAIN, v, t, POOL.x), lambda v, t: neighbours(TRAIN, v, t)):
        first, other = chosen(VALIDATION, TEST), chosen(VALIDATION, shuffled[1])
        assert (first.value, first.validation) == (other.value, other.validation) and first.test != other.test
        assert chosen(shuffled[0], TEST).validation != first.validation
