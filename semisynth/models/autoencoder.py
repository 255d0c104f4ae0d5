"""The autoencoder in whose latent space a diffusion model may work, by diffusers' AutoencoderKL.

Rombach, Blattmann, Lorenz, Esser and Ommer, "High-resolution image synthesis with latent diffusion models", CVPR 2022
(arXiv 2112.10752).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semisynth import optional
from semisynth.errors import UserError, sentence
from semisynth.weights import read_json

HUB = "hub:"
KIND = "AutoencoderKL"
Shape = tuple[int, int, int]  # channels, height, width


class Autoencoder(nn.Module):
    """Images (n, *shape) in [0, 1] -> means and deviations of their latents, (n, 2 k, h / f, w / f).

    network: an AutoencoderKL, which reads and gives values in [-1, 1] and shrinks sides by f. A latent is what it
    encodes, shifted and scaled as its configuration says. Gray images are repeated over its channels, and the average
    of what it decodes is taken. `UserError` for a shape that does not fit; name: what the network is called there.
    """

    def __init__(self, network: Any, shape: Shape, name: str) -> None:
        super().__init__()
        told, (channels, height, width) = network.config, shape
        by = 2 ** (len(told.block_out_channels) - 1)
        if height % by or width % by:
            raise UserError(f"latent {name} shrinks sides by {by}, which does not divide {height}x{width}: see --size.")
        if told.in_channels != told.out_channels or channels not in (1, told.in_channels):
            raise UserError(
                f"latent {name} reads {told.in_channels} channels and gives {told.out_channels}, the images have "
                f"{channels}: give another one."
            )
        self.network, self.channels, self.gray, self.shape = network, told.in_channels, channels == 1, shape
        self.latent_shape = (told.latent_channels, height // by, width // by)
        center = told.get("latents_mean") or told.get("shift_factor") or 0.0
        spread = torch.tensor(told.get("latents_std") or 1.0)
        self.register_buffer("shift", torch.tensor(center).view(-1, 1, 1))
        self.register_buffer("scale", (told.scaling_factor / spread).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Means and, after them, deviations."""
        found = self.network.encode(2 * x.expand(-1, self.channels, -1, -1) - 1).latent_dist
        scale = self.get_buffer("scale")
        return torch.cat([(found.mean - self.get_buffer("shift")) * scale, found.std * scale], 1)

    def decoded(self, latent: Tensor) -> Tensor:
        """Latents (n, *latent_shape) -> images (n, *shape) in [0, 1]."""
        x: Tensor = latent / self.get_buffer("scale") + self.get_buffer("shift")
        x = self.network.decode(x.to(self.network.dtype)).sample.to(latent.dtype)  # its weights may be of fewer bits
        return ((x.mean(1, keepdim=True) if self.gray else x) / 2 + 0.5).clamp(0, 1)


def load(name: str, shape: Shape) -> Autoencoder:
    """For images of this shape, the autoencoder of a folder, or of its folder `vae`; or hub:OWNER/NAME[/FOLDER].

    `UserError` if there is none, if it cannot be read, or without diffusers.
    """
    library = optional.library("diffusers", "latent")
    place, inner = _place(name)
    try:
        with torch.random.fork_rng(devices=[]):  # it draws weights before it reads them
            network = library.AutoencoderKL.from_pretrained(place, subfolder=inner, low_cpu_mem_usage=False)
    except Exception as error:  # files and the hub fail in many ways
        raise UserError(f"latent {name} cannot be read: {sentence(error)} Give a whole {KIND}.") from error
    return Autoencoder(network.float(), shape, name).eval().requires_grad_(False)


def _place(name: str) -> tuple[str, str | None]:
    """What diffusers calls it: a folder, or a repository and perhaps a folder therein."""
    if name.startswith(HUB):
        owner, *rest = name.removeprefix(HUB).split("/", 2)
        if rest:
            return f"{owner}/{rest[0]}", rest[1] if len(rest) > 1 else None
        raise UserError(f"latent {name}: a repository of the hub is hub:OWNER/NAME, or hub:OWNER/NAME/FOLDER.")
    for folder in (Path(name), Path(name, "vae")):
        file = folder / "config.json"
        if file.exists() and read_json(file).get("_class_name") == KIND:
            return str(folder), None
    raise UserError(
        f"latent {name} is no folder of an {KIND} that diffusers saved, nor of a pipeline with one in vae: give such a "
        f"folder, or {HUB}OWNER/NAME."
    )
