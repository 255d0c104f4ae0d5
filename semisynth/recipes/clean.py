"""A pool without the images that an audit suspects, as a data set of its own; no image is touched."""

from __future__ import annotations

import io
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from semisynth import weights
from semisynth.data import datasets, decode, own, parquet
from semisynth.data.catalog import SPLITS
from semisynth.data.datasets import Dataset
from semisynth.data.items import Item
from semisynth.errors import UserError, between
from semisynth.recipes import directory
from semisynth.recipes.audit import RANKING, RECORD, Audit, load, require_same

CLEANED, CLEANING = "cleaned.parquet", "cleaned.json"
COLUMNS = ("image", "label", "split")
FEW = 0.1  # of the audited images: fewer that are left are next to none
Row = tuple[bytes, str | None, str]


def check(options: Audit, out: Path, reject: float) -> None:
    """`UserError` for what `clean` could not do, before an audit begins."""
    between(0.01, 1, reject=reject)
    if not datasets.is_own(options.pool):
        raise UserError(f"--apply cannot clean {options.pool}, which is built in: give images of your own.")
    if (out / CLEANING).exists():
        there = weights.read_json(out / CLEANING)
        directory.require(out, "a pool that was cleaned otherwise", there, {"reject": reject}, ["reject"])


def clean(options: Audit, out: Path, reject: float) -> dict[str, Any]:
    """Write cleaned.parquet into the directory of a finished audit: all images of the pool's source but the suspects.

    It has the files' own bytes. Left out are the images of a suspicion of `reject` or more. For a pool without any
    class, the labeled images come before it, with their splits, so that there is something to fit. Returns
    cleaned.json, written last: how many were "audited", "left_out" and, of the whole source, "kept", and how many
    "labeled" ones were added. `UserError` for a pool that is built in or has changed since the audit, and where nothing
    would be left, of the audited images or of a class.
    """
    check(options, out, reject)
    labeled, pool = load(options)
    require_same(weights.read_json(out / RECORD), out, labeled, pool)
    if (out / CLEANING).exists():
        return weights.read_json(out / CLEANING)
    ranking = [row for _, row in parquet.Parquet.open(str(out / RANKING)).rows(["row", "suspicion"])]
    suspects = {int(row or 0) for row, suspicion in ranking if float(suspicion or 0) >= reject}
    if len(suspects) == len(ranking):
        told = f"--reject {reject:g} would leave none of the {len(ranking)} images that were audited"
        raise UserError(f"{told}: raise it, if the labeled images stand for the real ones among these.")
    added = [] if pool.classes else [row for row in _rows(options.labeled, labeled) if row[1] is not None]
    kept = [*_rows(options.pool, pool, options.pool == options.labeled, suspects)]
    left = {label for _, label, split in kept if split == "train"}
    if lost := [name for name in pool.classes if name not in left]:
        raise UserError(f"--reject {reject:g} would leave no image of class '{lost[0]}' for training: raise it.")
    columns = zip(*added, *kept, strict=True)
    parquet.write(out / CLEANED, {name: [*column] for name, column in zip(COLUMNS, columns, strict=True)})
    counts = {"kept": len(kept), "left_out": len(suspects), "audited": len(ranking), "labeled": len(added)}
    weights.write_json(out / CLEANING, {"reject": reject, **counts})
    return {"reject": reject, **counts}


def told(out: Path, record: Mapping[str, Any]) -> str:
    """What a cleaning did, with a warning where it left next to nothing."""
    kept, left_out, audited = record["kept"], record["left_out"], record["audited"]
    text = f"{out / CLEANED}, {left_out} images left out, {kept} kept"
    if record["labeled"]:
        text += f", and {record['labeled']} labeled images before them"
    if audited - left_out < FEW * audited:
        text += f"\nWARNING: of {audited} images that were audited {audited - left_out} are left. Look at the ranking."
    return text


def _rows(name: str, data: Dataset, classes: bool = True, left_out: Container[int] = ()) -> Iterator[Row]:
    """The content, the label and the split of each image but these rows, in the order of the source."""
    if not datasets.is_own(name):
        for split in SPLITS[:3]:
            images = data.pool if split == "train" else getattr(data, split)
            labels = (data.classes[y] for y in images.y.tolist())
            for x, label in zip((x for batch in images.batches(1000) for x in batch), labels, strict=True):
                yield _png(x.permute(1, 2, 0).squeeze(2).numpy(), label), label, split
        return
    catalog, rows = own.located(name, data.reading, classes)
    for row in sorted(row for part in rows.values() for row in part.tolist()):
        if row not in left_out:
            label = int(catalog.labels[row])
            text = catalog.classes[label] if label >= 0 else None
            yield _content(catalog.items[row]), text, SPLITS[int(catalog.splits[row])]


def _content(item: Item) -> bytes:
    """The bytes of a file; of an array, those of a PNG of it."""
    content = item.read()
    return content if isinstance(content, bytes) else _png(content, item.name)


def _png(pixels: npt.NDArray[Any], name: str) -> bytes:
    file = io.BytesIO()
    decode.converted(pixels, name)[0].save(file, "png")
    return file.getvalue()
