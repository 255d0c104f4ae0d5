"""The quality of a set of synthetic images, by the features of a classifier, beside that of real images held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semisynth import models, quality, weights
from semisynth.data import datasets
from semisynth.data.datasets import Dataset, Images, Reading
from semisynth.data.stream import to_float
from semisynth.errors import UserError
from semisynth.evaluate import classify
from semisynth.models import Classifier
from semisynth.recipes import restore

TOGETHER = 500  # images at a time
HELD_OUT = "held-out real images"


def measure(
    images: str,
    reference: str,
    features: str = "foundation",
    reading: Reading | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """`Quality` of one data set against the training images of another, and of the reference's own test images.

    images: synthetic ones, of whose labels `class_accuracy` is the share that a run's classifier agrees with; features:
    the run directory of a classifier, or foundation. As many images of each are measured as there are of the fewest,
    since most measures depend on the number. `UserError` for images of another size, and for too few.
    """
    reading = reading or Reading()
    real = datasets.load(reference, reading)
    own = datasets.is_own(images)
    made = datasets.load(images, replace(reading, size=real.shape[2], holdout=0.0) if own else reading)
    if made.shape != real.shape:
        sizes = [" x ".join(map(str, data.shape)) for data in (made, real)]
        raise UserError(f"{images} has images of {sizes[0]}, and {reference} of {sizes[1]}: give images of one size.")
    model, classes = _model(features, real, torch.device(device))
    found = compare(model, _all(real), {images: _all(made), HELD_OUT: real.test}, device)
    labeled = made.pool
    accuracy = None
    if classes == made.classes and len(labeled):
        accuracy = classify(model, labeled, classes, device=device)["accuracy"]
    return {"features": features, **found, "class_accuracy": accuracy}


def compare(
    model: Classifier, reference: Images, sets: Mapping[str, Images], device: torch.device | str
) -> dict[str, Any]:
    """`Quality` of each set that is not empty against the reference, on as many images of each: all that all have."""
    sets = {name: found for name, found in {**sets, "": reference}.items() if len(found)}
    count = min(map(len, sets.values()))
    seen = {name: _features(model, found, count, device) for name, found in sets.items()}
    against = seen.pop("")
    return {
        "images": count,
        "measures": {name: asdict(quality.measure(against, found)) for name, found in seen.items()},
    }


def told(found: dict[str, Any]) -> str:
    """The measures as lines."""
    lines = [f"by the features of {found['features']}, {found['images']} images of each kind"]
    for name, measures in found["measures"].items():
        lines.append(f"  {name}: " + ", ".join(f"{key} {value:.3g}" for key, value in measures.items()))
    if found["class_accuracy"] is not None:
        lines.append(f"  of the labels the classifier agrees with {found['class_accuracy']:.3f}")
    return "\n".join(lines)


def _model(features: str, data: Dataset, device: torch.device) -> tuple[Classifier, tuple[str, ...] | None]:
    """The network whose features are used and, of a run, its classes."""
    if features != "foundation":
        _, model, classes, prepared = restore.classifier(Path(features), device)
        _require(features, prepared.channels, data)
        assert isinstance(model, Classifier)
        return model, classes
    _require(features, 1, data)
    model = models.build("small-cnn", data.shape[0], len(data.classes))
    weights.load_into(model.features, models.foundation("foundation", "small-cnn"), "features.")
    return model.to(device).eval(), None


def _require(features: str, channels: int, data: Dataset) -> None:
    if data.shape[0] != channels:
        raise UserError(
            f"--features {features} reads images of {channels} channel{'s' * (channels > 1)}, these have "
            f"{data.shape[0]}: give a run on such images, or --channels."
        )


def _all(data: Dataset) -> Images:
    """Training images, labeled or not."""
    return data.pool if data.unlabeled is None else data.pool.join(data.unlabeled)


def _features(model: Classifier, images: Images, count: int, device: torch.device | str) -> Tensor:
    """Of so many images, evenly spread over the set: (count, d) on the CPU."""
    some = images.subset(torch.linspace(0, len(images) - 1, count).long())
    extract: Callable[[Tensor], Tensor] = model.features
    with torch.no_grad():
        return torch.cat([extract(to_float(x.to(device))).cpu() for x in some.batches(TOGETHER)])
