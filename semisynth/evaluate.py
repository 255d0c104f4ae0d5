"""How well a classifier does on one split: accuracy with its interval, calibration, confusion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth.errors import Diverged, UserError

if TYPE_CHECKING:
    from semisynth.data.datasets import Images


def classify(
    model: Callable[[Tensor], Tensor],
    images: Images,
    classes: Sequence[str],
    *,
    batch: int = 500,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Return what `model` gets right on `images`, as plain numbers ready for JSON.

    Shares are in [0, 1]; intervals are 95 %, by Wilson's score, over the images. `confusion` has a row for each true
    class. The recall ("accuracy") of a class without images and the precision of one never predicted are None.
    """
    logits, y = _logits(model, images, batch, device), images.y.cpu()
    _check(logits, classes)
    k = len(classes)
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


def calibration_error(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """Return the mean of |accuracy - confidence| over equal-width bins, each weighted by its images.

    `confidence` (n,) in [0, 1] and `right` (n,) bool. Expected calibration error, Guo et al. 2017, equation 3.
    """
    index = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, right.double() - confidence.double())
    return gap.abs().sum().item() / len(confidence)


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Set `model`, where it is a module, to eval mode; afterwards each of its modules has its own mode again."""
    modes = {module: module.training for module in model.modules()} if isinstance(model, nn.Module) else {}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _logits(model: Callable[[Tensor], Tensor], images: Images, batch: int, device: torch.device | str) -> Tensor:
    """Return the float64 logits (n, classes) on the CPU: the batches stay on the device until the one transfer."""
    if len(images.y) == 0:
        raise UserError("no images to evaluate: give a split with at least one.")
    with torch.no_grad(), evaluating(model):
        parts = [model(x.to(device, non_blocking=True).float() / 255) for x in torch.split(images.x, batch)]
    return torch.cat(parts).cpu().double()


def _check(logits: Tensor, classes: Sequence[str]) -> None:
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
