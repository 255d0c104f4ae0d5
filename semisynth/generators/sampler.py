"""A generator of foreign parts: a diffusion or consistency model, its noise schedule and, of latents, a decoder.

DDIM: Song, Meng and Ermon, ICLR 2021 (arXiv 2010.02502), by diffusers' scheduler. Consistency models: Song, Dhariwal,
Chen and Sutskever, ICML 2023 (arXiv 2303.01469). Guidance: Ho and Salimans, 2022 (arXiv 2207.12598).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from semisynth import optional
from semisynth.adapter import Shape
from semisynth.errors import UserError
from semisynth.generators.diffusion import again
from semisynth.generators.protocol import Generator, require_asked, unmixed, vectors
from semisynth.models.autoencoder import Autoencoder

PREDICTED = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Schedule:
    """Noise to image: x = start z and then, for each time, x = step(network(scale x, time), time, x)."""

    times: tuple[float, ...]
    step: Callable[[Tensor, float, Tensor], Tensor]
    start: float = 1.0
    scale: float = 1.0


def ddim(config: Mapping[str, Any], steps: int, pixels: bool) -> Schedule:
    """DDIM without noise, in `steps` of the schedule that a scheduler's configuration describes.

    pixels: whether x are images, which are cut off at their range where the configuration does not say. `UserError` for
    a schedule that is none of DDIM's.
    """
    name, predicted = config.get("_class_name"), config.get("prediction_type", "epsilon")
    if "beta_schedule" not in config or predicted not in PREDICTED:
        told = f"the scheduler {name}, predicting {predicted}, has no schedule that DDIM can follow"
        raise UserError(f"{told}: give a folder whose network predicts {', '.join(PREDICTED)} along betas.")
    given = {"clip_sample": pixels} | dict(config)
    if steps == 1 or name == "LCMScheduler":
        given["timestep_spacing"] = "trailing"  # "leading" begins a single step where hardly any noise is left
    try:
        scheduler = optional.library("diffusers", "a diffusers folder").DDIMScheduler.from_config(given)
        scheduler.set_timesteps(steps)
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"the scheduler {name} cannot be followed in {steps} steps: {error}") from error
    times = scheduler.timesteps
    if predicted == "epsilon" and not scheduler.alphas_cumprod[times].all():
        told = f"the scheduler {name} begins with noise alone, of which a predicted noise leaves no image"
        raise UserError(f"{told}: give a folder whose network predicts v_prediction or sample.")
    return Schedule(tuple(times.tolist()), lambda out, t, x: scheduler.step(out, t, x).prev_sample)


def consistency(config: Mapping[str, Any]) -> Schedule:
    """The one step of a consistency model from noise to image; more of them would draw noise of their own."""
    scheduler = optional.library("diffusers", "a diffusers folder").CMStochasticIterativeScheduler.from_config(
        dict(config)
    )
    scheduler.set_timesteps(1)
    sigma, data = scheduler.sigmas[0].item(), scheduler.config.sigma_data
    skip, out = scheduler.get_scalings_for_boundary_condition(sigma)
    limit = 1.0 if scheduler.config.clip_denoised else torch.inf
    return Schedule(
        tuple(scheduler.timesteps.tolist()),
        lambda output, _, x: (out * output + skip * x).clamp(-limit, limit),
        scheduler.init_noise_sigma,
        (sigma**2 + data**2) ** -0.5,
    )


class Part(nn.Module):
    """A part of constant weights, in a dtype of their own; its first argument is a tensor where the call is to be.

    offload: whether the weights stay where they are when the part is moved, and are copied for each call.
    """

    def __init__(self, offload: bool) -> None:
        super().__init__()
        self.offload = offload

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Part:
        return self if self.offload else super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def called(self, x: Tensor, *others: Any) -> Tensor:
        """The part's output; `UserError` where memory does not suffice."""
        try:
            if not self.offload:
                return self(x, *others)  # type: ignore[no-any-return]
            tensors = chain(self.named_parameters(), self.named_buffers())
            found: Tensor = functional_call(self, {name: t.to(x.device) for name, t in tensors}, (x, *others))
            return found
        except torch.OutOfMemoryError as error:
            told = "the generator's images do not fit into the device's memory"
            ways = "--generator-options.chunk, or one of fewer bits with --generator-options.precision"
            raise UserError(f"{told}: give a smaller {ways}, or fewer --generator-options.sampler_steps.") from error


class Predictor(Part):
    """(x, time, condition, none) -> what the network predicts of x, in its shape and dtype.

    none: the condition of no class (1, ...), to guide away from with this weight, or None. scale: the embedding
    (1, k) of a guidance that the network takes as an input, or None.
    """

    scale: Tensor | None

    def __init__(self, network: nn.Module, offload: bool, guidance: float, scale: Tensor | None) -> None:
        super().__init__(offload)
        self.network, self.guidance = network, guidance
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor, time: float, condition: Tensor | None, none: Tensor | None) -> Tensor:
        """The prediction."""
        if condition is not None and none is not None:
            both = torch.cat([none.expand_as(condition), condition])
            without, with_it = self.predicted(torch.cat([x, x]), time, both).chunk(2)
            return torch.lerp(without, with_it, self.guidance)
        return self.predicted(x, time, condition)

    def predicted(self, x: Tensor, time: float, condition: Tensor | None) -> Tensor:
        """Without guidance; a variance that is predicted besides is left out."""
        dtype, n, scale = next(self.network.parameters()).dtype, len(x), self.scale
        condition = None if condition is None else condition.to(dtype)
        more = {} if scale is None else {"timestep_cond": scale.expand(n, -1).to(dtype)}
        level = torch.full((n,), time, device=x.device, dtype=torch.float32)
        output: Tensor = self.network(x.to(dtype), level, condition, **more).sample
        return output[:, : x.shape[1]].to(x.dtype)


class Decoder(Part):
    """What the sampler ends at -> images in [0, 1]; without an autoencoder they are that, in [-1, 1]."""

    def __init__(self, vae: Autoencoder | None, offload: bool) -> None:
        super().__init__(offload)
        self.vae = vae

    def forward(self, x: Tensor) -> Tensor:
        """The images."""
        images: Tensor = (x / 2 + 0.5).clamp(0, 1) if self.vae is None else self.vae.decoded(x)
        return images


class Sampled(Generator):
    """A `Generator`: z is the noise that a deterministic sampler starts from.

    Each step and the decoding are computed again on the way back, so that for a gradient nothing is kept of a step but
    its image. Conditions are mixed by class vectors.

    table: the condition of each class (classes, ...), or None; none: that of no class (1, ...), if guidance asks for
    it; chunk: images made at a time, 0 for all.
    """

    none: Tensor | None

    def __init__(
        self,
        predictor: Predictor,
        schedule: Schedule,
        decoder: Decoder,
        latent_shape: Shape,
        table: Tensor | None = None,
        none: Tensor | None = None,
        chunk: int = 0,
    ) -> None:
        super().__init__()
        self.predictor, self.schedule, self.decoder, self.chunk = predictor, schedule, decoder, chunk
        self.latent_shape, self.classes = latent_shape, 0 if table is None else len(table)
        self.image_shape: Shape = latent_shape if decoder.vae is None else decoder.vae.shape
        self.register_buffer("table", table)
        self.register_buffer("none", none)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """z (n, c, h, w), y labels (n,) or class vectors (n, classes) -> images in [0, 1]."""
        require_asked(y, self.classes)
        if not len(z):
            return z.new_empty(0, *self.image_shape)
        size = self.chunk or len(z)
        with unmixed(z):
            conditions = repeat(None) if y is None else self._condition(y).split(size)
            return torch.cat([self._made(*both) for both in zip(z.split(size), conditions)])  # noqa: B905

    def _condition(self, y: Tensor) -> Tensor:
        table = self.get_buffer("table")
        mixed: Tensor = torch.tensordot(vectors(y, self.classes, table).to(table.dtype), table, 1)
        return mixed

    def _made(self, z: Tensor, condition: Tensor | None) -> Tensor:
        x = z * self.schedule.start
        for time in self.schedule.times:
            x = again(self._step, x, time, condition, remember=False)
        return again(self.decoder.called, x, remember=False)

    def _step(self, x: Tensor, time: float, condition: Tensor | None) -> Tensor:
        output = self.predictor.called(x * self.schedule.scale, time, condition, self.none)
        return self.schedule.step(output, time, x)
