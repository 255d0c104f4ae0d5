"""What a generator is to every method: images as a differentiable function of a latent and a class."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth import noise
from semisynth.errors import UserError


class Generator(nn.Module, ABC):
    """generator(z, y) -> images (n, c, h, w) in [0, 1], differentiable in z and in a soft y.

    z: (n, *latent_shape), standard normal; y: labels (n,), soft class vectors (n, classes), or None when classes is 0.
    """

    latent_shape: tuple[int, ...]
    classes: int
    image_shape: tuple[int, int, int] | None = None  # where it is known before an image is made
    differentiable: str = ""  # why it is not, if it is not: the end of a sentence

    @abstractmethod
    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """The images."""


class Permuted(Generator):
    """A conditional generator whose class numbers are shuffled by a seed, so that none of them tells what it means."""

    def __init__(self, generator: Generator, seed: int) -> None:
        super().__init__()
        self.generator, self.latent_shape, self.classes = generator, generator.latent_shape, generator.classes
        self.differentiable = generator.differentiable
        order = torch.randperm(self.classes, generator=torch.Generator().manual_seed(noise.derive(seed, "classes")))
        self.register_buffer("order", order)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Images of the classes that the shuffled numbers stand for."""
        order = self.get_buffer("order")
        if y is not None and self.classes:
            y = order[y] if y.ndim == 1 else y[:, order.argsort()]
        images: Tensor = self.generator(z, y)
        return images


def unmixed(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Within this context nothing is cast automatically on the device of `like`: each part computes in its own dtype.

    The precision of a generator from elsewhere is an option of its own, and kernels refuse to mix two of few bits.
    """
    kind = like.device.type
    cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if cast else contextlib.nullcontext()


def vectors(y: Tensor, classes: int, like: Tensor) -> Tensor:
    """Class vectors (n, classes): one-hot for labels (n,), unchanged for vectors; errors as of `require_known`."""
    require_known(y, classes)
    return F.one_hot(y, classes).to(like.dtype) if y.ndim == 1 else y


def require_known(y: Tensor, classes: int) -> None:
    """`UserError` for vectors of another width and, on the CPU, for labels out of range; a GPU would have to wait."""
    if y.ndim > 1:
        if y.shape[1] != classes:
            raise UserError(
                f"class vectors have {y.shape[1]} entries, and the generator {classes} classes: give as many."
            )
    elif y.device.type == "cpu" and not torch.compiler.is_compiling() and bool(((y < 0) | (y >= classes)).any()):
        wrong = int(y[(y < 0) | (y >= classes)][0])
        raise UserError(f"the generator has no class {wrong}: give numbers from 0 to {classes - 1}.")


def require_asked(y: Tensor | None, classes: int) -> None:
    """`UserError` where no class is given to a generator that has some, or one to a generator without."""
    if y is None and classes:
        raise UserError(f"the generator has {classes} classes: give y, numbers or class vectors.")
    if y is not None and not classes:
        raise UserError("the generator has no classes: leave y out.")


def draw(generator: Generator, n: int, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """n latents z ~ N(0, I) and foundation classes y, uniform, or None without any; n and the slicing as in `noise`."""
    z = noise.normal(n, *generator.latent_shape, like=like)
    return z, noise.integers(generator.classes, n, like=z) if generator.classes else None


def shape(generator: Generator) -> tuple[int, int, int]:
    """Channels, height and width of its images."""
    if generator.image_shape is not None:
        return generator.image_shape
    with torch.no_grad(), noise.seeded("shape"):
        channels, height, width = sample(generator, 1, torch.empty(0)).shape[1:]
    generator.image_shape = channels, height, width  # a large one takes long for an image
    return channels, height, width


def sample(generator: Generator, n: int, like: Tensor) -> Tensor:
    """The images of n such draws."""
    images: Tensor = generator(*draw(generator, n, like))
    return images


def in_turn(generator: Generator, n: int, like: Tensor) -> Tensor:
    """n images of a generator with classes, of each class in turn."""
    y = torch.arange(n, device=like.device) % generator.classes
    images: Tensor = generator(noise.normal(n, *generator.latent_shape, like=like), y)
    return images
