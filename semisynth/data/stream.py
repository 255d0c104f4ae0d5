"""Batches as a pure function of (seed, step): any step can be made at any time, on any number of ranks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from semisynth import distributed, noise
from semisynth.data.datasets import Images
from semisynth.method import Batch


class Source(Protocol):
    """Unlabeled images by step: (u, index), this rank's part."""

    def __call__(self, step: int, /) -> tuple[Tensor, Tensor]: ...


class Shuffled:
    """Endless shuffled epochs over n items: the items at positions step * batch ... of the global order."""

    def __init__(self, n: int, batch: int, seed: int) -> None:
        self.n, self.batch = n, batch
        self._order = functools.lru_cache(maxsize=8)(functools.partial(_permutation, n, seed))

    def __call__(self, step: int) -> Tensor:
        local = self.batch // distributed.world()
        first = step * self.batch + distributed.rank() * local
        positions = range(first, first + local)
        return torch.tensor([self._order(p // self.n)[p % self.n] for p in positions], dtype=torch.int64)


def _permutation(n: int, seed: int, epoch: int) -> list[int]:
    # RandomState's streams are frozen by NumPy, so the order is the same on every machine and version.
    order: list[int] = np.random.RandomState(noise.derive(seed, "order", epoch) % 2**32).permutation(n).tolist()
    return order


def to_float(images: Tensor) -> Tensor:
    """uint8 -> float in [0, 1]."""
    return images.float() / 255


class Pool:
    """Unlabeled images drawn from a data set that lies on the device as one uint8 tensor."""

    def __init__(self, images: Images, batch: int, seed: int, device: torch.device) -> None:
        self.x = images.x.to(device)
        self.order = Shuffled(len(images), batch, noise.derive(seed, "unlabeled"))

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        index = self.order(step).to(self.x.device, non_blocking=True)
        return to_float(self.x[index]), index


class Synthetic:
    """Unlabeled images sampled from a generator: z ~ N(0, I), foundation classes uniform."""

    def __init__(self, sample: Callable[[int], Tensor], batch: int, seed: int) -> None:
        self.sample, self.batch, self.seed = sample, batch, seed

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), noise.seeded(self.seed, "synthetic", step):
            u = self.sample(self.batch // distributed.world())
        return u, torch.full((len(u),), -1, device=u.device)


class Stream:
    """The batches of a run.

    labeled: its images and labels; unlabeled: a source of u or None; batch: labeled images of the global batch, which
    repeat when there are fewer; steps: the length of the run, for `progress`.
    """

    def __init__(
        self, labeled: Images, unlabeled: Source | None, *, batch: int, steps: int, seed: int, device: torch.device
    ) -> None:
        self.x, self.y = labeled.x.to(device), labeled.y.to(device)
        self.unlabeled, self.steps = unlabeled, steps
        self.order = Shuffled(len(labeled), batch, noise.derive(seed, "labeled"))

    def __call__(self, step: int) -> Batch:
        """The batch of `step`, a pure function of (seed, step)."""
        index = self.order(step).to(self.x.device, non_blocking=True)
        x = to_float(self.x[index])
        u, unlabeled = (x[:0], index[:0]) if self.unlabeled is None else self.unlabeled(step)
        return Batch(x, self.y[index], u, unlabeled, step, step / self.steps)
