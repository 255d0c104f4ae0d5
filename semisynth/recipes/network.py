"""The classifier that a setting names, with its first weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch

from semisynth import models, weights
from semisynth.adapter import Shape
from semisynth.data import datasets
from semisynth.errors import UserError
from semisynth.method import External
from semisynth.models import Classifier, Tuning, foreign
from semisynth.recipes.config import Setting


def classifier(setting: Setting, shape: Shape, classes: int) -> Classifier:
    """Built, filled with what --init gives, and made ready for how its features are trained.

    shape: of the images. `UserError` where the network or its weights cannot be had, or do not fit.
    """
    trained = first(setting)
    if foreign.named(setting.model):
        model = foreign.build(setting.model, shape, classes, "none" if trained else setting.init)
    else:
        model = models.build(setting.model, shape[0], classes)
    if trained:
        _fill(model, trained, setting, shape)
    setting.tuning.apply(model, shape)
    return model


def first(setting: Setting) -> Path | None:
    """The weights of the run that --init means, if it means one."""
    of_run = setting.init == "foundation" or Path(setting.init).is_dir() or not foreign.named(setting.model)
    return models.foundation(setting.init, setting.model) if of_run and setting.init != "none" else None


def fingerprint(setting: Setting, shape: Shape, classes: int) -> str:
    """A hash of all that makes a network from elsewhere, with its first weights, the one that it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = classifier(replace(setting, tune_features="full", lora_rank=Tuning.rank), shape, classes)
    content = json.dumps([foreign.identity(model), External(model.features).fingerprint()], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=6).hexdigest()


def _fill(model: Classifier, path: Path, setting: Setting, shape: Shape) -> None:
    if not path.with_name("result.json").exists():
        raise UserError(f"--init {setting.init} is not finished: the same fit goes on where it stopped.")
    there = weights.read_json(path.with_name("result.json")).get("shape", shape)[0]
    if there != shape[0] and not foreign.named(setting.model):
        way = f"give --channels {'gray' if there == 1 else 'rgb'}, or " if datasets.is_own(setting.data) else ""
        raise UserError(
            f"--init {setting.init} has features of {there} channel{'s' * (there > 1)}, the images have "
            f"{shape[0]}: {way}leave --init out."
        )
    foreign.require(model, path.parent, "--init")
    models.read_features(model, path)
