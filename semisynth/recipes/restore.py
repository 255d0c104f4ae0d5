"""Finished runs, loaded again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from semisynth import models, weights
from semisynth.data import datasets
from semisynth.data.datasets import Dataset
from semisynth.data.decode import Preparation
from semisynth.errors import UserError
from semisynth.recipes import origin
from semisynth.recipes.config import Config, method_class


def trained(run: Path, device: torch.device) -> tuple[Config, nn.Module, Dataset]:
    """The configuration, the averaged classifier and the data of a finished run.

    `UserError` if there is none, or if the user's own images are no longer those that it was made from.
    """
    config, model, _, preparation = classifier(run, device)
    name = config.setting.data
    if not datasets.is_own(name):
        return config, model, datasets.load(name, config.reading)
    channels: Literal["gray", "rgb"] = "gray" if preparation.channels == 1 else "rgb"
    data = datasets.load(name, replace(config.reading, size=preparation.size[0], channels=channels))
    result = weights.read_json(run / "result.json")
    if differ := origin.differences({**result["data"], "class_names": result["class_names"]}, data):
        raise UserError(f"the data are not those of the run, {differ}: give --data to measure on other images.")
    return config, model, data


def classifier(run: Path, device: torch.device) -> tuple[Config, nn.Module, tuple[str, ...], Preparation]:
    """The configuration, the averaged classifier, the names of its classes, and how images are prepared for it.

    Data that the user brought are not needed again; for a set that is built in, images are cropped. `UserError` if
    `run` holds no finished classifier.
    """
    config = configuration(run)
    task = method_class(config.method).task
    if task == "generate":
        raise UserError(f"{run} holds a generator, not a classifier: see its samples with semisynth report {run}.")
    if task == "represent":
        raise UserError(
            f"{run} holds features and no classifier: train one on them, such as with semisynth fit --method "
            f"linear-probe --init {run}."
        )
    require_finished(run)
    names, preparation = _images(config, run / "result.json")
    setting, shape = config.setting, (preparation.channels, *preparation.size)
    model = models.saved(run, setting.model, setting.tuning, shape, len(names))
    return config, model.to(device).eval(), names, preparation


def features(run: Path, device: torch.device) -> tuple[Config, nn.Module, Preparation]:
    """The configuration and the averaged features of a finished run, and how images are prepared for them.

    Of a classifier, or of features that were trained without one. `UserError` if `run` holds neither.
    """
    config = configuration(run)
    if method_class(config.method).task == "generate":
        raise UserError(f"{run} holds a generator, which has no features: give a run that trained a classifier.")
    require_finished(run)
    names, preparation = _images(config, run / "result.json")
    shape = (preparation.channels, *preparation.size)
    model = models.plain(run, config.setting.model, shape, max(1, len(names)))
    return config, model.features.to(device).eval(), preparation


def _images(config: Config, file: Path) -> tuple[tuple[str, ...], Preparation]:
    """Classes and preparation, from the result or, where an earlier version wrote that, from the data set."""
    result = weights.read_json(file)
    if "data" not in result:
        data = datasets.load(config.setting.data)
        return data.classes, Preparation(data.shape[1:], data.shape[0], "crop")
    try:
        names, told = tuple(map(str, result["class_names"])), result["data"]
        height, width = map(int, told["size"])
        return names, Preparation((height, width), int(told["channels"]), told["fit"] or "crop")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{file} is not as fit wrote it ({error!r}): restore it.") from error


def configuration(run: Path) -> Config:
    """What a run was asked to be."""
    return Config.of(weights.read_json(run / "config.json"), str(run / "config.json"))


def require_finished(run: Path) -> None:
    """`UserError` unless the run has a result."""
    if not (run / "result.json").exists():
        raise UserError(f"{run} is not finished: the same fit goes on where it stopped.")


def checkpoint(run: Path) -> dict[str, Any]:
    """A run's last checkpoint, as `state` has it; `UserError` if that is missing or damaged."""
    try:
        content: dict[str, Any] = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{run / 'checkpoint.pt'} is missing or damaged: repeat this run.") from error
    return content
