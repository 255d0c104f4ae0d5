"""Images of one size and number of channels made images of another, by a linear map that keeps [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth.errors import UserError

Shape = tuple[int, int, int]  # channels, height, width
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow has it


class Adapter(nn.Module):
    """Images (n, *before) -> (n, *after): gray repeated or colours weighted, then antialiased bilinear resizing.

    As a product with a matrix on each side it is differentiable as often as one likes, and the same on each run. Where
    both shapes are equal it returns its input. `UserError` for channels other than 1 and 3.
    """

    def __init__(self, before: Shape, after: Shape) -> None:
        super().__init__()
        if before[0] != after[0] and {before[0], after[0]} != {1, 3}:
            raise UserError(f"images of {before[0]} channels cannot be made images of {after[0]}: give one of 1 or 3.")
        self.before, self.after = before, after
        self.register_buffer("rows", resizing(before[1], after[1]), persistent=False)
        self.register_buffer("columns", resizing(before[2], after[2]).T, persistent=False)
        self.register_buffer("luma", torch.tensor(LUMA).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The images."""
        if self.before == self.after:
            return x
        if self.before[0] == 3 and self.after[0] == 1:
            x = (x * self.get_buffer("luma").to(x.dtype)).sum(1, keepdim=True)
        if self.before[1:] != self.after[1:]:
            x = self.get_buffer("rows").to(x.dtype) @ x @ self.get_buffer("columns").to(x.dtype)
        return x.expand(-1, self.after[0], -1, -1) if self.before[0] == 1 else x

    @property
    def told(self) -> str:
        """What it does, in words; empty where it does nothing."""
        parts = []
        if self.before[1:] != self.after[1:]:
            (h, w), (high, wide) = self.before[1:], self.after[1:]
            parts.append(f"resized from {w}x{h} to {wide}x{high}")
        if self.before[0] != self.after[0]:
            parts.append("made gray" if self.after[0] == 1 else "repeated over 3 channels")
        return " and ".join(parts)


def resizing(before: int, after: int) -> Tensor:
    """The matrix (after, before) of antialiased bilinear resizing: what becomes of each unit vector."""
    units = torch.eye(before)[None, None]
    return F.interpolate(units, (after, before), mode="bilinear", antialias=True, align_corners=False)[0, 0]
