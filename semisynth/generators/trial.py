"""A trial of a generator, before anything is made with it that takes long or is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from semisynth import noise
from semisynth.adapter import Shape
from semisynth.errors import UserError, line
from semisynth.generators.protocol import Generator, sample


def tried(generator: Generator, name: str, device: torch.device) -> Shape:
    """The shape of its images, one of which is made on the device, where the generator is left.

    `UserError`, which calls it `name`, if it fails, as parts do that are not of one network, or is not finite.
    """
    like = torch.empty(0, device=device)
    try:
        with torch.no_grad(), noise.seeded("shape"):
            image = sample(generator.to(device), 1, like)
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # networks that others wrote fail in many ways
        if "allocate memory" in str(error):  # torch has no error of its own for that on the CPU
            raise
        told = f"generator {name} makes no image ({type(error).__name__}: {line(error)[:300]})"
        raise UserError(f"{told}: see that its parts are of one network, and its options for it.") from error
    channels, height, width = finite(image, name).shape[1:]
    return channels, height, width


def finite(images: Tensor, name: str) -> Tensor:
    """These images; `UserError`, which calls their generator `name`, for values that are none."""
    if not images.isfinite().all():
        told = f"generator {name} gives values that are not finite"
        raise UserError(f"{told}: see that its weights are whole, and its precision suffices for them.")
    return images
