"""Synthetic consistency regularisation against loops over its images."""

from __future__ import annotations

import math

import pytest
import torch
import zoo
from torch import Tensor

from semisynth.errors import UserError
from semisynth.methods import SCR
from semisynth.methods.scr import consistency

FEATURES = {
    "random": (zoo.normal(20, 5, 1.0, 0), zoo.normal(20, 5, 3.0, 1)),
    "equal": (zoo.normal(4, 5, 1.0, 0), 7 * zoo.normal(4, 5, 1.0, 0)),
    "opposite": (zoo.normal(4, 5, 1.0, 0), -zoo.normal(4, 5, 1.0, 0)),
    "one image": (zoo.normal(1, 5, 1e-3, 0), zoo.normal(1, 5, 1e3, 1)),
    "nothing": (torch.zeros(3, 5, dtype=torch.float64), zoo.normal(3, 5, 1.0, 1)),
}


def naive_consistency(strong: Tensor, weak: Tensor) -> float:
    def one(a: list[float], b: list[float]) -> float:
        norms = math.hypot(*a) * math.hypot(*b)
        return 1 - (sum(p * q for p, q in zip(a, b, strict=True)) / norms if norms else 0.0)

    return sum(map(one, strong.tolist(), weak.tolist())) / len(strong)


@pytest.mark.parametrize("strong, weak", FEATURES.values(), ids=FEATURES)
def test_consistency_is_that_of_a_loop(strong: Tensor, weak: Tensor) -> None:
    assert consistency(strong, weak).item() == pytest.approx(naive_consistency(strong, weak), abs=1e-12)


@pytest.mark.parametrize("view", ["weak", "strong"])
@pytest.mark.parametrize("m", [1, 7])
def test_scr_is_that_of_a_loop(view: str, m: int) -> None:
    model, data = zoo.network("wrn-group-leaky"), zoo.batch(5, m)
    method = SCR(model, zoo.faint, zoo.mixed, weight=0.6, view=view)
    losses = method.loss(data)
    seen = {"weak": zoo.faint, "strong": zoo.mixed}[view]
    # One image at a time, so that each cross-entropy and cosine is of its own image.
    logits = [model(seen(x[None]))[0].tolist() for x in data.x]
    supervised = map(zoo.cross_entropy, logits, data.y.tolist())
    pairs = [(model.features(zoo.mixed(u[None])), model.features(zoo.faint(u[None]))) for u in data.u]
    assert losses.terms["supervised"].item() == pytest.approx(sum(supervised) / 5, rel=1e-12)
    expected = 0.6 * sum(naive_consistency(*pair) for pair in pairs) / m
    assert losses.terms["consistency"].item() == pytest.approx(expected, rel=1e-11, abs=1e-12)


def test_scr_s_target_is_constant() -> None:
    model = zoo.network("cnn-group-silu")
    data = zoo.batch(4, 5)
    found = torch.autograd.grad(
        SCR(model, zoo.faint, zoo.mixed).loss(data).terms["consistency"], list(model.features.parameters())
    )
    loss = consistency(model.features(zoo.mixed(data.u)), model.features(zoo.faint(data.u)).detach())
    torch.testing.assert_close(found, torch.autograd.grad(loss, list(model.features.parameters())))


def test_a_weight_of_scr_out_of_its_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"weight is -1\.0"):
        SCR(zoo.network("cnn-group-silu"), zoo.WEAK, zoo.STRONG, weight=-1.0)
