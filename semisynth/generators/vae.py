"""The encoder of a class-conditional variational autoencoder, whose decoder is a `ConditionalGenerator`."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth.generators.gan import Modulated
from semisynth.generators.protocol import vectors


class Encoder(nn.Module):
    """Images and labels -> mean and log variance of the latent, each (n, latent): q(z | x, y), a diagonal normal.

    Convolutions modulated by the class, halved down to 4x4; the sides of images are those of `ConditionalGenerator`.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, latent: int = 32, width: int = 32) -> None:
        super().__init__()
        channels, side, _ = shape
        self.classes = classes
        sizes = [channels, width, *[width, 2 * width, 2 * width][: side.bit_length() - 3]]
        self.blocks = nn.ModuleList([Modulated(before, after, classes) for before, after in pairwise(sizes)])
        self.last = nn.Linear(16 * sizes[-1], 2 * latent)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance."""
        condition, h = vectors(y, self.classes, x), 2 * x - 1
        for position, block in enumerate(self.blocks):
            h = block(h if position == 0 else F.avg_pool2d(h, 2), condition)
        mean, log_variance = self.last(h.flatten(1)).chunk(2, 1)
        return mean, log_variance


def sampled(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """A draw from the normal of this mean and log variance, differentiable in both (the reparameterisation)."""
    return mean + torch.exp(log_variance / 2) * noise
