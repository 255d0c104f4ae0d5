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
    """Three convolutions of `width`, 2 `width` and 4 `width` channels, each halving the image, then a global average."""
    layers: list[nn.Module] = [Normalize()]
    before = channels
    for after in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), norm(norm_kind, after), activation()]
        layers += [nn.AvgPool2d(2)]
        before = after
    return Classifier(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), before, classes)
