"""Runs of a few steps for any method, toy methods for the engine, and what is left of a run without its times."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semisynth.combine import Combined
from semisynth.method import Average, Batch, Losses, Method, Update
from semisynth.recipes.config import Config, method_class, method_options, method_parts

SIZES = {"labels_per_class": 2, "steps": 6, "batch": 8, "unlabeled_batch": 8}
TIMES = ("seconds", "steps_per_second", "time/")
ALIVE = {"threshold": 0.1}  # so that the masks of an untrained network are not empty


def content(method: str, generator: str | None = None, options: dict[str, Any] | None = None, **fields: Any) -> Any:
    """A small `config.json` of this method; the generator, and the source classifier beside it, are named only where
    the method asks for one."""
    known = method_options(method)
    told: dict[str, Any] = {key: value for key, value in ALIVE.items() if key in known}
    told |= {"name": method, **(options or {})}
    found = {**SIZES, "log_every": 1, "evaluate_every": 0, **fields, "method": told}
    if not method_class(method).reads_x:
        found = {key: value for key, value in found.items() if key not in ("labels_per_class", "batch")}
    asks = "generator" in method_parts(method) or fields.get("unlabeled") in ("generator", "both")
    if generator and "source" in method_parts(method) and (Path(generator).parent / "source").is_dir():
        found.setdefault("source", str(Path(generator).parent / "source"))
    return found | {"generator": generator} if asks else found


def config(method: str, generator: str | None = None, options: dict[str, Any] | None = None, **fields: Any) -> Config:
    return Config.of(content(method, generator, options, **fields))


def options(content: dict[str, Any]) -> list[str]:
    """The same as typed on the command line."""
    method = dict(content["method"])
    typed = {**{k: v for k, v in content.items() if k != "method"}, "method": method.pop("name")}
    typed |= {f"method.{key}": value for key, value in method.items()}
    typed |= {f"generator_options.{key}": value for key, value in typed.pop("generator_options", {}).items()}
    return [
        part for key, value in typed.items() if value is not None for part in (f"--{key.replace('_', '-')}", str(value))
    ]


def log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log without its times."""
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(TIMES)} for line in lines]


def checkpoint(path: Path) -> dict[str, Any]:
    """A run's checkpoint without its time."""
    found: dict[str, Any] = torch.load(path / "checkpoint.pt", weights_only=True)
    return {key: value for key, value in found.items() if key != "seconds"}


def same(one: Any, other: Any) -> bool:
    """Bitwise equality of nested containers of tensors and plain values."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def batch(step: int, steps: int = 10) -> Batch:
    """Two rows of a problem that is another one at each step."""
    source = torch.Generator().manual_seed(step)
    x = torch.randn(2, 3, generator=source)
    return Batch(x, torch.arange(2), x[:0], torch.arange(0), step, step / steps)


class Toy(Method):
    """Any entries over one linear layer; unless told otherwise, one update down the mean square of its output."""

    def __init__(self, **entries: Update | Average | Callable[[Toy, Batch], Losses]) -> None:
        super().__init__()
        self.model = nn.Linear(3, 1, bias=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.entries: dict[str, Any] = entries or {"main": Toy.square}

    def updates(self) -> dict[str, Update | Average]:
        return {
            name: entry if isinstance(entry, Update | Average) else Update(self.model, self._bound(entry))
            for name, entry in self.entries.items()
        }

    def _bound(self, loss: Callable[[Toy, Batch], Losses]) -> Callable[[Batch], Losses]:
        return lambda batch: loss(self, batch)

    def square(self, batch: Batch) -> Losses:
        return Losses({"square": self.model(batch.x).square().mean()})


def slope(toy: Toy, batch: Batch) -> Losses:
    """A loss whose gradient is one everywhere."""
    return Losses({"slope": toy.model.weight.sum()})


def spied(method: Method, see: Callable[[str, list[Tensor]], None]) -> Method:
    """The same method; `see` gets the gradients of each update before the engine uses them."""

    def watched(name: str, update: Update | Average) -> Update | Average:
        if isinstance(update, Average):
            return update

        def combine(losses: Losses, parameters: list[nn.Parameter]) -> Combined:
            combined = update.combine(losses, parameters)
            see(name, combined.gradients)
            return combined

        return replace(update, combine=combine)

    entries = {name: watched(name, update) for name, update in method.updates().items()}
    method.updates = lambda: entries  # type: ignore[method-assign]
    return method
