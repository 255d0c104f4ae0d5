"""The two tables of a mix: the pool, which is a data set, and beside it what no training may see."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from semisynth.data import parquet

POOL, HIDDEN = "pool.parquet", "hidden.parquet"
REAL = "real"  # the source of what no generator made


class Row(NamedTuple):
    """An image (c, h, w) uint8; of an unlabeled one also where it is from, its class and the seed of its latent."""

    image: Tensor
    label: str | None
    split: str
    source: str = REAL
    shown: str | None = None
    seed: int | None = None

    @property
    def synthetic(self) -> bool:
        """Whether a generator made it."""
        return self.source != REAL


def fingerprint(image: Tensor) -> str:
    """A hash of an image's pixels, by which a ranking is joined with a hidden table."""
    return hashlib.blake2b(image.numpy().tobytes(), digest_size=16).hexdigest()


def write(rows: Sequence[Row], out: Path) -> None:
    """Both tables into `out`: of each unlabeled row of the first the second has one, in order."""
    hashes = [fingerprint(row.image) for row in rows]
    shown: dict[str, list[object]] = {
        "image": [parquet.png(row.image) for row in rows],
        "label": [row.label for row in rows],
        "split": [row.split for row in rows],
        "hash": list(hashes),
    }
    pool = [(i, row) for i, row in enumerate(rows) if row.split == "unlabeled"]
    hidden: dict[str, list[object]] = {
        "row": [i for i, _ in pool],
        "hash": [hashes[i] for i, _ in pool],
        "synthetic": [row.synthetic for _, row in pool],
        "source": [row.source for _, row in pool],
        "class": [row.shown for _, row in pool],
        "seed": [row.seed for _, row in pool],
    }
    parquet.write(out / POOL, shown)
    parquet.write(out / HIDDEN, hidden)
