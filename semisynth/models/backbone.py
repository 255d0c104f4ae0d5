"""The features of a network from elsewhere: images in [0, 1] are made what it reads, and its answer (n, width)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from semisynth.errors import UserError, line
from semisynth.evaluate import evaluating
from semisynth.generators.adapted import Adapter, Shape


@dataclass(frozen=True)
class Input:
    """What a network reads: (x - mean) / std of images x in [0, 1].

    size: (height, width), None for images as they come; mean, std: one for each of its channels.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @staticmethod
    def of(told: Mapping[str, Any]) -> Input:
        """From plain values, as `asdict` gives them."""
        size = told["size"]
        mean, std = (tuple(map(float, told[name])) for name in ("mean", "std"))
        return Input(None if size is None else (int(size[0]), int(size[1])), mean, std)


class Backbone(nn.Module):
    """Images (n, *shape) in [0, 1] -> the features (n, width) of `network`.

    They are made gray or repeated over its channels, resized by antialiased bilinear interpolation, and normalised.

    Args:
        pool: from what the network answers to features
        record: plain values from which the network can be built again, without its weights
    """

    def __init__(
        self,
        network: nn.Module,
        shape: Shape,
        reads: Input,
        pool: Callable[[Any], Tensor],
        record: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.adapter = Adapter(shape, (len(reads.mean), *(reads.size or shape[1:])))
        self.register_buffer("mean", torch.tensor(reads.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(reads.std).view(-1, 1, 1), persistent=False)
        self.network, self.pool = network, pool
        self.record = {**record, "input": asdict(reads)}

    def forward(self, x: Tensor) -> Tensor:
        """Features."""
        return self.pool(self.network((self.adapter(x) - self.get_buffer("mean")) / self.get_buffer("std")))


def probe(shape: Shape) -> Tensor:
    """Two images of this shape that are not alike."""
    return torch.linspace(0, 1, 2 * math.prod(shape)).view(2, *shape)


def width(features: Backbone, name: str) -> int:
    """How many features an image has; `UserError` where the network cannot read such images, or gives no features."""
    shape = features.adapter.before
    with torch.no_grad(), evaluating(features):
        try:
            found, again = (features(probe(shape)) for _ in range(2))
        except Exception as error:  # a foreign network may raise anything
            read = "x".join(map(str, features.adapter.after))
            raise UserError(
                f"model {name} cannot read images of {read}: {line(error)[:300]}. Give another --size or --channels."
            ) from error
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != 2:
        told = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"model {name} gives {told} for two images: its features must be of shape (2, width).")
    if not found.equal(again):
        raise UserError(f"model {name} answers the same image differently in eval mode, or nan: it must not draw.")
    return found.shape[1]
