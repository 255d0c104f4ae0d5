"""Pretext tasks: features learned without labels, by telling what was done to each image.

Yamaguchi et al., arXiv 1912.11603. Rotation (Gidaris et al., ICLR 2018, arXiv 1803.07728) asks for shapes and misses
texture and colour, which are what image enhancements change. Version 1 of the paper solves several tasks of
enhancements besides rotation on one trunk; version 2 (IE-Rot, ICIP 2021) rotation and one enhancement (see
`recipes.presets`). Which quarter turn it is, and that sharpness and solarisation are among the enhancements, is theirs.

Our reconstruction: that a task is to tell which of `levels` magnitudes was applied, the identity among them; the
magnitudes themselves; brightness, contrast, color and posterisation; independent draws of all tasks for one view; a
linear head and a cross-entropy for each task; and the order. Solarisation comes first, as its threshold is one of
the image as it was; what only scales differences follows; posterisation comes last, as any other operation would blur
the steps that it is known by. Then the view is turned, which commutes with all of them.

What cannot be told is noise in the labels of its task: on images of two levels solarisation is the same at every
threshold, and contrast, brightness and sharpness are the same above their identity. On gray ones there is no color.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth import noise
from semisynth.augment import ops
from semisynth.combine import Combine, FrankWolfe, total
from semisynth.errors import UserError, between, choose
from semisynth.method import Batch, Losses, Method, Update
from semisynth.models import Classifier, Encoder

DROPPED = 5  # bits that posterisation leaves out at most
DARKEST = 64  # lowest threshold of solarisation: below, an image in white on black is all but inverted

Op = Callable[[Tensor, Tensor], Tensor]


def around(most: float, levels: int) -> list[float]:
    """Magnitudes from -most to most: 0 among them, and of an even number one more above it than below."""
    below, above = (levels - 1) // 2, levels // 2
    return [-most * (below - i) / below for i in range(below)] + [most * i / max(above, 1) for i in range(above + 1)]


def thresholds(levels: int) -> list[float]:
    """Magnitudes of solarisation at even thresholds, from above white to `DARKEST`, each between two of 256 levels."""
    lowered = [round((256 - DARKEST) * i / (levels - 1)) for i in range(1, levels)]
    return [0.0] + [1 - (255.5 - by) / 255 for by in lowered]


def bits(levels: int) -> list[float]:
    """None, and then as many dropped bits, one more each time, as end in `DROPPED`."""
    return [0.0] + [float(DROPPED - left) for left in reversed(range(levels - 1))]


ENHANCEMENTS: dict[str, tuple[Op, Callable[[int], list[float]]]] = {  # in this order; magnitudes as in `ops`
    "solarize": (ops.solarize, thresholds),
    "color": (ops.color, partial(around, 0.9)),
    "contrast": (ops.contrast, partial(around, 0.6)),
    "brightness": (ops.brightness, partial(around, 0.6)),
    "sharpness": (ops.sharpness, partial(around, 0.9)),
    "posterize": (ops.posterize, bits),
}
TASKS = ("rotation", *ENHANCEMENTS)


class Pretext(Method):
    """L = sum over the tasks of weight_t CE(head_t(features(view)), what was drawn for the view).

    By Frank-Wolfe the features go down that combination of the tasks' gradients which has the smallest norm. Labels of
    the data are not read. What is kept is the classifier's features, without any head: --init RUN starts another
    method from them.

    Args:
        tasks: all, or some of rotation, solarize, color, contrast, brightness, sharpness and posterize, separated by
            commas; all leaves out color where images are gray
        levels: number of magnitudes of an enhancement, the identity among them
        weights: equal, or a number for each task in their order, separated by commas
        combine: fixed, by these weights; or frank-wolfe, which finds them anew in each step, where the features are
        scaled: whether Frank-Wolfe weighs the heads with their tasks; the paper's does not
    """

    task = "represent"
    reads_x = False
    model: Encoder

    def __init__(
        self,
        model: Classifier,
        shape: tuple[int, int, int],
        *,
        tasks: str = "all",
        levels: int = 5,
        weights: str = "equal",
        combine: Literal["fixed", "frank-wolfe"] = "fixed",
        scaled: bool = False,
    ) -> None:
        super().__init__()
        between(2, DROPPED + 1, levels=levels)
        self.tasks = chosen(tasks, shape)
        self.told = ("gray images have no color: that pretext task is left out",) * (tasks == "all" and shape[0] == 1)
        self.weights = numbers(weights, self.tasks)
        if combine == "frank-wolfe" and weights != "equal":
            raise UserError("Frank-Wolfe finds the weights of the tasks: leave --method.weights out.")
        if combine == "fixed" and scaled:
            raise UserError(
                "scaled is of Frank-Wolfe: leave --method.scaled out, or give --method.combine frank-wolfe."
            )
        self.combine: Combine = FrankWolfe(scaled) if combine == "frank-wolfe" else total
        self.model = Encoder(model)
        sizes = {name: 4 if name == "rotation" else levels for name in self.tasks}
        self.heads = nn.ModuleDict({name: nn.Linear(model.head.in_features, size) for name, size in sizes.items()})
        self.register_buffer(
            "magnitudes", torch.tensor([grid(levels) for _, grid in ENHANCEMENTS.values()]), persistent=False
        )

    def updates(self) -> dict[str, Update]:
        return {"encoder": Update(nn.ModuleList([self.model, self.heads]), self.loss, self.combine)}

    def loss(self, batch: Batch) -> Losses:
        """A term for each task; the features are where `combine` may compare their gradients."""
        labels = self.drawn(batch.u)
        features = self.model(self.view(batch.u, labels))
        terms, metrics = {}, {}
        for (name, head), weight in zip(self.heads.items(), self.weights, strict=True):
            logits, y = head(features), labels[name]
            terms[name] = weight * F.cross_entropy(logits, y)
            metrics[f"accuracy/{name}"] = (logits.argmax(1) == y).float().mean()
        return Losses(terms, metrics, shared=features)

    def drawn(self, u: Tensor) -> dict[str, Tensor]:
        """The labels of the views of images (n, c, h, w): for each task a class (n,), uniform and independent."""
        sizes = {name: head.out_features for name, head in self.heads.items() if isinstance(head, nn.Linear)}
        return {name: noise.integers(size, len(u), like=u) for name, size in sizes.items()}

    def view(self, u: Tensor, labels: dict[str, Tensor]) -> Tensor:
        """The views of images (n, c, h, w): enhanced by the magnitudes that the labels (n,) name, then turned."""
        grids = self.get_buffer("magnitudes").to(u.dtype)
        for (name, (change, _)), grid in zip(ENHANCEMENTS.items(), grids, strict=True):
            if name in labels:
                u = change(u, grid[labels[name]])
        return ops.quarter_turns(u, labels["rotation"]) if "rotation" in labels else u


def chosen(tasks: str, shape: tuple[int, int, int]) -> tuple[str, ...]:
    """The tasks that are named, of images of this shape; `UserError` for one that cannot be told of them."""
    channels, height, width = shape
    names = tuple(tasks.replace(" ", "").split(","))
    if tasks == "all":
        names = tuple(name for name in TASKS if name != "color" or channels > 1)
    for name in names:
        choose(name, TASKS, "pretext task")
    if len({*names}) < len(names):
        raise UserError(f"tasks is '{tasks}': name each task once.")
    if "color" in names and channels == 1:
        raise UserError("gray images have no color: leave color out of --method.tasks, or give --channels rgb.")
    if "rotation" in names and height != width:
        raise UserError(
            f"images of {width}x{height} pixels cannot be turned by a quarter: make them squares with --size, or leave "
            "rotation out of --method.tasks."
        )
    return names


def numbers(weights: str, tasks: tuple[str, ...]) -> tuple[float, ...]:
    """The weight of each task; `UserError` for another number of them, and for what is no weight."""
    if weights == "equal":
        return (1.0,) * len(tasks)
    parts = weights.split(",")
    try:
        found = tuple(map(float, parts))
    except ValueError:
        found = ()
    if len(found) != len(tasks) or not all(0 <= weight < math.inf for weight in found) or not sum(found):
        raise UserError(
            f"weights is '{weights}': give equal, or {len(tasks)} numbers of at least 0, for {', '.join(tasks)}, "
            "separated by commas."
        )
    return found
