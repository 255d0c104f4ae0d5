"""Classifiers by name."""

from __future__ import annotations

import re
from pathlib import Path

from semisynth.adapter import Shape
from semisynth.errors import UserError, choose
from semisynth.models import foreign
from semisynth.models.classifier import Classifier as Classifier
from semisynth.models.classifier import Encoder as Encoder
from semisynth.models.cnn import small_cnn as small_cnn
from semisynth.models.mapper import Finder as Finder
from semisynth.models.mapper import Mapper as Mapper
from semisynth.models.tuning import Tuning as Tuning
from semisynth.models.tuning import merged
from semisynth.models.wrn import wrn as wrn
from semisynth.weights import SHIPPED, fill, load_into, read_json, read_tensors

NAMES = ("small-cnn", "small-cnn-bn", "wrn-16-2", "wrn-16-2-bn", "wrn-28-2", "wrn-28-2-bn")
FEATURES = "features."  # before the names of their weights
KINDS = ("timm:NAME", "hf:FOLDER", "hub:ORG/NAME", "FILE.py:FACTORY", "module:PACKAGE.MODULE:FACTORY")


def build(name: str, channels: int, classes: int) -> Classifier:
    """A fresh classifier: "small-cnn" or "wrn-<depth>-<factor>" with GroupNorm, or with BatchNorm when "-bn" follows.

    Networks from elsewhere are in `foreign`.

    Raises `UserError` for another name, and for a depth that is not 6 n + 4.
    """
    base, kind = (name[:-3], "batch") if name.endswith("-bn") else (name, "group")
    sizes = re.fullmatch(r"wrn-(\d+)-(\d+)", base)
    if sizes is None:
        choose(name, (*NAMES, *KINDS), "model")
        return small_cnn(channels, classes, norm_kind="batch" if kind == "batch" else "group")
    depth, factor = int(sizes[1]), int(sizes[2])
    if depth < 10 or (depth - 4) % 6 or factor < 1:
        raise UserError(
            f"model '{name}': the depth of a WRN is 6 n + 4 (10, 16, 22, 28, ...) and its factor at least 1."
        )
    return wrn(depth, factor, channels, classes, norm_kind="batch" if kind == "batch" else "group")


def saved(run: Path, name: str, tuning: Tuning, shape: Shape, classes: int) -> Classifier:
    """The classifier whose weights are in a run's directory; what a foreign network is stands there too."""
    model = foreign.saved(run, name, shape, classes) if foreign.named(name) else build(name, shape[0], classes)
    tuning.apply(model, shape)
    load_into(model, run / "model.safetensors")
    return model


def plain(run: Path, name: str, shape: Shape, classes: int) -> Classifier:
    """The same with the features of the run, adapters merged into what they adapt, and a fresh head."""
    model = foreign.saved(run, name, shape, classes) if foreign.named(name) else build(name, shape[0], classes)
    read_features(model, run / "model.safetensors")
    return model


def read_features(model: Classifier, path: Path) -> None:
    """Fill the features of a network that has no adapters; those in the file are merged. `UserError` if it misfits."""
    tensors = {name: value for name, value in read_tensors(path).items() if name.startswith(FEATURES)}
    if not tensors:
        raise UserError(f"{path} has no weights called '{FEATURES}*': give a run that trained a classifier.")
    fill(model.features, merged({name[len(FEATURES) :]: value for name, value in tensors.items()}), path)


def foundation(init: str, model: str) -> Path:
    """The weights file that `init` means for this network: "foundation" ships with the package, else a run directory.

    Raises `UserError` when none ships for this network, or the run is of another one.
    """
    path = SHIPPED / f"glyphs-{model}" if init == "foundation" else Path(init)
    if init == "pretrained" or init.endswith(".safetensors"):
        raise UserError(f"--init {init} is for networks from elsewhere: for model {model} give foundation or a run.")
    if init != "foundation" and not path.is_dir():
        choose(init, ("none", "foundation"), "init (or run directory)")
    if not (path / "config.json").exists():
        raise UserError(
            f"--init {init}: no trained features for '{model}' there. Train them with: semisynth fit "
            f"--method supervised --data glyphs --model {model} --out DIR, and give --init DIR."
        )
    there = read_json(path / "config.json").get("model")
    if there != model and not (foreign.named(model) and foreign.named(str(there))):  # whose records are compared
        raise UserError(f"--init {init} holds a '{there}': give --model {there}, or features of a '{model}'.")
    return path / "model.safetensors"
