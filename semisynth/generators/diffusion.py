"""Denoisers, and what a deterministic sampler makes of them: generators.

Karras, Aittala, Aila and Laine, "Elucidating the design space of diffusion-based generative models", NeurIPS 2022
(arXiv 2206.00364), called EDM below. Guidance: Ho and Salimans, 2022 (arXiv 2207.12598), limited to an interval of
noise levels by Kynkäänniemi et al., 2024 (arXiv 2404.07724). DPM-Solver++: Lu et al., 2022 (arXiv 2211.01095), by
diffusers' scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from semisynth import optional
from semisynth.errors import between, choose
from semisynth.generators.protocol import Generator, require_known, vectors
from semisynth.models import unet, uvit
from semisynth.models.autoencoder import Autoencoder
from semisynth.twice import twice

Denoise = Callable[[Tensor, float], Tensor]  # of a noise level that all images share
TOLD, MEDIUM = 32, 0.5  # numbers that difficulty adds to the condition; the difficulty where none is asked for
NEEDING = "sampler dpm++"
LOWEST, HIGHEST, RHO = 0.002, 80.0, 7.0  # noise levels, and how they are spaced (EDM, table 1)


class Denoiser(nn.Module):
    """denoiser(x, sigma, y) -> denoised: the mean of images in [-1, 1] given them with noise of deviation sigma.

    x (n, c, h, w), latents in place of images as well; sigma (n,); y labels (n,), class vectors (n, classes), or None
    for the mean over all classes; hard (n,) in [0, 1], how hard the images of a class are, for a denoiser that is
    `told`. The network gets an input of unit variance and need not undo noise that hardly is there (EDM, eq. 7 and
    table 1).
    network: (x, level (n,), vectors (n, classes + 1 + told), of these the place after the classes for none, and what a
    perceptron says of class and difficulty behind it) -> (n, c, h, w).
    """

    def __init__(
        self, network: nn.Module, shape: tuple[int, int, int], classes: int, deviation: float = 0.5, told: int = 0
    ) -> None:
        super().__init__()
        self.network, self.shape, self.classes, self.deviation = network, shape, classes, deviation
        self.tell = nn.Sequential(nn.Linear(classes + 1, 64), nn.SiLU(), nn.Linear(64, told)) if told else None

    def forward(self, x: Tensor, sigma: Tensor, y: Tensor | None = None, hard: Tensor | None = None) -> Tensor:
        """c_skip x + c_out F(c_in x; c_noise)."""
        s, data = sigma.view(-1, 1, 1, 1), self.deviation
        total = s.square() + data**2
        out = self.network(x * total.rsqrt(), sigma.log() / 4, self.condition(y, hard, x))
        denoised: Tensor = x * (data**2 / total) + out * (s * data * total.rsqrt())
        return denoised

    def condition(self, y: Tensor | None, hard: Tensor | None, like: Tensor) -> Tensor:
        """Class vectors with a place more, which is one where there is no class; a label -1 means none too.

        Where there is none, nothing is told of difficulty.
        """
        if y is None:
            y = torch.full((len(like),), -1, device=like.device)
        if y.ndim == 1:
            y = vectors(torch.where(y < 0, self.classes, y), self.classes + 1, like)
        else:
            y = torch.cat([y, torch.zeros_like(y[:, :1])], 1)
        if self.tell is None:
            return y
        hard = like.new_full((len(like),), MEDIUM) if hard is None else hard
        told: Tensor = self.tell(torch.cat([y[:, :-1], hard[:, None]], 1))
        return torch.cat([y, told * (1 - y[:, -1:])], 1)


def denoiser_of(
    shape: tuple[int, int, int], classes: int, network: str, patch: int, deviation: float, told: bool = False
) -> Denoiser:
    """A U-ViT or a U-Net, by its size's name; patch: of the U-ViT; told: whether it is told how hard an image is."""
    choose(network, [*uvit.SIZES, *unet.SIZES], "size of the network")
    width = TOLD if told else 0
    parts = (shape, classes + 1 + width, network)
    made = unet.UNet(*parts) if network in unet.SIZES else uvit.UViT(*parts, patch)
    return Denoiser(made, shape, classes, deviation, width)


def levels(steps: int, low: float = LOWEST, high: float = HIGHEST, rho: float = RHO) -> list[float]:
    """steps + 1 noise levels from high to low, and zero (EDM, eq. 5)."""
    ends = high ** (1 / rho), low ** (1 / rho)
    parts = [i / max(steps - 1, 1) for i in range(steps)]
    return [(ends[0] + part * (ends[1] - ends[0])) ** rho for part in parts] + [0.0]


def guided(
    denoiser: nn.Module,
    y: Tensor | None,
    weight: float,
    interval: tuple[float, float],
    hard: Tensor | None = None,
) -> Denoise:
    """(x, sigma) -> D(x, sigma) + weight (D(x, sigma, y) - D(x, sigma)) within the interval, D(x, sigma, y) outside it.

    At weight 1 these are the same, and the unconditional pass is left out. hard: told with y, if given.
    """
    condition = (y,) if hard is None else (y, hard)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        level = x.new_full((len(x),), sigma)
        conditional: Tensor = denoiser(x, level, *condition)
        if y is None or weight == 1 or not interval[0] <= sigma <= interval[1]:
            return conditional
        return torch.lerp(denoiser(x, level), conditional, weight)

    return denoise


def heun(denoise: Denoise, x: Tensor, sigmas: Sequence[float], remember: bool = True) -> Tensor:
    """The image that x = sigmas[0] z leads to along dx/dsigma = (x - D(x, sigma)) / sigma (EDM, algorithm 1).

    sigmas: falling, zero at the end; remember: whether what a backward pass needs is kept, not computed again.
    """

    def step(x: Tensor, now: float, then: float) -> Tensor:
        slope = (x - denoise(x, now)) / now
        euler = x + (then - now) * slope
        if then == 0:
            return euler
        return x + (then - now) * (slope + (euler - denoise(euler, then)) / then) / 2

    for now, then in pairwise(sigmas):
        x = again(step, x, now, then, remember=remember)
    return x


def multistep(denoise: Denoise, x: Tensor, sigmas: Sequence[float], remember: bool = True) -> Tensor:
    """The same by DPM-Solver++ (2M), whose steps are one pass each and of second order by the pass before.

    Arguments as of `heun`. What is computed again is the denoising; the rest of a step keeps nothing for the way back.
    """
    scheduler = optional.library("diffusers", NEEDING).EDMDPMSolverMultistepScheduler(solver_order=2)
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)  # its own are the same, rounded to float32
    scheduler.set_begin_index(0)
    scheduler.convert_model_output = lambda output, sample: output  # our denoiser has done the preconditioning
    for time, now in zip(scheduler.timesteps, sigmas[:-1], strict=True):
        x = scheduler.step(again(denoise, x, now, remember=remember), time, x).prev_sample
    return x


SAMPLERS: dict[str, Callable[..., Tensor]] = {"heun": heun, "dpm++": multistep}


def again(function: Callable[..., Tensor], *arguments: Any, remember: bool) -> Tensor:
    """function(*arguments); unless `remember`, computed once more on the way back."""
    if remember or not torch.is_grad_enabled():
        return function(*arguments)
    # On the way back no method's `twice` is around it, and it must save the same tensors.
    found: Tensor = checkpoint(twice(function), *arguments, use_reentrant=False)
    return found


class Diffusion(Generator):
    """A `Generator`: z is the noise that a deterministic sampler starts from.

    Each step is computed again on the way back, so that for a gradient nothing is kept of it but its image.

    steps: of the sampler; guidance: weight of the class, 1 for none; interval: noise levels at which it applies; hard:
    how hard the images are, in [0, 1], where the denoiser is told; sampler: heun, of two passes of the network a step,
    or dpm++, of one. `UserError` where that needs diffusers and there is none. vae: of a denoiser of latents, what
    decodes them.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        steps: int = 18,
        guidance: float = 1.0,
        interval: tuple[float, float] = (0.0, math.inf),
        hard: float = MEDIUM,
        sampler: str = "heun",
        vae: Autoencoder | None = None,
    ) -> None:
        super().__init__()
        between(1, 10_000, steps=steps)
        between(0, 100, guidance=guidance)
        between(0, 1, hard=hard)
        self.sample = SAMPLERS[choose(sampler, SAMPLERS, "sampler")]
        if self.sample is multistep:
            optional.library("diffusers", NEEDING)  # that it is missing is told now, not after a training
        self.denoiser, self.latent_shape, self.classes = denoiser, denoiser.shape, denoiser.classes
        self.vae, self.image_shape = vae, vae.shape if vae else denoiser.shape
        self.sigmas, self.guidance, self.interval, self.hard = levels(steps), guidance, interval, hard

    def forward(self, z: Tensor, y: Tensor | None = None, hard: Tensor | None = None) -> Tensor:
        """z (n, c, h, w), y labels (n,), class vectors or None for images of any class -> images in [0, 1].

        hard (n,): how hard each is to be, in place of the same for all.
        """
        if self.denoiser.tell is not None and hard is None:
            hard = z.new_full((len(z),), self.hard)
        if y is not None:
            require_known(y, self.classes)
        denoise = guided(self.denoiser, y, self.guidance, self.interval, hard)
        found = self.sample(denoise, z * self.sigmas[0], self.sigmas, remember=False)
        return ((found + 1) / 2).clamp(0, 1) if self.vae is None else again(self.vae.decoded, found, remember=False)
