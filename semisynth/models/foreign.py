"""Classifiers whose features are a network from elsewhere: built by name, and again from what a run says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from semisynth.errors import UserError
from semisynth.generators.adapted import Shape
from semisynth.models import from_code, from_timm, from_transformers
from semisynth.models.backbone import Backbone, width
from semisynth.models.classifier import Classifier
from semisynth.models.tuning import Tuning
from semisynth.weights import load_into, read_json, write_json

FILE = "backbone.json"


def named(name: str) -> bool:
    """Whether a name is that of a network from elsewhere."""
    return name.startswith((from_timm.PREFIX, from_transformers.PREFIX, from_code.PREFIX)) or from_code.is_file(name)


def build(name: str, shape: Shape, classes: int, init: str) -> Classifier:
    """A classifier of images of this shape by the features of the network called `name`, and a fresh head.

    init: "none" for the weights that the network comes with, "pretrained" for those that timm fetches, or a file.
    `UserError` for what cannot be had, and for a network that cannot read such images.
    """
    if init not in ("none", "pretrained") and not init.endswith(".safetensors"):
        raise UserError(f"--init {init}: for model {name} give none, a FILE.safetensors, or the directory of a run.")
    if init == "pretrained" and not name.startswith(from_timm.PREFIX):
        raise UserError(f"--init pretrained is for timm:NAME: model {name} comes with its weights, leave it out.")
    if name.startswith(from_transformers.PREFIX):
        if init != "none":
            raise UserError(f"--init {init}: model {name} comes with its weights, leave it out.")
        features = from_transformers.load(name, shape)
    elif name.startswith(from_timm.PREFIX):
        features = from_timm.load(name, shape, init)
    else:
        features = from_code.load(name, shape, init)
    found = width(features, name)
    features.record = {**features.record, "width": found}
    return Classifier(features, found, classes)


def write(module: nn.Module, run: Path) -> None:
    """Write into a run's directory what the foreign network in `module` is, if there is one."""
    for part in module.modules():
        if isinstance(part, Backbone):
            write_json(run / FILE, part.record)
            return


def saved(run: Path, name: str, tuning: Tuning, shape: Shape, classes: int) -> Classifier:
    """The classifier whose weights are in a run's directory, by what that says of its network.

    `UserError` where that is not as it was written, or where the library or the code of the network is missing.
    """
    record = read_json(run / FILE)
    again = {"transformers": from_transformers.again, "timm": from_timm.again, "code": from_code.again}
    try:
        with torch.random.fork_rng(devices=[]):  # what is drawn is read over
            model = Classifier(again[record["kind"]](record, shape), int(record["width"]), classes)
    except UserError:
        raise
    except Exception as error:  # the record is for a library, which may have changed
        raise UserError(f"{run / FILE}: model {name} cannot be built from it ({error!r}): restore it.") from error
    return tuned(model, run, tuning)


def tuned(model: Classifier, run: Path, tuning: Tuning) -> Classifier:
    """The model with the weights of a run that was trained in this way."""
    tuning.apply(model)
    load_into(model, run / "model.safetensors")
    return model


def notes(model: nn.Module, name: str, init: str) -> tuple[str, ...]:
    """What a user should know of a foreign network, in sentences."""
    if not isinstance(model, Classifier) or not isinstance(model.features, Backbone):
        return ()
    done: Any = model.features.adapter.told
    found: tuple[str, ...] = (f"for model {name} the images are {done}",) if done else ()
    if name.startswith(from_timm.PREFIX) and init == "none":
        found += (f"model {name} has random weights: --init pretrained fetches its own, or give a FILE.safetensors",)
    return found
