"""What is known of the labels and the images by which DPT's classifiers and diffusion models teach each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from semisynth import charts, evaluate
from semisynth.data.datasets import Images
from semisynth.data.stream import to_float

ROWS = 10  # of a sheet


def right(given: Tensor, truth: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """How many of the labels given (n,) are right, and precision and recall of each class, where the truth is known.

    truth (n,) is -1 where it is not; nothing is told where none of it is.
    """
    known = truth >= 0
    if not known.any():
        return {}
    found = evaluate.measure(F.one_hot(given[known], len(classes)).double(), truth[known], classes)
    each = found["per_class"].items()
    shares = {name: {"precision": told["precision"], "recall": told["accuracy"]} for name, told in each}
    return {"accuracy": found["accuracy"], "per_class": shares}


def agreement(logits: Tensor, y: Tensor, classes: Sequence[str]) -> dict[str, float | None]:
    """The share of each class's images that a classifier, by its logits (n, classes), takes for it."""
    found = evaluate.measure(logits, y, classes)["per_class"]
    return {name: told["accuracy"] for name, told in found.items()}


def sheet(made: Images) -> bytes:
    """A PNG of the first images, a column for each class."""
    classes = len(made.y.unique())
    some = made.subset(torch.arange(min(ROWS * classes, len(made))))
    return charts.sheet(to_float(torch.cat(list(some.batches(len(some))))).numpy(), classes)


def lines(found: Mapping[str, Any]) -> list[str]:
    """What is told of the stages, for people; of each class, how right its labels are beside what its images show."""
    told = []
    for name, stage in found["stages"].items():
        shares = {"accuracy": stage.get("accuracy")}
        shares |= {f"{split} accuracy": stage.get(split) for split in ("validation", "test")}
        shares |= {f"FID of {what}": measures["fid"] for what, measures in stage.get("measures", {}).items()}
        told.append(f"{name}: {stage['path']}{_shares(': ', shares)}")
        labels = found["stages"].get(name.replace("quality", "labels"), {}).get("per_class", {})
        for class_name, agreed in stage.get("agreement", {}).items():
            right = {f"{what} of its labels": share for what, share in labels.get(class_name, {}).items()}
            told.append(f"  class {class_name}{_shares(': ', {'images taken for it': agreed, **right})}")
    return told


def _shares(before: str, shares: Mapping[str, float | None]) -> str:
    known = [f"{what} {share:.3f}" for what, share in shares.items() if share is not None]
    return before + ", ".join(known) if known else ""
