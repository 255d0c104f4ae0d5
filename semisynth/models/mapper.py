"""What moves the latents of a frozen generator: MP-SSL's mapper, which also chooses its classes, and MGR's finder."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth import noise
from semisynth.errors import between


def turned(z: Tensor, delta: Tensor) -> Tensor:
    """z + delta (n, latent), scaled to the norm of each z.

    It stays on the shell where the generator was trained; left free, it ran off to images of nothing.
    """
    moved = z + delta
    scaled: Tensor = moved * (z.norm(dim=1, keepdim=True) / moved.norm(dim=1, keepdim=True).clamp_min(1e-12))
    return scaled


class Mapper(nn.Module):
    """(z, y) -> (z', foundation class vector): Yamaguchi 2023, section on latent meta-optimisation.

    An MLP on z and an embedding of the target class y. The latent is residual, keeps its norm, and starts at z.
    The class vector is a Gumbel-softmax (Jang 2017) and starts uniform. Soft draws let the gap find the classes that
    resemble the labeled images; hard ones, with the soft draw's gradient, collapsed onto others. Depth, width,
    residual, norm, temperature, soft draws and the zero start are our reconstruction.

    latent_shape: of one z; classes: target classes; foundation: the generator's classes, 0 for an unconditional one.
    temperature: of the Gumbel-softmax at the start, `cooling` times that at the end, geometrically in between.
    `prior` (classes, foundation) is added to the class logits: what else is known of the classes, zero unless told.
    """

    def __init__(
        self,
        latent_shape: tuple[int, ...],
        classes: int,
        foundation: int,
        *,
        width: int = 128,
        temperature: float = 0.5,
        cooling: float = 1.0,
        hard: bool = False,
    ) -> None:
        super().__init__()
        between(1e-3, math.inf, temperature=temperature, cooling=cooling)
        self.latent_shape, self.foundation = latent_shape, foundation
        self.temperature, self.cooling, self.hard = temperature, cooling, hard
        latent = math.prod(latent_shape)
        self.register_buffer("prior", torch.zeros(classes, foundation))
        self.embedding = nn.Embedding(classes, width)
        self.body = nn.Sequential(nn.Linear(latent + width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.out = nn.Linear(width, latent + foundation)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, z: Tensor, y: Tensor, progress: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """z (n, *latent_shape), y labels (n,) -> z' of the same shape, class vectors (n, foundation) or None.

        progress: of the training, from 0 to 1; it sets the temperature.
        """
        out = self.out(self.body(torch.cat([z.flatten(1), self.embedding(y)], 1)))
        delta, logits = out.split([out.shape[1] - self.foundation, self.foundation], 1)
        moved = turned(z.flatten(1), delta).view_as(z)
        return moved, self._choose(logits + self.get_buffer("prior")[y], progress) if self.foundation else None

    def _choose(self, logits: Tensor, progress: float) -> Tensor:
        temperature = self.temperature * self.cooling**progress
        soft: Tensor = ((logits + noise.gumbel(*logits.shape, like=logits)) / temperature).softmax(1)
        if not self.hard:
            return soft
        return F.one_hot(soft.argmax(1), self.foundation) + (soft - soft.detach())


class Finder(nn.Module):
    """z -> z': MGR's finder (Yamaguchi 2023, NeurIPS), an MLP on z alone.

    As in the mapper, the latent is residual, keeps its norm, and starts at z; that, depth and width are our
    reconstruction.

    latent_shape: of one z.
    """

    def __init__(self, latent_shape: tuple[int, ...], *, width: int = 128) -> None:
        super().__init__()
        latent = math.prod(latent_shape)
        self.body = nn.Sequential(nn.Linear(latent, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.out = nn.Linear(width, latent)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, z: Tensor) -> Tensor:
        """z (n, *latent_shape) -> z' of the same shape."""
        flat = z.flatten(1)
        return turned(flat, self.out(self.body(flat))).view_as(z)
