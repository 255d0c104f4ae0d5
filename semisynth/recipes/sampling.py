"""What the generators of a mix are asked for, and their images: of each class and of each generator as many."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from semisynth import generators, noise
from semisynth.adapter import Shape
from semisynth.data.datasets import Dataset
from semisynth.data.through import Through
from semisynth.generators import Generator, Options, names
from semisynth.mixed import Row

TOGETHER = 256  # images in the making at a time
VALUES = 2**22  # of them, where they are large


@dataclass(frozen=True)
class Maker:
    """A generator, and what it is asked for in turn: the name of a class, and its number there."""

    name: str
    generator: Generator
    asked: Sequence[tuple[str | None, int]]
    device: torch.device
    together: int = TOGETHER  # images that are made at a time

    @staticmethod
    def of(name: str, options: Options, classes: str, own: Sequence[str], shape: Shape, device: torch.device) -> Maker:
        """Of the generator of that name; `UserError` for a class that it has not.

        classes: equal, any, or pairs, as `mix` has them; own, shape: classes of the data, and what images are made.
        """
        loaded = generators.load(name, options)
        made = generators.tried(loaded, name, device)
        adapter, few = generators.Adapter(made, shape), together(made)
        generator = (generators.Adapted(loaded, adapter) if adapter.told else loaded).to(device)
        there = generators.class_names(name, options)
        if classes == "any":
            return Maker(name, generator, list(zip(there, range(len(there)), strict=True)) or [(None, 0)], device, few)
        pairs, asked = names.pairs(classes, own), []
        for wanted in own:
            other = pairs.get(wanted, wanted)
            lacks = (
                f"generator {name} has no class '{other}' for the class '{wanted}' of the data: name one that it has "
                f"with --classes '{wanted}=...', or take samples of any class with --classes any."
            )
            # A class of the data may be called by a number that means another thing to the generator.
            asked.append((wanted, names.number(other, there, lacks, numbered=wanted in pairs)))
        return Maker(name, generator, asked, device, few)

    def sample(self, asked: Sequence[int], seeds: Sequence[int]) -> Iterator[Tensor]:
        """An image of each place in `asked`, from a latent of that seed."""
        for part in range(0, len(seeds), self.together):
            z = latents(self.generator, seeds[part : part + self.together]).to(self.device)
            y = torch.tensor([self.asked[place][1] for place in asked[part : part + self.together]], device=self.device)
            with torch.no_grad():
                yield from self.generator(z, y if self.generator.classes else None).cpu()


def samples(makers: Sequence[Maker], data: Dataset, count: int, seed: int, through: Through | None) -> Iterator[Row]:
    """So many synthetic images: the numbers of two classes, and of two generators, differ by one at most."""
    turns: list[list[tuple[int, int]]] = [[] for _ in makers]
    for i in range(count):
        which = (i + i // math.lcm(len(data.classes), len(makers))) % len(makers)
        turns[which].append((i, noise.derive("mix sample", seed, i)))
    for maker, turn in zip(makers, turns, strict=True):
        places = [i % len(maker.asked) for i, _ in turn]
        images = maker.sample(places, [own for _, own in turn])
        for image, place, (_, own) in zip(images, places, turn, strict=True):
            yield Row(
                prepared(image[None], through, maker.name)[0], None, "unlabeled", maker.name, maker.asked[place][0], own
            )


def together(shape: Shape) -> int:
    """How many images of this shape are made at a time."""
    return max(1, min(TOGETHER, VALUES // math.prod(shape)))


def latents(generator: Generator, seeds: Sequence[int]) -> Tensor:
    """z of each seed, whatever the others are."""
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(generator.latent_shape, generator=source) for source in sources])


def prepared(x: Tensor, through: Through | None, name: str | None = None) -> Tensor:
    """Images in [0, 1] as uint8; name: of the generator that made them, which a `UserError` for others names."""
    x = x if name is None else generators.finite(x, name)
    return through(x) if through else (255 * x).round().to(torch.uint8)
