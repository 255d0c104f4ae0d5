"""A small convolutional network for images from 8x8 up, smooth when its activation is SiLU."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from semisynth.models.classifier import Classifier, Norm, Normalize, norm


def small_cnn(
    channels: int,
    classes: int,
    width: int = 32,
    norm_kind: Norm = "group",
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> Classifier:
    """Convolutions of `width`, 2 `width` and 4 `width` channels, the later two with stride 2; then a global average."""
    layers: list[nn.Module] = [Normalize()]
    before = channels
    for after, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), norm(norm_kind, after), activation()]
        before = after
    return Classifier(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), before, classes)
