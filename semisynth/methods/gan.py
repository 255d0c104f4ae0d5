"""A class-conditional GAN: the generators that semi-supervised methods draw on.

Hinge loss (Lim and Ye 2017; Tran 2017) with a projection discriminator under spectral normalisation (Miyato 2018;
Miyato and Koyama 2018), trained by Adam with two rates (Heusel 2017); the average of the generator is what is kept.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from semisynth import noise
from semisynth.errors import between
from semisynth.functional import frozen
from semisynth.generators.gan import ConditionalGenerator, Discriminator
from semisynth.generators.protocol import in_turn
from semisynth.method import Batch, Losses, Method, Update

WIDEST = 4096  # numbers of a latent, and channels: more is a slip


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))): scores (n,), (m,)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """-E D(G(z)): scores (m,)."""
    return -fake.mean()


class GAN(Method):
    """Adversarial updates: the discriminator on real and generated images of the same labels, then the generator.

    Args:
        latent: size of z and of the class embedding
        width: channels at the largest resolution, of both networks
        generator_lr: of the generator's Adam
        discriminator_lr: of the discriminator's Adam
    """

    reads_u = False
    model: ConditionalGenerator
    task = "generate"

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        latent: int = 32,
        width: int = 32,
        generator_lr: float = 4e-4,
        discriminator_lr: float = 8e-4,
    ) -> None:
        super().__init__()
        between(1, WIDEST, latent=latent, width=width)
        self.model = ConditionalGenerator(shape, classes, latent, width)
        self.discriminator = Discriminator(shape, classes, width)
        self.rates = {"generator": generator_lr, "discriminator": discriminator_lr}

    def updates(self) -> dict[str, Update]:
        adam = {name: partial(torch.optim.Adam, lr=lr, betas=(0.0, 0.99)) for name, lr in self.rates.items()}
        return {
            "discriminator": Update(self.discriminator, self.criticise, optimizer=adam["discriminator"]),
            "generator": Update(self.model, self.imitate, optimizer=adam["generator"]),
        }

    def criticise(self, batch: Batch) -> Losses:
        """The discriminator's loss, generator fixed."""
        with torch.no_grad():
            fake = self.model(noise.normal(len(batch.y), *self.model.latent_shape, like=batch.x), batch.y)
        real, made = self.discriminator(torch.cat([batch.x, fake]), batch.y.repeat(2)).chunk(2)
        return Losses({"hinge": discriminator_loss(real, made)}, {"real": real.mean(), "fake": made.mean()})

    def imitate(self, batch: Batch) -> Losses:
        """The generator's loss, discriminator fixed."""
        fake = self.model(noise.normal(len(batch.y), *self.model.latent_shape, like=batch.x), batch.y)
        return Losses({"adversarial": generator_loss(frozen(self.discriminator)(fake, batch.y))})

    def samples(self, n: int, like: Tensor) -> dict[str, Tensor]:
        """n images of the classes in turn."""
        return {"uniform": in_turn(self.model, n, like)}
