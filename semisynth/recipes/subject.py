"""Features to be probed, by what fit's --init names: a finished run, those that ship, or random ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from semisynth import models, noise
from semisynth.data import datasets
from semisynth.data.datasets import Dataset, Reading
from semisynth.errors import UserError
from semisynth.method import External
from semisynth.recipes import network, restore
from semisynth.recipes.config import Setting

RANDOM, SHIPPED = "none", "foundation"


class Subject(NamedTuple):
    """Features, or None for random ones, and their network's name.

    shape: of the images (c, h, w) that they read, if that is fixed; told: where they come from.
    """

    features: nn.Module | None
    model: str
    shape: tuple[int, int, int] | None
    told: Mapping[str, Any]

    def data(self, name: str, reading: Reading) -> Dataset:
        """A data set; one's own images are made to be what the features read, unless told otherwise.

        `UserError` for images of another shape.
        """
        own = datasets.is_own(name)
        if self.shape is not None and own:
            channels: Any = (
                reading.channels if reading.channels != "auto" else ("gray" if self.shape[0] == 1 else "rgb")
            )
            reading = replace(reading, size=reading.size or self.shape[1], channels=channels)
        data = datasets.load(name, reading)
        if self.shape not in (None, data.shape):
            read, given = (" x ".join(map(str, shape)) for shape in (self.shape, data.shape))
            remedy = "leave --size and --channels out, and they are made alike" if own else "give a run on such images"
            raise UserError(f"{self.told['path']} reads images of {read}, and {name} has {given}: {remedy}.")
        return data

    def drawn(self, data: Dataset, seed: int) -> nn.Module:
        """The features or, of random ones, those with which a fit of this seed would begin, in eval mode."""
        if self.features is not None:
            return self.features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(noise.derive(seed, "initial weights"))
            return network.classifier(Setting(model=self.model), data.shape, len(data.classes)).features.eval()


def load(name: str, model: str | None, device: torch.device) -> Subject:
    """What `name` names; `UserError` for anything else, and for a run of another network than `model` if that is given.

    model: without it the usual one, for features that are no run's.
    """
    if name == RANDOM:
        usual = model or Setting.model
        return Subject(None, usual, None, {"path": RANDOM, "method": None, "model": usual, "fingerprint": None})
    path = models.foundation(SHIPPED, model or Setting.model).parent if name == SHIPPED else Path(name)
    config, features, prepared = restore.features(path, device)
    there = config.setting.model
    if model not in (None, there):
        raise UserError(f"{name} holds a '{there}', not a '{model}': leave --model out.")
    told = {"path": name, "method": config.method, "model": there, "fingerprint": External(features).fingerprint()}
    return Subject(features, there, (prepared.channels, *prepared.size), told)
