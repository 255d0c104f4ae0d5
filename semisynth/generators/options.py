"""How a pretrained generator is to be run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Options:
    """What is asked of a generator beside its name; each kind reads some of it.

    Args:
        sampler_steps: steps of a diffusion model's sampler
        guidance: weight of the class or prompt in a diffusion model, 1 for none
        truncation: of BigGAN, the deviation of its latents
        prompts: of a text-to-image model, one for each class
        precision: in which the weights are kept and used
        offload: whether the weights stay in the CPU's memory and are copied for each call
        chunk: images made at a time, 0 for all of a call
    """

    sampler_steps: int = 4
    guidance: float = 1.0
    truncation: float = 1.0
    prompts: tuple[str, ...] = ()
    precision: Literal["float32", "bf16", "float16"] = "float32"
    offload: bool = False
    chunk: int = 0
