"""BigGAN-deep: Brock, Donahue and Simonyan, "Large scale GAN training for high fidelity natural image synthesis", ICLR
2019, arXiv 1809.11096, appendix B; self-attention: Zhang et al., ICML 2019, arXiv 1805.08318.

Modules are called as in the published checkpoints of pytorch-pretrained-biggan. What is constant once the network is
trained, and its truncation chosen, is computed when it is read (`folded`): spectral norms and running statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth.errors import UserError, between

FIRST = 16  # times the width, the channels at 4x4
NARROWER = 4  # a block's convolutions have so many times fewer channels than its input
LARGEST = 2**20  # of any size
READ = (8, 8, 2)  # the same for attention's queries, keys and values


@dataclass(frozen=True)
class Layout:
    """The sizes of a network.

    layers: for each block whether it doubles the sides, and its channels before and after, times channel_width;
    attention_layer_position: the block before which attention comes; n_stats: truncations from 0 to 1 whose running
    statistics are kept. `UserError` for blocks that do not follow on each other.
    """

    channel_width: int
    layers: Sequence[tuple[bool, int, int]]
    attention_layer_position: int
    z_dim: int
    num_classes: int
    n_stats: int
    eps: float

    def __post_init__(self) -> None:
        narrow = {"channel_width": 1, "z_dim": 1, "num_classes": 1, "n_stats": 2}
        for name, least in narrow.items():
            between(least, LARGEST, **{name: getattr(self, name)})
        if not 0 < self.eps < 1:
            raise UserError(f"eps is {self.eps}: give a number above 0, below 1.")
        sizes = [FIRST, *(after for _, _, after in self.layers)]
        for i, (_, before, after) in enumerate(self.layers):
            if before != sizes[i] or not 1 <= after <= before:
                raise UserError(f"layers[{i}] goes from {before} to {after}: it must go from {sizes[i]} to no more.")
            if before * self.channel_width < NARROWER:
                told = f"layers[{i}] reads {before * self.channel_width} channels: it needs {NARROWER}"
                raise UserError(f"{told}; see channel_width.")
        if sizes[-1] != 1:
            raise UserError(f"layers end with {sizes[-1]} times channel_width: they must end with 1.")
        if self.attended and self.attended < READ[0]:
            raise UserError(f"attention reads {self.attended} channels: it needs {READ[0]}; see channel_width.")

    @property
    def attended(self) -> int:
        """The channels that attention reads; 0 without any."""
        position = self.attention_layer_position
        return self.layers[position][1] * self.channel_width if 0 <= position < len(self.layers) else 0


class BigGAN(nn.Module):
    """z (n, z_dim), already truncated, and class vectors (n, num_classes) -> images (n, 3, h, w) in [-1, 1]."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.embeddings = nn.Linear(layout.num_classes, layout.z_dim, bias=False)
        self.generator = Synthesis(layout)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """The images."""
        images: Tensor = self.generator(torch.cat([z, self.embeddings(y)], 1))
        return images


class Synthesis(nn.Module):
    """Images from the condition (n, 2 z_dim), which every block reads: z, then the class."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        width, condition = layout.channel_width, 2 * layout.z_dim
        self.gen_z = nn.Linear(condition, 16 * FIRST * width)
        layers: list[nn.Module] = []
        for i, (doubles, before, after) in enumerate(layout.layers):
            if i == layout.attention_layer_position:
                layers.append(Attention(before * width))
            layers.append(Block(before * width, after * width, condition, doubles))
        self.layers = nn.ModuleList(layers)
        self.bn = LastNorm(width)
        self.conv_to_rgb = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, condition: Tensor) -> Tensor:
        """The images."""
        # The published linear layer's rows are in TensorFlow's order: channels last.
        x = self.gen_z(condition).unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2).contiguous()
        for layer in self.layers:
            x = layer(x, condition)
        weight, bias = self.conv_to_rgb.weight[:3], self.conv_to_rgb.bias
        assert bias is not None
        return torch.tanh(F.conv2d(F.relu(self.bn(x)), weight, bias[:3], padding=1))  # of more channels three are seen


class Block(nn.Module):
    """A residual block of four convolutions (figure 16), which drops channels of its input to have `after`."""

    def __init__(self, before: int, after: int, condition: int, doubles: bool) -> None:
        super().__init__()
        self.after, self.doubles, middle = after, doubles, before // NARROWER
        sizes = [before, middle, middle, middle, after]
        for i, kernel in enumerate((1, 3, 3, 1)):
            self.add_module(f"bn_{i}", Norm(sizes[i], condition))
            self.add_module(f"conv_{i}", nn.Conv2d(sizes[i], sizes[i + 1], kernel, padding=kernel // 2))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(n, before, h, w) -> (n, after, h, w), or twice as high and wide."""
        kept = self._doubled(x[:, : self.after])
        for i in range(4):
            x = F.relu(self.get_submodule(f"bn_{i}")(x, condition))
            x = self.get_submodule(f"conv_{i}")(self._doubled(x) if i == 1 else x)
        return x + kept

    def _doubled(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.doubles else x


class Norm(nn.Module):
    """Batch normalisation by constant statistics, scaled and shifted by the condition.

    inverse: 1 / sqrt(variance + eps).
    """

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.scale = nn.Linear(condition, channels, bias=False)
        self.offset = nn.Linear(condition, channels, bias=False)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("inverse", torch.ones(channels))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(n, channels, h, w) -> the same shape."""
        scale = (1 + self.scale(condition)) * self.get_buffer("inverse")
        shift = self.offset(condition) - self.get_buffer("mean") * scale
        return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])


class LastNorm(nn.Module):
    """The same with a scale and a shift of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("inverse", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> the same shape."""
        scale = self.weight * self.get_buffer("inverse")
        shift = self.bias - self.get_buffer("mean") * scale
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None])


class Attention(nn.Module):
    """x + gamma attention(x): every place looks at all places of the image at half its size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        theta, phi, g = (nn.Conv2d(channels, channels // by, 1, bias=False) for by in READ)
        self.snconv1x1_theta, self.snconv1x1_phi, self.snconv1x1_g = theta, phi, g
        self.snconv1x1_o_conv = nn.Conv2d(channels // READ[2], channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(n, channels, h, w) -> the same shape; it does not read the condition."""
        query = self.snconv1x1_theta(x).flatten(2)
        key, value = (F.max_pool2d(layer(x), 2).flatten(2) for layer in (self.snconv1x1_phi, self.snconv1x1_g))
        weights = (query.mT @ key).softmax(-1)
        found = (value @ weights.mT).unflatten(2, x.shape[2:])
        return torch.addcmul(x, self.gamma, self.snconv1x1_o_conv(found))


def folded(tensors: Mapping[str, Tensor], layout: Layout, truncation: float) -> dict[str, Tensor]:
    """What `BigGAN` holds at this truncation, from the tensors of a published checkpoint.

    Weights are divided by their spectral norms, and statistics interpolated. `UserError` for tensors that cannot be.
    """
    found = {}
    for name, tensor in tensors.items():
        place, _, kind = name.rpartition(".")
        if kind == "weight_orig":
            if f"{place}.weight" not in tensors:  # an early torch stored what it divided
                found[f"{place}.weight"] = tensor / _norm(tensor, tensors, place)
        elif kind == "running_means":
            found[f"{place}.mean"] = _between(tensor, layout, truncation, name)
        elif kind == "running_vars":
            found[f"{place}.inverse"] = (_between(tensor, layout, truncation, name) + layout.eps).rsqrt()
        elif kind not in ("weight_u", "weight_v"):
            found[name] = tensor
    return found


def _norm(weight: Tensor, tensors: Mapping[str, Tensor], place: str) -> Tensor:
    """The largest singular value of a weight, by the singular vectors u and v that training found; v may be missing."""
    matrix = weight.flatten(1)
    u, v = (tensors.get(f"{place}.weight_{which}") for which in "uv")
    if u is None or u.shape != matrix.shape[:1] or (v is not None and v.shape != matrix.shape[1:]):
        raise UserError(f"{place}.weight_u or weight_v does not fit the weight of {tuple(weight.shape)}.")
    return (u @ matrix).norm() if v is None else u @ matrix @ v


def _between(table: Tensor, layout: Layout, truncation: float, name: str) -> Tensor:
    """The row of a table (n_stats, channels) at this truncation, interpolated linearly between its two neighbours.

    The package weighs the two the wrong way round: at other truncations than the stored ones and those halfway, its
    images are those of the truncation mirrored between the neighbours.
    """
    if len(table) != layout.n_stats:
        raise UserError(f"{name} has {len(table)} truncations, n_stats is {layout.n_stats}.")
    place = truncation * (layout.n_stats - 1)
    below = min(int(place), layout.n_stats - 2)
    return torch.lerp(table[below], table[below + 1], place - below)
