"""A generator whose images are made to be of another shape."""

from __future__ import annotations

from torch import Tensor

from semisynth.adapter import Adapter
from semisynth.generators.protocol import Generator


class Adapted(Generator):
    """A generator whose images are made to be of another shape."""

    def __init__(self, generator: Generator, adapter: Adapter) -> None:
        super().__init__()
        self.generator, self.adapter = generator, adapter
        self.latent_shape, self.classes = generator.latent_shape, generator.classes
        self.differentiable = generator.differentiable

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """The adapted images."""
        images: Tensor = self.adapter(self.generator(z, y))
        return images
