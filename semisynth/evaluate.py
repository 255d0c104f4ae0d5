"""How well a classifier does on one split: accuracy with its interval, calibration, confusion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from semisynth.data.stream import to_float
from semisynth.errors import Diverged, UserError
from semisynth.functional import evaluating as evaluating

if TYPE_CHECKING:
    from semisynth.data.datasets import Images

PIXELS = 2**19  # of the images that are evaluated at a time: 512 of 32x32
BINS = 15  # of the confidences, for the calibration error


def classify(
    model: Callable[[Tensor], Tensor],
    images: Images,
    classes: Sequence[str],
    *,
    batch: int = 500,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Return what `model` gets right on `images`, as plain numbers ready for JSON: `measure` of its logits."""
    return measure(logits(model, images, classes, batch=batch, device=device), images.y, classes)


def measure(logits: Tensor, y: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Return what logits (n, classes) get right of the labels y (n,), as plain numbers ready for JSON.

    Shares are in [0, 1]; intervals are 95 %, by Wilson's score, over the images. `confusion` has a row for each true
    class. The recall ("accuracy") of a class without images and the precision of one never predicted are None.
    """
    y, k = y.cpu(), len(classes)
    confidence, predicted = logits.softmax(-1).max(-1)
    confusion = torch.bincount(y * k + predicted, minlength=k * k).reshape(k, k)
    right = int(confusion.trace())
    return {
        "images": len(y),
        "accuracy": right / len(y),
        "interval": wilson(right, len(y)),
        "loss": F.cross_entropy(logits, y).item(),
        "calibration_error": calibration_error(confidence, predicted == y),
        "per_class": {name: _per_class(confusion, i) for i, name in enumerate(classes)},
        "confusion": confusion.tolist(),
    }


def wilson(right: int, total: int, level: float = 0.95) -> list[float]:
    """Return the score interval of a share `right / total` (Wilson 1927); [0, 1] where `total` is 0."""
    if total == 0:
        return [0.0, 1.0]
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, scale = right / total, 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5 / scale
    return [max(0.0, centre - half), min(1.0, centre + half)]


def calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """Return the mean of |accuracy - confidence| over equal-width bins, each weighted by its images.

    `confidence` (n,) in [0, 1] and `right` (n,) bool. Expected calibration error, Guo et al. 2017, equation 3.
    """
    index = bin_of(confidence, bins)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, right.double() - confidence.double())
    return gap.abs().sum().item() / len(confidence)


def bin_of(confidence: Tensor, bins: int = BINS) -> Tensor:
    """Return which of `bins` equal parts of (0, 1], each with its upper end, holds each confidence (n,)."""
    return (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)


def logits(
    model: Callable[[Tensor], Tensor],
    images: Images,
    classes: Sequence[str],
    *,
    batch: int = 500,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the float64 logits (n, classes) on the CPU: the batches stay on the device until the one transfer.

    `batch` images are in memory at a time, or fewer where they have more than `PIXELS`.
    """
    if len(images.y) == 0:
        raise UserError("no images to evaluate: give a split with at least one.")
    size, kept = max(1, min(batch, PIXELS // math.prod(images.x.shape[2:]))), torch.empty(0)
    with torch.no_grad(), evaluating(model):
        for i, x in enumerate(images.batches(size)):
            z = model(to_float(x.to(device, non_blocking=True)))
            # In one place: small results between large activations would leave holes, and memory that grows.
            kept = kept if i else z.new_empty(len(images.y), *z.shape[1:])
            kept[i * size : i * size + len(z)] = z
    found = kept.cpu().double()
    check_logits(found, classes)
    return found


def check_logits(logits: Tensor, classes: Sequence[str]) -> None:
    """Raise `UserError` unless the logits (n, classes) are of that shape and finite."""
    if logits.shape[1:] != (len(classes),):
        raise UserError(
            f"the model's output has shape {tuple(logits.shape)}, but the data has {len(classes)} classes: "
            f"build the model with classes={len(classes)}."
        )
    bad = int((~logits.isfinite()).any(-1).sum())
    if bad:
        raise Diverged(f"the model's logits are not finite for {bad} of {len(logits)} images: lower the learning rate.")


def _per_class(confusion: Tensor, i: int) -> dict[str, Any]:
    right, true, predicted = int(confusion[i, i]), int(confusion[i].sum()), int(confusion[:, i].sum())
    return {
        "images": true,
        "accuracy": right / true if true else None,
        "interval": wilson(right, true),
        "precision": right / predicted if predicted else None,
        "precision_interval": wilson(right, predicted),
    }
