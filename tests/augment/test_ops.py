"""Each operation against its formula in a float64 loop over images and pixels, against Pillow, and under autograd."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from semisynth.augment import ops
from semisynth.methods.pretext import ENHANCEMENTS

Op = Callable[[Tensor, Tensor], Tensor]

# Magnitudes of three images, different ones and with both signs where there are two.
MAGNITUDES: dict[Op, list[float]] = {
    ops.identity: [0.0, 0.5, 1.0],
    ops.autocontrast: [1.0, 1.0, 0.4],
    ops.equalize: [1.0, 1.0, 0.4],
    ops.brightness: [-0.7, 0.3, 0.9],
    ops.contrast: [-0.7, 0.3, 0.9],
    ops.color: [-0.7, 0.3, 0.9],
    ops.sharpness: [-0.7, 0.3, 0.9],
    ops.posterize: [1.0, 2.5, 4.0],
    ops.solarize: [0.2, 0.5, 0.9],
    ops.rotate: [-30.0, 11.0, 27.0],
    ops.shear_x: [-0.3, 0.1, 0.2],
    ops.shear_y: [-0.3, 0.1, 0.2],
    ops.translate_x: [-0.3, 0.1, 0.22],
    ops.translate_y: [-0.3, 0.1, 0.22],
}
GEOMETRIC = [ops.rotate, ops.shear_x, ops.shear_y, ops.translate_x, ops.translate_y]


def images(n: int, c: int, h: int, w: int, seed: int = 0) -> Tensor:
    """Random 8-bit images as float64, which do not fill the range."""
    levels = torch.randint(20, 230, (n, c, h, w), generator=torch.Generator().manual_seed(seed))
    return levels.double() / 255


def pixels(image: Tensor) -> Iterator[tuple[int, int, int]]:
    return itertools.product(*map(range, image.shape))


def each_pixel(image: Tensor, value: Callable[[int, int, int], float]) -> Tensor:
    """The image whose pixel (k, i, j) is `value`, clipped."""
    out = torch.empty_like(image)
    for k, i, j in pixels(image):
        out[k, i, j] = min(max(float(value(k, i, j)), 0.0), 1.0)
    return out


def grey(image: Tensor, i: int, j: int) -> float:
    channels = image[:, i, j].tolist()
    if len(channels) != 3:
        return sum(channels) / len(channels)
    return 0.299 * channels[0] + 0.587 * channels[1] + 0.114 * channels[2]


def mix(image: Tensor, magnitude: float, other: Callable[[int, int, int], float]) -> Tensor:
    """Pillow's enhancers: interpolation and extrapolation between a degenerate image (-1) and the image (0)."""
    factor = 1 + magnitude
    return each_pixel(image, lambda k, i, j: (1 - factor) * other(k, i, j) + factor * float(image[k, i, j]))


def naive_contrast(image: Tensor, magnitude: float) -> Tensor:
    _, h, w = image.shape
    mean = sum(grey(image, i, j) for i in range(h) for j in range(w)) / (h * w)
    return mix(image, magnitude, lambda k, i, j: mean)


def naive_sharpness(image: Tensor, magnitude: float) -> Tensor:
    _, h, w = image.shape

    def smooth(k: int, i: int, j: int) -> float:
        if i in (0, h - 1) or j in (0, w - 1):
            return float(image[k, i, j])
        around = sum(float(image[k, i + a, j + b]) for a in (-1, 0, 1) for b in (-1, 0, 1))
        return (around + 4 * float(image[k, i, j])) / 13

    return mix(image, magnitude, smooth)


def naive_autocontrast(image: Tensor, magnitude: float) -> Tensor:
    def value(k: int, i: int, j: int) -> float:
        values = image[k].flatten().tolist()
        x, low, high = float(image[k, i, j]), min(values), max(values)
        return x if low == high else (1 - magnitude) * x + magnitude * (x - low) / (high - low)

    return each_pixel(image, value)


def naive_equalize(image: Tensor, magnitude: float) -> Tensor:
    def value(k: int, i: int, j: int) -> float:
        levels = [round(255 * value) for value in image[k].flatten().tolist()]
        x, level = float(image[k, i, j]), round(255 * float(image[k, i, j]))
        darker, most = sum(other < level for other in levels), sum(other < max(levels) for other in levels)
        return x if most == 0 else (1 - magnitude) * x + magnitude * darker / most

    return each_pixel(image, value)


def naive_posterize(image: Tensor, magnitude: float) -> Tensor:
    step = 2.0**magnitude
    return each_pixel(image, lambda k, i, j: step * math.floor(round(255 * float(image[k, i, j])) / step) / 255)


def naive_solarize(image: Tensor, magnitude: float) -> Tensor:
    def value(k: int, i: int, j: int) -> float:
        x = float(image[k, i, j])
        return 1 - x if x > 1 - magnitude else x

    return each_pixel(image, value)


def naive_warp(image: Tensor, source: Callable[[float, float], tuple[float, float]], fill: float = 0.0) -> Tensor:
    """Pixel (right, below) of the centre comes from `source` of it, by bilinear interpolation."""
    _, h, w = image.shape

    def at(k: int, i: int, j: int) -> float:
        return float(image[k, i, j]) if 0 <= i < h and 0 <= j < w else fill

    def value(k: int, i: int, j: int) -> float:
        right, below = source(j - (w - 1) / 2, i - (h - 1) / 2)
        column, row = right + (w - 1) / 2, below + (h - 1) / 2
        left, top = math.floor(column), math.floor(row)
        corners = [(top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)]
        return sum((1 - abs(row - a)) * (1 - abs(column - b)) * at(k, a, b) for a, b in corners)

    return each_pixel(image, value)


def naive_rotate(image: Tensor, magnitude: float, fill: float = 0.0) -> Tensor:
    sin, cos = math.sin(math.radians(magnitude)), math.cos(math.radians(magnitude))
    return naive_warp(image, lambda x, y: (cos * x - sin * y, sin * x + cos * y), fill)


def naive_shear_x(image: Tensor, magnitude: float, fill: float = 0.0) -> Tensor:
    return naive_warp(image, lambda x, y: (x + magnitude * y, y), fill)


def naive_shear_y(image: Tensor, magnitude: float, fill: float = 0.0) -> Tensor:
    return naive_warp(image, lambda x, y: (x, y + magnitude * x), fill)


def naive_translate_x(image: Tensor, magnitude: float, fill: float = 0.0) -> Tensor:
    return naive_warp(image, lambda x, y: (x - magnitude * image.shape[2], y), fill)


def naive_translate_y(image: Tensor, magnitude: float, fill: float = 0.0) -> Tensor:
    return naive_warp(image, lambda x, y: (x, y - magnitude * image.shape[1]), fill)


NAIVE: dict[Op, Callable[[Tensor, float], Tensor]] = {
    ops.identity: lambda image, magnitude: image,
    ops.autocontrast: naive_autocontrast,
    ops.equalize: naive_equalize,
    ops.brightness: lambda image, magnitude: mix(image, magnitude, lambda k, i, j: 0.0),
    ops.contrast: naive_contrast,
    ops.color: lambda image, magnitude: mix(image, magnitude, lambda k, i, j: grey(image, i, j)),
    ops.sharpness: naive_sharpness,
    ops.posterize: naive_posterize,
    ops.solarize: naive_solarize,
    ops.rotate: naive_rotate,
    ops.shear_x: naive_shear_x,
    ops.shear_y: naive_shear_y,
    ops.translate_x: naive_translate_x,
    ops.translate_y: naive_translate_y,
}

PILLOW: dict[Op, tuple[Callable[[Image.Image, float], Image.Image], list[float]]] = {
    ops.autocontrast: (lambda image, magnitude: ImageOps.autocontrast(image), [1.0]),
    ops.equalize: (lambda image, magnitude: ImageOps.equalize(image), [1.0]),
    ops.brightness: (lambda image, magnitude: ImageEnhance.Brightness(image).enhance(1 + magnitude), [-0.5, 0.5]),
    ops.contrast: (lambda image, magnitude: ImageEnhance.Contrast(image).enhance(1 + magnitude), [-0.5, 0.5]),
    ops.color: (lambda image, magnitude: ImageEnhance.Color(image).enhance(1 + magnitude), [-0.5, 0.5]),
    ops.sharpness: (lambda image, magnitude: ImageEnhance.Sharpness(image).enhance(1 + magnitude), [-0.5, 0.5]),
    ops.posterize: (lambda image, magnitude: ImageOps.posterize(image, 8 - int(magnitude)), [1.0, 4.0]),
    ops.solarize: (lambda image, magnitude: ImageOps.solarize(image, int(255 * (1 - magnitude)) + 1), [0.3, 0.7]),
    ops.rotate: (lambda image, magnitude: image.rotate(magnitude, Image.Resampling.BILINEAR), [-20.0, 20.0]),
}

parametrize_op = pytest.mark.parametrize("op", list(MAGNITUDES), ids=lambda op: op.__name__)


@parametrize_op
@pytest.mark.parametrize("shape", [(3, 3, 7, 9), (3, 1, 8, 6)], ids=["colour", "grey"])
def test_is_its_formula_with_a_magnitude_for_each_image(op: Op, shape: tuple[int, int, int, int]) -> None:
    x, magnitude = images(*shape), torch.tensor(MAGNITUDES[op], dtype=torch.float64)
    x += 0.8 / 255 * (torch.rand_like(x) - 0.5)  # off the levels, as a generator's images are
    expected = torch.stack([NAIVE[op](image, float(m)) for image, m in zip(x, magnitude, strict=True)])
    torch.testing.assert_close(op(x, magnitude), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(op(x.float(), magnitude.float()), expected.float(), atol=2e-6, rtol=0)


@pytest.mark.parametrize("op", list(PILLOW), ids=lambda op: op.__name__)
def test_is_pillows_up_to_its_rounding(op: Op) -> None:
    # Equalisation in whole steps needs many pixels to come near to the exact one.
    x = images(1, 3, 192, 192)
    theirs, magnitudes = PILLOW[op]
    image = Image.fromarray((x[0] * 255).round().byte().permute(1, 2, 0).numpy())
    for magnitude in magnitudes:
        expected = torch.from_numpy(np.array(theirs(image, magnitude))).permute(2, 0, 1).double() / 255
        found = op(x, torch.tensor([magnitude], dtype=torch.float64))[0]
        inner = slice(32, -32) if op is ops.rotate else slice(None)  # the corners come from outside
        assert (found - expected)[:, inner, inner].abs().max() <= (2.1 if op is ops.equalize else 1.1) / 255


EDGES = torch.stack([torch.zeros(3, 9, 11), torch.ones(3, 9, 11), torch.full((3, 9, 11), 100 / 255)]).double()


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
@pytest.mark.parametrize("name", ENHANCEMENTS)
def test_every_magnitude_of_a_pretext_task_is_pillows_within_a_level(name: str, channels: int) -> None:
    op, grid = ENHANCEMENTS[name]
    random = torch.randint(256, (3, 3, 9, 11), generator=torch.Generator().manual_seed(1)).double() / 255
    x = torch.cat([images(2, 3, 9, 11), random, random.round(), EDGES])[:, :channels]
    for magnitude in sorted({magnitude for levels in range(2, 7) for magnitude in grid(levels)}):
        found = (op(x, torch.full((len(x),), magnitude, dtype=x.dtype)) * 255).round()
        for view, image in zip(found, x, strict=True):
            pixels = (image * 255).round().byte()
            source = Image.fromarray((pixels[0] if channels == 1 else pixels.permute(1, 2, 0)).numpy())
            theirs = np.array(PILLOW[op][0](source, magnitude)).reshape(9, 11, channels)
            expected = torch.from_numpy(theirs).permute(2, 0, 1).double()
            assert (view - expected).abs().max() <= 1, (magnitude, float((view - expected).abs().max()))


def test_quarter_turns_are_exact() -> None:
    x, turns = images(8, 3, 6, 6), torch.arange(8) % 4
    found = ops.quarter_turns(x, turns)
    for view, image, turn in zip(found, x, turns.tolist(), strict=True):
        assert view.equal(image.rot90(turn, (1, 2)))
        source = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
        expected = torch.from_numpy(np.array(source.rotate(90 * turn))).permute(2, 0, 1)
        assert (view * 255).round().byte().equal(expected)


@parametrize_op
def test_zero_magnitude_is_the_identity(op: Op) -> None:
    x = torch.cat([images(3, 3, 8, 8), torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)])
    torch.testing.assert_close(op(x, torch.zeros(5, dtype=x.dtype)), x, atol=1e-14, rtol=0)


@parametrize_op
@pytest.mark.parametrize("sign", [1, -1])
def test_stays_in_range(op: Op, sign: int) -> None:
    x = torch.cat([torch.rand(30, 3, 9, 9), torch.ones(30, 3, 9, 9), torch.zeros(1, 3, 9, 9)])
    magnitude = torch.linspace(0, max(MAGNITUDES[op]), len(x))[torch.randperm(len(x))]
    found = op(x, sign * magnitude if min(MAGNITUDES[op]) < 0 else magnitude)
    assert found.min() >= 0 and found.max() <= 1


@parametrize_op
def test_gradient_is_that_of_finite_differences_or_straight_through(op: Op) -> None:
    x = (0.3 + 0.4 * torch.rand(3, 3, 5, 6, dtype=torch.float64)).requires_grad_()
    magnitude = torch.tensor(MAGNITUDES[op], dtype=torch.float64) * 0.3
    if op in (ops.posterize, ops.equalize):
        weight = torch.rand_like(x)
        (gradient,) = torch.autograd.grad((op(x, magnitude) * weight).sum(), x)
        torch.testing.assert_close(gradient, weight)
        assert not op(x, magnitude).equal(x)
    else:
        assert torch.autograd.gradcheck(lambda x: op(x, magnitude), x)


@parametrize_op
def test_a_flat_image_has_a_finite_gradient(op: Op) -> None:
    x = torch.full((3, 3, 5, 6), 0.4, requires_grad=True)
    found = op(x, torch.tensor(MAGNITUDES[op]))
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("op", [ops.autocontrast, ops.equalize])
def test_noise_below_a_level_is_not_amplified(op: Op) -> None:
    x = 100 / 255 + 1e-4 * torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(op(x, torch.ones(2)), x, atol=0, rtol=0)


def test_equalising_nan_leaves_the_report_to_the_engine() -> None:
    x = torch.full((1, 1, 4, 4), torch.nan)
    assert ops.equalize(x, torch.ones(1)).isnan().all()


@pytest.mark.parametrize("op", GEOMETRIC, ids=lambda op: op.__name__)
def test_what_comes_from_outside_is_fill(op: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    x, magnitude = images(3, 2, 6, 7), torch.tensor(MAGNITUDES[op], dtype=torch.float64)
    found = op(x, magnitude, 0.5)
    expected = [NAIVE[op](image, float(m), 0.5) for image, m in zip(x, magnitude, strict=True)]  # type: ignore[call-arg]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-12, rtol=0)


def test_one_warp_is_all_geometric_operations() -> None:
    x, magnitudes = images(5, 2, 6, 7), torch.diag(torch.tensor([20.0, 0.2, -0.2, 0.3, -0.3], dtype=torch.float64))
    one_by_one = [op(x[i : i + 1], magnitudes[i, i : i + 1]) for i, op in enumerate(GEOMETRIC)]
    torch.testing.assert_close(ops.warp(x, magnitudes), torch.cat(one_by_one), atol=1e-14, rtol=0)


def test_shift_is_a_crop_of_the_reflect_padded_image() -> None:
    x, mirrored = images(4, 2, 6, 7), torch.tensor([False, True, False, True])
    right, down = torch.tensor([2, -1, 0, -2]), torch.tensor([-2, 0, 1, 2])
    found, plain = ops.shift(x, right, down, mirrored), ops.shift(x, right, down)
    for k in range(4):
        top, left = 2 - int(down[k]), 2 - int(right[k])
        for view, source in ((plain[k], x[k]), (found[k], x[k].flip(2) if mirrored[k] else x[k])):
            padded = np.pad(source.numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
            assert view.equal(torch.from_numpy(padded[:, top : top + 6, left : left + 7]))


def test_flip_mirrors_the_marked_images() -> None:
    x, mirrored = images(3, 2, 4, 5), torch.tensor([True, False, True])
    found = ops.flip(x, mirrored)
    for k, i, j in pixels(x[0]):
        assert found[:, k, i, j].tolist() == [x[0, k, i, 4 - j], x[1, k, i, j], x[2, k, i, 4 - j]]


@pytest.mark.parametrize("fill", [0.0, 0.5])
def test_cutout_fills_a_square_about_its_centre(fill: float) -> None:
    x = images(3, 2, 8, 10)
    magnitude = torch.tensor([0.49, 0.27, 0.0], dtype=torch.float64)  # sides of 4, 2 and 0 pixels
    centre = torch.tensor([[0.4, 0.55], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    # Rows about 3.2 and columns about 5.5, a square cut by the upper right corner, and none.
    squares = [(slice(1, 5), slice(4, 8)), (slice(1), slice(9, 10)), (slice(0), slice(0))]
    found = ops.cutout(x, magnitude, centre, fill)
    for view, image, (rows, columns) in zip(found, x, squares, strict=True):
        image[:, rows, columns] = fill
        assert view.equal(image)


def test_views_are_differentiable() -> None:
    x = images(2, 1, 5, 6).requires_grad_()
    amount, mirrored = torch.tensor([0.5, 0.4], dtype=torch.float64), torch.tensor([True, False])
    centre = torch.tensor([[0.3, 0.3], [0.5, 0.9]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: ops.shift(x, torch.tensor([1, -1]), torch.tensor([0, 1]), mirrored), x)
    assert torch.autograd.gradcheck(lambda x: ops.flip(x, mirrored), x)
    assert torch.autograd.gradcheck(lambda x: ops.cutout(x, amount, centre, 0.5), x)
