"""A class-conditional variational autoencoder: a generator whose traces are not those of a GAN.

Kingma and Welling, ICLR 2014 (arXiv 1312.6114); the condition on the class by Sohn et al., NIPS 2015. Pixels are
normal around the decoded image with one variance that is learned with the weights (sigma-VAE: Rybkin et al., ICML
2021): it is a density on real-valued pixels, which cross-entropy on grey values is not, and it weighs reconstruction
against divergence without an option to tune. The average of the decoder is what is kept.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from semisynth import noise
from semisynth.errors import between
from semisynth.generators.gan import ConditionalGenerator
from semisynth.generators.protocol import in_turn
from semisynth.generators.vae import Encoder, sampled
from semisynth.method import Batch, Losses, Method, Update
from semisynth.methods.gan import WIDEST


def negative_log_likelihood(x: Tensor, decoded: Tensor, log_scale: Tensor) -> Tensor:
    """-log N(x; decoded, exp(log_scale)^2 I) of each image (n, c, h, w), log_scale a scalar: (n,), in nats."""
    squares = ((x - decoded) * torch.exp(-log_scale)).square() / 2
    return (squares + log_scale + math.log(2 * math.pi) / 2).flatten(1).sum(1)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) of each row (n, latent): (n,), in nats (Kingma and Welling, B)."""
    return (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2


class VAE(Method):
    """-ELBO = E_q(z|x,y) [-log p(x | z, y)] + KL(q(z | x, y) || N(0, I)), in nats per pixel value, one z an image.

    Args:
        latent: size of z and of the class embedding
        width: channels at the largest resolution, of both networks
        model_lr: of Adam
    """

    reads_u = False
    model: ConditionalGenerator
    task = "generate"

    def __init__(
        self, shape: tuple[int, int, int], classes: int, *, latent: int = 32, width: int = 32, model_lr: float = 1e-3
    ) -> None:
        super().__init__()
        between(1, WIDEST, latent=latent, width=width)
        self.model = ConditionalGenerator(shape, classes, latent, width)
        self.encoder = Encoder(shape, classes, latent, width)
        self.log_scale = nn.ParameterList([torch.tensor(-1.0)])
        self.model_lr = model_lr

    def updates(self) -> dict[str, Update]:
        trained = nn.ModuleList([self.model, self.encoder, self.log_scale])
        return {"autoencoder": Update(trained, self.loss, optimizer=partial(torch.optim.Adam, lr=self.model_lr))}

    def loss(self, batch: Batch) -> Losses:
        """Both terms of the negative ELBO; the learned standard deviation of a pixel is a metric."""
        mean, log_variance = self.encoder(batch.x, batch.y)
        z = sampled(mean, log_variance, noise.normal(*mean.shape, like=batch.x))
        scale, values = self.log_scale[0], batch.x[0].numel()
        reconstruction = negative_log_likelihood(batch.x, self.model(z, batch.y), scale).mean() / values
        terms = {"reconstruction": reconstruction, "divergence": divergence(mean, log_variance).mean() / values}
        return Losses(terms, {"scale": scale.exp()})

    def samples(self, n: int, like: Tensor) -> dict[str, Tensor]:
        """n images of the classes in turn: z from the prior."""
        return {"uniform": in_turn(self.model, n, like)}
