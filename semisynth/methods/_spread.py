"""How unlabeled images lie about the means of their classes, as a method remembers it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth.methods._targets import moved

DECAY = 0.99  # of the averages, after a warm-up
SHRINK = 0.1  # of the mean variance, added to the variance in every direction
Buffers = Mapping[str, Tensor]


class Spread(nn.Module):
    """Averages over recent steps, of values (m, d): of each class its `weight` and the `total` of its values, and of
    all the `square` of what lies between a value and the mean of its class."""

    def __init__(self, classes: int, d: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(classes))
        self.register_buffer("total", torch.zeros(classes, d))
        self.register_buffer("square", torch.zeros(d, d))

    def after(self, values: Tensor, target: Tensor, step: int) -> dict[str, Tensor]:
        """The buffers after values (m, d) of classes (m,), which must be those of all ranks."""
        before = dict(self.named_buffers())
        decay = min(DECAY, step / (10 + step))  # nothing is left of the zeros that they start from
        member = F.one_hot(target, len(before["weight"])).to(values.dtype)
        with torch.autocast(values.device.type, enabled=False):
            now = {"weight": member.mean(0), "total": member.T @ values / len(values)}
            after = {name: moved(before[name], value, decay) for name, value in now.items()}
            rest = values - means(after)[target]
            return after | {"square": moved(before["square"], rest.T @ rest / len(rest), decay)}


def means(spread: Buffers) -> Tensor:
    """The mean of each class (classes, d), zero for one that never came."""
    return spread["total"] / spread["weight"].clamp_min(1e-6)[:, None]


def distance(spread: Buffers, values: Tensor, target: Tensor, part: Tensor) -> Tensor:
    """log of (v - mean)' S^-1 (v - mean) / d, a Mahalanobis distance, of values (n, d) of classes (n,): (n,).

    S is the spread about the means of the classes, the same for all of them. part (n,): which part of the averages is
    this value itself, one over their number, and zero if none is; that part is left out of both. With it, what they
    were fitted to would look more typical than what is new.
    """
    square = spread["square"]
    others = 1 - (part / spread["weight"][target].clamp_min(1e-6)).clamp_max(0.5)  # of the mean of the class
    rest = (values - means(spread)[target]) / others[:, None]
    d = len(square)
    level = square.diagonal().mean().clamp_min(1e-6)
    with torch.autocast(values.device.type, enabled=False):
        wide = square + SHRINK * level * torch.eye(d, dtype=square.dtype, device=square.device)
        root = torch.linalg.cholesky_ex(wide)[0]  # does not wait for the device, and `wide` is positive definite
        white = torch.linalg.solve_triangular(root, rest.T, upper=False).square().sum(0)
    left_out = white / (1 - part * others * white).clamp_min(0.1)  # Sherman and Morrison, for S without part of it
    found: Tensor = (left_out / d).clamp_min(1e-6).log()
    return found
