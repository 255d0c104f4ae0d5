"""Images in a file of pixels, or of what was made of them, read where they are asked for."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FEW = 8  # rows that are read at a time: each may bring a page of 2 MB


class Stored:
    """Images (n, c, h, w) in a file: indexing with rows reads these, and what was read takes no memory after.

    dtype: of its values; offset: bytes of the file before the first.
    """

    device = torch.device("cpu")

    def __init__(
        self, path: Path, shape: tuple[int, int, int], rows: Tensor, dtype: torch.dtype = torch.uint8, offset: int = 0
    ) -> None:
        self.path, self.rows, self.shape = path, rows, torch.Size((len(rows), *shape))
        self.dtype, self.offset = dtype, offset
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        kind = str(dtype).removeprefix("torch.")  # what NumPy calls it
        self._pixels = np.frombuffer(self._map, kind, offset=offset).reshape(-1, *shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> Tensor:
        """The images at `index` (m,) int64, in memory."""
        rows = self.rows[index.cpu()].numpy()
        found = np.empty((len(rows), *self.shape[1:]), self._pixels.dtype)
        for first in range(0, len(rows), FEW):
            found[first : first + FEW] = self._pixels[rows[first : first + FEW]]
            if sys.platform != "win32":
                self._map.madvise(mmap.MADV_DONTNEED)  # the system's cache keeps the pages, but they are not ours
        return torch.from_numpy(found)

    def subset(self, index: Tensor) -> Stored:
        """The images at `index` (m,), still in the file."""
        return self._of(self.rows[index])

    def join(self, other: Stored) -> Stored:
        """These and, after them, others of the same file."""
        assert self.path == other.path, "they lie in two files"
        return self._of(torch.cat([self.rows, other.rows]))

    def _of(self, rows: Tensor) -> Stored:
        return Stored(self.path, (self.shape[1], self.shape[2], self.shape[3]), rows, self.dtype, self.offset)
