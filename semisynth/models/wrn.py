"""Wide residual networks, WRN-d-k (Zagoruyko and Komodakis 2016, arXiv 1605.07146), with either norm."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from semisynth.models.classifier import Classifier, Norm, Normalize, norm


class Block(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions: x + f(x), by a 1x1 convolution where the shape changes."""

    def __init__(
        self, before: int, after: int, stride: int, norm_kind: Norm, activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.first = nn.Sequential(norm(norm_kind, before), activation())
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            norm(norm_kind, after),
            activation(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
        )
        same = before == after and stride == 1
        self.shortcut = None if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, h, w) -> (n, after, h / stride, w / stride)."""
        a = self.first(x)
        out: Tensor = self.body(a) + (x if self.shortcut is None else self.shortcut(a))
        return out


def leaky() -> nn.Module:
    """Leaky ReLU 0.1, as in the SSL literature since Mean Teacher."""
    return nn.LeakyReLU(0.1)


def wrn(
    depth: int,
    factor: int,
    channels: int,
    classes: int,
    norm_kind: Norm = "group",
    activation: Callable[[], nn.Module] = leaky,
) -> Classifier:
    """WRN-`depth`-`factor`: three groups of (depth - 4) / 6 blocks, 16, 32 and 64 times `factor` channels wide.

    Convolutions start by He's initialisation for fan-out (the paper's); depth - 4 must be a multiple of 6.
    """
    blocks: list[nn.Module] = []
    before = 16
    for group, after in enumerate((16 * factor, 32 * factor, 64 * factor)):
        for position in range((depth - 4) // 6):
            stride = 2 if group > 0 and position == 0 else 1
            blocks.append(Block(before, after, stride, norm_kind, activation))
            before = after
    stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
    last = [norm(norm_kind, before), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = Classifier(nn.Sequential(Normalize(), stem, *blocks, *last), before, classes)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
