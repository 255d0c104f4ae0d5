"""Labeled image sets, each with a pool, a validation and a test split: built in, sampled, or one's own."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from semisynth import generators, noise
from semisynth.data import glyphs, splits
from semisynth.errors import UserError, between, choose

if TYPE_CHECKING:
    from semisynth.data.decode import Preparation
    from semisynth.data.stored import Stored

SIDES = (4, 1024)  # pixels of images that are made from one's own
# The first of the digits on the last five of 14 forms. Of the 13 writers one filled in two; nearest neighbours have it
# that these are the first two.
OTHERS = 1157
ARRAYS = "arrays"  # what data in memory are called
EACH = (20, 10, 360)  # images of a class in the test, validation and pool of a set that is made here
TOGETHER = 1000  # of them in the making at a time
LARGEST = 2**31  # bytes of such a set
WRITE = "write its images with semisynth generate, and give --data IMAGES/images.parquet."


@dataclass(frozen=True)
class Reading:
    """How one's own images are read; the sets that are built in have nothing of it.

    Args:
        size: pixels of a side that images are made to have; 0 for the generator's if one is given, else for the images'
            own if all are squares of one size up to 64, else for 32
        channels: gray, rgb, or auto: gray if all images are
        fit: how an image that is no square becomes one: crop the centre, pad with black, or stretch
        mirror: whether a mirror image keeps its class, and so may be trained on
        holdout: share of the labeled training images set aside for each of validation and test that there is not
        unreadable: whether an image that cannot be read is refused, or told and left out
    """

    size: int = 0
    channels: Literal["auto", "gray", "rgb"] = "auto"
    fit: Literal["crop", "pad", "stretch"] = "crop"
    mirror: Literal["no", "yes"] = "no"
    holdout: float = 0.2
    unreadable: Literal["refuse", "skip"] = "refuse"

    def __post_init__(self) -> None:
        between(0, 0.4, holdout=self.holdout)
        if self.size and not SIDES[0] <= self.size <= SIDES[1]:
            raise UserError(f"size is {self.size}: give {SIDES[0]} to {SIDES[1]} pixels, or 0 to have it chosen.")


@dataclass(frozen=True)
class Images:
    """Images x (n, c, h, w) uint8, in memory or in a file, and their labels y (n,) int64, -1 where there is none.

    What an encoder made of images (`encoded`) is float32.
    """

    x: Tensor | Stored
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def subset(self, index: Tensor) -> Images:
        """The images at `index` (m,), in its order."""
        x = self.x[index] if isinstance(self.x, Tensor) else self.x.subset(index)
        return Images(x, self.y[index])

    def join(self, other: Images) -> Images:
        """These and, after them, the others, which lie where these do."""
        if isinstance(self.x, Tensor) and isinstance(other.x, Tensor):
            return Images(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]))
        assert not isinstance(self.x, Tensor) and not isinstance(other.x, Tensor), "one of them is in memory"
        return Images(self.x.join(other.x), torch.cat([self.y, other.y]))

    def batches(self, size: int) -> Iterator[Tensor]:
        """The images in order, so many at a time, in memory."""
        if isinstance(self.x, Tensor):
            yield from self.x.split(size)
        else:
            yield from (self.x[index] for index in torch.arange(len(self)).split(size))


@dataclass(frozen=True)
class Dataset:
    """A set of images; a split that there is not is empty.

    flip: whether a horizontal flip keeps the class; unlabeled: images besides those of the pool; told: what was
    converted, resized or set aside; preparation, hash, reading: of one's own images, of which the hash is that of what
    was read.
    """

    name: str
    classes: tuple[str, ...]
    pool: Images
    validation: Images
    test: Images
    flip: bool
    unlabeled: Images | None = None
    told: tuple[str, ...] = ()
    preparation: Preparation | None = None
    hash: str = ""
    reading: Reading = Reading()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.pool.x.shape[1:]
        return channels, height, width

    def describe(self) -> dict[str, Any]:
        """What `result.json` says of it."""
        splits = {"train": self.pool, "validation": self.validation, "test": self.test, "unlabeled": self.unlabeled}
        return {
            "source": self.name,
            "hash": self.hash or _digest(*(images for images in splits.values() if images is not None)),
            "size": list(self.shape[1:]),
            "channels": self.shape[0],
            "fit": self.preparation.fit if self.preparation else None,
            "images": {name: len(images) for name, images in splits.items() if images is not None and len(images)},
            "notes": list(self.told),
        }


def _digest(*parts: Images) -> str:
    """Of pixels and labels."""
    digest = hashlib.blake2b(digest_size=16)
    for images in parts:
        for x in images.batches(1000):
            digest.update(x.numpy().tobytes())
        digest.update(images.y.numpy().tobytes())
    return digest.hexdigest()


def load(name: str, reading: Reading = Reading(), classes: bool = True) -> Dataset:
    """The set of this name: built in, generator:NAME, or one's own images at a path; `UserError` for another name.

    classes: whether one's own images need labels.
    """
    if not is_own(name):
        if name == ARRAYS:
            raise UserError("the data were arrays in memory, which no run keeps: give --data with labeled images.")
        for field in fields(Reading):
            if getattr(reading, field.name) != field.default:
                raise UserError(f"--data {name} does not read {field.name}: leave it out; it is for one's own images.")
        return built(name)
    from semisynth.data import own

    return replace(own.load(name, reading, classes), reading=reading)


def is_own(name: str) -> bool:
    """Whether a name is the path of one's own images; the names of the sets that are built in win."""
    if name in BUILT_IN or name.startswith(generators.SAMPLES):
        return False
    return os.path.exists(name) or os.sep in name or ":" in name or "." in name


@functools.cache
def built(name: str) -> Dataset:
    """A set that needs no files of the user's, made once per process."""
    if name.startswith(generators.SAMPLES):
        return _samples(name)
    return BUILT_IN[choose(name, BUILT_IN, "data set (and there is no such path)")]()


def _digits() -> Dataset:
    """The 1,797 handwritten digits of scikit-learn (UCI optdigits), resized from 8x8 to 16x16."""
    return _divided("digits", _all_digits(), [500, 300])


def _digits_pool() -> Dataset:
    """The 1,157 of them on the first nine forms."""
    return _divided("digits-pool", _all_digits().subset(torch.arange(OTHERS)), [350, 150])


def _digits_others() -> Dataset:
    """The 640 of them on the last five forms, by other writers, all in its pool: for what may not see `digits-pool`."""
    images = _all_digits()
    return _divided("digits-others", images.subset(torch.arange(OTHERS, len(images))), [0, 0])


def _all_digits() -> Images:
    """In the order of the source: 14 forms, one after the other, on each of which a writer copied the same digits."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = torch.from_numpy(raw.images).float()[:, None] * (255 / 16)
    x = F.interpolate(small, size=(16, 16), mode="bilinear", align_corners=False).round().to(torch.uint8)
    return Images(x, torch.from_numpy(raw.target).long())


def _divided(name: str, images: Images, sizes: list[int]) -> Dataset:
    """Test and validation images of these numbers, and a pool of the rest."""
    test, validation, pool = (images.subset(index) for index in splits.stratified(images.y, sizes, seed=0))
    return Dataset(name, tuple(string.digits), pool, validation, test, flip=False)


def _glyphs() -> Dataset:
    """24,180 characters 0-9 A-Z a-z, 390 of each."""
    return _alternating("glyphs", tuple(glyphs.CHARACTERS), *glyphs.render(sum(EACH)))


def _samples(name: str) -> Dataset:
    """390 samples of each class of a generator, the same ones whenever they are made; classes are called by number."""
    generator = _sampled(name.removeprefix(generators.SAMPLES))
    if not generator.classes:
        raise UserError(f"--data {name}: that generator has no classes, so its samples have no labels.")
    if generator.classes * sum(EACH) * math.prod(generators.shape(generator)) > LARGEST:
        raise UserError(
            f"--data {name}: {sum(EACH)} images of each of {generator.classes} classes are too many: {WRITE}"
        )
    y = torch.arange(generator.classes).repeat(sum(EACH))
    # Not `noise`, which would give each rank its own part.
    z = torch.randn(len(y), *generator.latent_shape, generator=torch.Generator().manual_seed(noise.derive("samples")))
    together = min(generator.classes, TOGETHER)
    with torch.no_grad():
        parts = zip(z.split(together), y.split(together), strict=True)
        x = generators.finite(torch.cat([generator(*part) for part in parts]), name.removeprefix(generators.SAMPLES))
        x = (255 * x).round().to(torch.uint8)
    return _alternating(name, tuple(map(str, range(generator.classes))), x, y)


def _sampled(name: str) -> generators.Generator:
    try:
        return generators.load(name)
    except UserError as error:
        told = f" As --data it has no options: {WRITE}" if generators.is_foreign(name) else ""
        raise UserError(f"{error}{told}") from error


def _alternating(name: str, classes: tuple[str, ...], x: Tensor, y: Tensor) -> Dataset:
    # Classes alternate and images are independent, so consecutive blocks are stratified splits.
    sizes = [count * len(classes) for count in EACH]
    test, validation, pool = map(Images, torch.split(x, sizes), torch.split(y, sizes))
    return Dataset(name, classes, pool, validation, test, flip=False)


def _letters() -> Dataset:
    """The images of `glyphs` without the ten digits."""
    whole = built("glyphs")
    first = len(string.digits)

    def strip(images: Images) -> Images:
        kept = images.subset((images.y >= first).nonzero()[:, 0])
        return Images(kept.x, kept.y - first)

    return Dataset(
        "letters", whole.classes[first:], strip(whole.pool), strip(whole.validation), strip(whole.test), flip=False
    )


BUILT_IN: dict[str, Callable[[], Dataset]] = {
    "digits": _digits,
    "glyphs": _glyphs,
    "letters": _letters,
    "digits-pool": _digits_pool,
    "digits-others": _digits_others,
}
