"""A class-conditional diffusion model.

Karras, Aittala, Aila and Laine, "Elucidating the design space of diffusion-based generative models", NeurIPS 2022
(arXiv 2206.00364); the class is left out now and then, for guidance (Ho and Salimans, arXiv 2207.12598).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from semisynth import noise
from semisynth.difficulty import Judge
from semisynth.errors import UserError, between
from semisynth.generators.diffusion import MEDIUM, Denoiser, Diffusion, denoiser_of
from semisynth.generators.protocol import in_turn
from semisynth.method import Batch, External, Losses, Method, Update
from semisynth.models import autoencoder, unet
from semisynth.models.autoencoder import Autoencoder

PATCH = 4
MEAN, DEVIATION = -1.2, 1.2  # of the logarithm of sigma in training (EDM, table 1)


class EDM(Method):
    """E[ lambda(sigma) || D(x + sigma n; sigma, y) - x ||^2 ] with ln sigma ~ N(-1.2, 1.2^2) (EDM, eq. 2 and table 1).

    lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, and images x in [-1, 1], or their latents (Rombach
    et al., CVPR 2022, arXiv 2112.10752). With a judge, D is told how hard an image of its class is, too (`difficulty`).

    Args:
        network: size of the U-ViT: tiny, small, mid, large or huge; or unet-tiny or unet, U-Nets of the library
            diffusers, which has to be installed for them
        patch: pixels of a side of the U-ViT's patches; not for a U-Net, which has none
        latent: where the diffusion happens if not on pixels: the folder of an AutoencoderKL that diffusers saved, or of
            a pipeline with one in its folder vae, or hub:OWNER/NAME or hub:OWNER/NAME/FOLDER, which diffusers fetches;
            each image is encoded once, and a latent of it drawn at each step
        drop: probability that an image's class is left out
        deviation: sigma_data, of the pixels; of latents, where their autoencoder scales them as usual, it is about 1
        sampler: which makes it a generator: heun, Heun's method of two passes of the network a step, or dpm++,
            DPM-Solver++ (2M) of the library diffusers, of one
        sampler_steps: of the sampler
        guidance: weight of the class in sampling, 1 for none
        hard: how hard the sampled images are, from 0 to 1, where --judge told it of those it learns from
        model_lr: of AdamW
    """

    reads_u = False
    task = "generate"
    model: Denoiser

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        judge: Judge | None,
        *,
        network: str = "tiny",
        patch: int = PATCH,
        latent: str | None = None,
        drop: float = 0.1,
        deviation: float = 0.5,
        sampler: Literal["heun", "dpm++"] = "heun",
        sampler_steps: int = 18,
        guidance: float = 1.0,
        hard: float = MEDIUM,
        model_lr: float = 2e-3,
    ) -> None:
        super().__init__()
        between(0, 1, drop=drop)
        between(1, math.inf, patch=patch)
        between(1e-6, math.inf, deviation=deviation)
        if drop == 0 and guidance != 1:
            raise UserError("with drop 0 the model never learns without a class: give guidance 1, or another drop.")
        if network in unet.SIZES and patch != PATCH:
            raise UserError(f"network '{network}' has no patches: leave patch out.")
        if latent and judge:
            raise UserError(
                "a judge reads images, and this diffusion model learns from latents: leave one of them out."
            )
        vae = autoencoder.load(latent, shape) if latent else None
        self.vae = External(vae) if vae else None
        space = vae.latent_shape if vae else shape
        self.model = denoiser_of(space, classes, network, patch, deviation, told=judge is not None)
        self.generator_of = partial(
            Diffusion, steps=sampler_steps, guidance=guidance, hard=hard, sampler=sampler, vae=vae
        )
        self.generator_of(self.model)  # its errors are raised now, not after the training
        self.judge, self.drop, self.model_lr = judge, drop, model_lr

    def updates(self) -> dict[str, Update]:
        optimizer = partial(torch.optim.AdamW, lr=self.model_lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        return {"denoiser": Update(self.model, self.loss, optimizer=optimizer)}

    def loss(self, batch: Batch) -> Losses:
        """The weighted error of denoising, one noise level an image."""
        n, x = len(batch.x), self.clean(batch.x)
        sigma = (MEAN + DEVIATION * noise.normal(n, like=x)).exp()
        y = torch.where(noise.uniform(n, like=x) < self.drop, -1, batch.y)
        noisy = x + sigma.view(-1, 1, 1, 1) * noise.normal(*x.shape, like=x)
        condition = (y,) if self.judge is None else (y, self.judge(batch.x, batch.y))
        error = (self.model(noisy, sigma, *condition) - x).square().flatten(1).mean(1)
        return Losses({"denoising": (weight(sigma, self.model.deviation) * error).mean()})

    def clean(self, x: Tensor) -> Tensor:
        """What is to be denoised: pixels in [-1, 1], or latents drawn by their means and deviations."""
        if self.vae is None:
            return 2 * x - 1
        mean, spread = x.chunk(2, 1)
        return mean + spread * noise.normal(*mean.shape, like=mean)

    def encoded_by(self) -> External[Autoencoder] | None:
        """The autoencoder, which gives these means and deviations."""
        return self.vae

    def samples(self, n: int, like: Tensor) -> dict[str, Tensor]:
        """n images of the classes in turn."""
        return {"uniform": in_turn(self.generator_of(self.model), n, like)}


def weight(sigma: Tensor, deviation: float) -> Tensor:
    """lambda(sigma), by which every level starts with a loss of one (EDM, appendix B.6)."""
    return (sigma.square() + deviation**2) / (sigma * deviation).square()
