"""Small networks, generators, images and views, all in float64; and ranks that are threads of one process."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from semisynth import distributed
from semisynth.augment import Strong, Weak
from semisynth.generators import Generator
from semisynth.generators.gan import ConditionalGenerator
from semisynth.method import Batch, Method
from semisynth.models import Classifier, small_cnn, wrn
from semisynth.models.wrn import leaky

SHAPE, CLASSES, FOUNDATION, LATENT = (1, 8, 8), 3, 4, 3

NETWORKS: dict[str, Callable[[], Classifier]] = {
    "cnn-group-relu": lambda: small_cnn(1, CLASSES, width=8),
    "cnn-batch-relu": lambda: small_cnn(1, CLASSES, width=8, norm_kind="batch"),
    "wrn-group-leaky": lambda: wrn(10, 1, 1, CLASSES, activation=leaky),
    "wrn-batch-leaky": lambda: wrn(10, 1, 1, CLASSES, norm_kind="batch", activation=leaky),
    "cnn-group-silu": lambda: small_cnn(1, CLASSES, width=8, activation=nn.SiLU),
    "cnn-batch-silu": lambda: small_cnn(1, CLASSES, width=8, norm_kind="batch", activation=nn.SiLU),
    "wrn-group-silu": lambda: wrn(10, 1, 1, CLASSES, activation=nn.SiLU),
    "wrn-batch-silu": lambda: wrn(10, 1, 1, CLASSES, norm_kind="batch", activation=nn.SiLU),
}
SMOOTH = [name for name in NETWORKS if name.endswith("silu")]
BATCHNORM = [name for name in NETWORKS if "batch" in name]
WEAK, STRONG = Weak(flip=True), Strong(flip=True)


class Unconditional(Generator):
    """Images from z alone."""

    latent_shape, classes = (LATENT, 2), 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2 * LATENT, 64)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is None
        return torch.sigmoid(self.layer(z.flatten(1))).view(-1, *SHAPE)


GENERATORS: dict[str, Callable[[], Generator]] = {
    "conditional": lambda: ConditionalGenerator(SHAPE, FOUNDATION, LATENT, width=8),
    "unconditional": Unconditional,
}


class Reader(nn.Module):
    """Logits or features that a test can choose: images (n, d, 1, 1) times a matrix, which starts as the identity."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(d, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix


def source() -> Classifier:
    """Reads images as the generator's classes, and is far from uniform."""
    made = small_cnn(1, FOUNDATION, width=8, activation=nn.SiLU).double()
    nn.init.normal_(made.head.weight, std=2.0)
    return made


def network(name: str) -> Classifier:
    return NETWORKS[name]().double()


def generator(name: str = "conditional") -> Generator:
    return GENERATORS[name]().double()


def batch(n: int = 6, m: int = 0, classes: int = CLASSES, step: int = 0, progress: float = 0.0) -> Batch:
    """Noisy strokes, a position for each class."""
    y = torch.arange(n + m) % classes
    source = torch.Generator().manual_seed(step)
    x = 0.3 * torch.rand(n + m, *SHAPE, generator=source, dtype=torch.float64)
    for image, label in zip(x, y.tolist(), strict=True):
        image[0, 1:-1, 2 * label : 2 * label + 2] += 0.6
    return Batch(x[:n], y[:n], x[n:], torch.arange(m), step, progress)


def normal(n: int, d: int, scale: float, seed: int) -> Tensor:
    """Random logits or features (n, d)."""
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(logits: list[float]) -> list[float]:
    """In plain Python."""
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers]


def cross_entropy(logits: list[float], y: int) -> float:
    """-log softmax(logits)[y], in plain Python."""
    return max(logits) + math.log(sum(math.exp(logit - max(logits)) for logit in logits)) - logits[y]


def faint(x: Tensor) -> Tensor:
    """A weak view for finite differences: smooth, and without draws."""
    return 0.1 + 0.8 * x


def mixed(x: Tensor) -> Tensor:
    """A strong view for finite differences."""
    return torch.sin(2 * x + x.roll((1, 3), (2, 3))).square()


def gradients(method: Method, name: str, batch: Batch) -> list[Tensor]:
    """What the engine would apply to the parameters of this update."""
    update = method.updates()[name]
    return update.combine(update.loss(batch), list(update.module.parameters())).gradients


class _Threads:
    """The part of `torch.distributed` that semisynth calls, between threads."""

    def __init__(self, world: int) -> None:
        self.world, self.own = world, threading.local()
        self.barrier, self.slots = threading.Barrier(world, timeout=60), [torch.empty(0)] * world

    def is_initialized(self) -> bool:
        return True

    def get_rank(self) -> int:
        return self.own.rank

    def get_world_size(self) -> int:
        return self.world

    def _exchange(self, tensor: Tensor) -> list[Tensor]:
        self.slots[self.own.rank] = tensor.clone()
        self.barrier.wait()
        every = list(self.slots)
        self.barrier.wait()
        return every

    def all_reduce(self, tensor: Tensor) -> None:
        tensor.copy_(torch.stack(self._exchange(tensor)).sum(0))

    def all_gather(self, parts: list[Tensor], tensor: Tensor) -> None:
        for part, other in zip(parts, self._exchange(tensor), strict=True):
            part.copy_(other)


T = TypeVar("T")


def on_ranks(monkeypatch: pytest.MonkeyPatch, world: int, body: Callable[[int], T]) -> list[T]:
    """`body(rank)` of every rank, run together; as on real ranks, each needs modules of its own."""
    threads = _Threads(world)

    def run(rank: int) -> T:
        threads.own.rank = rank
        try:
            return body(rank)
        except BaseException:
            threads.barrier.abort()
            raise

    with monkeypatch.context() as patch, ThreadPoolExecutor(world) as pool:
        patch.setattr(distributed, "dist", threads)
        futures = [pool.submit(run, rank) for rank in range(world)]
        errors = [error for future in futures if (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error  # not that of a rank which only waited for it
    return [future.result() for future in futures]


def part(batch: Batch, rank: int, world: int) -> Batch:
    """This rank's rows."""

    def rows(x: Tensor) -> Tensor:
        return x.chunk(world)[rank] if len(x) else x

    return Batch(rows(batch.x), rows(batch.y), rows(batch.u), rows(batch.index), batch.step, batch.progress)


def copies(module: nn.Module) -> dict[str, Any]:
    """The values of all parameters and buffers as they are now."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bitwise."""
    return one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())
