"""Sets of the `datasets` library, on the Hugging Face hub or in a local folder."""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from semisynth.data import items
from semisynth.data.catalog import SPLITS, UNLABELED, WHOLE, Listing
from semisynth.data.items import Items, shown
from semisynth.data.manifests import written
from semisynth.data.parquet import embedded, text
from semisynth.errors import UserError, line

# What splits are called there besides our own names.
ALIASES = {"valid": "validation", "val": "validation", "dev": "validation", "unsupervised": "unlabeled"}

MUCH = 300  # characters of what that library says


@dataclass(frozen=True)
class Hosted:
    """An image of a set of the `datasets` library."""

    rows: Any
    column: str
    split: str
    row: int

    @property
    def name(self) -> str:
        """The split and the row in it."""
        return f"{self.split}[{self.row}]"

    @property
    def stamp(self) -> str:
        """The library's own, and the row."""
        return f"{self.rows._fingerprint}[{self.row}]"

    def read(self) -> bytes:
        """The image's bytes."""
        value = self.rows[self.row][self.column]
        if value and value["bytes"] is None and value["path"]:
            return items.content(value["path"], self.name)
        return embedded(value, self.name)


class Hub(Items):
    """The images of several splits, one after the other."""

    def __init__(self, parts: Sequence[tuple[str, Any, str]]) -> None:
        self.parts, self.starts = parts, [0]
        for _, rows, _ in parts:
            self.starts.append(self.starts[-1] + len(rows))

    def __len__(self) -> int:
        return self.starts[-1]

    def at(self, row: int) -> Hosted:
        """The image of a row."""
        part = bisect_right(self.starts, row) - 1
        split, rows, column = self.parts[part]
        return Hosted(rows, column, split, row - self.starts[part])


def read(name: str, source: str) -> Listing:
    """The listing of a set on the Hugging Face hub, NAME or NAME/CONFIG, or of a local folder."""
    library = _library()
    parts: list[tuple[str, Any, str]] = []
    notes: list[str] = []
    labels: list[str | None] = []
    splits, used = array("B"), dict[str, None]()
    for split, rows in _loaded(library, name, source).items():
        known = ALIASES.get(split, split)
        image, label = _columns(library, rows.features, source)
        found = _labels(rows, label, f"{source}, {split}")
        if known not in SPLITS or (known in ("validation", "test") and not any(found)):
            notes.append(f"the split {split} was passed over: {'it has no labels' if known in SPLITS else 'unknown'}")
            continue
        parts.append((split, rows.select_columns([image]).cast_column(image, library.Image(decode=False)), image))
        labels += [None] * len(rows) if known == "unlabeled" else found
        number = SPLITS.index(known)
        splits.extend(UNLABELED if text is None else number for text in labels[len(splits) :])
        used |= dict.fromkeys(getattr(rows.features[label], "names", ()))
    there = set(labels)
    classes = tuple(shown(text) for text in used if text in there)
    return Listing(Hub(parts), labels, splits, notes, classes or None)


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError("hub: needs the library datasets: pip install 'semisynth[hub]'.") from error
    return datasets


def _loaded(library: Any, name: str, source: str) -> dict[str, Any]:
    """Its splits by name."""
    try:
        saved = any(os.path.exists(os.path.join(name, file)) for file in ("dataset_dict.json", "state.json"))
        if saved:
            found = library.load_from_disk(name)
        else:
            local = os.path.isdir(name)
            *first, config = name.split("/") if not local and name.count("/") == 2 else (name, None)
            found = library.load_dataset("/".join(first), config)
    except Exception as error:  # the library's own, and those of everything below it
        told = line(error).rstrip(".")[:MUCH]
        raise UserError(f"{source} cannot be loaded: {told}. Check the name and the connection.") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _columns(library: Any, features: Any, source: str) -> tuple[str, str]:
    """The columns of the images and of the labels."""
    images = [name for name, kind in features.items() if isinstance(kind, library.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, library.ClassLabel)]
    image = next((name for name in ("image", "img") if name in images), images[0] if len(images) == 1 else None)
    label = "label" if "label" in features else labels[0] if len(labels) == 1 else None
    if image is None or label is None:
        what = "image" if image is None else "label"
        raise UserError(f"{source}: no column '{what}' among {', '.join(features)}: rename one, and save the set anew.")
    return image, label


def _labels(rows: Any, column: str, where: str) -> list[str | None]:
    """Each row's label as text; -1 in a column of class names or of whole numbers means none."""
    names = getattr(rows.features[column], "names", None)
    values = list(rows[column])
    if names is None:
        texts = [written(where, text(value, where)) for value in values]
        whole = all(found is None or re.fullmatch(WHOLE, found) for found in texts)
        return [found if found and found.strip() and not (whole and found == "-1") else None for found in texts]
    return [None if value is None or value < 0 else names[value] for value in values]
