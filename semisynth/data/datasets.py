"""Labeled image sets in memory, each with a fixed pool, validation and test split."""

from __future__ import annotations

import functools
import string
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from semisynth import generators, noise
from semisynth.data import glyphs, splits
from semisynth.errors import UserError, choose

EACH = (20, 10, 360)  # images of a class in the test, validation and pool of a set that is made here


@dataclass(frozen=True)
class Images:
    """Images x (n, c, h, w) uint8 and their labels y (n,) int64."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def subset(self, index: Tensor) -> Images:
        """The images at `index` (m,), in its order."""
        return Images(self.x[index], self.y[index])


@dataclass(frozen=True)
class Dataset:
    """A set of images; `flip` says whether a horizontal flip keeps the class."""

    name: str
    classes: tuple[str, ...]
    pool: Images
    validation: Images
    test: Images
    flip: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.pool.x.shape[1:]
        return channels, height, width


@functools.cache
def load(name: str) -> Dataset:
    """The set of this name, built once per process: built in, or generator:NAME; an unknown one raises `UserError`."""
    if name.startswith(generators.SAMPLES):
        return _samples(name)
    return BUILT_IN[choose(name, BUILT_IN, "data set")]()


def _digits() -> Dataset:
    """The 1,797 handwritten digits of scikit-learn (UCI optdigits), resized from 8x8 to 16x16."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = torch.from_numpy(raw.images).float()[:, None] * (255 / 16)
    x = F.interpolate(small, size=(16, 16), mode="bilinear", align_corners=False).round().to(torch.uint8)
    images = Images(x, torch.from_numpy(raw.target).long())
    test, validation, pool = (images.subset(index) for index in splits.stratified(images.y, [500, 300], seed=0))
    return Dataset("digits", tuple(string.digits), pool, validation, test, flip=False)


def _glyphs() -> Dataset:
    """24,180 characters 0-9 A-Z a-z, 390 of each."""
    return _alternating("glyphs", tuple(glyphs.CHARACTERS), Images(*glyphs.render(sum(EACH))))


def _samples(name: str) -> Dataset:
    """390 samples of each class of a generator, the same ones whenever they are made; classes are called by number."""
    generator = generators.load(name.removeprefix(generators.SAMPLES))
    if not generator.classes:
        raise UserError(f"--data {name}: that generator has no classes, so its samples have no labels.")
    y = torch.arange(generator.classes).repeat(sum(EACH))
    # Not `noise`, which would give each rank its own part.
    z = torch.randn(len(y), *generator.latent_shape, generator=torch.Generator().manual_seed(noise.derive("samples")))
    with torch.no_grad():
        parts = zip(z.split(generator.classes), y.split(generator.classes), strict=True)
        x = (255 * torch.cat([generator(*part) for part in parts])).round().to(torch.uint8)
    return _alternating(name, tuple(map(str, range(generator.classes))), Images(x, y))


def _alternating(name: str, classes: tuple[str, ...], images: Images) -> Dataset:
    # Classes alternate and images are independent, so consecutive blocks are stratified splits.
    sizes = [count * len(classes) for count in EACH]
    test, validation, pool = map(Images, torch.split(images.x, sizes), torch.split(images.y, sizes))
    return Dataset(name, classes, pool, validation, test, flip=False)


def _letters() -> Dataset:
    """The images of `glyphs` without the ten digits."""
    whole = load("glyphs")
    first = len(string.digits)

    def strip(images: Images) -> Images:
        kept = images.subset((images.y >= first).nonzero()[:, 0])
        return Images(kept.x, kept.y - first)

    return Dataset(
        "letters", whole.classes[first:], strip(whole.pool), strip(whole.validation), strip(whole.test), flip=False
    )


BUILT_IN: dict[str, Callable[[], Dataset]] = {"digits": _digits, "glyphs": _glyphs, "letters": _letters}
