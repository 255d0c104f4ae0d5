"""U-ViT: a transformer on tokens of time, class and image patches, with long skips.

Bao et al., "All are worth words: a ViT backbone for diffusion models", CVPR 2023 (arXiv 2209.12152).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth.errors import UserError, choose


class Size(NamedTuple):
    """Width of a token, number of blocks (half in, one in the middle, half out) and attention heads."""

    width: int
    depth: int
    heads: int


SIZES = {
    "tiny": Size(64, 5, 4),
    "small": Size(512, 13, 8),
    "mid": Size(768, 17, 12),
    "large": Size(1024, 21, 16),
    "huge": Size(1152, 29, 16),
}


class UViT(nn.Module):
    """network(x, level, y) -> (n, c, h, w): x (n, c, h, w); level (n,), of the noise; y (n, condition), of the class.

    size: a name of `SIZES`; patch: pixels of a side of a token's part. `UserError` where it does not divide the image.
    """

    def __init__(self, shape: tuple[int, int, int], condition: int, size: str = "tiny", patch: int = 2) -> None:
        super().__init__()
        channels, height, width = shape
        if height % patch or width % patch:
            raise UserError(f"patches of {patch} do not divide images of {height}x{width}: give another patch.")
        chosen = SIZES[choose(size, SIZES, "size of the network")]
        dim, half = chosen.width, chosen.depth // 2
        self.patch, self.grid, self.dim = patch, (height // patch, width // patch), dim
        self.patches = nn.Conv2d(channels, dim, patch, patch)
        self.level = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.condition = nn.Linear(condition, dim, bias=False)
        self.position = nn.Parameter(0.02 * torch.randn(1, 2 + self.grid[0] * self.grid[1], dim))
        self.down = nn.ModuleList([Block(dim, chosen.heads) for _ in range(half)])
        self.middle = Block(dim, chosen.heads)
        self.up = nn.ModuleList([Block(dim, chosen.heads) for _ in range(half)])
        self.skips = nn.ModuleList([nn.Linear(2 * dim, dim) for _ in range(half)])
        self.norm = nn.LayerNorm(dim)
        self.last = nn.Linear(dim, channels * patch**2)
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.normal_(self.condition.weight)

    def forward(self, x: Tensor, level: Tensor, y: Tensor) -> Tensor:
        """The network's output, of the shape of x."""
        tokens = [self.level(waves(level, self.dim))[:, None], self.condition(y)[:, None]]
        h = torch.cat([*tokens, self.patches(x).flatten(2).transpose(1, 2)], 1) + self.position
        kept = []
        for block in self.down:
            h = block(h)
            kept.append(h)
        h = self.middle(h)
        for block, skip in zip(self.up, self.skips, strict=True):
            h = block(skip(torch.cat([h, kept.pop()], -1)))
        parts = self.last(self.norm(h))[:, 2:].transpose(1, 2).unflatten(2, self.grid)
        out: Tensor = self.smooth(F.pixel_shuffle(parts, self.patch))
        return out


class Block(nn.Module):
    """Attention and a perceptron, each after normalisation and added to what came in."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_perceptron = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mix, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.perceptron = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, h: Tensor) -> Tensor:
        """(n, tokens, dim) -> the same."""
        parts = self.mix(self.before_attention(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*parts)
        h = h + self.out(attended.transpose(1, 2).flatten(2))
        return h + self.perceptron(self.before_perceptron(h))  # type: ignore[no-any-return]


def waves(level: Tensor, dim: int) -> Tensor:
    """Cosines and sines of the level (n,), at frequencies from 1 up to nearly 100: (n, dim)."""
    frequencies = 100 ** (torch.arange(dim // 2, device=level.device, dtype=level.dtype) / (dim // 2))
    angles = level[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)
