"""Many fits by a few workers: a run directory for each, finished ones skipped, failures told at the end."""

from __future__ import annotations

import re
import traceback
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from semisynth import clusters, weights
from semisynth.clusters import Workers
from semisynth.data import datasets
from semisynth.data.datasets import Dataset
from semisynth.errors import UserError
from semisynth.log import console
from semisynth.recipes import origin, single
from semisynth.recipes.config import Config
from semisynth.recipes.materials import Materials
from semisynth.runs import flatten

NEEDED: Mapping[str, Any] = {  # of a result, by `tune` and `bench`
    "test.accuracy": int | float,
    "validation.accuracy": int | float,
    "validation.loss": int | float,
    "seconds": int | float,
    "environment.commit": str | None,
    "environment.device": str,
}


@dataclass(frozen=True)
class Cell:
    """One fit and its run directory."""

    path: Path
    config: Config

    def result(self) -> dict[str, Any]:
        """What the finished run wrote; `UserError` where it lacks what a search or a table is made of."""
        file = self.path / "result.json"
        found = weights.read_json(file)
        flat = flatten(found)
        for name, kind in NEEDED.items():
            if name not in flat or not isinstance(flat[name], kind):
                problem = "has a wrong value" if name in flat else "is missing"
                raise UserError(f"{file}: '{name}' {problem}: delete the file, and run the same command again.")
        return found


def run(cells: Sequence[Cell], workers: Workers = 1, name: str = "cells") -> dict[Path, Exception]:
    """Run, in this order, every cell that is not finished; returns the errors of cells that failed, by their paths.

    Each worker is a process of its own that computes on one thread, whatever the number of workers. Raises
    `UserError`, before any cell starts, when one holds another configuration.
    """
    clusters.require(workers)
    missing = [cell for cell in cells if single.finished(cell.config, cell.path) is None]
    failures: dict[Path, Exception] = {}
    if not missing:
        return failures
    with (
        clusters.pool(workers, len(missing), missing[0].config.engine.device) as pool,
        _Bar(name, len(cells), len(cells) - len(missing)) as bar,
    ):
        futures = {pool.submit(_fit, cell): cell for cell in missing}
        for future in as_completed(futures):
            if (error := _error(future)) is not None:
                failures[futures[future].path] = error
            bar.step(len(failures))
    return failures


def check(cells: Sequence[Cell], split: str, workers: Workers = 1) -> None:
    """Build what the first seed of each setting names: a mistake is told before anything is written or trained.

    split: what will be measured on, which the data must have.
    """
    clusters.require(workers)
    for cell in {cell.path.parent: cell for cell in reversed(cells)}.values():
        if not (cell.path / "result.json").exists():
            data = Materials(cell.config).data
            if not len(getattr(data, split)):
                raise UserError(f"data set '{data.name}' has no images for {split}: add some, or give --holdout 0.2.")
    _check_data(cells)


def _check_data(cells: Sequence[Cell]) -> None:
    """`UserError` for a cell that was begun on other data of the user's own; what is alike is loaded once."""
    found: dict[tuple[object, ...], Dataset] = {}
    for cell in cells:
        setting = cell.config.setting
        if datasets.is_own(setting.data) and (cell.path / origin.FILE).exists():
            key = setting.data, setting.generator, cell.config.reading
            if key not in found:
                found[key] = origin.load(cell.config)
            origin.require(found[key], cell.path)


def require(failures: Mapping[Path, Exception]) -> None:
    """Raise one `UserError` that names every failed cell, if any failed."""
    alike: dict[str, list[str]] = defaultdict(list)
    for path, error in failures.items():
        alike[str(error) if isinstance(error, UserError) else repr(error)].append(str(path))
    if alike:
        told = "\n".join(f"  {', '.join(sorted(paths))}: {error}" for error, paths in alike.items())
        count = "1 cell" if len(failures) == 1 else f"{len(failures)} cells"
        raise UserError(f"{count} failed; the others are kept, and the same command runs only what is missing.\n{told}")


def numbers(text: str, option: str) -> list[int]:
    """The numbers of a list like "0-9" or "100-109,120"; `UserError` for anything else, and for an empty range."""
    found: list[int] = []
    for part in text.replace(" ", "").split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        chosen = range(int(ends[1]), int(ends[2] or ends[1]) + 1) if ends else range(0)
        if not chosen:
            raise UserError(f"{option} {text}: '{part}' is no number or range; write for example 0-9 or 0,3,7.")
        found.extend(chosen)
    return list(dict.fromkeys(found))


def _fit(cell: Cell) -> None:
    single.fit(cell.config, cell.path, show=False)


def _error(future: Future[None]) -> Exception | None:
    """Why a cell failed; what is no mistake of the user's is printed in full as well."""
    try:
        future.result()
    except UserError as error:
        return error
    except BrokenExecutor:
        raise
    except Exception as error:
        console.print("".join(traceback.format_exception(error)), markup=False, highlight=False)
        return error
    return None


class _Bar:
    """A progress bar over cells with the time left; a plain line for each cell where there is no terminal."""

    def __init__(self, name: str, total: int, done: int) -> None:
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("cells{task.fields[note]}"))
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False))
        # A cell takes up to minutes, and the speed is a mean over this period.
        self.progress = Progress(*columns, *times, console=console, speed_estimate_period=1800)
        self.task = self.progress.add_task(name, total=total, completed=done, note="")

    def __enter__(self) -> _Bar:
        if console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def step(self, failed: int) -> None:
        """One more cell is done, or has failed."""
        self.progress.update(self.task, advance=1, note=f", {failed} failed" if failed else "")
        if not console.is_terminal:
            task = self.progress.tasks[0]
            left = "" if task.time_remaining is None else f", {task.time_remaining:.0f} s left"
            console.print(f"{task.description}: {task.completed:.0f}/{task.total:.0f} cells{left}", highlight=False)
