"""From images to a table, as CSV: the label of each, the confidence in it, and the probability of every class.

Images are read, classified and written batch by batch, so that memory does not grow with their number.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semisynth import weights
from semisynth.data import given
from semisynth.data.catalog import SUFFIXES
from semisynth.data.items import File, Item, joined
from semisynth.errors import UserError, between
from semisynth.predictor import Predictor, Unreadable, answers

COLUMNS = ("file", "label", "confidence")
CLASS = "probability_"  # before a class in the name of its column, which so is none of the first three


@dataclass
class Summary:
    """What became of the images.

    images: how many are in the table `out`; rejected: how many of them without a label; labels: how often each was
    given; unreadable: file and reason of each that is in the table `listing` instead, if there are any.
    """

    out: str
    images: int = 0
    rejected: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    unreadable: list[dict[str, str]] = field(default_factory=list)
    listing: str | None = None

    def add(self, label: str | None) -> None:
        """Count one more."""
        self.images += 1
        if label is None:
            self.rejected += 1
        else:
            self.labels[label] = self.labels.get(label, 0) + 1


def predict(
    run: Path,
    sources: Sequence[str],
    out: Path,
    *,
    reject: float = 0.0,
    batch: int = 64,
    device: str = "auto",
    show: bool = True,
) -> Summary:
    """Write the table of the images of all sources (see `data.given`), in their order, to `out`.

    The label is blank where the confidence is below `reject`. Files that cannot be read are left out, told on stderr
    (if `show`) and listed in a table beside `out`. `UserError` if none can be read; then nothing is written.
    """
    between(0, 1, reject=reject)
    between(1, 2**20, batch=batch)
    listing = out.with_name(f"{out.stem}.unreadable.csv")
    _check_out(out, listing, sources)
    images = [given.images(source) for source in sources]
    _check_images(out, listing, itertools.chain.from_iterable(images))
    predictor, found, unreadable = Predictor.of(run, device), Summary(str(out)), Unreadable(show)
    with _table(out, [*COLUMNS, *(CLASS + name for name in predictor.classes)]) as write:
        for answer in answers(predictor, itertools.chain.from_iterable(images), sum(map(len, images)), batch):
            if unreadable.skip(answer) or answer.logits is None:
                continue
            label, confidence, p = predictor.decide(answer.logits, reject)
            write([answer.name, label, *(f"{value:.6f}" for value in (confidence, *p))])
            found.add(label)
        unreadable.check()
    found.unreadable = unreadable.rows
    found.listing = str(listing) if unreadable.rows else None
    _list(unreadable.rows, listing)
    return found


def _check_out(out: Path, listing: Path, sources: Sequence[str]) -> None:
    """`UserError` for a table that would be a directory, or take the place of what is to be read."""
    if out.is_dir():
        raise UserError(f"--out {out} is a directory: give a file in it, such as {out / 'predictions.csv'}.")
    if out.suffix.lower() in SUFFIXES:
        raise UserError(f"--out {out} is called as an image is: give a table, such as {out.with_suffix('.csv')}.")
    for source in sources:
        if Path(source).resolve() in (out.resolve(), listing.resolve()):
            raise UserError(f"--out {out} would take the place of {source}: give another file.")


def _check_images(out: Path, listing: Path, images: Iterable[Item]) -> None:
    """`UserError` for a table that would take the place of an image, whatever that is called."""
    tables = {file.name: file.resolve() for file in (out, listing)}
    for item in images:
        if isinstance(item, File) and (table := tables.get(os.path.basename(item.path))):
            image = joined(item.root, item.path)
            if Path(image).resolve() == table:
                raise UserError(f"--out {out} would take the place of {image}: give another file.")


@contextlib.contextmanager
def _table(out: Path, head: Sequence[str]) -> Iterator[Callable[[Sequence[Any]], Any]]:
    """What writes a row; the file is there once all of it is, and what an interruption leaves is kept beside."""
    with weights.replacing(out) as beside:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                write = csv.writer(file, lineterminator="\n").writerow
                write(head)
                yield write
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"what was predicted until then is in {beside}") from stop


def _list(unreadable: Sequence[dict[str, str]], listing: Path) -> None:
    """The table of what could not be read; one of an earlier call is removed if there is nothing."""
    if not unreadable:
        listing.unlink(missing_ok=True)
        return
    with _table(listing, ["file", "reason"]) as write:
        for row in unreadable:
            write([row["file"], row["reason"]])
