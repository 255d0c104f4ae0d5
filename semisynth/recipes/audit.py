"""An audit of a pool: how many of its images are synthetic, and which, from labeled images that are surely real."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from semisynth import audited, weights
from semisynth.audit import Found, audit, measure
from semisynth.data import datasets, own, parquet
from semisynth.data.datasets import Dataset, Images, Reading
from semisynth.errors import UserError
from semisynth.mixed import fingerprint
from semisynth.recipes import directory

RANKING, PAGE, RECORD = "ranking.parquet", "audit.html", "audit.json"
TOGETHER = 1000  # images in memory at a time


@dataclass(frozen=True)
class Audit:
    """All that determines an audit.

    Args:
        pool: a data set, as fit's --data, whose unlabeled images are audited; all for training if none is unlabeled. It
            needs no labels: a folder of nothing but images will do
        labeled: a data set whose labeled training images are real for certain; it may be the same one
        detectable: the area under the curve, at least, to which synthetic images can be told from real ones by the two
            features that are used; without such an assumption nothing bounds their number from above
        seed: of the permutations, and of which images of a large pool are looked at
        reading: how one's own images are read
    """

    pool: str
    labeled: str
    detectable: float = 0.7
    seed: int = 0
    reading: Reading = field(default_factory=Reading)


def run(options: Audit, out: Path) -> dict[str, Any]:
    """Write the audit into the directory `out`; returns its record, `audit.json`, which is written last.

    ranking.parquet has the images of the pool, the most suspicious first; audit.html shows some. The same options give
    the same bytes, and a finished audit is left as it is. Raises `UserError` where `out` holds anything else, such as
    an audit of the same paths before they changed, and for images that are too few or of different sizes.
    """
    there = directory.finished(out, "audit", RECORD, asdict(options), (RANKING, PAGE))
    labeled, pool = load(options)
    if there is not None:
        require_same(there, out, labeled, pool)
        return there
    images = _audited(pool)
    names, rows = _rows(options, labeled, pool)
    real, suspects = _distinct(labeled.pool, images)
    found = audit(
        measure(labeled.pool.subset(real).batches(TOGETHER)),
        measure(images.subset(torch.tensor(suspects.first)).batches(TOGETHER)),
        options.detectable,
        options.seed,
        labeled.pool.y[real].numpy(),
    )
    suspicion, evidence = suspects.spread(found.suspicion, 0.0), suspects.spread(found.evidence, -math.inf)
    order = np.argsort(-evidence, kind="stable")
    directory.make(out)
    columns = {"image": names, "row": rows, "hash": suspects.hashes, "suspicion": suspicion.tolist()}
    table = {name: [column[i] for i in order.tolist()] for name, column in columns.items()}
    parquet.write(out / RANKING, {"rank": range(1, len(order) + 1), **table})
    record = _record(options, labeled, pool, (len(real), suspects), found)
    ends = {which: part.tolist() for which, part in zip(audited.ENDS, _ends(order), strict=True)}
    sheets = {
        which: [
            (names[i], float(suspicion[i]), x)
            for i, x in zip(part, _pixels(images.subset(torch.tensor(part))), strict=True)
        ]
        for which, part in ends.items()
    }
    weights.write_text(out / PAGE, audited.page(record, sheets))
    record["sha256"] = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in (RANKING, PAGE)}
    weights.write_json(out / RECORD, record)
    return record


def require_same(record: dict[str, Any], out: Path, labeled: Dataset, pool: Dataset) -> None:
    """`UserError` unless these are the images of the audit in `out`."""
    for which, data in (("labeled", labeled), ("pool", pool)):
        if data.describe()["hash"] != record["data"][which]:
            raise UserError(f"{data.name} is no longer what {out} was made from: give another --out to audit it again.")


# ---- what is compared ------------------------------------------------------------------------------------------------


def load(options: Audit) -> tuple[Dataset, Dataset]:
    """The labeled images and the pool, of one size; one's own are made to be what the other ones are."""
    if options.pool == options.labeled:
        both = _read(options, options.pool, options.reading)
        return both, both
    first, second = options.labeled, options.pool
    if datasets.is_own(first) and not datasets.is_own(second):
        first, second = second, first
    one = _read(options, first, options.reading if datasets.is_own(first) else Reading())
    other = _read(options, second, _like(one, options.reading) if datasets.is_own(second) else options.reading)
    labeled, pool = (one, other) if first == options.labeled else (other, one)
    if labeled.shape != pool.shape:
        raise UserError(
            f"--labeled {options.labeled} has images of {_size(labeled)} and the pool {options.pool} of {_size(pool)}: "
            "give images of one size."
        )
    return labeled, pool


def _read(options: Audit, name: str, reading: Reading) -> Dataset:
    reading = replace(reading, holdout=0.0) if datasets.is_own(name) else reading
    return datasets.load(name, reading, classes=name == options.labeled)


def _like(data: Dataset, reading: Reading) -> Reading:
    channels: Literal["gray", "rgb"] = "gray" if data.shape[0] == 1 else "rgb"
    return replace(reading, size=data.shape[2], channels=channels)


def _size(data: Dataset) -> str:
    channels, height, width = data.shape
    return f"{width}x{height} pixels in {channels} channel{'s' * (channels > 1)}"


def _audited(pool: Dataset) -> Images:
    return pool.pool if pool.unlabeled is None else pool.unlabeled


def _rows(options: Audit, labeled: Dataset, pool: Dataset) -> tuple[list[str], list[int]]:
    """The name of each image of the pool, and its row in the source."""
    count = len(_audited(pool))
    if not datasets.is_own(options.pool):
        return [f"image {i}" for i in range(count)], list(range(count))
    catalog, rows = own.located(options.pool, pool.reading, classes=options.pool == options.labeled)
    index = rows["train" if pool.unlabeled is None else "unlabeled"].tolist()
    return [catalog.items[row].name for row in index], index


@dataclass(frozen=True)
class Suspects:
    """The images of a pool, by the hash of their pixels; of each that is no copy of a labeled one, the first place."""

    hashes: list[str]
    first: list[int]

    def spread(self, values: np.ndarray[Any, Any], known: float) -> np.ndarray[Any, Any]:
        """From a value of each first one to one of each image; copies of labeled images have the value `known`."""
        value = dict(zip((self.hashes[i] for i in self.first), values.tolist(), strict=True))
        return np.array([value.get(key, known) for key in self.hashes])


def _distinct(labeled: Images, pool: Images) -> tuple[Tensor, Suspects]:
    """Each image once, as copies would look like nearest neighbours; what is also labeled is real and no suspect."""
    real = {key: i for i, key in reversed([*enumerate(_hashes(labeled))])}
    hashes = [*_hashes(pool)]
    first = {key: i for i, key in reversed([*enumerate(hashes)]) if key not in real}
    if not first:
        raise UserError("every image of the pool is one of the labeled ones: give a pool that has others.")
    return torch.tensor(sorted(real.values())), Suspects(hashes, sorted(first.values()))


def _hashes(images: Images) -> Iterator[str]:
    for x in _pixels(images):
        yield fingerprint(x)


def _pixels(images: Images) -> Iterator[Tensor]:
    return (x for batch in images.batches(TOGETHER) for x in batch)


def _ends(order: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The most and the least suspicious, none of which is in both."""
    count = min(audited.SHOWN, len(order) // 2)
    return order[:count], order[::-1][:count]


def _record(
    options: Audit, labeled: Dataset, pool: Dataset, compared: tuple[int, Suspects], found: Found
) -> dict[str, Any]:
    real, suspects = compared
    return {
        "options": asdict(options),
        "share": found.share,
        "interval": list(found.interval),
        "p": found.p,
        "assumption": audited.assumption(options.detectable),
        "images": {"labeled": real, "pool": len(suspects.first), "copies": len(suspects.hashes) - len(suspects.first)},
        "data": {"labeled": labeled.describe()["hash"], "pool": pool.describe()["hash"]},
        "notes": notes(labeled, pool),
    }


def notes(labeled: Dataset, pool: Dataset) -> list[str]:
    """What was done to either's images, and a warning where it was done to one side alone."""
    told = {
        which: [note for note in data.told if not note.startswith("there are no images for")]
        for which, data in (("labeled images", labeled), ("pool", pool))
    }
    if labeled is pool:
        return told["pool"]
    sides = [which for which, those in told.items() if any(note.startswith("resized") for note in those)]
    found = [f"{which}: {note}" for which, those in told.items() for note in those]
    if len(sides) == 1:
        found += [f"WARNING: of the {sides[0]} alone some were resized, which alone may make both sides differ"]
    return found
