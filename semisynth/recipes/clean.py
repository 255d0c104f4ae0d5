"""A pool without the images that an audit suspects, as a data set of its own; no image is touched."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semisynth import weights
from semisynth.data import datasets, decode, own, parquet
from semisynth.data.catalog import SPLITS
from semisynth.data.items import Item
from semisynth.errors import UserError, between
from semisynth.recipes import directory
from semisynth.recipes.audit import RANKING, RECORD, Audit, load

CLEANED, CLEANING = "cleaned.parquet", "cleaned.json"


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

    It has the files' own bytes. Left out are the images of a suspicion of `reject` or more. Returns cleaned.json,
    written last: how many were "kept" and "left_out". `UserError` for a pool that is built in or has changed since the
    audit, and where nothing would be left of a class.
    """
    check(options, out, reject)
    if (out / CLEANING).exists():
        return weights.read_json(out / CLEANING)
    _, pool = load(options)
    if pool.describe()["hash"] != weights.read_json(out / RECORD)["data"]["pool"]:
        raise UserError(f"{options.pool} is no longer what {out} was made from: audit it again, with another --out.")
    ranking = parquet.Parquet.open(str(out / RANKING)).rows(["row", "suspicion"])
    suspects = {int(row or 0) for _, (row, suspicion) in ranking if float(suspicion or 0) >= reject}
    catalog, rows = own.located(options.pool, pool.reading)
    kept = sorted(row for part in rows.values() for row in part.tolist() if row not in suspects)
    splits = [SPLITS[i] for i in catalog.splits[kept].tolist()]
    labels = [catalog.classes[label] if label >= 0 else None for label in catalog.labels[kept].tolist()]
    left = {label for label, split in zip(labels, splits, strict=True) if split == "train"}
    if lost := [name for name in catalog.classes if name not in left]:
        raise UserError(f"--reject {reject:g} would leave no image of class '{lost[0]}' for training: raise it.")
    images = [_content(catalog.items[row]) for row in kept]
    columns: dict[str, Sequence[object]] = {"image": images, "label": labels, "split": splits}
    parquet.write(out / CLEANED, columns)
    record = {"reject": reject, "kept": len(kept), "left_out": len(suspects)}
    weights.write_json(out / CLEANING, record)
    return record


def _content(item: Item) -> bytes:
    """The bytes of a file; of an array, those of a PNG of it."""
    content = item.read()
    if isinstance(content, bytes):
        return content
    file = io.BytesIO()
    decode.converted(content, item.name)[0].save(file, "png")
    return file.getvalue()
