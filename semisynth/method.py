"""The contract: a training step is an ordered list of updates; an update is a module and the loss that moves it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from semisynth.combine import NOTHING, Combine, total
from semisynth.errors import UserError


@dataclass(frozen=True)
class Batch:
    """One step's data: this rank's part of it.

    x: labeled images (n, c, h, w) in [0, 1], or what the method's encoder makes of them; y: labels (n,), n = 0 if the
    method reads none; u: unlabeled images (m, c, h, w), m = 0 without any; index: data set index of each row of u, -1
    for a synthetic one; step: from 0; progress: step / steps.
    """

    x: Tensor
    y: Tensor
    u: Tensor
    index: Tensor
    step: int = 0
    progress: float = 0.0


class Losses(NamedTuple):
    """What a loss returns; computing it writes nothing.

    terms: weighted scalars, differentiated after `combine`; metrics: only logged; shared: the representation at which
    `combine` may compare gradients; memory: new values of the method's buffers by name, committed once by the engine;
    ready: what this loss had on its way of later updates of the same step, by their names.
    """

    terms: Mapping[str, Tensor]
    metrics: Mapping[str, Tensor] = NOTHING
    shared: Tensor | None = None
    memory: Mapping[str, Tensor] = NOTHING
    ready: Mapping[str, Ready] = NOTHING


class Ready(NamedTuple):
    """What an update need not compute: the engine takes it in place of that update's own loss.

    losses: as its own loss would return them, the terms need no graph; gradients: of its module's parameters that
    require one, averaged over ranks.
    """

    losses: Losses
    gradients: list[Tensor]


@dataclass(frozen=True)
class Update:
    """One optimiser step of `module` down `loss`, every so many steps; `optimizer` None means the engine's own.

    second_order: whether the loss differentiates a network twice, which compiled code cannot.
    """

    module: nn.Module
    loss: Callable[[Batch], Losses]
    combine: Combine = total
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None
    every: int = 1
    second_order: bool = False

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"an update cannot come every {self.every} steps: give at least 1.")


@dataclass(frozen=True)
class Average:
    """Moves `target` towards `source`: d target + (1 - d) source with d = min(decay, (1 + step) / (10 + step))."""

    target: nn.Module
    source: nn.Module
    decay: float = 0.999


class Method(nn.Module, ABC):
    """A training method: modules, buffers and the ordered updates of one step.

    The constructor's parameters without a default are its parts, given by name by a recipe (model, weak, strong,
    generator, shape, classes); those with a default are its options, offered on the command line. `ranges` says what
    `tune` draws them from: a pair (low, high) log-uniformly, a list as a choice. `task` says how the model is
    evaluated, `reads_u` whether the losses need unlabeled images in the batch, `reads_x` whether they need labeled
    ones, `through` whether a loss is differentiated through the generator; `told` is what the user should know of how
    the options were understood.
    """

    task: ClassVar[Literal["classify", "generate", "represent"]] = "classify"
    reads_u: ClassVar[bool] = True
    reads_x: ClassVar[bool] = True
    through: ClassVar[bool] = False
    ranges: ClassVar[Mapping[str, Sequence[Any]]] = MappingProxyType({})
    model: nn.Module
    told: tuple[str, ...] = ()

    @abstractmethod
    def updates(self) -> Mapping[str, Update | Average]:
        """The updates of a step, run in this order."""

    def encoded_by(self) -> External[Any] | None:
        """What encodes the labeled images, each once and before the first step, if a loss reads that and not them."""
        return None

    def samples(self, n: int, like: Tensor) -> dict[str, Tensor]:
        """n synthetic images of each kind that the method works with, for the report; device and dtype of `like`."""
        return {}

    def study(self, batch: Batch) -> dict[str, Tensor]:
        """What the trained method tells of its mapper and its synthetic images (see `insight`), for the report.

        Called in eval mode on one rank, alone. batch: labeled images, each once.
        """
        return {}


M = TypeVar("M", bound=nn.Module)


class External(nn.Module, Generic[M]):
    """A foreign network (generator, teacher): always in eval mode, its weights constant and not in `state_dict`.

    It moves with the method to a device or dtype; a checkpoint stores its `fingerprint` instead of its weights.
    """

    def __init__(self, module: M) -> None:
        super().__init__()
        # A tuple hides it from nn.Module's registration, and so from parameters() and state_dict().
        self._hidden: tuple[M] = (module.eval().requires_grad_(False),)

    @property
    def module(self) -> M:
        """The network itself."""
        return self._hidden[0]

    def forward(self, *arguments: Any) -> Any:
        """Call the network."""
        return self.module(*arguments)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> External[M]:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.module._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def fingerprint(self) -> str:
        """A hash of names, shapes and float32 values of the weights."""
        digest = hashlib.sha256()
        for name, value in sorted(self.module.state_dict().items()):
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]
