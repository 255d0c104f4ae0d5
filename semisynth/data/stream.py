"""Batches as a pure function of (seed, step): any step can be made at any time, on any number of ranks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from semisynth import distributed, noise
from semisynth.data.datasets import Images
from semisynth.method import Batch

if TYPE_CHECKING:
    from semisynth.data.stored import Stored

ON_DEVICE = 2**31  # bytes of stored images up to which a device holds them
BLOCK = 1000  # images that are brought there at a time


class Source(Protocol):
    """Unlabeled images by step: (u, index), this rank's part."""

    def __call__(self, step: int, /) -> tuple[Tensor, Tensor]: ...


class Shuffled:
    """Endless shuffled epochs over n items: the items at positions step * batch ... of the global order."""

    def __init__(self, n: int, batch: int, seed: int) -> None:
        self.n, self.batch = n, batch
        self._order = functools.lru_cache(maxsize=2)(functools.partial(_permutation, n, seed))

    def __call__(self, step: int) -> Tensor:
        local = self.batch // distributed.world()
        first = step * self.batch + distributed.rank() * local
        epochs = range(first // self.n, (first + local - 1) // self.n + 1)
        parts = [
            self._order(epoch)[max(first - epoch * self.n, 0) : first + local - epoch * self.n] for epoch in epochs
        ]
        return torch.from_numpy(np.concatenate(parts))


def _permutation(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    # RandomState's streams are frozen by NumPy, so the order is the same on every machine and version.
    return np.random.RandomState(noise.derive(seed, "order", epoch) % 2**32).permutation(n).astype(np.int64, copy=False)


def to_float(images: Tensor) -> Tensor:
    """uint8 -> float in [0, 1]; what is float already stays as it is."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


class Placed:
    """Images x on the device as one tensor; those that stay in their file are brought there row by row."""

    def __init__(self, x: Tensor | Stored, device: torch.device) -> None:
        if not isinstance(x, Tensor) and device.type != "cpu" and math.prod(x.shape) * x.dtype.itemsize <= ON_DEVICE:
            x = whole(x, device)  # a copy from the host, each step, may wait for the device's work
        self.x, self.device = x.to(device) if isinstance(x, Tensor) else x, device

    def __call__(self, index: Tensor) -> Tensor:
        """Float images on the device at an index (m,) on the CPU."""
        rows = self.x[index.to(self.x.device, non_blocking=True)]
        return to_float(rows.to(self.device, non_blocking=True))


def whole(x: Stored, device: torch.device) -> Tensor:
    """All images of a file on the device; the host holds a few at a time."""
    held = torch.empty(x.shape, dtype=x.dtype, device=device)
    for part, rows in zip(held.split(BLOCK), torch.arange(len(x)).split(BLOCK), strict=True):
        part.copy_(x[rows])
    return held


class Pool:
    """Unlabeled images drawn from a data set."""

    def __init__(self, images: Images, batch: int, seed: int, device: torch.device) -> None:
        self.x = Placed(images.x, device)
        self.order = Shuffled(len(images), batch, noise.derive(seed, "unlabeled"))

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        index = self.order(step)
        return self.x(index), index.to(self.x.device, non_blocking=True)


class Synthetic:
    """Unlabeled images sampled from a generator: z ~ N(0, I), foundation classes uniform."""

    def __init__(self, sample: Callable[[int], Tensor], batch: int, seed: int) -> None:
        self.sample, self.batch, self.seed = sample, batch, seed

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), noise.seeded(self.seed, "synthetic", step):
            u = self.sample(self.batch // distributed.world())
        return u, torch.full((len(u),), -1, device=u.device)


class Both:
    """Unlabeled images of two sources, each of half the batch, in turn: so each rank has both, and the same rows."""

    def __init__(self, pool: Source, synthetic: Source) -> None:
        self.sources = pool, synthetic

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        images, index = zip(*(source(step) for source in self.sources), strict=True)
        return torch.stack(images, 1).flatten(0, 1), torch.stack(index, 1).flatten()


class Stream:
    """The batches of a run.

    labeled: its images and labels, perhaps none; unlabeled: a source of u or None; batch: labeled images of the global
    batch, which repeat when there are fewer; steps: the length of the run, for `progress`.
    """

    def __init__(
        self, labeled: Images, unlabeled: Source | None, *, batch: int, steps: int, seed: int, device: torch.device
    ) -> None:
        self.x, self.y = Placed(labeled.x, device), labeled.y.to(device)
        self.unlabeled, self.steps = unlabeled, steps
        self.order = Shuffled(len(labeled), batch, noise.derive(seed, "labeled")) if len(labeled) else None

    def __call__(self, step: int) -> Batch:
        """The batch of `step`, a pure function of (seed, step)."""
        index = self.order(step) if self.order else torch.arange(0)
        x, index = self.x(index), index.to(self.x.device, non_blocking=True)
        u, unlabeled = (x[:0], index[:0]) if self.unlabeled is None else self.unlabeled(step)
        return Batch(x, self.y[index], u, unlabeled, step, step / self.steps)
