"""Data that are listed in a file: CSV, TSV and Parquet manifests.

A manifest has the columns path, label and, if not all is for training, split; a blank label means unlabeled. Paths are
relative to it. A Parquet file may hold the images themselves in a column `image`.
"""

from __future__ import annotations

import csv
import io
import posixpath
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from semisynth.data import items
from semisynth.data.catalog import SPLITS, UNLABELED, WHOLE, Listing
from semisynth.data.items import Files, shown
from semisynth.data.parquet import Parquet
from semisynth.errors import UserError, choose

Row = tuple[str, str | None, str]  # path, label, split
COLUMNS = ("path", "label", "split")
MISSING = ("nan", "NaN", "NA", "<NA>", "None")  # what programs write where there is no label


def read(path: str, suffix: str, labels: bool = True) -> Listing:
    """The listing of a manifest, by the suffix of its name; labels: whether the column of that name must be there."""
    needed = ("label",) * labels
    return parquet(path, needed) if suffix == ".parquet" else table(path, "\t" if suffix == ".tsv" else ",", needed)


# ---- rows that name files -------------------------------------------------------------------------------------------


def table(path: str, delimiter: str, needed: Sequence[str] = ("label",)) -> Listing:
    """The listing of a CSV or TSV file, of which some columns are needed besides the path."""
    return _files(path, lines(path, delimiter, ("path", *needed)))


def lines(path: str, delimiter: str, needed: Sequence[str] = COLUMNS[:2]) -> Iterator[tuple[str, Row]]:
    """Each row and where it is, in the order of `COLUMNS`, of which some are needed."""
    try:
        with _text(path) as file:
            reader = csv.reader(file, delimiter=delimiter)
            head = [name.strip() for name in next(reader, [])]
            places = _places(path, head, needed)
            for cells in reader:
                if len(cells) not in (0, len(head)):
                    raise UserError(
                        f"{path}, line {reader.line_num}: {len(cells)} fields, but the header has {len(head)}. "
                        "Quote a field in which the delimiter occurs."
                    )
                if cells:
                    row = [cells[place] if place is not None else "" for place in places]
                    yield f"line {reader.line_num}", (row[0], row[1], row[2])
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}. It must be CSV in UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def _text(path: str) -> io.TextIOBase:
    if items.remote(path):
        return io.TextIOWrapper(io.BytesIO(items.listed(path)), "utf-8-sig", "surrogateescape", newline="")
    return open(path, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _places(path: str, head: Sequence[str], needed: Iterable[str]) -> list[int | None]:
    """Where the columns are; `UserError` if one is missing or occurs twice."""
    for name in needed:
        if head.count(name) != 1:
            told = "is missing" if name not in head else "occurs twice"
            raise UserError(
                f"{path}: the column '{name}' {told}. It has: {', '.join(map(shown, head)) or 'nothing'}. "
                f"{_hint(name, head)}A manifest needs path and label, and may have split."
            )
    return [head.index(name) if name in head else None for name in COLUMNS]


def _hint(name: str, head: Sequence[str]) -> str:
    text = "".join(head)
    if "\0" in text or text.startswith("\udcff\udcfe"):
        return "It seems to be UTF-16: save it as UTF-8. "
    marks = {";": "semicolons", "\t": "tabs", ",": "commas"}
    if len(head) == 1 and (mark := next((mark for mark in marks if mark in text), None)):
        return f"It seems to be separated by {marks[mark]}: a .csv needs commas, and a .tsv tabs. "
    near = [column for column in head if column.strip().lower() == name and column != name]
    return f"Write '{near[0]}' as '{name}'. " if near else ""


def _files(path: str, rows: Iterable[tuple[str, Row]]) -> Listing:
    """A listing of files, each once."""
    labels: list[str | None] = []
    splits, interned = array("B"), dict[str, str]()

    def paths() -> Iterator[str]:
        for where, (name, label, split) in rows:
            yield inside(f"{path}, {where}", name)
            label, number = _typed(f"{path}, {where}", label, split)
            labels.append(None if label is None else interned.setdefault(label, label))
            splits.append(number)

    files = Files(items.parent(path), paths())
    return _once(path, numbered(path, Listing(files, labels, splits, typed=True)))


def numbered(path: str, listing: Listing) -> Listing:
    """With -1 taken for no label where all labels are whole numbers, as in arrays, and that noted."""
    rows = [row for row, label in enumerate(listing.labels) if label is not None and label.strip() == "-1"]
    if not rows or not all(re.fullmatch(WHOLE, label.strip()) for label in {*listing.labels} if label is not None):
        return listing
    for row in rows:
        label, split = placed(f"{path}, {listing.items[row].name}", None, SPLITS[listing.splits[row]])
        listing.labels[row], listing.splits[row] = label, split
    listing.notes.append(f"labels -1, which mean none where all are whole numbers: {len(rows)}")
    return listing


def placed(where: str, label: str | None, split: str) -> tuple[str | None, int]:
    """The label, None where it is blank, and the split of a row."""
    split = split.strip() or "train"
    number = SPLITS.index(split if split in SPLITS else choose(shown(split), SPLITS, f"split in {where}:"))
    if label is None or not label.strip():
        if split in ("validation", "test"):
            raise UserError(f"{where}: the label is blank, and an image for {split} needs one.")
        return None, UNLABELED
    if number == UNLABELED:
        raise UserError(f"{where}: an image of the split unlabeled has the label '{shown(label)}'. Choose one of both.")
    return label, number


def written(where: str, label: str | None) -> str | None:
    """The label; `UserError` for what programs write where there is none."""
    if label is not None and label.strip() in MISSING:
        raise UserError(
            f"{where}: the label '{label.strip()}' is what programs write where there is none: leave it blank, or give "
            "the class another name."
        )
    return label


def _typed(where: str, label: str | None, split: str) -> tuple[str | None, int]:
    """As `placed`; -1 is no label either."""
    label = written(where, label)
    return placed(where, None if label and label.strip() == "-1" and split.strip() == "unlabeled" else label, split)


def inside(where: str, path: str) -> str:
    """The path, normalised; `UserError` if it is blank or does not stay below the manifest."""
    found = posixpath.normpath(path.strip() and path)
    if found == "." or "\0" in found:
        raise UserError(f"{where}: the path is blank, or no path.")
    outside = found.startswith(("/", "../", "\\")) or found == ".." or items.remote(path)
    if outside or re.match(r"[A-Za-z]:[\\/]", found):
        raise UserError(
            f"{where}: '{shown(path)}' leads out of the manifest's folder. Give a path below and relative to it."
        )
    return found


def _once(path: str, listing: Listing) -> Listing:
    """Without the rows that are there twice; `UserError` if they differ in label or split."""
    files, repeated = listing.items, set[int]()
    assert isinstance(files, Files)
    for row, other in _repeats(files):
        told = [(listing.labels[i], SPLITS[listing.splits[i]]) for i in (row, other)]
        if told[0] != told[1]:
            named = " and ".join(f"'{shown(label or '')}' in {split}" for label, split in told)
            raise UserError(f"{path}: {files[row].name} is listed as {named}. Keep the row that is right.")
        repeated.add(other)
    if not repeated:
        return listing
    kept = [row for row in range(len(files)) if row not in repeated]
    return Listing(
        Files(files.root, (files.at(row).path for row in kept)),
        [listing.labels[row] for row in kept],
        array("B", (listing.splits[row] for row in kept)),
        [*listing.notes, f"rows passed over, as they are there already: {len(repeated)}"],
        typed=True,
    )


def _repeats(files: Files) -> Iterator[tuple[int, int]]:
    """Rows of the same path: the first one and each later one. By sorted hashes: a set would take much memory."""
    hashes = np.fromiter((hash(files.at(row).path) for row in range(len(files))), np.int64, len(files))
    order = hashes.argsort(kind="stable")
    alike = np.flatnonzero(np.diff(hashes[order]) == 0)
    first: dict[str, int] = {}
    for row in sorted({*order[alike].tolist(), *order[alike + 1].tolist()}):
        if (other := first.setdefault(files.at(row).path, row)) != row:
            yield other, row


# ---- Parquet --------------------------------------------------------------------------------------------------------


def parquet(path: str, needed: Sequence[str] = ("label",)) -> Listing:
    """The listing of a Parquet file: of paths, or with the images in it; some columns are needed besides those."""
    file = Parquet.open(path)
    if "image" not in file.columns:
        _places(path, file.columns, ("path", *needed))
        return _files(path, ((f"row {i}", (row[0] or "", row[1], row[2] or "")) for i, row in file.rows(COLUMNS)))
    _places(path, file.columns, ("image", *needed))
    rows = [_typed(f"{path}, row {i}", row[1], row[2] or "") for i, row in file.rows(COLUMNS)]
    labels, splits = [label for label, _ in rows], array("B", (split for _, split in rows))
    return numbered(path, Listing(file, labels, splits, typed=True))
