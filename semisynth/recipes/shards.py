"""The images that DPT asks of a generator, in shards that any process can make with the same bytes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from semisynth import generators, noise
from semisynth.data import parquet
from semisynth.engine import resolve
from semisynth.generators import Options
from semisynth.generators.diffusion import Diffusion
from semisynth.recipes.sampling import Maker, latents, prepared, together

SPREAD = 0.1  # of the difficulty asked for (arXiv 2411.18109)


class Sampler(NamedTuple):
    """The run of a diffusion model, how it is asked, and where.

    conditional: whether it is told classes; hard: how hard the images are to be, if it is told.
    """

    run: str
    steps: int
    guidance: float
    sampler: str
    seed: int
    device: str
    conditional: bool = True
    hard: float | None = None

    def images(self, numbers: range, seeds: Sequence[int]) -> tuple[Tensor, Sequence[str | None]]:
        """The images of these numbers, each from a latent of its own seed, and their classes, in turn."""
        generator, classes, device = loaded(self), generators.class_names(self.run), resolve(self.device)
        z, y = latents(generator, seeds), torch.tensor([i % generator.classes for i in numbers])
        given = [z, *([y] if self.conditional else []), *([drawn(self.hard, seeds)] if self.hard is not None else [])]
        parts = zip(*(x.split(together(generators.shape(generator))) for x in given), strict=True)
        with torch.no_grad():
            made = [generator(*(x.to(device) for x in part)).cpu() for part in parts]
        return torch.cat(made), [classes[c] for c in y.tolist()]


class Pretrained(NamedTuple):
    """A generator that comes trained, and what of it stands for the data's classes.

    classes: as mix's; names, shape: of the data's classes and images.
    """

    generator: str
    options: Options
    classes: str
    names: tuple[str, ...]
    shape: tuple[int, int, int]
    seed: int
    device: str

    def maker(self) -> Maker:
        """What makes its images; `UserError` for a class that it has not."""
        return Maker.of(self.generator, self.options, self.classes, self.names, self.shape, resolve(self.device))

    def images(self, numbers: range, seeds: Sequence[int]) -> tuple[Tensor, Sequence[str | None]]:
        """Likewise; classes are those of the data or, where any will do, the generator's own."""
        maker = prepared_maker(self)
        places = [i % len(maker.asked) for i in numbers]
        return torch.stack(list(maker.sample(places, seeds))), [maker.asked[place][0] for place in places]


Source = Sampler | Pretrained


def make(source: Source, numbers: range, path: Path) -> None:
    """One shard."""
    x, labels = source.images(numbers, [noise.derive("dpt image", source.seed, i) for i in numbers])
    name = source.run if isinstance(source, Sampler) else source.generator
    images = [parquet.png(image) for image in prepared(x, None, name)]
    parquet.write(path, {"image": images, "label": list(labels), "index": list(numbers)})


def drawn(hard: float, seeds: Sequence[int]) -> Tensor:
    """How hard each image is to be: N(hard, 0.1), in [0, 1]."""
    spread = [torch.randn((), generator=torch.Generator().manual_seed(noise.derive("hard", seed))) for seed in seeds]
    return (hard + SPREAD * torch.stack(spread)).clamp(0, 1)


@functools.lru_cache(maxsize=1)
def loaded(sampler: Sampler) -> Diffusion:
    """The generator: kept, as a process makes many shards of one."""
    found = generators.load(sampler.run)
    assert isinstance(found, Diffusion)
    made = Diffusion(found.denoiser, sampler.steps, sampler.guidance, sampler=sampler.sampler, vae=found.vae)
    return made.to(resolve(sampler.device))


@functools.lru_cache(maxsize=1)
def prepared_maker(source: Pretrained) -> Maker:
    """Likewise."""
    return source.maker()


def forget() -> None:
    """Let go of the generators that are kept."""
    loaded.cache_clear()
    prepared_maker.cache_clear()
