"""A probe for people: a row for each measure, a column for each number of labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 160  # of what is no terminal

NAMES = {"linear": "linear, {}", "knn": "kNN, {}", "frozen": "fine-tuned head", "full": "fine-tuned network"}
NOTE = (
    "Test accuracy in %, with 95 % intervals over seeds, or, where marked *, over the test images alone. L2 and k are "
    "those that were best on {images} validation images; for fine-tuning nothing is chosen. Blocks are averaged over "
    "positions."
)


def show(record: Mapping[str, Any]) -> None:
    """Print the accuracies."""
    console, run = Console(highlight=False, markup=False), record["run"]
    if not console.is_terminal:
        console.width = WIDTH
    what = f"{run['method'] or 'random features'}, {run['model']}"
    console.print(f"{run['path']} ({what}) on {record['data']['source']}", soft_wrap=True)
    console.print(table(record))
    console.print(NOTE.format(images=record["selection"]["images"]), soft_wrap=True)


def table(record: Mapping[str, Any]) -> Table:
    """The accuracies by measure and number of labels."""
    counts = sorted({row["labels_per_class"] for row in record["rows"]}, key=lambda count: count or float("inf"))
    made = Table(box=box.SIMPLE)
    made.add_column("")
    for count in counts:
        made.add_column(f"{count} per class" if count else "all labels", justify="right")
    cells: dict[str, dict[int, str]] = {}
    for row in record["rows"]:
        cells.setdefault(NAMES[row["measure"]].format(row["block"]), {})[row["labels_per_class"]] = _cell(row)
    for name, its in cells.items():
        made.add_row(name, *(its.get(count, "") for count in counts))
    return made


def _cell(row: Mapping[str, Any]) -> str:
    low, high = (f"{100 * end:.1f}" for end in row["interval"])
    return f"{100 * row['accuracy']:.1f} [{low}, {high}]{'*' if row['over'] == 'images' else ' '}"
