"""Anyone's own network: FILE.py:FACTORY or module:PACKAGE.MODULE:FACTORY, where FACTORY() gives an nn.Module.

It reads images in [0, 1] as the data has them, gray ones repeated over three channels if it reads no others. Where what
it returns comes from an nn.Linear, that is its head, which is taken out: features are what went into it. Otherwise
features are what it returns.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from semisynth.errors import UserError, line
from semisynth.evaluate import evaluating
from semisynth.generators.adapted import Adapter, Shape
from semisynth.models.backbone import Backbone, Input, probe
from semisynth.weights import load_into

PREFIX = "module:"


def is_file(name: str) -> bool:
    """Whether a name is that of a factory in a Python file."""
    return name.rpartition(":")[0].endswith(".py")


def load(name: str, shape: Shape, init: str) -> Backbone:
    """The factory's network without its head, for images of this shape.

    init: "none" for the weights that the factory gives, or a file of weights. `UserError` where there is none, where
    it cannot read such images, and where it cannot be told what is its head.
    """
    network = _made(name)
    if init != "none":
        load_into(network, Path(init))
    channels = _channels(network, shape, name)
    head = _head(network, channels, shape, name)
    return _backbone(network, shape, {"kind": "code", "name": name, "channels": channels, "head": head})


def again(record: Mapping[str, Any], shape: Shape) -> Backbone:
    """What `load` gave, from its record and with any weights; the code has to be where it was."""
    return _backbone(_made(record["name"]), shape, record)


def _backbone(network: nn.Module, shape: Shape, record: Mapping[str, Any]) -> Backbone:
    if record["head"] is not None:
        parent, _, leaf = record["head"].rpartition(".")
        setattr(network.get_submodule(parent), leaf, nn.Identity())
    reads = Input(None, (0.0,) * record["channels"], (1.0,) * record["channels"])
    return Backbone(network, shape, reads, nn.Identity(), record)


def _made(name: str) -> nn.Module:
    """What the factory gives; it may import what lies beside its file, or in the working directory."""
    place, _, factory = name.removeprefix(PREFIX).rpartition(":")
    file = Path(place) if is_file(name) else None
    if file is not None and not file.is_file():
        raise UserError(f"model {name}: there is no file {file}; a classifier of it needs that code again.")
    if not place or not factory:
        raise UserError(f"model {name}: give {PREFIX}PACKAGE.MODULE:FACTORY, or FILE.py:FACTORY.")
    with _beside(file.parent if file else Path()):
        try:
            module = _run(file) if file else importlib.import_module(place)
            network = getattr(module, factory)()
        except Exception as error:  # another's code may raise anything
            raise UserError(f"model {name} cannot be made: {type(error).__name__}: {line(error)[:300]}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"model {name}: the factory gave a {type(network).__name__}: it must return an nn.Module.")
    return network


def _run(file: Path) -> ModuleType:
    own = f"semisynth_own_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(own, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[own] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[None]:
    before = [*sys.path]
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path[:] = before


def _channels(network: nn.Module, shape: Shape, name: str) -> int:
    """As many as the data has; three if those are gray and the network reads colours alone."""
    for channels in (shape[0], 3):
        with contextlib.suppress(Exception):
            _answer(network, channels, shape)
            return channels
    try:
        _answer(network, shape[0], shape)
    except Exception as error:
        told = "x".join(map(str, shape))
        raise UserError(
            f"model {name} cannot read images of {told}: {line(error)[:300]} Give another --size or --channels."
        ) from error
    raise AssertionError("it could be read after all")


def _answer(network: nn.Module, channels: int, shape: Shape) -> Any:
    x = Adapter(shape, (channels, *shape[1:]))(probe(shape))
    with torch.no_grad(), evaluating(network):
        return network(x)


def _head(network: nn.Module, channels: int, shape: Shape, name: str) -> str | None:
    """The name of the linear layer whose output the network returns, if there is one."""
    calls: list[tuple[str, Tensor, Tensor]] = []

    def seen(module: nn.Module, given: tuple[Tensor, ...], found: Tensor, *, own: str) -> None:
        calls.append((own, given[0], found))

    linear = [(own, module) for own, module in network.named_modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_hook(partial(seen, own=own)) for own, module in linear]
    try:
        answer = _answer(network, channels, shape)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(answer, Tensor) or answer.dim() != 2:
        told = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise UserError(f"model {name} returns {told}: it must return logits or features, a tensor (images, width).")
    heads = [(own, given) for own, given, found in calls if found is answer]
    if not heads:
        _check_no_probabilities(answer, name)
        return None
    own, given = heads[-1]
    if given.dim() != 2 or sum(other == own for other, _, _ in calls) > 1 or not own:
        raise UserError(
            f"model {name}: its last linear layer '{own}' is no head that could be replaced, as it reads a tensor "
            f"{tuple(given.shape)} or is called more than once: return features (images, width) without it."
        )
    return own


def _check_no_probabilities(answer: Tensor, name: str) -> None:
    """`UserError` for the output of a softmax or of its logarithm, which hides the head."""
    for p in (answer, answer.exp()):
        if answer.shape[1] > 1 and bool((p >= 0).all()) and torch.allclose(p.sum(1), torch.ones(2), atol=1e-4):
            raise UserError(f"model {name} returns probabilities: have it return the logits, or its features.")
