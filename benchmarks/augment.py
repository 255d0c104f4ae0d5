"""The strong view of a batch of images against the same policy on Pillow, image by image, on one thread each.

Both shift by up to an eighth with reflection, mirror half of the images, apply two operations of RandAugment with
magnitudes from the same ranges, and cut a square hole. Both begin with stored uint8 images and end with one float
tensor. Pillow's side comes twice: as it is usually written (pad and crop, each image made a tensor by itself, then
stacked), which the target is about; and written for speed (shift by indexing, the whole batch made a tensor at once).
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import timing
import torch
from PIL import Image, ImageEnhance, ImageOps

from semisynth import allocator, noise
from semisynth.augment import Strong
from semisynth.augment.policies import COLOUR, GEOMETRIC
from semisynth.data.stream import to_float

TARGET = 10.0
SHAPES = ((3, 32, 32), (1, 16, 16))


def main() -> None:
    given = parse()
    torch.set_num_threads(given.threads)
    allocator.keep()  # as the engine does
    results = []
    for shape in SHAPES:
        results.append(measure(shape, given))
        line = "{shape}: {ratio:.1f} times as many, interval {interval}; ours {ours}, Pillow {pillow} images/s"
        quick = "; over Pillow written for speed {lean[ratio]:.1f}, interval {lean[interval]}"
        print((line + quick).format(**results[-1]), flush=True)
    timing.conclude("augment", given, torch.device("cpu"), results)


def parse() -> argparse.Namespace:
    parser = timing.options(__doc__, repeats=30)
    parser.add_argument("--batch", type=int, default=7 * 64, help="images of a batch")
    parser.add_argument("--seconds", type=float, default=0.3, help="a block is as many batches as fit in, at least one")
    return parser.parse_args()


def measure(shape: tuple[int, int, int], given: argparse.Namespace) -> dict[str, Any]:
    """How many times as many images our view makes in the same time."""
    array = np.random.RandomState(0).randint(256, size=(given.batch, *shape)).astype(np.uint8)
    stored = np.ascontiguousarray(array[:, 0] if shape[0] == 1 else array.transpose(0, 2, 3, 1))
    x, view = torch.from_numpy(array), Strong(flip=True)

    def ours(step: int) -> None:
        with noise.seeded(step):
            view(to_float(x))

    def usual(step: int) -> None:
        source = random.Random(step)
        views = [np.asarray(strong(Image.fromarray(image), source, padded)) for image in stored]
        torch.stack(
            [to_float(torch.from_numpy(view.copy()).view(*shape[1:], shape[0]).permute(2, 0, 1)) for view in views]
        )

    def lean(step: int) -> None:
        source = random.Random(step)
        views = np.stack([np.asarray(strong(Image.fromarray(image), source, indexed)) for image in stored])
        to_float(torch.from_numpy(views).view(given.batch, *shape[1:], shape[0]).permute(0, 3, 1, 2).contiguous())

    sides = [block(side, given.seconds) for side in (usual, lean, ours)]
    slow, quick, fast = zip(*([side() for side in sides] for _ in range(given.repeats)), strict=True)
    return {
        "shape": list(shape),
        **timing.ratio(slow, fast),
        "target": TARGET,
        "lean": timing.ratio(quick, fast),
        "ours": round(given.batch / median(fast)),
        "pillow": round(given.batch / median(slow)),
        "batch": given.batch,
    }


def block(side: Callable[[int], None], seconds: float) -> Callable[[], float]:
    """Times a block of batches; returns the seconds of one batch."""
    side(0)
    began = time.perf_counter()
    side(1)
    times = max(1, int(seconds / (time.perf_counter() - began)))

    def run() -> float:
        began = time.perf_counter()
        for step in range(times):
            side(step)
        return (time.perf_counter() - began) / times

    return run


# ---- the same policy on Pillow --------------------------------------------------------------------------------------


Shift = Callable[[Image.Image, int, int], Image.Image]


def strong(image: Image.Image, source: random.Random, shift: Shift) -> Image.Image:
    """A weak view, two operations, a hole."""
    w, h = image.size
    right, down = (source.randint(-(side // 8), side // 8) for side in (w, h))
    image = shift(image, right, down)
    if source.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for _ in range(2):
        apply, (low, high) = source.choice(OPERATIONS)
        image = apply(image, source.uniform(low, high))
    return cutout(image, 0.5 * source.random(), source.random(), source.random())


def padded(image: Image.Image, right: int, down: int) -> Image.Image:
    """Shift with reflection by padding an eighth on all sides, and cropping."""
    (w, h), array = image.size, np.asarray(image)
    margins = [(h // 8, h // 8), (w // 8, w // 8), (0, 0)]
    left, top = w // 8 - right, h // 8 - down
    wide = Image.fromarray(np.pad(array, margins[: array.ndim], mode="reflect"))
    return wide.crop((left, top, left + w, top + h))


def indexed(image: Image.Image, right: int, down: int) -> Image.Image:
    """The same, quicker."""
    w, h = image.size
    return Image.fromarray(np.asarray(image)[reflected(h, down)][:, reflected(w, right)])


def reflected(size: int, offset: int) -> np.ndarray[Any, Any]:
    """Where each pixel of a shifted row comes from."""
    index: np.ndarray[Any, Any] = size - 1 - np.abs(size - 1 - np.abs(np.arange(size) - offset))
    return index


def cutout(image: Image.Image, side: float, row: float, column: float) -> Image.Image:
    """A black square about a centre in [0, 1]."""
    w, h = image.size
    side = round(side * min(w, h))
    left, top = round(column * w - side / 2), round(row * h - side / 2)
    image.paste(0, (left, top, left + side, top + side))
    return image


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Resample: matrix takes a pixel to where it comes from, about the centre."""
    (a, b, c, d, e, f), (w, h) = matrix, image.size
    x, y = w / 2, h / 2
    centred = (a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y)
    return image.transform(image.size, Image.Transform.AFFINE, centred, Image.Resampling.BILINEAR)


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BILINEAR)


def shear_x(image: Image.Image, magnitude: float) -> Image.Image:
    return affine(image, 1, magnitude, 0, 0, 1, 0)


def shear_y(image: Image.Image, magnitude: float) -> Image.Image:
    return affine(image, 1, 0, 0, magnitude, 1, 0)


def translate_x(image: Image.Image, magnitude: float) -> Image.Image:
    return affine(image, 1, 0, -magnitude * image.size[0], 0, 1, 0)


def translate_y(image: Image.Image, magnitude: float) -> Image.Image:
    return affine(image, 1, 0, 0, 0, 1, -magnitude * image.size[1])


def enhance(kind: Callable[[Image.Image], Any]) -> Callable[[Image.Image, float], Image.Image]:
    """An operation of `ImageEnhance`."""

    def apply(image: Image.Image, magnitude: float) -> Image.Image:
        changed: Image.Image = kind(image).enhance(1 + magnitude)
        return changed

    return apply


OPERATIONS: list[tuple[Callable[[Image.Image, float], Image.Image], tuple[float, float]]] = list(
    zip(
        [
            *(rotate, shear_x, shear_y, translate_x, translate_y),
            lambda image, _: image,
            lambda image, _: ImageOps.autocontrast(image),
            lambda image, _: ImageOps.equalize(image),
            *map(enhance, (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, ImageEnhance.Sharpness)),
            lambda image, magnitude: ImageOps.posterize(image, 8 - round(magnitude)),
            lambda image, magnitude: ImageOps.solarize(image, round(256 * (1 - magnitude))),
        ],
        [*GEOMETRIC.values(), *COLOUR.values()],
        strict=True,
    )
)


if __name__ == "__main__":
    main()
