"""Images in a file of pixels, read where they are asked for."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FEW = 8  # rows that are read at a time: each may bring a page of 2 MB


class Stored:
    """Images (n, c, h, w) uint8 in a file: indexing with rows reads these, and what was read takes no memory after."""

    device = torch.device("cpu")

    def __init__(self, path: Path, shape: tuple[int, int, int], rows: Tensor) -> None:
        self.path, self.rows, self.shape = path, rows, torch.Size((len(rows), *shape))
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._pixels = np.frombuffer(self._map, np.uint8).reshape(-1, *shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> Tensor:
        """The images at `index` (m,) int64, in memory."""
        rows = self.rows[index.cpu()].numpy()
        found = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for first in range(0, len(rows), FEW):
            found[first : first + FEW] = self._pixels[rows[first : first + FEW]]
            if sys.platform != "win32":
                self._map.madvise(mmap.MADV_DONTNEED)  # the system's cache keeps the pages, but they are not ours
        return torch.from_numpy(found)

    def subset(self, index: Tensor) -> Stored:
        """The images at `index` (m,), still in the file."""
        return Stored(self.path, (self.shape[1], self.shape[2], self.shape[3]), self.rows[index])

    def join(self, other: Stored) -> Stored:
        """These and, after them, others of the same file."""
        assert self.path == other.path, "they lie in two files"
        return Stored(self.path, (self.shape[1], self.shape[2], self.shape[3]), torch.cat([self.rows, other.rows]))
