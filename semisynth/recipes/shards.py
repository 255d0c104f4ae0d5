"""The images that DPT asks of a diffusion model, in shards that any process can make with the same bytes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import torch

from semisynth import generators, noise
from semisynth.data import parquet
from semisynth.engine import resolve
from semisynth.generators.diffusion import Diffusion
from semisynth.recipes.sampling import latents, prepared


class Sampler(NamedTuple):
    """What makes the images: the run of a diffusion model, how it is asked, and where."""

    run: str
    steps: int
    guidance: float
    seed: int
    device: str


def make(sampler: Sampler, numbers: range, path: Path) -> None:
    """One shard: each image from a latent of its own number, of the classes in turn."""
    generator, classes, device = loaded(sampler), generators.class_names(sampler.run), resolve(sampler.device)
    z = latents(generator, [noise.derive("dpt image", sampler.seed, i) for i in numbers])
    y = torch.tensor([i % generator.classes for i in numbers])
    with torch.no_grad():
        x = prepared(generator(z.to(device), y.to(device)), None).cpu()
    labels = [classes[c] for c in y.tolist()]
    parquet.write(path, {"image": [parquet.png(image) for image in x], "label": labels, "index": list(numbers)})


@functools.lru_cache(maxsize=1)
def loaded(sampler: Sampler) -> Diffusion:
    """The generator: kept, as a process makes many shards of one."""
    found = generators.load(sampler.run)
    assert isinstance(found, Diffusion)
    return Diffusion(found.denoiser, sampler.steps, sampler.guidance).to(resolve(sampler.device))
