"""Entropy minimisation against a loop over its images."""

from __future__ import annotations

import math

import pytest
import torch
import zoo
from torch import Tensor

from semisynth.errors import UserError
from semisynth.method import Batch
from semisynth.methods import Entropy

CLASSES = 4

UNLABELED: dict[str, Tensor] = {
    "random": zoo.normal(20, CLASSES, 2.0, 0),
    "sure": 800 * torch.eye(CLASSES, dtype=torch.float64)[[0, 0, 3]],
    "undecided": torch.zeros(3, CLASSES, dtype=torch.float64),
    "between two": torch.tensor([[9.0, 9.0, -999.0, -999.0]], dtype=torch.float64),
    "one image": zoo.normal(1, CLASSES, 1.0, 1),
}


def naive(logits: Tensor) -> float:
    """The mean entropy; 0 log 0 is 0."""
    total = 0.0
    for row in logits.tolist():
        total -= sum(p * math.log(p) for p in zoo.softmax(row) if p > 0)
    return total / len(logits)


def double(x: Tensor) -> Tensor:
    return 2 * x


@pytest.mark.parametrize("u", UNLABELED.values(), ids=UNLABELED)
@pytest.mark.parametrize("view", ["weak", "strong"])
@pytest.mark.parametrize("unlabeled_view", ["weak", "strong"])
def test_losses_are_those_of_a_loop(u: Tensor, view: str, unlabeled_view: str) -> None:
    labeled, y = zoo.normal(5, CLASSES, 2.0, 2), torch.tensor([1, 1, 0, 3, 1])
    method = Entropy(zoo.Reader(CLASSES), double, torch.sin, weight=0.7, view=view, unlabeled_view=unlabeled_view)
    losses = method.loss(Batch(labeled[:, :, None, None], y, u[:, :, None, None], torch.arange(len(u))))
    views = {"weak": double, "strong": torch.sin}
    supervised = sum(map(zoo.cross_entropy, views[view](labeled).tolist(), y.tolist())) / 5
    assert list(losses.terms) == ["supervised", "entropy"]
    assert losses.terms["supervised"].item() == pytest.approx(supervised, rel=1e-12)
    expected = 0.7 * naive(views[unlabeled_view](u))
    assert losses.terms["entropy"].item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_the_inputs_are_what_their_names_say() -> None:
    assert naive(UNLABELED["sure"]) == 0
    assert naive(UNLABELED["undecided"]) == pytest.approx(math.log(4))
    assert naive(UNLABELED["between two"]) == pytest.approx(math.log(2))


@pytest.mark.parametrize("u", UNLABELED.values(), ids=UNLABELED)
def test_the_gradient_makes_predictions_surer_and_is_finite(u: Tensor) -> None:
    # d H / d logit_k = -p_k (log p_k + H), the gradient through both factors.
    images = u[:, :, None, None].clone().requires_grad_()
    method = Entropy(zoo.Reader(CLASSES), lambda x: x, double, weight=1.0)
    loss = method.loss(Batch(u[:, :, None, None], torch.arange(len(u)) % CLASSES, images, torch.arange(len(u))))
    (gradient,) = torch.autograd.grad(loss.terms["entropy"], images)
    for row, found in zip(u.tolist(), gradient.flatten(1).tolist(), strict=True):
        p = zoo.softmax(row)
        h = -sum(q * math.log(q) for q in p if q > 0)
        expected = [-q * (math.log(q) + h) / len(u) if q > 0 else 0.0 for q in p]
        assert found == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_the_model_is_what_moves() -> None:
    method = Entropy(zoo.network("cnn-batch-relu"), zoo.WEAK, zoo.STRONG)
    assert list(method.updates()) == ["classifier"] and method.updates()["classifier"].module is method.model
    assert all(g.abs().sum() > 0 for g in zoo.gradients(method, "classifier", zoo.batch(6, 9)))


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(UserError, match=r"weight is -0\.1"):
        Entropy(zoo.Reader(CLASSES), double, double, weight=-0.1)
