"""How a pretrained generator is to be run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from semisynth.errors import UserError


@dataclass(frozen=True)
class Options:
    """What is asked of a generator beside its name; each kind reads some of it.

    Args:
        sampler_steps: steps of a diffusion model's sampler
        guidance: weight of the class or prompt in a diffusion model, 1 for none
        truncation: of BigGAN, the deviation of its latents
        prompts: a text file with a prompt a line, the classes of a text-to-image model
        precision: in which the weights are kept and used
        offload: whether the weights stay in the CPU's memory and are copied for each call
        chunk: images made at a time, 0 for all of a call
    """

    sampler_steps: int = 4
    guidance: float = 1.0
    truncation: float = 1.0
    prompts: str | None = None
    precision: Literal["float32", "bf16", "float16"] = "float32"
    offload: bool = False
    chunk: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return {"float32": torch.float32, "bf16": torch.bfloat16, "float16": torch.float16}[self.precision]

    def texts(self) -> tuple[str, ...]:
        """The prompts; `UserError` for a file that cannot be read, has none, or has one twice."""
        if self.prompts is None:
            return ()
        try:
            lines = Path(self.prompts).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--generator-options.prompts {self.prompts} cannot be read: {error}.") from error
        found = tuple(line.strip() for line in lines if line.strip())
        if not found or len(set(found)) < len(found):
            problem = "has one prompt twice" if found else "has no prompt"
            raise UserError(f"--generator-options.prompts {self.prompts} {problem}: give a line for each class.")
        return found
