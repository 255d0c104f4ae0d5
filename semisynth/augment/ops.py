"""Batched, differentiable image operations: x (n, c, h, w) in [0, 1], and a magnitude (n,) of its own for each image.

The definitions are Pillow's, without its rounding to 8 bits except where an operation is about levels; magnitude 0 is
the identity. Gradients flow to x everywhere. `posterize` and `equalize` are flat almost everywhere, so theirs is the
straight-through estimate: the gradient of the identity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow


def identity(x: Tensor, magnitude: Tensor) -> Tensor:
    """x itself."""
    return x


# ---- light and colour: x moves away from (magnitude > 0) or towards (< 0) a degenerate image -------------------------


def brightness(x: Tensor, magnitude: Tensor) -> Tensor:
    """Scale by 1 + magnitude: -1 is black."""
    return _enhance(x, magnitude, x)


def contrast(x: Tensor, magnitude: Tensor) -> Tensor:
    """Scale the distance to the mean grey by 1 + magnitude: -1 is that grey."""
    return _enhance(x, magnitude, x - _grey(x).mean((2, 3), keepdim=True))


def color(x: Tensor, magnitude: Tensor) -> Tensor:
    """Scale the distance to the grey image by 1 + magnitude: -1 is grey; one channel has no colour and stays."""
    return x if x.shape[1] == 1 else _enhance(x, magnitude, x - _grey(x))


def sharpness(x: Tensor, magnitude: Tensor) -> Tensor:
    """Scale the distance to the smoothed image (weights 1 around a 5, over 13) by 1 + magnitude; the border stays."""
    # Sums of slices: twelve times quicker on a CPU than a pooling or a convolution.
    columns = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    total = columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:]
    detail = x[..., 1:-1, 1:-1] * (9 / 13) - total / 13
    return _enhance(x, magnitude, F.pad(detail, (1, 1, 1, 1)))


def autocontrast(x: Tensor, magnitude: Tensor) -> Tensor:
    """Stretch each channel to [0, 1]: magnitude 1 is the stretched image, 0.5 half way; flat channels stay."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    span, flat = high - low, 0.5 / 255  # less than half an 8-bit level is noise, not to be amplified
    change = (x - low) / span.clamp_min(flat) - x
    return _enhance(x, magnitude, change, span > flat)


def equalize(x: Tensor, magnitude: Tensor) -> Tensor:
    """Flatten each channel's histogram (256 levels): magnitude 1 is the equalised image; straight-through gradient.

    A pixel becomes the share of pixels darker than itself among those darker than the brightest. Pillow's integer step
    is the same up to its rounding, but is the identity below 256 pixels, where this is not.
    """
    # The clamp turns a nan into a level, so that the engine reports a diverged generator, and not an index error.
    level = (x.detach() * 255).round().long().clamp_(0, 255).flatten(2)
    darker = level.new_zeros((*level.shape[:2], 257), dtype=x.dtype)
    darker = darker.scatter_add_(2, level + 1, torch.ones_like(level, dtype=x.dtype)).cumsum(2).gather(2, level)
    top = darker.amax(2, keepdim=True)
    change = (darker / top.clamp_min(1)).view_as(x) - x.detach()
    return _enhance(x, magnitude, change, top[..., None] > 0)


def posterize(x: Tensor, magnitude: Tensor) -> Tensor:
    """Drop `magnitude` of the 8 bits (not only whole ones: levels are 2^magnitude apart); straight-through gradient."""
    step = _column(torch.exp2(magnitude))
    value = (x.detach() * 255).round_().div_(step).floor_().mul_(step).div_(255)
    return value + (x - x.detach()) if x.requires_grad else value


def solarize(x: Tensor, magnitude: Tensor) -> Tensor:
    """Invert the pixels brighter than 1 - magnitude."""
    bright = (x > 1 - _column(magnitude)).to(x.dtype)
    return torch.addcmul(bright, 1 - 2 * bright, x)  # 1 - x or x, many times quicker on a CPU than a choice


def _enhance(x: Tensor, magnitude: Tensor, difference: Tensor, where: Tensor | float = 1.0) -> Tensor:
    return torch.addcmul(x, _column(magnitude) * where, difference).clamp_(0, 1)


def _column(magnitude: Tensor) -> Tensor:
    return magnitude[:, None, None, None]


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] != len(LUMA):
        return x.mean(1, keepdim=True)
    return LUMA[0] * x[:, :1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:]


# ---- geometry: bilinear, about the centre, what comes from outside is `fill` -----------------------------------------


def rotate(x: Tensor, magnitude: Tensor, fill: float = 0.0) -> Tensor:
    """Turn by `magnitude` degrees, counter-clockwise."""
    return _warp_one(x, 0, magnitude, fill)


def shear_x(x: Tensor, magnitude: Tensor, fill: float = 0.0) -> Tensor:
    """Move each row left by `magnitude` times its distance below the centre."""
    return _warp_one(x, 1, magnitude, fill)


def shear_y(x: Tensor, magnitude: Tensor, fill: float = 0.0) -> Tensor:
    """Move each column up by `magnitude` times its distance right of the centre."""
    return _warp_one(x, 2, magnitude, fill)


def translate_x(x: Tensor, magnitude: Tensor, fill: float = 0.0) -> Tensor:
    """Move right by `magnitude` times the width."""
    return _warp_one(x, 3, magnitude, fill)


def translate_y(x: Tensor, magnitude: Tensor, fill: float = 0.0) -> Tensor:
    """Move down by `magnitude` times the height."""
    return _warp_one(x, 4, magnitude, fill)


def warp(x: Tensor, magnitudes: Tensor, fill: float = 0.0) -> Tensor:
    """The five operations above in one resampling: `magnitudes` (n, 5) in their order, one nonzero in a row."""
    angle, shear_x, shear_y, right, down = magnitudes.unbind(1)
    h, w = x.shape[2:]
    sin, cos = angle.deg2rad().sin(), angle.deg2rad().cos()
    # Where to look, from -1 to 1 on both sides. Broadcasting takes a twentieth of the time of `affine_grid`.
    entries = [cos, (shear_x - sin) * (h / w), -2 * right, (shear_y + sin) * (w / h), cos, -2 * down]
    by_x, by_y, offset = torch.stack(entries, 1).view(-1, 2, 3, 1, 1).unbind(2)
    grid = by_x * (_pixels(w, x) * (2 / w) - 1) + offset + by_y * (_pixels(h, x) * (2 / h) - 1)[:, None]
    inside = F.grid_sample(x - fill if fill else x, grid.permute(0, 2, 3, 1), align_corners=False)  # padded with zeros
    return (inside + fill if fill else inside).clamp_(0, 1)


def _warp_one(x: Tensor, column: int, magnitude: Tensor, fill: float) -> Tensor:
    return warp(x, F.pad(magnitude[:, None], (column, 4 - column)), fill)


def quarter_turns(x: Tensor, turns: Tensor) -> Tensor:
    """Turn squares (n, c, h, h) by `turns` (n,) times 90 degrees, counter-clockwise: no pixel is interpolated."""
    x = torch.where(_column(turns % 2 == 1), x.transpose(2, 3).flip(2), x)
    return torch.where(_column(turns >= 2), x.flip((2, 3)), x)


# ---- views ----------------------------------------------------------------------------------------------------------


def shift(x: Tensor, right: Tensor, down: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """Flip where `mirrored` (n,) bool, then move by `right`, `down` (n,) int64 pixels with reflection at the border."""
    n, c, h, w = x.shape
    rows, columns = _reflect(h, down), _reflect(w, right)
    if mirrored is not None:
        columns = torch.where(mirrored[:, None], w - 1 - columns, columns)
    index = (rows[:, :, None] * w + columns[:, None, :]).view(n, 1, h * w)
    return x.flatten(2).gather(2, index.expand(-1, c, -1)).view(n, c, h, w)


def flip(x: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror left and right the images where `mirrored` (n,) bool is true."""
    return torch.where(_column(mirrored), x.flip(3), x)


def cutout(x: Tensor, magnitude: Tensor, centre: Tensor, fill: float = 0.0) -> Tensor:
    """Fill a square with a side of `magnitude` times the shorter one, about `centre` (n, 2): row and column in [0, 1].

    It is made of whole pixels, as many as the rounded side, and the border cuts what lies beyond.
    """
    h, w = x.shape[2:]
    side = magnitude[:, None] * min(h, w)
    hole = _within(h, side, centre[:, :1])[:, None, :, None] * _within(w, side, centre[:, 1:])[:, None, None, :]
    return torch.addcmul(fill * hole, x, 1 - hole)  # many times quicker on a CPU than a masked fill


def _within(size: int, side: Tensor, centre: Tensor) -> Tensor:
    distance = _pixels(size, side) - (centre * size - side / 2).round()
    return ((distance > 0) & (distance < side)).to(side.dtype)


def _reflect(size: int, offset: Tensor) -> Tensor:
    index = (torch.arange(size, device=offset.device) - offset[:, None]).abs()
    return size - 1 - (size - 1 - index).abs()


def _pixels(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, device=like.device, dtype=like.dtype) + 0.5
