"""The classifier that a setting names, with its first weights."""

from __future__ import annotations

from pathlib import Path

from semisynth import models, weights
from semisynth.errors import UserError
from semisynth.models import Classifier, foreign
from semisynth.recipes.config import Setting


def classifier(setting: Setting, shape: tuple[int, int, int], classes: int) -> Classifier:
    """Built, filled with what --init gives, and made ready for how its features are trained.

    shape: of the images. `UserError` where the network or its weights cannot be had, or do not fit.
    """
    name, init = setting.model, setting.init
    run = init == "foundation" or Path(init).is_dir() or not foreign.named(name)
    if foreign.named(name):
        model = foreign.build(name, shape, classes, "none" if run else init)
    else:
        model = models.build(name, shape[0], classes)
    if run and init != "none":
        _fill(model, setting, shape)
    setting.tuning.apply(model)
    return model


def _fill(model: Classifier, setting: Setting, shape: tuple[int, int, int]) -> None:
    path = models.foundation(setting.init, setting.model)
    there = weights.read_json(path.with_name("result.json")).get("shape", shape)[0]
    if there != shape[0] and not foreign.named(setting.model):
        raise UserError(
            f"--init {setting.init} has features of {there} channel{'s' * (there > 1)}, the images have "
            f"{shape[0]}: give --channels {'gray' if there == 1 else 'rgb'}, or leave --init out."
        )
    weights.load_into(model.features, path, "features.")
