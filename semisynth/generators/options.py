"""How a pretrained generator is to be run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from semisynth.errors import UserError
from semisynth.weights import read_json


@dataclass(frozen=True)
class Options:
    """What is asked of a generator beside its name; each kind reads some of it.

    Args:
        sampler_steps: steps of a diffusion model's sampler
        guidance: weight of the class or prompt in a diffusion model, 1 for none
        truncation: of BigGAN, the deviation of its latents
        prompts: the classes of a text-to-image model: a text file with a prompt a line, which is the class's name too,
            or a .json file of names and their prompts, {"cat": "a photo of a cat"}
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

    def texts(self) -> dict[str, str]:
        """The prompt of each class by its name; `UserError` for a file that cannot be read, has none, or one twice."""
        if self.prompts is None:
            return {}
        file, told = Path(self.prompts), f"--generator-options.prompts {self.prompts}"
        if not file.is_file():
            raise UserError(f"{told} cannot be read: there is no such file. Give one with a prompt for each class.")
        if file.suffix.lower() == ".json":
            return _named(read_json(file, once=True), told)
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()  # some editors begin with a BOM
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{told} cannot be read: {error}.") from error
        found = tuple(line.strip() for line in lines if line.strip())
        if not found or len(set(found)) < len(found):
            problem = "has one prompt twice" if found else "has no prompt"
            raise UserError(f"{told} {problem}: give a line for each class.")
        return dict(zip(found, found, strict=True))


def _named(found: dict[str, str], told: str) -> dict[str, str]:
    for name, text in found.items():
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{told}: the prompt of '{name}' is {text!r}: give a text.")
        if not name.strip():
            raise UserError(f"{told}: the class of '{text}' has no name: give one.")
    if not found:
        raise UserError(f'{told} has no prompt: give {{"cat": "a photo of a cat"}}.')
    return found
