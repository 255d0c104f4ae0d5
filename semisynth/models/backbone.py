"""The features of a network from elsewhere: images in [0, 1] are made what it reads, and its answer (n, width)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from semisynth.adapter import Adapter, Shape
from semisynth.errors import UserError, sentence
from semisynth.functional import evaluating


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
    """Images (n, *shape) in [0, 1] -> the features (n, width) of `network`, in float32 and of the type of the images.

    They are made gray or repeated over its channels, resized by antialiased bilinear interpolation, and normalised.

    Args:
        record: plain values from which the network can be built again, without its weights; "input" is what it reads
        pool: from what the network answers to features
    """

    def __init__(
        self, network: nn.Module, shape: Shape, record: Mapping[str, Any], pool: Callable[[Any], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.record, reads = dict(record), Input.of(record["input"])
        self.adapter = Adapter(shape, (len(reads.mean), *(reads.size or shape[1:])))
        self.register_buffer("mean", torch.tensor(reads.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(reads.std).view(-1, 1, 1), persistent=False)
        self.network, self.pool = network.float(), pool or nn.Identity()

    def answer(self, x: Tensor) -> Any:
        """What the network gives for these images."""
        return self.network((self.adapter(x) - self.get_buffer("mean")) / self.get_buffer("std"))

    def forward(self, x: Tensor) -> Tensor:
        """Features."""
        found: Tensor = self.pool(self.answer(x))
        return found.to(x.dtype)


def probe(shape: Shape) -> Tensor:
    """Two images of this shape that are not alike."""
    return torch.linspace(0, 1, 2 * math.prod(shape)).view(2, *shape)


def replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` in each place of `old`, which may have several names."""
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child is old and parent is not new:
                setattr(parent, name, new)


def width(features: Backbone, name: str) -> int:
    """How many features an image has; lazy layers get their shapes.

    `UserError` where the network cannot read such images, or gives no features.
    """
    found = _read(features, probe(features.adapter.before), name)
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.dim() != 2 or len(found) != 2:
        kind = f"{tuple(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise UserError(f"model {name} gives {kind} for two images: its features must be floats (2, width).")
    if lazy := [own for own, value in (*features.named_parameters(), *features.named_buffers()) if is_lazy(value)]:
        raise UserError(f"model {name} never calls its lazy layer of '{lazy[0]}': leave it out, or give it a shape.")
    return found.shape[1]


def check(features: Backbone, name: str) -> None:
    """`UserError` for a network that cannot be trained here: its features draw, or its state is more than tensors."""
    x = probe(features.adapter.before)
    found, again, one = (_read(features, part, name) for part in (x, x, x[:1]))
    if not found.isfinite().all():
        raise UserError(f"model {name} gives nan or infinite features for finite images: mend it.")
    if not found.equal(again):
        raise UserError(f"model {name} answers the same image differently in eval mode: it must not draw.")
    if one.shape != found[:1].shape:
        raise UserError(f"model {name} gives {tuple(one.shape)} for one image: it must give (1, {found.shape[1]}).")
    if any(isinstance(module, torch.jit.ScriptModule) for module in features.modules()):
        raise UserError(f"model {name} has a ScriptModule in it: give the module that it was made of.")
    if others := [own for own, value in features.state_dict().items() if not isinstance(value, Tensor)]:
        raise UserError(f"model {name} keeps '{others[0]}' in its state, which is no tensor: it must keep tensors.")
    try:
        copy.deepcopy(features)
    except Exception as error:  # a foreign network may raise anything
        told = f"model {name} cannot be copied, as the average of its weights is: {sentence(error)}"
        raise UserError(f"{told} Keep in it what copy.deepcopy takes.") from error


def unreadable(name: str, read: Shape, fixed: bool, error: Exception) -> UserError:
    """Of images of this shape; fixed: whether their size is the network's own."""
    remedy = (
        "That size is of its own configuration: correct it there." if fixed else "Give another --size or --channels."
    )
    if "type" in str(error):  # float64 where float32 is, and so on; what torch says of shapes has no such word
        remedy = "It must compute in float32, or in what its images are."
    return UserError(f"model {name} cannot read images of {'x'.join(map(str, read))}: {sentence(error)} {remedy}")


def _read(features: Backbone, x: Tensor, name: str) -> Tensor:
    """What the network gives before it is made of the type of the images."""
    try:
        with torch.no_grad(), evaluating(features):
            return features.pool(features.answer(x))
    except Exception as error:  # a foreign network may raise anything
        fixed = features.record["input"]["size"] is not None
        raise unreadable(name, features.adapter.after, fixed, error) from error
