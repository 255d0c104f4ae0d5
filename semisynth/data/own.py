"""From one's own images, wherever they are, to a `Dataset`; all that is done to them on the way is told."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from semisynth.data import cache, catalog, chunks, decode, splits
from semisynth.data.cache import Decoded
from semisynth.data.catalog import SPLITS, Catalog
from semisynth.data.datasets import SIDES, Dataset, Images, Reading
from semisynth.data.decode import Preparation
from semisynth.data.stored import Stored
from semisynth.errors import UserError

IN_MEMORY = 2**26  # bytes of pixels up to which a set is held in memory
BLOCK = 1000  # images that are compared at a time
LOOKED_AT = 256  # images by which size and channels are chosen
LARGEST_OWN, USUAL = 64, 32  # pixels: a size of all images that is kept, and what they get otherwise


def load(source: str, reading: Reading, classes: bool = True) -> Dataset:
    """The images at `source`, decoded; `UserError` for what `catalog`, `decode` and `cache` refuse.

    classes: whether there must be any; without them all images are unlabeled ones.
    """
    found = catalog.read(source, classes)
    preparation, decoded = _decoded(found, reading)
    told = [*found.notes, *(f"{what}: {count} of {len(found.items)} images" for what, count in decoded.done.items())]
    rows = _rows(found, decoded, told)
    _hold_out(rows, found.labels, decoded, reading.holdout, told)
    parts = {split: _images(decoded, index, found.labels) for split, index in rows.items()}
    return Dataset(
        source,
        found.classes,
        parts["train"],
        parts["validation"],
        parts["test"],
        flip=reading.mirror == "yes",
        unlabeled=parts["unlabeled"] if len(parts["unlabeled"]) else None,
        told=tuple(told),
        preparation=preparation,
        hash=_hash(found, decoded, rows, preparation),
    )


def located(source: str, reading: Reading, classes: bool = True) -> tuple[Catalog, dict[str, Tensor]]:
    """What is at `source`, and the rows there of each split before any are set aside, in the order of `load`."""
    found = catalog.read(source, classes)
    return found, _rows(found, _decoded(found, reading)[1], [])


def prepared(found: Catalog, reading: Reading) -> Preparation:
    """What the images are made to be, where `reading` leaves it open by a look at some of them."""
    size, channels = reading.size, {"auto": 0, "gray": 1, "rgb": 3}[reading.channels]
    if not size or not channels:
        seen = _look(found)
        own = seen[0][0] if len({shape[:2] for shape in seen}) == 1 and seen[0][0] == seen[0][1] else 0
        size = size or (own if SIDES[0] <= own <= LARGEST_OWN else USUAL)
        channels = channels or max((shape[2] for shape in seen), default=1)
    return Preparation((size, size), channels, reading.fit)


def _decoded(found: Catalog, reading: Reading) -> tuple[Preparation, Decoded]:
    """The images, made to be what all of them allow: those that were not looked at may be of another size or colour."""
    preparation, skip = prepared(found, reading), reading.unreadable == "skip"
    decoded = cache.load(found, preparation, skip)
    channels, size = preparation.channels, preparation.size
    if reading.channels == "auto" and chunks.GRAYED in decoded.done:
        channels = 3
    if not reading.size and chunks.resized(preparation) in decoded.done:
        size = (USUAL, USUAL)
    allowed = Preparation(size, channels, reading.fit)
    return allowed, decoded if allowed == preparation else cache.load(found, allowed, skip)


def _look(found: Catalog) -> list[tuple[int, int, int]]:
    """Height, width and channels of images from all parts of the catalog; decoding will tell of the unreadable ones."""
    shapes = []
    for row in np.unique(np.linspace(0, len(found.items) - 1, LOOKED_AT).astype(int)).tolist():
        item = found.items[row]
        try:
            shapes.append(decode.header(item.read(), item.name))
        except UserError:
            continue
    return shapes


def _rows(found: Catalog, decoded: Decoded, told: list[str]) -> dict[str, Tensor]:
    """The rows of each split without the unreadable ones; `UserError` if that leaves a class without any."""
    readable = np.ones(len(found.items), bool)
    readable[list(decoded.unreadable)] = False
    if decoded.unreadable:
        named = "; ".join(list(decoded.unreadable.values())[: cache.MOST])
        told.append(f"left out, as they cannot be read: {len(decoded.unreadable)} images ({named})")
    rows = {name: torch.from_numpy(np.flatnonzero(readable & (found.splits == i))) for i, name in enumerate(SPLITS)}
    left = np.bincount(found.labels[rows["train"]], minlength=len(found.classes))
    if not left.all():
        raise UserError(f"{found.name}: no image of class '{found.classes[int(left.argmin())]}' can be read.")
    return rows


def _hold_out(rows: dict[str, Tensor], labels: np.ndarray, decoded: Decoded, share: float, told: list[str]) -> None:
    """Take validation and test images, where there are none, from those for training, of which each class keeps one.

    Images of the same pixels stay together, and for training if their labels differ.
    """
    lacking = [split for split in ("validation", "test") if share and not len(rows[split])]
    if lacking and len(rows["train"]):
        train = rows["train"]
        y, first = torch.from_numpy(labels)[train], _first_copies(decoded, train)
        kept, _ = splits.draw_labels(y, 1, seed=0)
        count = first.bincount(minlength=len(y))
        count[first[kept]] = count[first[y != y[first]]] = 0  # these stay
        free = count.nonzero()[:, 0]
        size = min(round(share * len(y)), int(count.sum()) // len(lacking))
        parts = splits.stratified(y[free], [size] * len(lacking), 0, count[free])
        for split, part in zip(lacking, parts[:-1], strict=True):
            rows[split] = train[torch.isin(first, free[part])]
        _tell(rows, lacking, first, told)
        rows["train"] = train[~torch.isin(train, torch.cat([rows[split] for split in lacking]))]
    told += [f"there are no images for {split}" for split in ("validation", "test") if not len(rows[split])]


def _tell(rows: dict[str, Tensor], lacking: list[str], first: Tensor, told: list[str]) -> None:
    """How many were set aside, and how many copies there are among the images that these were taken from."""
    taken = {split: len(rows[split]) for split in lacking if len(rows[split])}
    of = f"of {len(first)} labeled training images were set aside for"
    told += [f"{count} {of} {split} (--holdout)" for split, count in taken.items()]
    if taken and (copies := len(first) - len(first.unique())):
        told.append(f"copies of training images, each kept in one split with its like: {copies}")


def _first_copies(decoded: Decoded, rows: Tensor) -> Tensor:
    """For each row the place of the first one that has the same pixels."""
    stored = Stored(decoded.path, decoded.shape[1:], rows)
    places = dict[bytes, int]()
    return torch.tensor(
        [
            places.setdefault(hashlib.blake2b(x.numpy(), digest_size=16).digest(), row)
            for row, x in enumerate(x for index in torch.arange(len(rows)).split(BLOCK) for x in stored[index])
        ]
    )


def _images(decoded: Decoded, rows: Tensor, labels: np.ndarray) -> Images:
    stored = Stored(decoded.path, decoded.shape[1:], rows)
    y = torch.from_numpy(labels)[rows]
    whole = np.prod(decoded.shape) <= IN_MEMORY
    return Images(stored[torch.arange(len(rows))] if whole else stored, y)


def _hash(found: Catalog, decoded: Decoded, rows: dict[str, Tensor], preparation: Preparation) -> str:
    """Of the files' contents, in order, their labels, the classes, the split that each came to, and what was done."""
    final = np.full(len(found.items), len(SPLITS), np.uint8)
    for split, index in rows.items():
        final[index] = SPLITS.index(split)
    digest = hashlib.blake2b(decoded.hash.encode(), digest_size=16)
    for part in (found.labels.astype("<i8").tobytes(), final.tobytes(), repr((found.classes, preparation)).encode()):
        digest.update(part)
    return digest.hexdigest()
