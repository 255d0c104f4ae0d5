"""Logits that a test chooses for each view, sums of pseudo-labels by naive loops in plain Python, and their limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
import zoo
from torch import Tensor, nn

from semisynth.method import Batch, Losses, Method

CLASSES = 4
LARGE = 1e300  # stands for infinity where a loop needs a number
INF = math.inf


def rows(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).view(-1, CLASSES)


LOGITS: dict[str, Tensor] = {
    "random": zoo.normal(24, CLASSES, 3.0, 0),
    "none confident": zoo.normal(9, CLASSES, 0.1, 1),
    "all confident": 80 * torch.eye(CLASSES, dtype=torch.float64)[[0, 1, 2, 3, 1]],
    "only classes 1 and 2": zoo.normal(20, CLASSES, 2.0, 2) + rows(-50, 0, 0, -50),
    "a single class": zoo.normal(6, CLASSES, 1.0, 3) + rows(0, 0, 30, 0),
    "one image": zoo.normal(1, CLASSES, 9.0, 4),
    "ties": rows(700, 700, 0, 0, 700, 0, 0, 0, 1, 1, 1, 1, -5, 2, 2, 2),
    "infinite": rows(INF, 0, 0, 0, 0, INF, INF, 0, -INF, 1, 0, 0, *[-INF] * 4, *[INF] * 4, 0, 0, 2, 1),
    "huge": rows(1e300, 0, 0, 0, -1e300, 1e300, 0, 0, 1e200, 1e200, 0, 0, -1e300, -1e300, -1e300, 1),
}
each_logits = pytest.mark.parametrize("weak", LOGITS.values(), ids=LOGITS)


class Columns(nn.Module):
    """Columns `start` to `stop` of images (n, d, 1, 1) or features (n, d), plus a parameter for each, which is zero."""

    def __init__(self, start: int, stop: int, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.start, self.stop, self.shape, self.in_features = start, stop, shape, stop
        self.shift = nn.Parameter(torch.zeros(stop - start, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1)[:, self.start : self.stop] + self.shift
        return logits.unflatten(1, self.shape) if self.shape else logits


class Classifier(nn.Module):
    """Its features are the images themselves, its logits the first of them."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features, self.head = nn.Flatten(), Columns(0, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


@dataclass
class Views:
    """A view that reads another part of each image each time: the parts in turn, of `of`."""

    parts: Sequence[int]
    of: int
    calls: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        part = self.parts[self.calls % len(self.parts)]
        self.calls += 1
        return x.chunk(self.of, 1)[part]


def images(*parts: Tensor) -> Tensor:
    """Images of which `Views` reads these (n, d) parts."""
    return torch.cat(parts, 1)[:, :, None, None]


def commit(method: Method, losses: Losses) -> None:
    """As the engine does."""
    with torch.no_grad():
        for name, value in losses.memory.items():
            method.get_buffer(name).copy_(value)


def gradients(method: Method, losses: Losses) -> list[Tensor]:
    parameters = list(method.updates()["classifier"].module.parameters())
    total = torch.stack(list(losses.terms.values())).sum()
    return list(torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True))


def bounded(logits: Sequence[float]) -> list[float]:
    return [min(max(logit, -LARGE), LARGE) for logit in logits]


def softmax(logits: Sequence[float]) -> list[float]:
    """In plain Python, and its limit for infinite logits."""
    return zoo.softmax(bounded(logits))


def surprise(logits: Sequence[float], c: int) -> float:
    """-log softmax(logits)[c] in plain Python; infinite in the limit."""
    own = bounded(logits)
    found = math.log(sum(math.exp(logit - max(own)) for logit in own)) + (max(own) - own[c])
    return math.inf if any(map(math.isinf, logits)) and found >= LARGE / 2 else found


def cross_entropy(logits: Sequence[float], target: int | Sequence[float]) -> float:
    """H(target, softmax(logits)) for a class or for probabilities."""
    if isinstance(target, int):
        return surprise(logits, target)
    return sum(weight * surprise(logits, c) for c, weight in enumerate(target) if weight)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def is_close(found: Tensor, expected: float, weight: float = 1.0) -> bool:
    """Equal to rounding; a number of the size of the largest ones stands for infinity."""
    value = found.item()
    if math.isinf(expected):
        return not math.isnan(value) and value > LARGE
    return value == pytest.approx(weight * expected, rel=1e-9, abs=1e-12)


def labeled(n: int = 5, classes: int = CLASSES, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits and labels."""
    return zoo.normal(n, classes, scale, 6), torch.arange(n) * 3 % classes


def batch(x: Tensor, y: Tensor, u: Tensor, index: Tensor | None = None, progress: float = 0.5) -> Batch:
    return Batch(x, y, u, torch.arange(len(u)) if index is None else index, progress=progress)


Loss = Callable[[Tensor], float]


def slope(loss: Loss, logits: Tensor, eps: float = 1e-6) -> Tensor:
    """The gradient of a naive loss by central differences."""
    found = torch.zeros_like(logits)
    for position in range(logits.numel()):
        for sign in (1, -1):
            moved = logits.clone().flatten()
            moved[position] += sign * eps
            found.view(-1)[position] += sign * loss(moved.view_as(logits)) / (2 * eps)
    return found
