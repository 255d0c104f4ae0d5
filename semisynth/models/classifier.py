"""A classifier is features and a head; what every network here has in common."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Norm = Literal["group", "batch"]


class Normalize(nn.Module):
    """The model's first layer: images in [0, 1] to [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        return 2 * x - 1


class Classifier(nn.Module):
    """head(features(x)): images (n, c, h, w) in [0, 1] -> logits (n, classes); `features` gives (n, width).

    still: whether the features stay in eval mode, as those that are frozen do.
    """

    still = False

    def __init__(self, features: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.features(x))
        return logits

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode of all that is not still."""
        super().train(mode)
        if self.still:
            self.features.eval()
        return self


class Encoder(nn.Module):
    """A classifier without its head, by the same names: images (n, c, h, w) in [0, 1] -> features (n, width)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.features = classifier.features

    def forward(self, x: Tensor) -> Tensor:
        """The features."""
        found: Tensor = self.features(x)
        return found


def norm(kind: Norm, channels: int, affine: bool = True) -> nn.Module:
    """GroupNorm with groups of 8 channels (one group where 8 does not divide them), or BatchNorm."""
    if kind == "batch":
        return nn.BatchNorm2d(channels, affine=affine)
    return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels, affine=affine)
