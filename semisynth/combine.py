"""How the terms of a loss become one gradient for each parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Parameter

if TYPE_CHECKING:
    from semisynth.method import Losses

Combine = Callable[["Losses", list[Parameter]], list[Tensor]]


def total(losses: Losses, parameters: list[Parameter]) -> list[Tensor]:
    """The gradient of the sum of all terms; zero where a parameter has no part in them."""
    loss = torch.stack(list(losses.terms.values())).sum()
    return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
