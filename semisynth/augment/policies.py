"""Weak and strong views: random, a different one for each image, and independent of the other images in the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from semisynth import noise
from semisynth.augment import ops

# RandAugment (Cubuk et al. 2020, arXiv 1909.13719): each operation and the range of its uniform magnitude; one about 0
# stands for a random sign. The geometric five come first, in the order of `ops.warp`.
GEOMETRIC = {
    "rotate": (-30.0, 30.0),
    "shear_x": (-0.3, 0.3),
    "shear_y": (-0.3, 0.3),
    "translate_x": (-0.3, 0.3),
    "translate_y": (-0.3, 0.3),
}
COLOUR: dict[Callable[[Tensor, Tensor], Tensor], tuple[float, float]] = {
    ops.identity: (0.0, 0.0),
    ops.autocontrast: (1.0, 1.0),
    ops.equalize: (1.0, 1.0),
    ops.brightness: (-0.9, 0.9),
    ops.contrast: (-0.9, 0.9),
    ops.color: (-0.9, 0.9),
    ops.sharpness: (-0.9, 0.9),
    ops.posterize: (0.0, 4.0),
    ops.solarize: (0.0, 1.0),
}
RANGES = torch.tensor([*GEOMETRIC.values(), *COLOUR.values()], dtype=torch.float64)


@dataclass(frozen=True)
class Weak:
    """Shift by up to `shift` of the side with reflection, and mirror half of the images if `flip` keeps the class."""

    flip: bool
    shift: float = 0.125

    def __call__(self, x: Tensor) -> Tensor:
        """x (n, c, h, w) -> its weak view, of the same shape."""
        n, _, h, w = x.shape
        down, right = (_send(_offsets(n, int(self.shift * side)), x) for side in (h, w))
        mirrored = _send(noise.integers(2, n).bool(), x) if self.flip else None
        return ops.shift(x, right, down, mirrored)


@dataclass(frozen=True)
class Strong:
    """A weak view, `operations` rounds of RandAugment, then a square hole with a side up to `cutout` of the image's.

    In each round every image draws its own operation and magnitude. `fill` in [0, 1] is the hole, and what geometric
    operations bring in from outside.
    """

    flip: bool
    operations: int = 2
    cutout: float = 0.5
    fill: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """x (n, c, h, w) -> its strong view, of the same shape; differentiable (see `ops`)."""
        n = len(x)
        x = Weak(self.flip)(x)
        for _ in range(self.operations):
            x = randaugment(x, noise.integers(len(RANGES), n), noise.uniform(n, like=RANGES), self.fill)
        draws = _send(noise.uniform(n, 3, like=RANGES), x)
        return ops.cutout(x, self.cutout * draws[:, 0], draws[:, 1:], self.fill)


def randaugment(x: Tensor, kinds: Tensor, amounts: Tensor, fill: float = 0.0) -> Tensor:
    """Apply to each image its operation, row `kinds` (n,) of `RANGES`, as far along its range as `amounts` (n,) says.

    Both are on the CPU, so that images are grouped by operation without waiting for the device.
    """
    kinds, order = kinds.sort(stable=True)
    low, high = RANGES[kinds].unbind(1)
    magnitude = torch.lerp(low, high, amounts[order])
    sizes = kinds.bincount(minlength=len(RANGES)).tolist()
    geometric = sum(sizes[: len(GEOMETRIC)])
    moves = F.one_hot(kinds[:geometric], len(GEOMETRIC)) * magnitude[:geometric, None]
    sizes = [geometric, *sizes[len(GEOMETRIC) :]]
    to_warp, *images = torch.split(x.index_select(0, _send(order, x)), sizes)
    _, *magnitudes = torch.split(_send(magnitude, x), sizes)
    views = [ops.warp(to_warp, _send(moves, x), fill)]
    views += [change(*group) for change, *group in zip(COLOUR, images, magnitudes, strict=True)]
    return torch.cat(views).index_select(0, _send(order.argsort(), x))


def _send(values: Tensor, like: Tensor) -> Tensor:
    """Small CPU values to the device of the images (and their dtype, unless they are indices), without waiting."""
    dtype = like.dtype if values.is_floating_point() else values.dtype
    return values.to(like.device, dtype, non_blocking=True)


def _offsets(n: int, most: int) -> Tensor:
    return noise.integers(2 * most + 1, n) - most
