"""Anyone's own network: FILE.py:FACTORY or module:PACKAGE.MODULE:FACTORY, where FACTORY() gives an nn.Module.

It reads images in [0, 1] as the data has them, gray ones repeated over three channels if it reads no others. Where what
it returns comes from an nn.Linear, that is its head, which is taken out: features are what went into it. Otherwise
features are what it returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from semisynth import imports
from semisynth.adapter import Adapter, Shape
from semisynth.errors import UserError
from semisynth.functional import evaluating
from semisynth.imports import Made
from semisynth.models.backbone import Backbone, Input, probe, replace, unreadable
from semisynth.weights import load_into

PREFIX, SUFFIX = "module:", ".py"


def is_file(name: str) -> bool:
    """Whether a name is that of a factory in a Python file."""
    return name.rpartition(":")[0].endswith(SUFFIX)


def load(name: str, shape: Shape, init: str) -> Backbone:
    """The factory's network without its head, for images of this shape.

    init: "none" for the weights that the factory gives, or a file of weights. `UserError` where there is none, where
    it cannot read such images, and where it cannot be told what is its head.
    """
    place, _, factory = name.removeprefix(PREFIX).rpartition(":")
    if not place or not factory:
        raise UserError(f"model {name}: give {PREFIX}PACKAGE.MODULE:FACTORY, or FILE.py:FACTORY.")
    place = str(Path(place).expanduser().absolute()) if is_file(name) else place
    made = _made(place, factory, f"model {name}")
    network = made.network.float()
    if init != "none":
        load_into(network, Path(init))
    channels = _channels(network, shape, name)
    head, given = _head(network, channels, shape, name)
    record = {"kind": "code", "place": place, "factory": factory, "code": made.code, "head": head}
    record["input"] = asdict(Input(None, (0.0,) * channels, (1.0,) * channels))
    features = _backbone(network, shape, record)
    if head is not None and not _same(_answer(network, channels, shape), given):
        raise UserError(
            f"model {name}: without its last linear layer '{head}' it does not return what went into that: return "
            "features (images, width) without it."
        )
    return features


def again(record: Mapping[str, Any], shape: Shape) -> Backbone:
    """What `load` gave, from its record and with any weights; `UserError` if the code is not there as it was."""
    place, factory = record["place"], record["factory"]
    told = f"model {place}:{factory}"
    if place.endswith(SUFFIX):
        _check_same(record, {name: _hashed(Path(place).parent / name) for name in record["code"]}, told)
    made = _made(place, factory, told)
    if not place.endswith(SUFFIX):
        _check_same(record, made.code, told)
    return _backbone(made.network, shape, record)


def _check_same(record: Mapping[str, Any], code: Mapping[str, str], told: str) -> None:
    for name, there in record["code"].items():
        if code.get(name) != there:
            raise UserError(
                f"{told}: {name} is not there, or not as it was when this classifier was trained, which would make "
                "another network of it: restore that file."
            )


def _hashed(file: Path) -> str:
    return imports.hashed(file) if file.is_file() else ""


def _made(place: str, factory: str, told: str) -> Made:
    """What the factory gives; it may import what lies beside its file, or in the working directory."""
    if not place.endswith(SUFFIX):
        return imports.installed(place, factory, told)
    file = Path(place)
    if not file.is_file():
        raise UserError(f"{told}: there is no file {file}: give FILE.py:FACTORY of one that is there.")
    return imports.made(file.parent, file.stem, factory, told)


def _backbone(network: nn.Module, shape: Shape, record: Mapping[str, Any]) -> Backbone:
    if record["head"] is not None:
        replace(network, network.get_submodule(record["head"]), nn.Identity())
    return Backbone(network, shape, record)


def _channels(network: nn.Module, shape: Shape, name: str) -> int:
    """As many as the data has; three if those are gray and the network reads colours alone."""
    errors = []
    for channels in (shape[0], 3):
        try:
            _answer(network, channels, shape)
            return channels
        except Exception as error:  # a foreign network may raise anything
            errors.append(error)
    raise unreadable(name, shape, False, errors[0]) from errors[0]


def _answer(network: nn.Module, channels: int, shape: Shape) -> Any:
    x = Adapter(shape, (channels, *shape[1:]))(probe(shape))
    with torch.no_grad(), evaluating(network):
        return network(x)


class _Call(NamedTuple):
    """Of a linear layer: what went in, and what came out."""

    layer: nn.Linear
    given: Tensor
    found: Tensor


def _calls(network: nn.Module, channels: int, shape: Shape) -> tuple[Any, list[_Call]]:
    """What the network answers, and the calls of its linear layers on the way."""
    calls: list[_Call] = []

    def seen(layer: nn.Linear, given: tuple[Tensor, ...], named: dict[str, Tensor], found: Tensor) -> None:
        calls.append(_Call(layer, given[0] if given else named["input"], found))

    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    handles = [layer.register_forward_hook(seen, with_kwargs=True) for layer in linear]
    try:
        return _answer(network, channels, shape), calls
    finally:
        for handle in handles:
            handle.remove()


def _head(network: nn.Module, channels: int, shape: Shape, name: str) -> tuple[str | None, Tensor]:
    """The name of the linear layer whose output the network returns, if there is one, and features: what went in."""
    answer, calls = _calls(network, channels, shape)
    if not isinstance(answer, Tensor) or answer.dim() != 2:
        told = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise UserError(f"model {name} returns {told}: it must return logits or features, a tensor (images, width).")
    heads = [call for call in calls if call.found is answer]
    if not heads:
        _check_no_probabilities(answer, name)
        return None, answer
    head = heads[-1]
    own = next(own for own, module in network.named_modules() if module is head.layer)
    if head.given.dim() != 2 or sum(call.layer is head.layer for call in calls) > 1 or not own:
        raise UserError(
            f"model {name}: its last linear layer '{own}' is no head that could be replaced, as it reads a tensor "
            f"{tuple(head.given.shape)} or is called more than once: return features (images, width) without it."
        )
    return own, head.given


def _same(found: object, given: Tensor) -> bool:
    return isinstance(found, Tensor) and found.shape == given.shape and found.allclose(given, equal_nan=True)


def _check_no_probabilities(answer: Tensor, name: str) -> None:
    """`UserError` for the output of a softmax or of its logarithm, which hides the head."""
    answer = answer.float()
    for p in (answer, answer.exp()):
        if answer.shape[1] > 1 and bool((p >= 0).all()) and torch.allclose(p.sum(1), torch.ones(2), atol=1e-4):
            raise UserError(f"model {name} returns probabilities: have it return the logits, or its features.")
