"""A U-Net with attention (Ho, Jain and Abbeel, NeurIPS 2020, arXiv 2006.11239), by diffusers' UNet2DModel."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from semisynth import optional
from semisynth.errors import choose

# The library's waves are made for steps 0 to 1000, their angles 1 to 1e-4 per step; the level, ln(sigma) / 4, is within
# [-1.6, 1.1]. So much faster, the fastest wave is that of the U-ViT, and half of them turn at least once per unit.
TIMES = 100.0
LOWEST = 4  # pixels of a side below which no grid is halved to
ATTENDED = 16  # pixels of a side up to which halved grids have attention
HEAD = 32  # channels of an attention head


class Size(NamedTuple):
    """Channels of each grid, from the image's own to the coarsest, and residual blocks at each on the way down."""

    channels: tuple[int, ...]
    layers: int


SIZES = {"unet-tiny": Size((32, 64), 1), "unet": Size((128, 256, 256, 256), 2)}


class UNet(nn.Module):
    """network(x, level, y) -> (n, c, h, w): x (n, c, h, w); level (n,), of the noise; y (n, condition), of the class.

    size: a name of `SIZES`; a small image, or one whose side is not divisible, has fewer grids. `UserError` without
    diffusers.
    """

    def __init__(self, shape: tuple[int, int, int], condition: int, size: str = "unet-tiny") -> None:
        super().__init__()
        channels, height, width = shape
        chosen = SIZES[choose(size, SIZES, "size of the network")]
        sides = grids(height, width, len(chosen.channels))
        widths = chosen.channels[: len(sides)]
        kinds = ["Attn" if place > 0 and side <= ATTENDED else "" for place, side in enumerate(sides)]
        self.network = optional.library("diffusers", f"network {size}").UNet2DModel(
            sample_size=(height, width),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=widths,
            layers_per_block=chosen.layers,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            attention_head_dim=HEAD,
            norm_num_groups=widths[0] // 4,  # divides all others, and the sums that the skips make
            class_embed_type="identity",  # what is given is added to the embedding of the level
        )
        self.condition = nn.Linear(condition, 4 * widths[0], bias=False)
        nn.init.normal_(self.condition.weight)

    def forward(self, x: Tensor, level: Tensor, y: Tensor) -> Tensor:
        """The network's output, of the shape of x."""
        out: Tensor = self.network(x, TIMES * level, self.condition(y), return_dict=False)[0]
        return out


def grids(height: int, width: int, most: int) -> list[int]:
    """The larger side of the image, and of each of at most so many grids that are half as large as the one before."""
    sides = [max(height, width)]
    while len(sides) < most and height % 2 == width % 2 == 0 and min(height, width) // 2 >= LOWEST:
        height, width = height // 2, width // 2
        sides.append(max(height, width))
    return sides
