"""Noise as a pure function of (seed, step, position in the global batch).

Every draw is made on the CPU for the global batch and sliced by rank, so a run gives the same numbers on any device and
on any number of processes, and a resumed run needs no generator state.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from semisynth import distributed

# Thread-local, because the stream draws on its own thread while the step draws on the main one.
_ambient = threading.local()


def derive(*parts: int | str) -> int:
    """A 63-bit seed that is a hash of `parts`: unrelated streams for related names, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextlib.contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Make the draws of this thread a pure function of `parts` (outside, they come from torch's default generator)."""
    previous = _source()
    _ambient.source = torch.Generator().manual_seed(derive(*parts))
    try:
        yield
    finally:
        _ambient.source = previous


def _source() -> torch.Generator | None:
    return getattr(_ambient, "source", None)


def _local(draw: Tensor, like: Tensor | None = None) -> Tensor:
    rows = len(draw) // distributed.world()
    part = draw[distributed.rank() * rows :][:rows]
    return part if like is None else part.to(like.device, like.dtype, non_blocking=True)


def _dtype(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def normal(n: int, *shape: int, like: Tensor) -> Tensor:
    """Standard normal (n, *shape) for this rank's n rows, with the device and dtype of `like`."""
    return _local(torch.randn(n * distributed.world(), *shape, generator=_source(), dtype=_dtype(like)), like)


def uniform(n: int, *shape: int, like: Tensor) -> Tensor:
    """Uniform on [0, 1), otherwise as `normal`."""
    return _local(torch.rand(n * distributed.world(), *shape, generator=_source(), dtype=_dtype(like)), like)


def gumbel(n: int, *shape: int, like: Tensor) -> Tensor:
    """Standard Gumbel noise, otherwise as `normal`."""
    u = torch.rand(n * distributed.world(), *shape, generator=_source(), dtype=torch.float64)
    return _local(-torch.log(-torch.log(u.clamp_min(1e-300))), like)


def integers(high: int, n: int, *shape: int, like: Tensor | None = None) -> Tensor:
    """Uniform integers below `high` (n, *shape), int64, on the device of `like`.

    Without it they stay on the CPU, where they can steer indexing without a sync.
    """
    drawn = _local(torch.randint(high, (n * distributed.world(), *shape), generator=_source()))
    return drawn if like is None else drawn.to(like.device, non_blocking=True)
