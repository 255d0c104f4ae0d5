"""Classifiers whose features are a network from elsewhere: built by name, and again from what a run says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from semisynth.adapter import Shape
from semisynth.errors import UserError
from semisynth.models import from_code, from_timm, from_transformers
from semisynth.models.backbone import Backbone, check, width
from semisynth.models.classifier import Classifier
from semisynth.weights import read_json, write_json

FILE = "backbone.json"
WHERE = ("place", "revision")  # in a record: where the network was found, which makes it no other one
AGAIN = {"transformers": from_transformers.again, "timm": from_timm.again, "code": from_code.again}


def _kind(name: str) -> str | None:
    if name.startswith((from_transformers.PREFIX, from_transformers.HUB)):
        return "transformers"
    if name.startswith(from_timm.PREFIX):
        return "timm"
    return "code" if name.startswith(from_code.PREFIX) or from_code.is_file(name) else None


def named(name: str) -> bool:
    """Whether a name is that of a network from elsewhere."""
    return _kind(name) is not None


def with_weights(name: str) -> bool:
    """Whether what is so named comes with weights that may be trained ones."""
    return _kind(name) in ("transformers", "code")


def build(name: str, shape: Shape, classes: int, init: str) -> Classifier:
    """A classifier of images of this shape by the features of the network called `name`, and a fresh head.

    init: "none" for the weights that the network comes with, "pretrained" for those that timm fetches, or a file.
    `UserError` for what cannot be had, and for a network that cannot read such images or be trained.
    """
    kind = _kind(name)
    if init not in ("none", "pretrained") and not init.endswith(".safetensors"):
        raise UserError(f"--init {init}: for model {name} give none, a FILE.safetensors, or the directory of a run.")
    if kind == "transformers" and init != "none":
        raise UserError(f"--init {init}: model {name} comes with its weights, leave it out.")
    if init == "pretrained" and kind != "timm":
        raise UserError(f"--init pretrained is for timm:NAME: model {name} comes with its weights, leave it out.")
    if init.endswith(".safetensors") and not Path(init).is_file():
        raise UserError(f"--init {init}: there is no such file: give the weights of model {name}, or leave it out.")
    if kind == "transformers":
        features = from_transformers.load(name, shape)
    else:
        features = (from_timm if kind == "timm" else from_code).load(name, shape, init)
    found = width(features, name)
    check(features, name)
    return Classifier(features, found, classes)


def write(module: nn.Module, run: Path) -> None:
    """Write into a run's directory what the foreign network in `module` is, if there is one."""
    for record in _records(module):
        write_json(run / FILE, record)


def require(module: nn.Module, run: Path, what: str) -> None:
    """`UserError` if the foreign network in `module` is not the one that the run's directory tells of.

    what: the option that gives the directory.
    """
    for record in _records(module):
        if (run / FILE).exists() and (differ := _differences(read_json(run / FILE), record)):
            raise UserError(
                f"{what} {run} is of another network, by its {FILE}: {differ} differs. Restore the network, or give "
                "another directory."
            )


def identity(module: nn.Module) -> dict[str, Any]:
    """All that makes the foreign network in `module` the one it is, but for its weights; empty if there is none."""
    return {name: value for record in _records(module) for name, value in _flat(record) if name not in WHERE}


def code(module: object) -> dict[str, Any] | None:
    """The record of the network of one's own code in `module`, if there is one."""
    records = _records(module) if isinstance(module, nn.Module) else ()
    return next((record for record in records if record["kind"] == "code"), None)


def _records(module: nn.Module) -> Iterator[dict[str, Any]]:
    yield from [part.record for part in module.modules() if isinstance(part, Backbone)][:1]


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first thing that two records tell in different ways; blank if there is none."""
    one, other = dict(_flat(there)), dict(_flat(now))
    names = {*one, *other} - {*WHERE}
    # A helper that was imported before by other code is not seen again.
    names = {name for name in names if not name.startswith("code.") or (name in one and name in other)}
    return next((name for name in sorted(names) if one.get(name) != other.get(name)), "")


def _flat(record: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """As names with dots and values as JSON has them."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", json.loads(json.dumps(value))


def saved(run: Path, name: str, shape: Shape, classes: int) -> Classifier:
    """The classifier of a run's directory with any weights, by what that says of its network.

    `UserError` where that is not as it was written, or where the library or the code of the network is missing.
    """
    if not (run / FILE).exists():
        raise UserError(f"{run} has no {FILE}, which tells what its network is: restore it, or train again.")
    return restored(read_json(run / FILE), str(run / FILE), name, shape, classes)


def restored(record: Mapping[str, Any], source: str, name: str, shape: Shape, classes: int) -> Classifier:
    """The classifier that a record from this source tells of, with any weights."""
    try:
        with torch.random.fork_rng(devices=[]):  # what is drawn is read over
            features = AGAIN[record["kind"]](record, shape)
            return Classifier(features, width(features, name), classes)
    except UserError:
        raise
    except Exception as error:  # the record is for a library, which may have changed
        raise UserError(f"{source}: model {name} cannot be built from it ({error!r}): restore it.") from error


def notes(model: nn.Module, name: str, init: str) -> tuple[str, ...]:
    """What a user should know of a foreign network, in sentences."""
    if not isinstance(model, Classifier) or not isinstance(model.features, Backbone):
        return ()
    features, wide = model.features, model.head.in_features
    found: tuple[str, ...] = ()
    if done := features.adapter.told:
        found += (f"for model {name} the images are {done}",)
    if _kind(name) == "transformers":
        found += (f"the {wide} features of model {name} are {from_transformers.told(features)}",)
    if head := features.record.get("head"):
        found += (f"the last layer '{head}' of model {name} is replaced by a fresh head on its {wide} features",)
    if _kind(name) == "timm" and init == "none":
        found += (f"model {name} has random weights: --init pretrained fetches its own, or give a FILE.safetensors",)
    return found
