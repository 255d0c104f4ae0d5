"""How far a classifier's confidence can be believed, and the one temperature that mends it.

Temperature scaling: Guo et al. 2017, arXiv 1706.04599. The order of the classes, and so each prediction, stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth.data.datasets import Images
from semisynth.errors import UserError
from semisynth.evaluate import BINS, bin_of, calibration_error, logits, measure
from semisynth.weights import read_json

LOW, HIGH = 0.05, 20.0  # what a temperature may be


@dataclass(frozen=True)
class Fit:
    """A temperature, the images it was fitted to, and whether a bound decided it instead of their likelihood."""

    temperature: float
    images: int
    bounded: bool


def fit(z: Tensor, y: Tensor) -> Fit:
    """The temperature T that minimises the mean cross-entropy of softmax(z / T) (Guo et al., section 4.2), bounded.

    Logits z (n, classes) and labels y (n,). The loss is convex in 1 / T. Two bounds are ours: T is in [LOW, HIGH], and
    n images do not sharpen (T < 1) past a mean confidence of (n + 1) / (n + 2), which is what n right of n bear out
    (Laplace's rule of succession): without it a few images that are all right would ask for a confidence of 1. With no
    images T is 1.
    """
    n, z = len(y), z.double()
    if n == 0:
        return Fit(1.0, 0, bounded=True)
    likeliest = _falling_root(lambda t: _slope(z / t, z, y))
    sharpest = min(1.0, _falling_root(lambda t: (z / t).softmax(-1).amax(-1).mean().item() - (n + 1) / (n + 2)))
    temperature = max(likeliest, sharpest)
    return Fit(temperature, n, bounded=temperature != likeliest or temperature in (LOW, HIGH))


def conclude(
    model: nn.Module, splits: Mapping[str, Images], classes: Sequence[str], device: torch.device | str
) -> dict[str, Any]:
    """What a result says of a classifier: each split that has images, as `classify` measures it, and "calibration".

    The temperature is fitted on "validation"; `reliability` is of each split before and after it.
    """
    of = {name: logits(model, images, classes, device=device) for name, images in splits.items() if len(images)}
    y = {name: splits[name].y.cpu() for name in of}
    found = fit(of["validation"], y["validation"]) if "validation" in of else fit(torch.empty(0, 1), torch.empty(0))
    after = {name: reliability(z / found.temperature, y[name]) for name, z in of.items()}
    tables = {name: {"before": reliability(z, y[name]), "after": after[name]} for name, z in of.items()}
    return {
        **{name: measure(z, y[name], classes) for name, z in of.items()},
        "calibration": {**vars(found), "fitted_on": "validation", **tables},
    }


def reliability(z: Tensor, y: Tensor) -> dict[str, Any]:
    """Cross-entropy, expected calibration error, and what a reliability diagram shows of logits z (n, classes).

    Of each of `BINS` equal parts of the confidences: how many images, their mean confidence and the share that is
    right; None where there are none.
    """
    confidence, predicted = z.double().softmax(-1).max(-1)
    right, index = predicted == y, bin_of(confidence, BINS)
    count = torch.bincount(index, minlength=BINS)
    sums = (torch.zeros(BINS, dtype=torch.float64).index_add_(0, index, v) for v in (confidence, right.double()))
    means = ([s / c if c else None for s, c in zip(column.tolist(), count.tolist(), strict=True)] for column in sums)
    return {
        "loss": F.cross_entropy(z.double(), y).item(),
        "error": calibration_error(confidence, right, BINS),
        **dict(zip(("count", "confidence", "accuracy"), (count.tolist(), *means), strict=True)),
    }


def temperature(run: Path) -> float:
    """The temperature of a finished run; 1 if it was finished before runs were calibrated."""
    file = run / "result.json"
    found = read_json(file).get("calibration", {"temperature": 1.0})
    value = found.get("temperature") if isinstance(found, dict) else None
    if not isinstance(value, (int, float)) or not LOW <= value <= HIGH:
        raise UserError(f"{file}: the temperature of 'calibration' must be from {LOW} to {HIGH}: repeat this run.")
    return float(value)


def _slope(scaled: Tensor, z: Tensor, y: Tensor) -> float:
    """The derivative of the mean cross-entropy by 1 / T: the mean of the logit that is expected less the true one's."""
    return ((scaled.softmax(-1) * z).sum(-1) - z.gather(1, y[:, None])[:, 0]).mean().item()


def _falling_root(f: Callable[[float], float]) -> float:
    """Where f, which falls, crosses 0 in [LOW, HIGH]; the nearer end where it does not, HIGH where it is 0 there."""
    from scipy.optimize import brentq

    if f(HIGH) >= 0:
        return HIGH
    return LOW if f(LOW) <= 0 else float(brentq(f, LOW, HIGH, xtol=1e-9))
