from __future__ import annotations

import torch
from torch.nn import Parameter

from semisynth.combine import total
from semisynth.method import Losses


def test_total_is_the_gradient_of_the_sum_of_the_terms_alone() -> None:
    a, b = Parameter(torch.tensor([1.0, 2.0])), Parameter(torch.tensor(3.0))
    losses = Losses({"one": a.square().sum(), "two": b * a[0]}, {"logged": 100 * a.sum() * b})
    found = total(losses, [a, b])
    assert found[0].tolist() == [2 * 1 + 3, 2 * 2] and found[1].item() == 1
    assert a.grad is None and b.grad is None


def test_total_is_zero_for_a_parameter_without_a_part() -> None:
    a, b = Parameter(torch.ones(2)), Parameter(torch.ones(2, 3))
    found = total(Losses({"one": a.sum()}), [b, a])
    assert found[0].equal(torch.zeros(2, 3)) and found[1].equal(torch.ones(2))
