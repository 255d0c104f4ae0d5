"""MP-SSL's mapper: it moves the latents of a frozen generator and chooses among its foundation classes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth import noise


class Mapper(nn.Module):
    """(z, y) -> (z', foundation class vector): Yamaguchi 2023, section on latent meta-optimisation.

    An MLP on z and an embedding of the target class y. The latent is residual and keeps its norm: z + delta, scaled to
    |z|, starts at z and stays on the shell where the generator was trained; left free, it ran off to images of nothing.
    The class vector is a Gumbel-softmax (Jang 2017) and starts uniform. Soft draws let the gap find the classes that
    resemble the labeled images; hard ones, with the soft draw's gradient, collapsed onto others. Depth, width,
    residual, norm, temperature, soft draws and the zero start are our reconstruction.

    latent_shape: of one z; classes: target classes; foundation: the generator's classes, 0 for an unconditional one.
    """

    def __init__(
        self,
        latent_shape: tuple[int, ...],
        classes: int,
        foundation: int,
        *,
        width: int = 128,
        temperature: float = 0.5,
        hard: bool = False,
    ) -> None:
        super().__init__()
        self.latent_shape, self.foundation, self.temperature, self.hard = latent_shape, foundation, temperature, hard
        latent = math.prod(latent_shape)
        self.embedding = nn.Embedding(classes, width)
        self.body = nn.Sequential(nn.Linear(latent + width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.out = nn.Linear(width, latent + foundation)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """z (n, *latent_shape), y labels (n,) -> z' of the same shape, class vectors (n, foundation) or None."""
        out = self.out(self.body(torch.cat([z.flatten(1), self.embedding(y)], 1)))
        delta, logits = out.split([out.shape[1] - self.foundation, self.foundation], 1)
        moved = z.flatten(1) + delta
        moved = moved * (z.flatten(1).norm(dim=1, keepdim=True) / moved.norm(dim=1, keepdim=True).clamp_min(1e-12))
        return moved.view_as(z), self._choose(logits) if self.foundation else None

    def _choose(self, logits: Tensor) -> Tensor:
        soft = ((logits + noise.gumbel(*logits.shape, like=logits)) / self.temperature).softmax(1)
        if not self.hard:
            return soft
        return F.one_hot(soft.argmax(1), self.foundation) + (soft - soft.detach())
