"""The images that DPT asks of a diffusion model, in shards that any process can make with the same bytes."""

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
from semisynth.generators.diffusion import Diffusion
from semisynth.recipes.sampling import latents, prepared

SPREAD = 0.1  # of the difficulty asked for (arXiv 2411.18109)


class Sampler(NamedTuple):
    """What makes the images: the run of a diffusion model, how it is asked, and where.

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


def make(sampler: Sampler, numbers: range, path: Path) -> None:
    """One shard: each image from a latent of its own number, of the classes in turn."""
    generator, classes, device = loaded(sampler), generators.class_names(sampler.run), resolve(sampler.device)
    seeds = [noise.derive("dpt image", sampler.seed, i) for i in numbers]
    z, y = latents(generator, seeds), torch.tensor([i % generator.classes for i in numbers])
    asked = [y.to(device)] if sampler.conditional else []
    asked += [drawn(sampler.hard, seeds).to(device)] if sampler.hard is not None else []
    with torch.no_grad():
        x = prepared(generator(z.to(device), *asked), None).cpu()
    labels = [classes[c] for c in y.tolist()]
    parquet.write(path, {"image": [parquet.png(image) for image in x], "label": labels, "index": list(numbers)})


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
