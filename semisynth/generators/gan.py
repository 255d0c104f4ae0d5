"""A small class-conditional generator and its discriminator, for images of 4x4 to 32x32."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from semisynth.errors import UserError
from semisynth.generators.protocol import Generator, vectors
from semisynth.models.classifier import norm


class Modulated(nn.Module):
    """Convolution, normalisation, and scale and shift by the condition (FiLM, Perez 2018), then SiLU."""

    def __init__(self, before: int, after: int, condition: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.norm = norm("group", after, affine=False)
        self.style = nn.Linear(condition, 2 * after)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(n, before, h, w), (n, condition) -> (n, after, h, w)."""
        scale, shift = self.style(condition)[:, :, None, None].chunk(2, 1)
        return F.silu(self.norm(self.convolution(x)) * (1 + scale) + shift)


class ConditionalGenerator(Generator):
    """A `Generator`: z and a mixture of class embeddings, through modulated convolutions from 4x4 up to the image.

    Raises `UserError` for images that are not square with a side of 4, 8, 16 or 32.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, latent: int = 32, width: int = 32) -> None:
        super().__init__()
        channels, side, across = shape
        if side != across or side not in (4, 8, 16, 32):
            raise UserError(
                f"this generator cannot make images of {side}x{across}: they must be square, of 4, 8, 16 or 32 pixels."
            )
        self.latent_shape, self.classes, self.width = (latent,), classes, width
        condition = 2 * latent
        self.embedding = nn.Linear(classes, latent, bias=False)
        self.start = nn.Linear(condition, 2 * width * 16)
        sizes = [2 * width, *[2 * width, width, width, width][: side.bit_length() - 2]]
        self.blocks = nn.ModuleList([Modulated(before, after, condition) for before, after in pairwise(sizes)])
        self.last = nn.Conv2d(sizes[-1], channels, 3, padding=1)
        nn.init.normal_(self.embedding.weight)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """z (n, latent), y labels (n,) or class vectors (n, classes) -> images in [0, 1]."""
        assert y is not None, "this generator is class-conditional: y is needed"
        condition = torch.cat([z, self.embedding(vectors(y, self.classes, z))], 1)
        x = self.start(condition).view(len(z), 2 * self.width, 4, 4)
        for position, block in enumerate(self.blocks):
            x = block(x if position == 0 else F.interpolate(x, scale_factor=2.0, mode="nearest"), condition)
        return torch.sigmoid(self.last(x))


class Discriminator(nn.Module):
    """A projection discriminator (Miyato and Koyama 2018) with spectral normalisation (Miyato 2018)."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 32) -> None:
        super().__init__()
        channels, side, _ = shape
        self.classes = classes
        layers: list[nn.Module] = [_spectral(nn.Conv2d(channels, width, 3, padding=1)), nn.LeakyReLU(0.1)]
        before = width
        while side > 4:
            after = min(2 * before, 4 * width)
            layers += [_spectral(nn.Conv2d(before, after, 4, 2, 1)), nn.LeakyReLU(0.1)]
            before, side = after, side // 2
        self.features = nn.Sequential(*layers, _spectral(nn.Conv2d(before, before, 3, padding=1)), nn.LeakyReLU(0.1))
        self.real = _spectral(nn.Linear(before, 1))
        self.embedding = _spectral(nn.Linear(classes, before, bias=False))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Images and labels -> scores (n,): how real, and how much of class y."""
        h = self.features(2 * x - 1).mean((2, 3)) * 4
        score: Tensor = self.real(h)[:, 0] + (self.embedding(vectors(y, self.classes, h)) * h).sum(1)
        return score


def _spectral(layer: nn.Module) -> nn.Module:
    normalised: Any = spectral_norm(layer)
    return normalised  # type: ignore[no-any-return]
