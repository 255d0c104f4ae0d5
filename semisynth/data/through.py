"""Images made to have gone one way: reduced to few pixels and few grey levels, and enlarged again.

What differs between two sources only in how their images were resampled and stored is then alike in both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from semisynth.adapter import resizing
from semisynth.errors import UserError


@dataclass(frozen=True)
class Through:
    """By a size (height, width) and a number of levels, as those of the digits were: 8x8 counts of 0 to 16."""

    size: tuple[int, int]
    levels: int

    @staticmethod
    def parse(text: str) -> Through:
        """Of WIDTHxHEIGHT:LEVELS, as 8x8:17; `UserError` for anything else."""
        found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3}):(\d{1,3})", text)
        if not found or not 2 <= int(found[3]) <= 256:
            raise UserError(f"--through is '{text}': give WIDTHxHEIGHT:LEVELS with 2 to 256 levels, such as 8x8:17.")
        return Through((int(found[2]), int(found[1])), int(found[3]))

    def __call__(self, x: Tensor) -> Tensor:
        """Images x (n, c, h, w) in [0, 1] -> uint8 of the same shape.

        The small image is the one whose bilinear enlargement is nearest (least squares), so that an image that has gone
        this way stays as it is. `UserError` for images that are smaller.
        """
        if self.size[0] > x.shape[2] or self.size[1] > x.shape[3]:
            there = f"{x.shape[3]}x{x.shape[2]}"
            raise UserError(f"--through asks for {self.size[1]}x{self.size[0]} pixels, and the images have {there}.")
        # Antialiasing changes nothing where an image is enlarged.
        down, across = (resizing(small, large).double() for small, large in zip(self.size, x.shape[2:], strict=True))
        small = torch.linalg.pinv(down) @ x.double() @ torch.linalg.pinv(across).T
        small = (small.clamp(0, 1) * (self.levels - 1)).round() / (self.levels - 1)
        found: Tensor = (255 * (down @ small @ across.T)).round().to(torch.uint8)
        return found
