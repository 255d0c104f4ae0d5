"""Everything that a run remembers between two steps, and how it is kept on disk."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from semisynth.errors import UserError
from semisynth.method import Average, External, Method
from semisynth.weights import replacing

FORMAT = 1
UNLABELED = "unlabeled"  # the generator of unlabeled images, of which an earlier version kept nothing


@torch.no_grad()
def move(average: Average, step: int) -> None:
    """Move an average by one step; buffers are copied."""
    decay = min(average.decay, (1 + step) / (10 + step))
    targets: list[Tensor] = list(average.target.parameters())
    sources: list[Tensor] = list(average.source.parameters())
    torch._foreach_lerp_(targets, sources, 1 - decay)
    for target, source in zip(average.target.buffers(), average.source.buffers(), strict=True):
        target.copy_(source)


def externals(method: Method) -> dict[str, str]:
    """The fingerprints of a method's foreign networks by name."""
    return {name: module.fingerprint() for name, module in method.named_modules() if isinstance(module, External)}


def same_externals(method: Method, kept: Mapping[str, str]) -> bool:
    """Whether the method's foreign networks are those of which a checkpoint kept the fingerprints."""
    return kept == {name: own for name, own in externals(method).items() if name != UNLABELED or name in kept}


class State:
    """The memory of a run: the tensors of the method, its optimisers and its average, and the number of steps done."""

    def __init__(self, method: Method, optimizers: dict[str, Optimizer], decay: float) -> None:
        self.method, self.optimizers = method, optimizers
        self.ema = Average(copy.deepcopy(method.model).requires_grad_(False).eval(), method.model, decay)
        self.step = 0
        self.seconds = 0.0
        self.metrics: dict[str, Tensor] = {}  # the newest value of each term and metric: updates may run at other steps

    def save(self, path: Path) -> None:
        """Write the checkpoint; `path` is whole at any moment."""
        content = {
            "format": FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "metrics": self.metrics,
            "externals": externals(self.method),
            "method": self.method.state_dict(),
            "ema": self.ema.target.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }
        with replacing(path) as beside:
            try:
                torch.save(content, beside)
            except RuntimeError as error:  # what torch's writer makes of a full disk
                raise OSError("the disk may be full") from error

    def load(self, path: Path) -> None:
        """Continue from a checkpoint; `UserError` if it is damaged or belongs to another method or generator."""
        content = _read(path)
        if not same_externals(self.method, content["externals"]):
            raise UserError(
                f"{path} was made with another generator, teacher or autoencoder: use the same one, or another --out."
            )
        try:
            self.method.load_state_dict(content["method"])
            self.ema.target.load_state_dict(content["ema"])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(content["optimizers"][name])
        except (RuntimeError, KeyError, ValueError) as error:
            told = " ".join(str(error).split()).rstrip(". ")
            raise UserError(f"{path} does not fit this method: {told}. Use another --out.") from error
        self.step, self.seconds, self.metrics = content["step"], content["seconds"], content["metrics"]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise _damaged(path) from error
    if not isinstance(content, dict) or "format" not in content:
        raise _damaged(path)
    if content["format"] != FORMAT:
        raise UserError(f"{path} has format {content['format']}, this version reads {FORMAT}: start in another --out.")
    return content


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged: delete it to start this run again from its first step.")


class Statistics:
    """Lets a BatchNorm write its running statistics only in its own module's update, and only in passes with gradient.

    A mapper's update leaves the classifier's buffers bitwise unchanged, and a no-grad weak pass does not count twice.
    """

    def __init__(self, method: Method) -> None:
        self._writers: set[nn.Module] = set()
        self._norms = {norm: norm.track_running_stats for norm in method.modules() if isinstance(norm, _BatchNorm)}
        self._handles = [norm.register_forward_pre_hook(self._guard) for norm in self._norms]

    @contextlib.contextmanager
    def written_by(self, module: nn.Module) -> Iterator[None]:
        """Within this context only `module`'s norms may write."""
        self._writers = set(module.modules())
        try:
            yield
        finally:
            self._writers = set()

    def _guard(self, norm: nn.Module, _: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        norm.track_running_stats = norm in self._writers and torch.is_grad_enabled()

    def __enter__(self) -> Statistics:
        return self

    def __exit__(self, *_: object) -> None:
        """Give the norms back as they were."""
        for handle in self._handles:
            handle.remove()
        for norm, tracked in self._norms.items():
            norm.track_running_stats = tracked
